"""How to draw best, as a checkpoint's config.json says: used unless a flag tells otherwise."""

import json
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
from command_helpers import DIGITS, drawn, error_of, run, save_network, skip_films
from conftest import ROOT

from mnist_ddpm.commands.drawing import sampling_of
from mnist_ddpm.commands.flags import SampleFlags
from mnist_ddpm.commands.sample import prepare_job
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.sampling import Sampling

DRAW = {"sampler": "dpmpp", "steps": 4, "eta": 1.0}
NAMES = "sampler", "steps", "eta", "guide", "guidance", "guidance_interval"


def advise(folder: Path, draw: object) -> Path:
    """The checkpoint in a folder, with this advice."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"draw": draw}))
    return folder


@pytest.fixture
def plain(tmp_path, monkeypatch):
    """An untrained network of digits, by the paper's method, with advice."""
    skip_films(monkeypatch)
    return advise(save_network(tmp_path / "plain", DIGITS, objective="simple", classes=0), DRAW)


@pytest.mark.parametrize("name", checkpoints.SHIPPED)
def test_what_is_shipped_advises_what_can_be_done(name):
    advice = checkpoints.sampling_defaults(name)
    recipe, _ = checkpoints.load_config(ROOT / "checkpoints" / name)
    assert bool(advice) == (not name.endswith("-guide"))
    if "guide" in advice:
        guide = checkpoints.load_config(checkpoints.find(advice["guide"]))[0]
        assert (guide.T, guide.shape) == (recipe.T, recipe.shape)
        assert advice["guidance"] > 1 and advice["guidance_interval"][1] <= guide.T


def test_without_flags_the_best_is_drawn_and_said(tmp_path, monkeypatch, capsys):
    skip_films(monkeypatch)
    monkeypatch.chdir(tmp_path)  # from any folder
    assert run("sample", "--n", 1) == 0
    told = capsys.readouterr().out.splitlines()
    flags = "--sampler dpmpp --steps 20 --eta 1 --guidance 1.2"
    assert flags in told[0]
    typed = drawn(tmp_path / "typed", "--n", 1, *flags.split())
    with np.load("out/samples.npz") as arrays:
        assert np.array_equal(arrays["images"][..., 0], typed)
    written = [Path(line.removeprefix("written: ")) for line in told[-5:]]
    assert {*written} == {Path("out", path.name) for path in (tmp_path / "out").iterdir()} | {
        Path("out", "steps.png"), Path("out", "generation.gif"), Path("out", "predicted_x0.gif")
    }  # fmt: skip


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ({"steps": 7}, ("dpmpp", 7, 1.0, "mnist-guide", 1.5, (0, 500))),
        ({"eta": 0.0}, ("dpmpp", 20, 0.0, "mnist-guide", 1.5, (0, 500))),
        ({"guidance": 1.0}, ("dpmpp", 20, 1.0, None, 1.0, None)),
        ({"guide": Path("x")}, ("dpmpp", 20, 1.0, Path("x"), None, None)),
        ({"sampler": "dpmpp"}, ("dpmpp", 50, None, None, None, None)),
        ({"sampler": "ddpm", "steps": 9}, ("ddpm", 9, None, None, None, None)),
    ],
    ids=["steps", "eta", "guidance", "guide", "sampler", "both"],
)
def test_a_flag_that_is_typed_wins(typed, expected):
    recipe, _ = checkpoints.load_config(checkpoints.find("mnist-unlabelled"))
    sampling = sampling_of(SampleFlags(checkpoint=Path("mnist-unlabelled"), **typed), recipe)
    assert tuple(getattr(sampling, name) for name in NAMES) == expected
    assert not {*sampling.advised} & typed.keys()


def test_one_step_needs_no_time_in_the_advised_interval(tmp_path, monkeypatch, capsys):
    skip_films(monkeypatch)
    base = "--checkpoint", "mnist-unlabelled", "--n", 1, "--steps", 1
    assert drawn(tmp_path, *base).shape == (1, 32, 32)
    line = error_of(capsys, "sample", *base, "--guide", "mnist-guide",
                    "--guidance-interval", 0, 500, "--out", tmp_path)  # fmt: skip
    assert "none of the 1 times" in line


def test_own_checkpoints_and_masks_are_drawn_as_ever(plain, tmp_path, capsys):
    """Without advice: DDIM without noise, 50 steps, or all that there are."""
    mine = save_network(tmp_path / "mine", DIGITS, objective="simple", classes=0)
    images = drawn(tmp_path / "a", "--checkpoint", mine, "--n", 2)
    assert "advises" not in capsys.readouterr().out
    flags = "--sampler ddim --steps 20 --eta 0 --n 2".split()
    assert np.array_equal(images, drawn(tmp_path / "b", "--checkpoint", plain, *flags))
    advised = drawn(tmp_path / "c", "--checkpoint", plain, "--n", 2)
    assert "--sampler dpmpp --steps 4 --eta 1" in capsys.readouterr().out
    assert not np.array_equal(images, advised)


def test_timesteps_of_the_defaults_are_sampled_unless_steps_are_typed(plain, tmp_path, capsys):
    """T is 20. A card says which times were sampled, and that is drawn again."""
    advise(plain, DRAW | {"spacing": "signal", "timesteps": [20, 12, 3]})
    images = drawn(tmp_path / "a", "--checkpoint", plain, "--n", 2)
    assert "--timesteps 20 12 3" in capsys.readouterr().out
    base = ["--checkpoint", plain, "--n", 2, "--sampler", "dpmpp", "--eta", 1]
    typed = drawn(tmp_path / "b", *base, "--timesteps", 20, 12, 3)
    assert np.array_equal(images, typed)
    typed = drawn(tmp_path / "c", "--checkpoint", plain, "--n", 2, "--steps", 3)
    spaced = drawn(tmp_path / "d", *base, "--steps", 3, "--spacing", "signal")
    assert np.array_equal(typed, spaced) and not np.array_equal(typed, images)
    settings = {"name": "dpmpp", "eta": 1.0, "steps": 3, "timesteps": [20, 12, 3]}
    again, _ = prepare_job(SampleFlags(checkpoint=plain, n=2), Sampling.from_card(settings)).draw()
    assert np.array_equal(again[:, 0].numpy(), images)


def test_an_image_is_varied_by_steps_and_spacing_of_the_defaults(plain, tmp_path, monkeypatch):
    """Not by their timesteps, since sampling begins later."""
    monkeypatch.chdir(tmp_path)
    imageio.imwrite("digit.png", np.zeros((32, 32), np.uint8))
    varied = ["--checkpoint", plain, "--init-image", "digit.png", "--n", 2]
    spaced = DRAW | {"spacing": "signal"}
    advise(plain, spaced)
    expected = drawn(tmp_path / "a", *varied)
    advise(plain, spaced | {"timesteps": [20, 12, 3]})
    assert np.array_equal(drawn(tmp_path / "b", *varied), expected)
    advise(plain, DRAW)
    assert not np.array_equal(drawn(tmp_path / "c", *varied), expected)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--timesteps 20 12 --steps 2", "--steps"), ("--timesteps 12 20", "[12, 20]"),
        ("--timesteps 21 12", "[21, 12]"), ("--timesteps 12 0", "[12, 0]"),
        ("--timesteps 20 --init-image digit.png --strength 0.5", "--strength"),
    ],
)  # fmt: skip
def test_timesteps_that_cannot_be_sampled(plain, tmp_path, monkeypatch, capsys, flags, named):
    monkeypatch.chdir(tmp_path)
    imageio.imwrite("digit.png", np.zeros((32, 32), np.uint8))
    assert named in error_of(capsys, "sample", "--checkpoint", plain, *flags.split())


def test_a_guide_in_the_checkpoint_s_folder_is_found_from_any_other(plain, tmp_path, monkeypatch):
    """As plan leaves one; where it is not there, as after a copy of some files, nothing guides."""
    guided = {"guide": "weak", "guidance": 1.5, "guidance_interval": [0, 10]}
    advise(plain, DRAW | guided)
    assert checkpoints.sampling_defaults(plain) == DRAW
    save_network(plain / "weak", DIGITS, std=0.2, objective="simple", classes=0)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert checkpoints.sampling_defaults(plain) == DRAW | guided | {"guide": str(plain / "weak")}
    images = drawn(tmp_path / "a", "--checkpoint", Path("..", "plain"), "--n", 2)
    typed = "--sampler dpmpp --steps 4 --eta 1 --guidance 1.5 --guidance-interval 0 10".split()
    typed += ["--guide", plain / "weak", "--n", 2]
    assert np.array_equal(images, drawn(tmp_path / "b", "--checkpoint", plain, *typed))
    alone = drawn(tmp_path / "c", "--checkpoint", plain, "--n", 2, "--guidance", 1)
    assert not np.array_equal(images, alone)


@pytest.mark.parametrize(
    "draw",
    [
        [], "dpmpp", None, {"sampler": "magic"}, {"sampler": ["ddim"]}, {"steps": 2.5},
        {"steps": True}, {"eta": "1"}, {"guide": "../elsewhere"}, {"guide": ["mnist-guide"]},
        {"guide": "/weak"}, {"guide": ".."},
        {"timesteps": []}, {"timesteps": [1.5]}, {"timesteps": 20},
        {"eta": 10**400}, {"guidance": float("nan")}, {"guidance_interval": [0]},
        {"guidance_interval": {"0": 1}}, {"speed": 1},
    ],
    ids=lambda draw: str(draw)[:30],
)  # fmt: skip
def test_advice_that_is_none_ends_in_one_line(plain, tmp_path, capsys, draw):
    base = ["sample", "--checkpoint", advise(plain, draw), "--n", 1, "--out", tmp_path]
    assert str(plain / "config.json") in error_of(capsys, *base)
    assert run(*base, "--sampler", "ddim", "--steps", 2) == 0, "as the line says"
