"""`sample` as a user meets it: files, flags that count, and errors of one line."""

import math
from dataclasses import fields

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from command_helpers import DIGITS, drawn, error_of, run, save_network, skip_films
from PIL import Image

import mnist_ddpm
from mnist_ddpm import catalogue, ddpm
from mnist_ddpm.commands.flags import SampleFlags
from mnist_ddpm.commands.sample import prepare_job
from mnist_ddpm.machine import devices
from mnist_ddpm.methods.solvers import dpmpp_2m_sampler
from mnist_ddpm.recipe import Recipe
from mnist_ddpm.sampling import Sampling, own_options


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """An untrained checkpoint for MNIST with labels and a learned variance."""
    return save_network(tmp_path_factory.mktemp("digits"), DIGITS)


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """One for a folder of coloured pictures, by the paper's method."""
    sizes = {"image_size": 16, "base_channels": 8, "channel_mults": (1, 2), "T": 20}
    return save_network(tmp_path_factory.mktemp("colours"), Recipe(dataset="faces", **sizes))


@pytest.fixture
def quick(monkeypatch):
    skip_films(monkeypatch)


@pytest.fixture
def digit(tmp_path):
    """A 28 x 28 picture in digit.png, and a mask in mask.png that keeps its left half."""
    pixels = np.zeros((28, 28), np.uint8)
    pixels[4:24, 10:18] = 255
    Image.fromarray(pixels).save(tmp_path / "digit.png")
    mask = np.zeros((28, 28), np.uint8)
    mask[:, :14] = 130  # any light grey
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return pixels


@pytest.fixture
def stop(monkeypatch):
    """Has DDIM stopped, as by Ctrl-C, in the batch of that number, or not at all.

    It gives the list of the batches' sizes.
    """
    ddim = catalogue.SAMPLERS["ddim"]
    sizes = []

    def set_stop(last: int | None = None) -> list[int]:
        def stopped(denoise, schedule, times, xT, draw_noise, eta=0.0):
            sizes.append(len(xT))
            for k, state in enumerate(ddim(denoise, schedule, times, xT, draw_noise, eta=eta)):
                if len(sizes) == last and k == 2:
                    raise KeyboardInterrupt
                yield state

        sizes.clear()
        monkeypatch.setitem(catalogue.SAMPLERS, "ddim", stopped)
        return sizes

    return set_stop


def test_sample_writes_everything_it_promises(colours, tmp_path):
    out = tmp_path / "a & b"
    base = ["--n", 5, "--steps", 6, "--batch-size", 3, "--sampler", "dpmpp", "--eta", 1]
    assert run("sample", "--checkpoint", colours, *base, "--out", out) == 0
    names = {"samples.png", "steps.png", "generation.gif", "predicted_x0.gif", "samples.npz"}
    assert {path.name for path in out.iterdir()} == names
    images = np.load(out / "samples.npz")["images"]
    assert images.shape == (5, 16, 16, 3) and images.dtype == np.uint8
    grid = imageio.imread(out / "samples.png")
    assert grid.shape == (2 * (2 + 2 * 18), 2 * (2 + 3 * 18), 3)
    assert np.array_equal(grid[4:36:2, 4:36:2], images[0]), "the grid shows the images"


def test_each_flag_of_sample_changes_the_images(digits, tmp_path, quick):
    """A flag that is parsed and forgotten would leave them as they were."""
    base = ["--checkpoint", digits, "--n", 2, "--steps", 5]
    flags = [
        "", "--sampler ddpm", "--sampler ddpm --variance beta", "--sampler dpmpp",
        "--sampler dpmpp --eta 1", "--sampler heun", "--spacing quadratic", "--clip none",
        "--clip dynamic", "--eta 1", "--label 3", "--guidance 0", "--guidance 3",
        "--guidance 3 --guidance-interval 8 13", "--precision bfloat16", "--seed 1",
        "--path flow", "--spacing edm", "--sampler consistency",
    ]  # fmt: skip
    images = [drawn(tmp_path / f"{k}", *base, *more.split()) for k, more in enumerate(flags)]
    for k, one in enumerate(images):
        for other in images[:k]:
            assert not np.array_equal(one, other), flags[k]
    one_by_one = drawn(tmp_path / "one", *base, "--batch-size", 1)
    assert np.abs(one_by_one - images[0]).max() <= 1, "whatever the batches"


def test_what_a_card_says_of_the_sampler_is_drawn_again(digits, tmp_path, quick):
    settings = {"name": "ddim", "eta": 1.0, "steps": 3, "spacing": "edm", "clip": "none"}
    settings |= {"path": "flow", "labels": [7, 2], "guidance": 2.0, "guidance_interval": [1, 18]}
    flags = SampleFlags(checkpoint=digits, n=3, label=settings["labels"])
    images, _ = prepare_job(flags, Sampling.from_card(settings)).draw()
    typed = "--sampler ddim --eta 1 --steps 3 --spacing edm --clip none --path flow --label 7 2"
    typed += " --guidance 2 --guidance-interval 1 18"
    typed = drawn(tmp_path, "--checkpoint", digits, "--n", 3, *typed.split())
    assert np.array_equal(images[:, 0].numpy(), typed)


@pytest.mark.parametrize(
    ("flags", "evaluations"),
    [
        ("--sampler heun", 11),
        ("--guidance 2", 12),
        ("--guidance 0", 6),
        ("--guidance 2 --guidance-interval 3 13", 9),
        ("--init-image digit.png --mask mask.png --resamples 3", 18),
        ("--init-image digit.png --mask mask.png --resamples 3 --jump 4", 18),
    ],
)
def test_costs_are_printed(digits, tmp_path, digit, quick, monkeypatch, capsys, flags, evaluations):
    monkeypatch.chdir(tmp_path)
    base = ["--checkpoint", digits, "--n", 3, "--steps", 6, "--out", "out"]
    assert run("sample", *base, *flags.split()) == 0
    assert f"3 images x {evaluations} network evaluations" in capsys.readouterr().out


def test_a_guide_counts_and_keeps_images_away_from_its_own(digits, tmp_path, quick, capsys):
    """A guide with the same weights changes nothing, another does; at scale 1 it is not used."""
    other = save_network(tmp_path / "other", DIGITS, std=0.2)
    base = ["--checkpoint", digits, "--n", 2, "--steps", 5]
    alone = drawn(tmp_path / "a", *base)
    for guide, more, same, cost in [
        (digits, (), True, 10),
        (other, ("--guidance", 1), True, 5),
        (other, (), False, 10),
    ]:
        capsys.readouterr()
        images = drawn(tmp_path / "b", *base, "--guide", guide, *more)
        assert (np.abs(images - alone).max() <= 1) == same
        assert f"2 images x {cost} network evaluations" in capsys.readouterr().out


def test_a_guide_is_for_the_same_images_and_noise(digits, colours, tmp_path, quick, capsys):
    cosine = save_network(tmp_path / "cosine", DIGITS, schedule="cosine")
    unused = save_network(tmp_path / "unused", DIGITS, schedule="cosine", beta_T=0.03)
    base = ["--n", 1, "--steps", 2, "--out", tmp_path / "out"]
    assert run("sample", "--checkpoint", cosine, *base, "--guide", unused) == 0
    line = error_of(capsys, "sample", "--checkpoint", cosine, *base, "--guide", digits)
    assert "--schedule" in line
    line = error_of(capsys, "sample", "--checkpoint", digits, *base, "--guide", colours)
    assert "image_size is 16, and should be 32" in line


def test_one_call_draws_the_images_of_the_command(digits, tmp_path, quick):
    flags = ["--checkpoint", digits, "--steps", 4, "--seed", 5, "--label", 7, 2]
    command = drawn(tmp_path / "a", *flags, "--n", 2)
    options = {"seed": 5, "steps": 4}
    images, film = mnist_ddpm.sample(digits, labels=[7, 2], film=True, **options)
    assert images.dtype == torch.uint8
    assert np.array_equal(images[:, 0], command)
    assert torch.equal(film[-1][1], images)
    assert len(mnist_ddpm.sample(str(digits), 3, labels=1, **options)) == 3
    assert len(mnist_ddpm.sample(digits, np.int64(1), labels=np.int64(1), **options)) == 1
    odd = [{name: {}} for name in {field.name for field in fields(SampleFlags)} - {"checkpoint"}]
    odd += [{"step": 4}, {"n": 0}, {"n": True}, {"n": 2.5}, {"seed": "1"}, {"label": [3]}]
    odd += [{"steps": math.nan}, {"sampler": "x"}, {"guidance_interval": [1]}, {"option": "a=1"}]
    odd += [{"labels": [[1], [2, 3]]}, {"labels": [None]}, {"labels": "x"}, {"labels": [2.5]}]
    for wrong in odd:
        with pytest.raises(ValueError, match=next(iter(wrong)).removesuffix("s")):
            mnist_ddpm.sample(digits, **wrong)
    with pytest.raises(ValueError, match=r"^guidance_interval 9 1") as raised:
        mnist_ddpm.sample(digits, guidance_interval=(9, 1), guidance=2)
    assert "--" not in str(raised.value), "arguments have no dashes"


def test_later_images_are_drawn_without_those_before(digits, tmp_path, quick):
    flags = ["--checkpoint", digits, "--steps", 4, "--sampler", "ddpm"]
    both = drawn(tmp_path / "a", *flags, "--n", 5)
    later = drawn(tmp_path / "b", *flags, "--n", 2, "--first", 3)
    assert np.abs(later - both[3:]).max() <= 1


def test_labels_are_drawn_in_turn(digits, tmp_path, quick):
    base = ["--checkpoint", digits, "--steps", 4, "--sampler", "dpmpp"]
    in_turn = drawn(tmp_path / "a", *base, "--n", 4, "--label", 7, 2)
    for k, label in enumerate((7, 2, 7, 2)):
        alone = drawn(tmp_path / "b", *base, "--n", 4, "--label", label)
        assert np.abs(alone[k] - in_turn[k]).max() <= 1
    listed = drawn(tmp_path / "c", *base, "--n", 12, "--label", *range(10))
    assert np.array_equal(drawn(tmp_path / "d", *base, "--n", 12), listed)


@pytest.mark.parametrize("guide", [False, True])
def test_networks_are_compiled_with_the_flag(digits, tmp_path, quick, monkeypatch, guide):
    compiled = []
    more = ["--guide", digits] if guide else []
    monkeypatch.setattr(devices, "try_compiler", lambda *_: None)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(module))
    base = ["sample", "--checkpoint", digits, "--n", 2, "--steps", 2, "--out", tmp_path, *more]
    assert run(*base) == 0 and not compiled
    assert run(*base, "--compile") == 0
    assert [isinstance(network, ddpm.UNet) for network in compiled] == [True] * (1 + guide)


def test_a_samplers_own_defaults_hold_without_flags(monkeypatch):
    def noisy(denoise, schedule, times, xT, draw_noise, eta=1.0):
        return dpmpp_2m_sampler(denoise, schedule, times, xT, draw_noise, eta)

    def wide(denoise, schedule, times, xT, draw_noise, variance=ddpm.step_variance):
        return ddpm.ddpm_sampler(denoise, schedule, times, xT, draw_noise, variance)

    monkeypatch.setitem(catalogue.SAMPLERS, "noisy", noisy)
    monkeypatch.setitem(catalogue.SAMPLERS, "wide", wide)
    learned = Recipe(objective="hybrid")
    for recipe, flags, name, wanted in [
        (Recipe(), {}, "eta", 0.0),
        (Recipe(), {"sampler": "noisy"}, "eta", 1.0),
        (Recipe(), {"sampler": "noisy", "eta": 0.0}, "eta", 0.0),
        (Recipe(), {"sampler": "ddpm"}, "variance", "posterior"),
        (learned, {"sampler": "ddpm"}, "variance", "learned"),
        (learned, {"sampler": "wide"}, "variance", "beta"),
        (learned, {"sampler": "wide", "variance": "posterior"}, "variance", "posterior"),
    ]:
        choice = Sampling(**flags).choice(recipe)
        assert choice.described[name] == wanted, flags
        option = choice.sampler.keywords[name]
        assert option == (wanted if name == "eta" else catalogue.VARIANCES[wanted])


def test_a_sampler_of_ones_own_has_its_options_within_reach(colours, tmp_path, monkeypatch, capsys):
    seen = []

    def mine(denoise, schedule, times, xT, draw_noise, churn=0.0, kind="a"):
        seen.append((churn, kind))
        yield 0, xT, xT

    monkeypatch.setitem(catalogue.SAMPLERS, "ddim", mine)  # the default
    skip_films(monkeypatch)
    base = ["sample", "--checkpoint", colours, "--n", 1, "--steps", 4, "--out", tmp_path]
    assert run(*base) == 0 and run(*base, "--option", "churn=0.5", "kind=b") == 0
    assert seen == [(0.0, "a"), (0.5, "b")]
    assert "churn" in error_of(capsys, *base, "--option", "churm=1")
    assert "--eta" in error_of(capsys, *base, "--eta", 1)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpmpp", "heun", "consistency"])
def test_what_every_sampler_takes_is_no_option_of_one(sampler):
    """However it names its noise."""
    assert own_options(catalogue.SAMPLERS[sampler]).keys() <= {"eta", "variance"}


def test_masked_pixels_are_inpainted_and_the_others_stay(digits, tmp_path, digit, quick):
    base = ["--checkpoint", digits, "--n", 2, "--resamples", 1, "--steps", 5]
    start = ["--init-image", tmp_path / "digit.png", "--mask", tmp_path / "mask.png"]
    images = drawn(tmp_path / "out", *base, *start)
    inner = images[:, 2:-2, 2:-2]
    assert (inner[:, :, :14] == digit[:, :14]).all()
    assert (inner[:, :, 14:] != digit[:, 14:]).mean() > 0.5
    inner[:] = 0
    assert not images.any(), "the padding counts as known"


def test_little_strength_leaves_the_image_nearly_as_it_was(digits, tmp_path, digit, quick):
    base = ["--checkpoint", digits, "--n", 2, "--steps", 4, "--init-image", tmp_path / "digit.png"]
    error = {}
    for strength in (0.05, 1):
        images = drawn(tmp_path / "out", *base, "--strength", strength)[:, 2:-2, 2:-2]
        error[strength] = np.abs(images - digit).mean()
    assert error[0.05] < 20 < error[1]


def test_an_image_of_another_size_is_cropped_together_with_its_mask(colours, tmp_path, quick):
    mask = np.zeros((40, 80), np.uint8)
    mask[:, :40] = 255
    mask[32:, 41::2] = 255  # columns that averaging would make grey
    Image.fromarray(np.full((40, 80), 200, np.uint8)).save(tmp_path / "wide.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    base = ["--checkpoint", colours, "--n", 1, "--steps", 3, "--resamples", 1]
    start = ["--init-image", tmp_path / "wide.png", "--mask", tmp_path / "mask.png"]
    (image,) = drawn(tmp_path / "out", *base, *start)
    assert (image[:, :8] == 200).all() and (image[:12, 8:] != 200).all()


def test_a_stopped_drawing_is_resumed(digits, tmp_path, digit, stop, quick, monkeypatch, capsys):
    base = ["--checkpoint", digits, "--n", 7, "--steps", 5, "--eta", 1, "--batch-size", 2]
    base += ["--init-image", tmp_path / "digit.png"]
    unstopped = drawn(tmp_path / "unstopped", *base)
    films = []
    out = tmp_path / "out"
    monkeypatch.setattr(ddpm, "save_gif", lambda path, film, **options: films.append(film))
    stop(3)
    assert run("sample", "--out", out, *base) == 130
    [partial] = out.iterdir()
    assert {path.name for path in partial.iterdir()} == {"images-0-2.npz", "images-2-4.npz"}
    assert str(partial) in capsys.readouterr().err
    sizes = stop()
    weights = save_network(tmp_path / "weights", DIGITS, std=0.2)
    for other in (["--seed", 1], ["--strength", 0.7], ["--checkpoint", weights]):
        new = drawn(tmp_path / "other", *base, *other)
        assert np.array_equal(drawn(out, *base, *other), new), "of another drawing"
        assert partial.is_dir() and sum(sizes) == 14
        sizes.clear()
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(devices, "versions", lambda: {"torch": "another"})
        drawn(out, *base)
    assert partial.is_dir() and sum(sizes) == 7
    sizes.clear()
    films.clear()
    damaged = partial / "images-2-4.npz"
    damaged.write_bytes(damaged.read_bytes()[:100])
    assert np.array_equal(drawn(out, *base), unstopped)
    assert sizes == [2, 2, 1] and not partial.exists(), "all but the first"
    assert "7 images x 5 network evaluations" in capsys.readouterr().out
    assert [t for t, *_ in films[0]] == [10, 8, 6, 4, 2, 0]
    assert films[0][-1][1].tolist() == unstopped[:2, None].tolist()


def test_what_is_drawn_is_what_the_notebook_draws(colours, tmp_path, quick):
    """The command's ancestral sampling, against a loop of the notebook's own pieces."""
    images = drawn(tmp_path, "--checkpoint", colours, "--n", 2, "--steps", 5, "--sampler", "ddpm")
    network, schedule, settings = ddpm.load_checkpoint(colours)
    denoise = ddpm.clipped(ddpm.eps_denoiser(network, schedule), schedule)
    options = {"sampler": ddpm.ddpm_sampler, "steps": 5}
    expected, _ = ddpm.generate(denoise, schedule, 2, settings.shape, **options)
    assert np.array_equal(images, expected[:, 0].numpy())
