import pytest
import torch
from conftest import restless

from mnist_ddpm.ddpm import Downsample, SelfAttention, Settings, UNet, group_norm, make_model, time_embedding


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"channels": 3},
        {"image_size": 16},
        {"image_size": 64, "patch_size": 4},
        {"patch_size": 1, "attention_resolutions": (8,)},
        {"image_size": 28, "channel_mults": (1, 2), "attention_resolutions": ()},
        {"image_size": 100, "channel_mults": (1, 2), "attention_resolutions": (25,)},
        {"channel_mults": (2,), "attention_resolutions": ()},
        {"channel_mults": (1, 2), "attention_resolutions": (16, 8)},
        {"base_channels": 7, "blocks_per_level": 2},
        {"base_channels": 1},
    ],
    ids=str,
)
def test_shape_in_is_shape_out(options):
    options = {"base_channels": 8, **options}
    model = UNet(**options)
    x = torch.randn(2, options.get("channels", 1), *2 * [options.get("image_size", 32)])
    assert model(x, torch.tensor([1, 1000])).shape == x.shape


def test_attention_is_where_it_is_asked_for():
    def sides(**options):
        model, seen = UNet(base_channels=8, **options), []
        for module in model.modules():
            if isinstance(module, SelfAttention):
                module.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[-1]))
        model(torch.randn(1, 1, 32, 32), torch.tensor([1]))
        return seen

    assert sides() == sides(attention_resolutions=(4,)) == [4, 4, 4, 4]  # down, middle, up twice
    assert sides(attention_resolutions=()) == [4]
    assert sides(attention_resolutions=(16,)) == [16, 4, 16, 16]


def test_fresh_network_predicts_zero_and_trained_parts_matter():
    model = UNet(base_channels=8)
    x = torch.randn(2, 1, 32, 32)
    assert (model(x, torch.tensor([1, 1000])) == 0).all()
    torch.nn.init.normal_(model.conv_out.weight)
    assert (model(x, torch.tensor([1, 1000])) != 0).any()


def test_network_does_not_ignore_t():
    model = restless(UNet(base_channels=8))
    x = torch.randn(1, 1, 32, 32)
    assert not torch.allclose(model(x, torch.tensor([10])), model(x, torch.tensor([11])), atol=1e-4)


def test_every_parameter_takes_part():
    model = restless(UNet(base_channels=8))
    model(torch.randn(2, 1, 32, 32), torch.tensor([3, 700])).square().mean().backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not idle


def test_gradients_are_those_of_finite_differences():
    """Nothing on the way, such as a detached skip connection, may cut them."""
    model = restless(UNet(base_channels=4).double())
    x, t = torch.randn(1, 1, 32, 32).double(), torch.tensor([300])
    model(x, t).square().mean().backward()
    with torch.no_grad():
        for p in (model.conv_in.weight, model.down[0].residual.conv1.weight, model.time[0].weight):
            direction, h = torch.randn_like(p), 1e-5
            p.add_(h * direction)
            above = model(x, t).square().mean()
            p.sub_(2 * h * direction)
            below = model(x, t).square().mean()
            p.add_(h * direction)
            assert ((above - below) / (2 * h)).item() == pytest.approx((p.grad * direction).sum().item(), rel=1e-4)


def test_downsampling_pads_below_and_right_as_the_papers_weights_need():
    layer = Downsample(1)
    torch.nn.init.zeros_(layer.conv.bias)
    torch.nn.init.zeros_(layer.conv.weight)
    layer.conv.weight.data[0, 0, 0, 0] = 1
    x = torch.randn(1, 1, 6, 6)
    assert torch.equal(layer(x, None), x[:, :, ::2, ::2])


def test_images_of_a_batch_do_not_mix():
    model = restless(UNet(base_channels=8))
    x, t = torch.randn(3, 1, 32, 32), torch.tensor([5, 50, 500])
    together = model(x, t)
    for k in range(3):
        torch.testing.assert_close(together[k : k + 1], model(x[k : k + 1], t[k : k + 1]), rtol=1e-3, atol=1e-4)


def test_making_a_network_leaves_the_generators_of_gpus_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("they are the user's"))
    make_model(Settings(base_channels=8))


def test_weights_depend_on_the_seed_alone():
    torch.manual_seed(5)
    a = make_model(Settings(base_channels=8)).state_dict()
    b = make_model(Settings(base_channels=8)).state_dict()
    c = make_model(Settings(base_channels=8, seed=1)).state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not torch.equal(a["conv_in.weight"], c["conv_in.weight"])


def test_time_embedding_tells_all_times_apart():
    e = time_embedding(torch.arange(1, 1001), 32)
    assert e.shape == (1000, 32) and e.abs().max() <= 1
    assert torch.equal(e[0], torch.tensor([0.0] * 16 + [1.0] * 16))
    assert torch.cdist(e, e).fill_diagonal_(9).min() > 0.1
    assert time_embedding(torch.tensor([4]), 7).shape == (1, 7)


@pytest.mark.parametrize(
    ("channels", "groups"), [(128, 32), (256, 32), (384, 32), (32, 8), (10, 2), (9, 1), (3, 1), (1, 1)]
)
def test_group_norm_works_for_any_channel_count(channels, groups):
    assert group_norm(channels).num_groups == groups


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 30}, "image_size 30 is no multiple of 8.*take 24 or 32"),
        ({"image_size": 4}, "image_size 4 is no multiple of 8.*: take 8, or"),
        ({"channel_mults": ()}, "channel_mults"),
        ({"channel_mults": (1, 0)}, "channel_mults"),
        ({"attention_resolutions": (7,)}, r"attention_resolutions \(7,\) must be among the levels' sides \[16, 8, 4\]"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        UNet(**options)


def test_what_is_computed_again_drops_out_the_same():
    """Else the gradients would be those of another network."""
    torch.manual_seed(0)
    network = UNet(base_channels=8, channel_mults=(1, 2), dropout=0.5).train()
    torch.nn.init.normal_(network.conv_out.weight)
    found = []
    for again in (False, True):
        network.gradient_checkpointing = again
        network.zero_grad()
        torch.manual_seed(1)
        network(torch.ones(2, 1, 16, 16), torch.ones(2, dtype=torch.long)).square().mean().backward()
        found.append(torch.cat([p.grad.flatten() for p in network.parameters()]))
    torch.testing.assert_close(*found)
