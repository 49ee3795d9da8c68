"""The diffusion transformer, beside diffusers' blocks, and in the place of the U-Net."""

from dataclasses import replace

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from helpers import with_random_weights
from torch import nn
from training_helpers import TINY, squares, train

from mnist_ddpm import catalogue, ddpm
from mnist_ddpm.catalogue import make_denoiser, make_network
from mnist_ddpm.ddpm import to_float
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.method import Batch
from mnist_ddpm.methods.guidance import with_labels
from mnist_ddpm.methods.just_transformer import JiT, JiTBlock, rotary_angles, rotated
from mnist_ddpm.methods.transformer import DiT, DiTBlock, position_embedding
from mnist_ddpm.recipe import Recipe
from mnist_ddpm.training.cost import count_parameters, network_cost, recompute_blocks
from mnist_ddpm.training.first_weights import initial_weights
from mnist_ddpm.training.loop import start_run, training_loop

X, T = torch.randn(3, 1, 8, 8, generator=ddpm.random_generator(0)), torch.tensor([1, 40, 50])
SMALL = replace(TINY, network="dit", base_channels=16, channel_mults=(1,))


def test_a_fresh_one_says_0_and_its_blocks_change_nothing():
    network = DiT(width=32, depth=2, out_channels=2)
    assert torch.equal(network(X, T), torch.zeros(3, 2, 8, 8))
    h, said = torch.randn(2, 5, 32), torch.randn(2, 32)
    assert torch.equal(network.blocks[0](h, said), h)


def test_a_block_is_that_of_another_implementation():
    ours = with_random_weights(DiTBlock(128, heads=2, dropout=0.0))
    theirs = BasicTransformerBlock(
        128, 2, 64, activation_fn="gelu-approximate", attention_bias=True, num_embeds_ada_norm=1,
        norm_type="ada_norm_zero", norm_elementwise_affine=False, norm_eps=1e-6,
    ).eval()  # fmt: skip
    x, said = torch.randn(2, 7, 128), torch.randn(2, 128)
    theirs.norm1.emb.forward = lambda *arguments, **options: said
    for part, weight, bias in zip("qkv", ours.qkv.weight.chunk(3), ours.qkv.bias.chunk(3)):
        layer = getattr(theirs.attn1, f"to_{part}")
        layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
    theirs.attn1.to_out[0] = ours.out
    theirs.ff.net[0].proj, theirs.ff.net[2] = ours.mlp[0], ours.mlp[3]
    theirs.norm1.linear = ours.modulation
    theirs.norm3 = nn.LayerNorm(128, eps=1e-6, elementwise_affine=False)
    wanted = theirs(x, timestep=torch.zeros(2), class_labels=torch.zeros(2, dtype=torch.long))
    torch.testing.assert_close(ours(x, said), wanted, rtol=1e-4, atol=1e-4)


def test_positions_are_those_of_another_implementation():
    wanted = get_2d_sincos_pos_embed(16, (6, 6), base_size=6, output_type="pt")
    torch.testing.assert_close(position_embedding(6, 6, 16, X), wanted.float(), rtol=0, atol=1e-5)
    wide = position_embedding(3, 5, 16, X)
    assert torch.equal(wide, position_embedding(5, 5, 16, X)[:15]) and len(wide.unique(dim=0)) == 15


def test_the_order_of_patches_counts():
    network, order = with_random_weights(DiT(width=32, depth=2)), torch.tensor([2, 0, 3, 1])

    def swapped(images):  # the rows of patches, two pixels high
        return images.unflatten(2, (4, 2))[:, :, order].flatten(2, 3)

    assert not torch.allclose(network(swapped(X), T), swapped(network(X, T)), atol=1e-3)


def test_a_patch_comes_out_where_it_went_in():
    """With blocks that do nothing, a pixel of the output depends on its own patch alone."""
    network = DiT(width=32, depth=1)
    nn.init.normal_(network.last.weight)
    x = X[:1].clone().requires_grad_()
    network(x, T[:1])[0, 0, 2, 5].backward()
    (rows, columns) = (x.grad[0, 0].abs().sum(dim=k).nonzero().flatten().tolist() for k in (1, 0))
    assert (rows, columns) == ([2, 3], [4, 5])


def test_labels_times_and_images_count():
    network = with_random_weights(DiT(width=32, depth=2, classes=3))
    labels = torch.tensor([0, 1, 2])
    unknown, known = network(X, T), network(X, T, labels)
    assert torch.equal(unknown, network(X, T, torch.full((3,), 3)))
    assert not torch.allclose(unknown, known, atol=1e-3)
    assert not torch.allclose(unknown, network(X, T + 0.5), atol=1e-4), "fractions too"
    each = torch.cat([network(X[k : k + 1], T[k : k + 1], labels[k : k + 1]) for k in range(3)])
    torch.testing.assert_close(each, known, rtol=0, atol=1e-5)
    wide = network(torch.randn(2, 1, 4, 10), T[:2])
    assert wide.shape == (2, 1, 4, 10)
    with pytest.raises(ValueError, match="30"):
        DiT(width=30)


def test_it_takes_the_unet_s_place_with_as_many_parameters():
    with torch.device("meta"):
        dit, unet = (make_network(Recipe(network=name)) for name in ("dit", "unet"))
    assert isinstance(dit, DiT) and 0.9 < count_parameters(dit) / count_parameters(unet) < 1.1
    whole = network_cost(SMALL, make_network)
    spared = network_cost(replace(SMALL, gradient_checkpointing=True), make_network)
    assert whole.flops > 0 and whole.memory > 16 * whole.parameters > 0
    assert spared.memory < 0.7 * whole.memory


def test_blocks_that_are_recomputed_give_the_same_gradients():
    plain, frugal = (with_random_weights(DiT(width=32, depth=2)) for _ in range(2))
    recompute_blocks(frugal)
    for network in (plain, frugal):
        network(X, T).square().mean().backward()
    for a, b in zip(plain.parameters(), frugal.parameters()):
        torch.testing.assert_close(a.grad, b.grad)


def test_it_is_trained_saved_and_drawn_like_any_other(tmp_path):
    names = {"objective": "hybrid", "prediction": "v", "classes": 3, "optimizer": "muon"}
    recipe = replace(SMALL, epochs=1, **names)
    images, labels = squares(32), torch.arange(32) % 3
    train(recipe, images, tmp_path, labels)
    assert train(replace(recipe, epochs=2), images, tmp_path, labels, resume=True).step == 4
    network, schedule, loaded = checkpoints.load(tmp_path)
    assert isinstance(network, DiT) and loaded.network == "dit"
    assert initial_weights(tmp_path)[0]["network"] == "dit"
    denoise = make_denoiser(with_labels(network, torch.tensor([0, 2])), schedule, loaded)
    denoise = ddpm.clipped(denoise, schedule)
    images, _ = ddpm.generate(denoise, schedule, 2, TINY.shape, ddpm.ddim_sampler, steps=3)
    assert images.shape == (2, *TINY.shape)


@pytest.mark.parametrize("name", ["dit", "jit"])
def test_dropout_of_a_recipe_acts_in_training_alone(name):
    network = with_random_weights(make_network(replace(SMALL, network=name, dropout=0.5)))
    assert torch.equal(network(X, T), network(X, T))
    network.train()
    assert not torch.equal(network(X, T), network(X, T))


def test_the_plain_transformer_attends_alike_whatever_the_size_of_queries_and_keys():
    block = with_random_weights(JiTBlock(32, heads=2, dropout=0.0))
    x = torch.randn(2, 12, 32, generator=ddpm.random_generator(0))
    angles = rotary_angles(3, 4, 16)
    before = block.attend(x, angles)
    weights = [*block.qkv.weight.data.chunk(3), *block.qkv.bias.data.chunk(3)]
    for kind in (0, 1):
        for part in weights[kind::3]:
            part *= 10
        torch.testing.assert_close(block.attend(x, angles), before, rtol=1e-3, atol=1e-4)


def test_positions_of_the_plain_transformer_are_relative():
    angles = rotary_angles(5, 6, 16).view(5, 6, 8)
    assert angles[2, 3, [0, 4]].tolist() == [2, 3], "rows first: shipped weights know them so"
    q, k = torch.randn(2, 16, generator=ddpm.random_generator(0), dtype=torch.float64)

    def product(first, second):
        return rotated(q[None], angles[first][None]) @ rotated(k[None], angles[second][None]).T

    torch.testing.assert_close(product((0, 1), (2, 4)), product((2, 2), (4, 5)))
    for other in ((1, 4), (2, 3)):
        assert not torch.allclose(product((0, 1), other), product((0, 1), (2, 4)))


def test_the_plain_transformer_begins_at_0_and_sees_every_patch_and_time():
    network = JiT(width=32, depth=2, patch_size=4)
    assert torch.equal(network(X, T), torch.zeros_like(X))
    network = with_random_weights(network)
    before = network(X, T)
    changed = X.clone()
    changed[:, :, :4, :4] += 1
    assert ((network(changed, T) - before).abs().amax(dim=1) > 0).all()
    assert not torch.equal(network(X, T + 1), before)
    ours, plain = (count_parameters(kind(width=96, depth=4)) for kind in (JiT, DiT))
    assert ours == pytest.approx(plain, rel=0.05)


def test_a_plain_transformer_is_trained_by_the_velocity_s_error():
    changes = {"prediction": "x0", "objective": "velocity", "schedule": "flow", "epochs": 5}
    recipe = replace(SMALL, network="jit", **changes)
    schedule, run, x0 = catalogue.make_schedule(recipe), start_run(recipe), to_float(squares(64))
    t = torch.arange(1, 65) * 50 // 64 + 1
    eps = torch.randn(x0.shape, generator=ddpm.random_generator(0))

    @torch.no_grad()
    def loss():
        return run.method.loss(run.network, schedule, Batch(x0, t.clamp(max=50), eps)).mean()

    before = loss()
    for _ in training_loop(run, squares(), schedule):
        pass
    assert loss() < 0.7 * before
