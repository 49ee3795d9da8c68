"""An image as the condition: colour from grey, full size from small."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from command_helpers import DIGITS, blobs, error_of, run, save_network, skip_films
from conftest import ROOT
from helpers import change_dataset, equal, untrained_judge, with_random_weights
from PIL import Image
from training_helpers import train

from mnist_ddpm import catalogue, ddpm, generation
from mnist_ddpm.commands.push import push_to_hub
from mnist_ddpm.ddpm import to_float, to_uint8
from mnist_ddpm.evaluation import extractors, losses
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.method import Batch
from mnist_ddpm.methods.conditioning import downsampled, grey, small, with_condition
from mnist_ddpm.recipe import Recipe
from mnist_ddpm.training import loop
from mnist_ddpm.training.first_weights import initial_weights

COLOURS = Recipe(
    dataset="colours", channels=3, image_size=8, base_channels=16, channel_mults=(1,),
    patch_size=1, T=50, prediction="x0", condition="grey", epochs=10, batch_size=16,
    learning_rate=5e-3, warmup_steps=5, ema_decay=0.8,
)  # fmt: skip
UPSCALING = replace(DIGITS, condition="small", classes=0, prediction="x0")


def colours(n: int = 64) -> torch.Tensor:
    """Patterns of pixels that are yellow or blue, as bright ones and dark: uint8 (n, 3, 8, 8)."""
    v = 255 * (noise(n, 1, 8, 8) > 127).byte()
    return torch.cat([v, v, 255 - v], dim=1)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed)).byte()


def save_picture(path, image: torch.Tensor):
    Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy()).save(path)
    return path


def sampled(out, *arguments) -> np.ndarray:
    assert run("sample", "--out", out, "--steps", 4, *arguments) == 0
    return np.load(out / "samples.npz")["images"].astype(int)


def test_grey_is_the_luminance():
    x0 = to_float(noise(4, 3, 6, 9))
    red, green, blue = x0.unbind(dim=1)
    torch.testing.assert_close(grey(x0)[:, 0], 0.299 * red + 0.587 * green + 0.114 * blue)
    pictures = [Image.fromarray(each.permute(1, 2, 0).numpy()) for each in to_uint8(x0)]
    pillows = torch.tensor(np.stack([np.array(each.convert("L")) for each in pictures])).int()
    assert (to_uint8(grey(x0))[:, 0].int() - pillows).abs().max() <= 1, "Pillow cuts off"
    with pytest.raises(ValueError, match="channels"):
        grey(x0[:, :1])


def test_small_is_the_mean_of_each_square_in_full_size():
    x0 = to_float(noise(2, 3, 8, 12))
    means = x0.numpy().reshape(2, 3, 2, 4, 3, 4).mean(axis=(3, 5))
    torch.testing.assert_close(downsampled(x0), torch.from_numpy(means))
    torch.testing.assert_close(small(x0).numpy(), means.repeat(4, axis=2).repeat(4, axis=3))
    with pytest.raises(ValueError, match="6"):
        small(x0[:, :, :6])


def test_each_image_has_a_condition_of_its_own():
    network = with_condition(lambda x, t: x, torch.zeros(3, 1, 4, 4))
    with pytest.raises(ValueError, match="3 .* 2 "):
        network(torch.zeros(2, 1, 4, 4), torch.ones(2))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Colour from grey, learned in seconds."""
    folder = tmp_path_factory.mktemp("trained")
    train(COLOURS, colours(), folder)
    return folder


def test_a_short_training_heeds_the_condition(trained):
    network, schedule, recipe = checkpoints.load(trained)
    pure, x0 = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0)), colours()

    def error(pictures):
        c = catalogue.condition_batch(recipe, pictures, range(64))
        x0_hat, _ = catalogue.make_denoiser(network, schedule, recipe, c)(pure, 50)
        return (x0_hat - to_float(x0)).abs().mean().item()

    assert error(x0) < 0.6 < 0.9 < error(x0.flip(0))


def test_previews_show_the_condition_beside(trained):
    first, *_ = sorted((trained / "previews").iterdir())
    picture = np.array(Image.open(first))
    height, width = picture.shape[:2]
    left, right = picture[:, : width // 2], picture[:, width // 2 :]
    assert width == 2 * height and (left[..., 0] == left[..., 2]).all(), "grey, and colour"
    assert (right[..., 0] != right[..., 2]).any()


def test_the_objective_sees_the_condition_of_the_image_that_it_sees():
    seen = []

    def network(x, t):
        seen.append(x)
        return torch.zeros_like(x[:, :3])

    x0, t = to_float(noise(2, 3, 8, 8)), torch.tensor([3, 40])
    schedule = catalogue.make_schedule(COLOURS)
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
    others = {"distribution-matching", "mean-flow", "drifting"}
    for name in sorted(catalogue.OBJECTIVES.keys() - others):
        recipe = replace(COLOURS, objective=name, prediction="v")
        if not catalogue.learns_variance(recipe):
            catalogue.make_method(recipe).loss(network, schedule, Batch(x0, t, eps))
            assert torch.equal(seen[-1][:, :3], ddpm.q_sample(schedule, x0, t, eps))
    for x in seen:
        assert torch.equal(x[:, 3:], grey(x0))


@pytest.mark.parametrize("condition, more", [("grey", 1), ("small", 3)])
def test_a_condition_goes_with_labels_and_a_learned_variance(condition, more, tmp_path):
    recipe = replace(
        COLOURS, condition=condition, classes=2, objective="hybrid", image_size=(8, 16)
    )
    images, labels = noise(16, *recipe.shape), torch.arange(16) % 2
    begun, schedule = loop.start_run(recipe), catalogue.make_schedule(recipe)
    next(loop.training_loop(begun, images, schedule, labels))
    assert begun.network.conv_in.in_channels == 3 + more
    checkpoints.save_checkpoint(tmp_path, begun.ema, recipe, {})
    network, schedule, loaded = checkpoints.load(tmp_path)
    options = {"labels": labels, "scale": 2.0, "condition_images": images, "with_exponent": True}
    source = generation.make_denoiser_for_batch(network, schedule, loaded, **options)
    x0_hat, _, exponent = source(range(3))(torch.zeros(3, *recipe.shape), 30)
    assert x0_hat.shape == exponent.shape == (3, *recipe.shape)


def test_a_network_without_a_condition_begins_one_as_it_was(tmp_path):
    plain = replace(COLOURS, condition="none", classes=2)
    network = with_random_weights(catalogue.make_network(plain))
    checkpoints.save_checkpoint(tmp_path, network, plain, {})
    for condition, more in (("grey", 1), ("small", 3)):
        decided, _ = initial_weights(tmp_path, condition=condition)
        recipe = Recipe(dataset="mine", batch_size=4, **decided)
        assert recipe.condition == condition
        started = loop.start_run(recipe).network
        x, t = torch.randn(2, 3, 8, 8), torch.tensor([1, 30])
        wide = torch.cat([x, torch.randn(2, more, 8, 8)], dim=1)
        torch.testing.assert_close(started(wide, t), network(x, t), rtol=1e-4, atol=1e-5)
    assert equal(initial_weights(tmp_path)[1], network.state_dict())


@pytest.fixture(scope="module")
def upscaling(tmp_path_factory):
    return save_network(tmp_path_factory.mktemp("upscaling"), UPSCALING, 0.4)


def test_condition_and_seed_decide_the_images(upscaling, tmp_path, monkeypatch):
    skip_films(monkeypatch)
    digits = tmp_path / "digits"
    digits.mkdir()
    for k, image in enumerate(blobs(3)):
        save_picture(digits / f"{k}.png", image)
    common = "--checkpoint", upscaling, "--n", 4, "--condition-image"
    several = sampled(tmp_path / "a", *common, digits)
    assert np.abs(several - sampled(tmp_path / "b", *common, digits, "--batch-size", 3)).max() <= 1
    alone = sampled(tmp_path / "c", *common, digits / "0.png")
    assert np.abs(alone - several)[[0, 3]].max() <= 1, "in turn: the fourth is of the first again"
    assert all(np.abs(alone - several)[k].max() > 10 for k in (1, 2))
    assert len(np.unique(alone, axis=0)) == 4, "the noise of each is its own"
    shown = np.array(Image.open(tmp_path / "a" / "condition.png"))
    assert shown.shape == np.array(Image.open(tmp_path / "a" / "samples.png")).shape
    first = to_uint8(small(to_float(blobs(1))))[0, 0].numpy()
    assert (shown[4:68:2, 4:68:2, 0] == first).all(), "what the network was given"


def test_a_picture_may_be_as_small_as_the_condition(upscaling, tmp_path, monkeypatch):
    skip_films(monkeypatch)
    image, common = noise(1, 8, 8), ("--checkpoint", upscaling, "--n", 2, "--condition-image")
    tiny = sampled(tmp_path / "a", *common, save_picture(tmp_path / "tiny.png", image))
    large = image.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
    whole = sampled(tmp_path / "b", *common, save_picture(tmp_path / "large.png", large))
    assert np.array_equal(tiny, whole)


def test_a_condition_goes_with_a_start_and_a_mask(upscaling, tmp_path, monkeypatch):
    skip_films(monkeypatch)
    digit, other = (save_picture(tmp_path / f"{k}.png", blobs(1, k)[0]) for k in (0, 200))
    mask = save_picture(
        tmp_path / "mask.png", 255 * (torch.arange(32) < 16).byte().expand(1, 32, 32)
    )
    for more in ((), ("--mask", mask, "--resamples", 1)):
        first, second = (
            sampled(tmp_path / "out", "--checkpoint", upscaling, "--n", 1, "--init-image", digit,
                    *more, "--condition-image", path)
            for path in (digit, other)
        )  # fmt: skip
        assert np.abs(first - second).max() > 10


def test_draws_in_the_notebook_agree_with_their_small_pictures_and_vary():
    notebook = (ROOT / "further" / "8_images_from_images.ipynb").read_text(encoding="utf-8")
    own, other = map(float, re.search(r"off by ([\d.]+) of 255; by (\d+)", notebook).groups())
    assert own < 3 < 20 < other
    assert 1.4 < float(re.search(r"ratio ([\d.]+)", notebook)[1]) < 2


def test_a_missing_or_useless_condition_is_refused(upscaling, trained, tmp_path, capsys):
    picture = save_picture(tmp_path / "picture.png", blobs(1)[0])
    plain = save_network(tmp_path / "plain", replace(UPSCALING, condition="none"))
    out = "--out", tmp_path / "out"
    assert "--condition-image" in error_of(capsys, "sample", "--checkpoint", upscaling, *out)
    condition_flags = "--condition-image", picture
    assert "--condition-image" in error_of(
        capsys, "sample", "--checkpoint", plain, *condition_flags, *out
    )
    missing = "--condition-image", tmp_path / "nowhere.png"
    assert "nowhere" in error_of(capsys, "sample", "--checkpoint", upscaling, *missing, *out)
    guide = "--checkpoint", upscaling, *condition_flags, "--guide", plain
    assert str(plain) in error_of(capsys, "sample", *guide, *out)
    assert "condition" in error_of(capsys, "likelihood", "--checkpoint", upscaling)
    exported = "--checkpoint", upscaling, "--out", tmp_path / "exported"
    assert "cannot be exported" in error_of(capsys, "export", *exported)
    more = "--resume", "--condition", "small", "--out", trained
    assert "grey" in error_of(capsys, "train", *more), "a run keeps its own"
    for flags in (["--condition", "grey"], ["--condition", "blur"]):
        assert flags[1] in error_of(capsys, "train", *flags, "--out", tmp_path / "new")
    with pytest.raises(ValueError, match="condition"):
        push_to_hub(upscaling, "me/digits")
    network, schedule, recipe = checkpoints.load(upscaling)
    with pytest.raises(ValueError, match="small"):
        catalogue.make_denoiser(network, schedule, recipe)
    with pytest.raises(ValueError, match="none"):
        c = torch.zeros(1, 1, 32, 32)
        catalogue.make_denoiser(network, schedule, replace(recipe, condition="none"), c)


def test_a_card_is_of_held_out_conditions_and_says_so(upscaling, tmp_path, monkeypatch):
    real = {"train": blobs(60), "test": blobs(12, 60)}
    change_dataset(monkeypatch, "mnist", images=lambda recipe, root, split: real[split])
    monkeypatch.setattr(extractors, "pick_judge", lambda *arguments: untrained_judge())
    asked, denoisers = [], generation.make_denoiser_for_batch

    def noted(*arguments, condition_images, **options):
        asked.append(condition_images)
        return denoisers(*arguments, condition_images=condition_images, **options)

    monkeypatch.setattr(generation, "make_denoiser_for_batch", noted)
    path = tmp_path / "card.json"
    common = "evaluate", "--checkpoint", upscaling, "--n", 15, "--steps", 2, "--out", path
    assert run(*common) == 0
    card = json.loads(path.read_text())
    assert card["sampler"]["condition"] == "small of test images"
    assert card["condition_error"] > 1, "it has learned nothing"
    (pictures,) = asked
    assert len(pictures) == 15 and torch.equal(pictures[:3], pictures[12:])
    assert equal(sorted(map(str, pictures[:12].tolist())), sorted(map(str, real["test"].tolist())))
    change_dataset(monkeypatch, "mnist", held_out="")
    assert run(*common) == 0
    assert json.loads(path.read_text())["sampler"]["condition"] == "small of train images"
    assert all(any(torch.equal(each, one) for one in real["train"]) for each in asked[1])
    assert losses.condition_error(small, pictures, pictures) == 0
    black = torch.zeros(12, 1, 32, 32).byte()
    assert losses.condition_error(small, black, black + 100) == pytest.approx(100, abs=0.01)
