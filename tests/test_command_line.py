"""The command line as a user meets it: exit status, one line for an error, files on disk."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from conftest import ROOT, restless
from PIL import Image
from safetensors.torch import load_file

from mnist_ddpm import ddpm, likelihood, machine, resumable, runs
from mnist_ddpm.__main__ import Compare, Plan, Sample, Train, TrainingFlags, main
from mnist_ddpm.likelihood import bits_per_dim
from mnist_ddpm.presets import PRESETS
from mnist_ddpm.schedules import respace, respaced
from mnist_ddpm.solvers import dpmpp_2m_sampler

SMALL = (
    "--base-channels 8 --channel-mults 1 2 --attention-resolutions 8 --T 20 --batch-size 16 --warmup-steps 2".split()
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """48 small images of noise."""
    folder = tmp_path_factory.mktemp("pictures")
    for k in range(48):
        noise = np.random.default_rng(k).integers(0, 255, (32, 32), np.uint8)
        Image.fromarray(noise).save(folder / f"{k:02d}.png")
    return folder


@pytest.fixture(scope="module")
def checkpoint(pictures, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "checkpoint"
    data = ["--dataset", str(pictures), "--data", str(out.parent / "data")]
    assert main(["train", *data, "--out", str(out), "--epochs", "1", *SMALL]) == 0
    return out


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    """An untrained checkpoint for MNIST with labels and a learned variance."""
    folder = tmp_path_factory.mktemp("conditional")
    settings = ddpm.Settings(
        base_channels=8, channel_mults=(1, 2), attention_resolutions=(8,), T=20, objective="hybrid", classes=10
    )
    ddpm.save_checkpoint(folder, restless(ddpm.make_model(settings)), settings)
    return folder


@pytest.fixture
def digit(tmp_path):
    """A 28 x 28 picture in digit.png, and a mask in mask.png that keeps its left half."""
    pixels = np.zeros((28, 28), np.uint8)
    pixels[4:24, 10:18] = 255
    Image.fromarray(pixels).save(tmp_path / "digit.png")
    mask = np.zeros((28, 28), np.uint8)
    mask[:, :14] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return pixels


def drawn(out, *arguments):
    """The images that `sample` writes, (N, H, W)."""
    assert main(["sample", "--out", str(out), *(str(a) for a in arguments)]) == 0
    return np.load(out / "samples.npz")["images"][..., 0]


def error_of(capsys, *arguments):
    assert main([str(a) for a in arguments]) == 1
    *_, line = capsys.readouterr().err.strip().split("\r")[-1].splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize(
    "sampler",
    [["ddim", "--eta", "0.5"], ["ddpm"], ["ddpm", "--variance", "beta"], ["dpmpp"], ["dpmpp", "--eta", "1"], ["heun"]],
    ids=" ".join,
)
def test_sample_writes_everything_it_promises(checkpoint, tmp_path, sampler):
    out = tmp_path / "a & b"
    arguments = ["--n", "5", "--steps", "6", "--batch-size", "2", "--seed", "3", "--out", str(out)]
    assert main(["sample", "--checkpoint", str(checkpoint), "--sampler", *sampler, *arguments]) == 0
    names = {"samples.png", "steps.png", "generation.gif", "predicted_x0.gif", "samples.npz"}
    assert {path.name for path in out.iterdir()} == names
    images = np.load(out / "samples.npz")["images"]
    assert images.shape == (5, 32, 32, 3) and images.dtype == np.uint8
    grid = imageio.imread(out / "samples.png")
    assert grid.shape[:2] == (2 * (2 + 2 * 34), 2 * (2 + 3 * 34))
    assert np.array_equal(grid[4:68:2, 4:68:2, 0], images[0, :, :, 0]), "the grid shows the images of the array"


def test_sampling_again_gives_the_same_images(checkpoint, tmp_path):
    for name, batch in (("a", "5"), ("b", "2")):
        arguments = ["--n", "5", "--steps", "6", "--batch-size", batch, "--out", str(tmp_path / name)]
        assert main(["sample", "--checkpoint", str(checkpoint), *arguments]) == 0
    a, b = (np.load(tmp_path / name / "samples.npz")["images"].astype(int) for name in "ab")
    assert np.abs(a - b).max() <= 1


@pytest.mark.parametrize(
    ("arguments", "evaluations"),
    [
        (["--steps", "6"], 6),
        (["--steps", "6", "--sampler", "heun"], 11),
        (["--steps", "6", "--guidance", "2"], 12),
        (["--steps", "6", "--guidance", "0"], 6),
        (["--steps", "6", "--guidance", "2", "--guidance-interval", "3", "13"], 9),
        (["--steps", "6", "--init-image", "digit.png", "--mask", "mask.png", "--resamples", "3"], 18),
    ],
    ids=lambda a: " ".join(a) if isinstance(a, list) else "",
)
def test_what_sampling_costs_is_printed(
    conditional, tmp_path, digit, without_films, monkeypatch, capsys, arguments, evaluations
):
    monkeypatch.chdir(tmp_path)
    assert main(["sample", "--checkpoint", str(conditional), "--n", "3", "--out", "out", *arguments]) == 0
    assert f"3 images x {evaluations} network evaluations" in capsys.readouterr().out


def test_each_flag_of_sample_changes_the_images(conditional, tmp_path, without_films):
    """A flag that is parsed and forgotten would leave them as they were."""
    base = ["--checkpoint", conditional, "--n", "2", "--steps", "5"]
    flags = [
        [], ["--sampler", "ddpm"], ["--sampler", "ddpm", "--variance", "beta"], ["--sampler", "dpmpp"],
        ["--sampler", "heun"], ["--spacing", "quadratic"], ["--clip", "none"], ["--clip", "dynamic"], ["--eta", "1"],
        ["--sampler", "dpmpp", "--eta", "1"], ["--label", "3"], ["--guidance", "0"], ["--guidance", "3"],
        ["--precision", "bfloat16"], ["--seed", "1"],
    ]  # fmt: skip
    images = [drawn(tmp_path / str(k), *base, *more) for k, more in enumerate(flags)]
    for k, one in enumerate(images):
        for other in images[:k]:
            assert not np.array_equal(one, other), flags[k]


def test_a_guide_counts_and_keeps_images_away_from_its_own(conditional, checkpoint, tmp_path, without_films, capsys):
    """A guide with the same weights changes nothing, another one does, and at scale 1 it is not heard."""
    other, settings = tmp_path / "other", ddpm.load_config(conditional)[0]
    ddpm.save_checkpoint(other, ddpm.make_model(settings), settings)
    base = ["--checkpoint", conditional, "--n", "2", "--steps", "5"]
    alone = drawn(tmp_path / "a", *base).astype(int)
    for guide, more, same in ((conditional, (), True), (other, ("--guidance", "1"), True), (other, (), False)):
        capsys.readouterr()
        images = drawn(tmp_path / "b", *base, "--guide", guide, *more).astype(int)
        assert (np.abs(images - alone).max() <= 1) == same
        assert "2 images x 10 network evaluations" in capsys.readouterr().out
    problem = error_of(capsys, "sample", *base, "--guide", checkpoint)
    assert f"{checkpoint} cannot guide {conditional}: its channels is 3, and should be 1" in problem


def test_a_guide_has_the_same_schedule_whatever_betas_are_left_over(conditional, tmp_path, without_films, capsys):
    settings = replace(ddpm.load_config(conditional)[0], schedule="cosine")
    others = {"cosine": {}, "betas": {"beta_T": 0.03}, "linear": {"schedule": "linear"}}
    for name, changes in others.items():
        its = replace(settings, **changes)
        ddpm.save_checkpoint(tmp_path / name, ddpm.make_model(its), its)
    base = ["--checkpoint", tmp_path / "cosine", "--n", "1", "--steps", "2"]
    drawn(tmp_path / "out", *base, "--guide", tmp_path / "betas")
    problem = error_of(capsys, "sample", *base, "--out", tmp_path / "out", "--guide", tmp_path / "linear")
    assert "cannot guide" in problem and "train it with the same --schedule, --beta-1 and --beta-T" in problem


@pytest.mark.parametrize(
    ("command", "networks"),
    [
        (["sample", "--n", "2", "--steps", "2"], 1),
        (["sample", "--n", "2", "--steps", "2", "--guide", "{conditional}"], 2),
        (["likelihood", "--n", "2", "--times-per-image", "1"], 1),
    ],
    ids=["sample", "with a guide", "likelihood"],
)
def test_networks_are_compiled_where_asked(conditional, tmp_path, without_films, monkeypatch, command, networks):
    asked, out = [], tmp_path / ("out" if command[0] == "sample" else "bound.json")
    monkeypatch.setattr(machine, "try_compiler", lambda device: None)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: asked.append(module))
    told = [part.format(conditional=conditional) for part in command]
    told += ["--checkpoint", str(conditional), "--out", str(out)]
    for more, expected in (([], 0), (["--compile"], networks)):
        assert main([*told, *more]) == 0
        assert len(asked) == expected and all(isinstance(network, ddpm.UNet) for network in asked)


@pytest.fixture
def stop(monkeypatch):
    """Has DDIM stopped, as by Ctrl-C, in the batch of that number, or not at all; it keeps a list of batches' sizes."""
    ddim, sizes = ddpm.SAMPLERS["ddim"], []

    def set_stop(last: int | None = None) -> list[int]:
        def stopped(model, schedule, times, xT, noise, *, eta=0.0, clip=True):
            sizes.append(len(xT))
            for k, state in enumerate(ddim(model, schedule, times, xT, noise, eta=eta, clip=clip)):
                if len(sizes) == last and k == 2:
                    raise KeyboardInterrupt
                yield state

        sizes.clear()
        monkeypatch.setitem(ddpm.SAMPLERS, "ddim", stopped)
        return sizes

    return set_stop


def test_a_drawing_that_was_stopped_goes_on(conditional, tmp_path, digit, stop, without_films, monkeypatch, capsys):
    base = ["--checkpoint", conditional, "--n", "7", "--steps", "5", "--eta", "1", "--batch-size", "2"]
    base += ["--init-image", tmp_path / "digit.png"]
    whole, films = drawn(tmp_path / "whole", *base), []
    monkeypatch.setattr(ddpm, "save_gif", lambda path, film, **options: films.append(film))
    out = tmp_path / "out"
    stop(3)
    assert main(["sample", "--out", str(out), *map(str, base)]) == 130
    [kept] = out.iterdir()
    assert {path.name for path in kept.iterdir()} == {"images-0-2.npz", "images-2-4.npz"}
    told = f"stopped: what is done is kept in {kept}, and the same command goes on from there"
    assert told in capsys.readouterr().err
    sizes = stop()
    settings = ddpm.load_config(conditional)[0]
    ddpm.save_checkpoint(tmp_path / "weights", restless(ddpm.make_model(settings), 0.2), settings)
    for other in (["--seed", "1"], ["--strength", "0.7"], ["--checkpoint", tmp_path / "weights"]):
        assert np.array_equal(drawn(out, *base, *other), drawn(tmp_path / "other", *base, *other)), "of another drawing"
        assert kept.is_dir() and sum(sizes) == 14
        sizes.clear()
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(machine, "versions", lambda: {"torch": "another"})
        drawn(out, *base)
    assert kept.is_dir() and sum(sizes) == 7
    sizes.clear()
    damaged = kept / "images-2-4.npz"
    damaged.write_bytes(damaged.read_bytes()[:100])
    films.clear()
    assert np.array_equal(drawn(out, *base), whole)
    assert sizes == [2, 2, 1] and not kept.exists(), "all but the first"
    assert "7 images x 5 network evaluations" in capsys.readouterr().out
    assert [t for t, *_ in films[0]] == [10, 8, 6, 4, 2, 0] and films[0][-1][1].tolist() == whole[:2, None].tolist()


def test_a_film_is_of_the_first_images_whoever_drew_the_others(conditional, tmp_path):
    model, schedule, settings = ddpm.load_checkpoint(conditional)
    kept = resumable.Kept(tmp_path / "kept", resumable.Counted(model))
    options = {"steps": [6, 3], "batch_size": 2, "film": 2, "progress": False}
    resumable.generate(kept, model, schedule, 2, settings.shape, start=2, **options)  # another process's, with a film
    kept.save()
    images, film = resumable.generate(kept, model, schedule, 4, settings.shape, **options)
    assert torch.equal(film[-1][1], images[:2])


def test_ctrl_c_says_something_where_nothing_is_kept(conditional, tmp_path, stop, capsys):
    stop(1)
    assert main(["sample", "--checkpoint", str(conditional), "--n", "2", "--steps", "5", "--out", str(tmp_path)]) == 130
    assert capsys.readouterr().err.endswith("interrupted\n")


def test_labels_are_taken_in_turn(conditional, tmp_path, without_films):
    base = ["--checkpoint", conditional, "--steps", "4", "--sampler", "dpmpp"]
    in_turn = drawn(tmp_path / "a", *base, "--n", "4", "--label", "7", "2")
    for k, label in enumerate((7, 2, 7, 2)):
        alone = drawn(tmp_path / "b", *base, "--n", "4", "--label", label)
        assert np.abs(alone[k].astype(int) - in_turn[k]).max() <= 1
    all_of_them = drawn(tmp_path / "c", *base, "--n", "12")
    listed = drawn(tmp_path / "d", *base, "--n", "12", "--label", *range(10))
    assert np.array_equal(all_of_them, listed)


def test_masked_pixels_are_filled_in_and_the_others_kept(conditional, tmp_path, digit, without_films):
    arguments = ["--init-image", tmp_path / "digit.png", "--mask", tmp_path / "mask.png", "--steps", "5"]
    images = drawn(tmp_path / "out", "--checkpoint", conditional, "--n", "2", "--resamples", "1", *arguments)
    inner = images[:, 2:-2, 2:-2]
    assert (inner[:, :, :14] == digit[:, :14]).all()
    assert (inner[:, :, 14:] != digit[:, 14:]).mean() > 0.5
    inner[:] = 0
    assert not images.any(), "the padding counts as known"


def test_little_strength_leaves_the_image_nearly_as_it_was(conditional, tmp_path, digit, without_films):
    error = {}
    for strength in ("0.05", "1"):
        arguments = ["--init-image", tmp_path / "digit.png", "--strength", strength, "--steps", "4", "--n", "2"]
        images = drawn(tmp_path / "out", "--checkpoint", conditional, *arguments)[:, 2:-2, 2:-2]
        error[strength] = np.abs(images.astype(float) - digit).mean()
    assert error["0.05"] < 20 < error["1"]


def test_images_of_other_sizes_are_cropped_and_resized_together_with_their_mask(checkpoint, tmp_path, without_films):
    picture, mask = np.full((40, 80), 200, np.uint8), np.zeros((40, 80), np.uint8)
    mask[:, :40] = 255
    Image.fromarray(picture).save(tmp_path / "wide.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    images = drawn(
        tmp_path / "out", "--checkpoint", checkpoint, "--n", "1", "--steps", "3", "--resamples", "1",
        "--init-image", tmp_path / "wide.png", "--mask", tmp_path / "mask.png",
    )  # fmt: skip
    assert (images[0, :, :16] == 200).all() and (images[0, :, 16:] != 200).any()


def test_a_mask_that_is_resized_stays_of_known_and_unknown_pixels(checkpoint, tmp_path, without_films):
    stripes = np.zeros((64, 64), np.uint8)
    stripes[32:, 1::2] = 255  # below, the columns that lie nearest, and grey if averaged
    Image.fromarray(np.full((64, 64), 200, np.uint8)).save(tmp_path / "plain.png")
    Image.fromarray(stripes).save(tmp_path / "mask.png")
    images = drawn(
        tmp_path / "out", "--checkpoint", checkpoint, "--n", "1", "--steps", "3", "--resamples", "1",
        "--init-image", tmp_path / "plain.png", "--mask", tmp_path / "mask.png",
    )  # fmt: skip
    assert (images[:, 16:] == 200).all() and not (images[:, :16] == 200).all()


def test_likelihood_prints_and_writes_the_bound(conditional, tmp_path, capsys):
    out = tmp_path / "cards" / "likelihood.json"
    arguments = ["--checkpoint", str(conditional), "--n", "6", "--out", str(out)]
    assert main(["likelihood", *arguments]) == 0
    card = json.loads(out.read_text())
    assert f"{card['bits_per_dim']:.4f} ± {card['standard_error']:.4f} bits/dim" in capsys.readouterr().out
    assert card["n"] == 6 and card["pixels"] == [1, 28, 28] and card["variance"] == "learned"
    assert card["evaluations_per_image"] == 20 and len(card["L_0_to_T_minus_1"]) == 20
    assert card["bits_per_dim"] == pytest.approx(sum(card["L_0_to_T_minus_1"]) + card["L_T"])
    assert main(["likelihood", *arguments, "--steps", "4", "--variance", "beta", "--split", "train"]) == 0
    card = json.loads(out.read_text())
    assert (card["steps"], card["T"], card["variance"], card["split"]) == (4, 20, "beta", "train")
    assert card["evaluations_per_image"] == len(card["L_0_to_T_minus_1"]) == 4
    model, schedule, settings = ddpm.load_checkpoint(conditional)
    images, times = ddpm.load_images(settings, ROOT / "data")[:6], ddpm.timesteps(20, 4)
    expected = bits_per_dim(
        respaced(model, times), respace(schedule, times), images, variance="beta", margin=2, progress=False
    )
    assert card["bits_per_dim"] == pytest.approx(expected.mean, rel=1e-6)
    assert main(["likelihood", *arguments, "--times-per-image", "3"]) == 0
    assert json.loads(out.read_text())["evaluations_per_image"] == 3
    found = set()
    for more in ([], ["--seed", "1"], ["--spacing", "quadratic"]):
        assert main(["likelihood", *arguments, "--steps", "4", *more]) == 0
        found.add(json.loads(out.read_text())["bits_per_dim"])
    assert len(found) == 3


def test_a_bound_that_was_stopped_goes_on(conditional, tmp_path, monkeypatch):
    def card(name, status=0):
        arguments = ["--n", "6", "--batch-size", "2", "--times-per-image", "3", "--out", str(tmp_path / name)]
        assert main(["likelihood", "--checkpoint", str(conditional), *arguments]) == status
        return status or json.loads((tmp_path / name).read_text()) | {"seconds": 0}

    def stopped(*arguments):
        batches.append(1)
        if len(batches) == 3:
            raise KeyboardInterrupt
        return prior_term(*arguments)

    whole, prior_term, batches = card("whole.json"), likelihood.prior_term, []
    monkeypatch.setattr(likelihood, "prior_term", stopped)
    card("bound.json", status=130)
    assert card("bound.json") == whole and len(batches) == 4
    assert {path.name for path in tmp_path.iterdir()} == {"whole.json", "bound.json"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--variance", "learned"], "has learned no variance"),
        (["--n", "1"], "at least 2 images"),
        (["--steps", "21"], "from 1 to T = 20"),
        (["--times-per-image", "21"], "times_per_image is 21: it must be from 1 to T = 20"),
        (["--seed", "-1"], "seed is -1: it must be"),
        (["--split", "test"], "has no test split"),
        (["--checkpoint", "no/where"], "no/where is not a checkpoint"),
    ],
    ids=" ".join,
)
def test_bad_requests_for_a_likelihood_end_in_one_line(checkpoint, tmp_path, capsys, arguments, message):
    base = ["--checkpoint", checkpoint, "--split", "train", "--n", "4", "--data", checkpoint.parent / "data"]
    assert message in error_of(capsys, "likelihood", *base, "--out", tmp_path / "l.json", *arguments)


def test_training_with_labels_is_given_them(fits, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    assert main(["train", "--classes", "10", "--out", str(tmp_path), *SMALL]) == 0
    ((_, _, labels),) = fits
    assert labels.shape == (60000,) and labels[:5].tolist() == [5, 0, 4, 1, 9]


def test_a_preset_decides_what_no_flag_does(fits, monkeypatch, tmp_path):
    monkeypatch.setattr(ddpm, "load_images", lambda settings, data: torch.zeros(64, 3, 64, 64, dtype=torch.uint8))
    flags = ["--preset", "faces-64-small", "--epochs", "3", "--out", str(tmp_path)]
    assert main(["train", *flags]) == 0
    assert main(["train", *flags, "--dataset", "ffhq", "--T", "50"]) == 0
    seen = [run.settings for run, _, _ in fits]
    assert seen[0] == ddpm.Settings(**{**PRESETS["faces-64-small"], "epochs": 3})
    assert (seen[1].dataset, seen[1].T, seen[1].epochs, seen[1].patch_size) == ("ffhq", 50, 3, 4)


def test_training_goes_on_from_other_weights_on_other_data(checkpoint, pictures, tmp_path, capsys):
    """The network and its diffusion are the checkpoint's; with a rate of next to nothing the weights stay its own."""
    given = load_file(checkpoint / "model.safetensors")
    settings, out = ddpm.load_config(checkpoint)[0], tmp_path / "tuned"
    cache = ["--data", str(tmp_path / "data")]
    flags = ["--dataset", str(pictures / ".." / pictures.name), *cache, "--epochs", "1", "--batch-size", "16"]
    start = ["train", "--init-from", str(checkpoint), "--out", str(out), *flags, "--learning-rate", "1e-9"]
    assert main(start) == 0
    tuned = ddpm.load_config(out)[0]
    assert (tuned.base_channels, tuned.T, tuned.init_from) == (settings.base_channels, 20, str(checkpoint))
    weights = load_file(out / "model.safetensors")
    assert all((weights[name] - given[name]).abs().max() < 1e-6 for name in given)
    assert main(["train", "--resume", "--out", str(out), "--epochs", "2", *cache]) == 0
    assert "there is no folder nowhere" in error_of(capsys, "train", "--init-from", "nowhere", "--out", tmp_path)


def test_a_network_for_labels_goes_on_without_where_the_data_have_none(conditional, pictures, fits, tmp_path):
    start = ["train", "--init-from", str(conditional), "--out", str(tmp_path / "out")]
    assert main([*start, "--dataset", str(pictures), "--data", str(tmp_path), "--batch-size", "4"]) == 0
    assert main([*start, "--classes", "0"]) == 0 and main(start) == 0
    assert [run.settings.classes for run, _, _ in fits] == [0, 0, 10]
    assert not hasattr(fits[0][0].model, "label") and fits[2][2].max() == 9


def test_classes_0_takes_back_the_attributes_of_the_network_to_start_from(fits, tmp_path, monkeypatch):
    sizes = {"base_channels": 8, "channel_mults": (1, 2), "attention_resolutions": (8,)}
    settings = ddpm.Settings(dataset="celeba", attributes=("Smiling",), **sizes)
    ddpm.save_checkpoint(tmp_path / "faces", ddpm.make_model(settings), settings)
    monkeypatch.setattr(ddpm, "load_images", lambda s, root: torch.zeros(8, *s.shape, dtype=torch.uint8))
    start = ["train", "--init-from", str(tmp_path / "faces"), "--dataset", "celeba", "--classes", "0"]
    assert main([*start, "--batch-size", "4", "--out", str(tmp_path / "out")]) == 0
    assert (fits[0][0].settings.classes, fits[0][0].settings.attributes) == (0, ())


def test_weights_that_do_not_fit_are_told_before_images_are_read(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ddpm, "load_images", lambda *_: pytest.fail("this may take minutes"))
    start = "train", "--init-from", checkpoint, "--out", tmp_path
    told = f"the weights of {checkpoint} do not fit the network: time.0.weight is (32, 8), should be (64, 16)"
    assert told in error_of(capsys, *start, "--base-channels", "16")
    assert "the network: label.weight is missing, should be (11, 32)" in error_of(capsys, *start, "--classes", "10")
    told = "the network: conv_in.weight is (8, 12, 3, 3), should be (8, 4, 3, 3); conv_out.weight is"
    assert told in error_of(capsys, *start, "--channels", "1")
    faces = "train", "--init-from", ROOT / "checkpoints/celeba", "--dataset", "celeba", "--out", tmp_path
    told = "checkpoints/celeba do not fit the network: label.weight is (5, 256), should be (3, 256)"
    assert error_of(capsys, *faces, "--attributes", "Smiling").endswith(told)


def test_an_optimizer_brings_its_own_learning_rate(fits, tmp_path, monkeypatch):
    monkeypatch.setattr(ddpm, "load_images", lambda s, root: torch.zeros(64, *s.shape, dtype=torch.uint8))
    for flags, rate in (
        (["--optimizer", "muon"], 5e-3), (["--optimizer", "adam"], 2e-4), ([], 2e-4),
        (["--optimizer", "muon", "--learning-rate", "2e-4"], 2e-4),
    ):  # fmt: skip
        sizes = ["--base-channels", "8", "--image-size", "32", "--batch-size", "4", "--accumulation", "1"]
        assert main(["train", "--preset", "faces-64", *sizes, "--out", str(tmp_path), *flags]) == 0
        assert fits[-1][0].settings.learning_rate == rate, flags


def test_what_cannot_be_trained_is_told_before_images_are_read(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ddpm, "load_images", lambda *_: pytest.fail("this may take minutes"))
    (tmp_path / "file").write_text("text")
    assert "cannot write to the folder" in error_of(capsys, "train", "--out", tmp_path / "file")
    new = "train", "--out", tmp_path / "out"
    for flag in ("schedule", "objective", "optimizer"):
        assert f'{flag} "none" is unknown' in error_of(capsys, *new, f"--{flag}", "none")
    runs.save_run(tmp_path / "run", ddpm.start_run(ddpm.Settings(base_channels=8)))
    assert 'prediction "none" is unknown' in error_of(capsys, *new, "--prediction", "none")
    labels = "--data", ROOT / "data", "--classes", "3"
    assert "no attributes: set classes to 10, not 3" in error_of(capsys, *new, *labels)
    assert not (tmp_path / "out").exists(), "nor is a folder made for it"
    again = "train", "--resume", "--out", tmp_path / "run"
    assert "image_size was 32 in the run in" in error_of(capsys, *again, "--image-size", "64")
    (tmp_path / "run" / "training_state.pt").unlink()  # as in a checkpoint that is shipped
    assert "nothing to resume: there is no" in error_of(capsys, *again)
    assert "image_size 50 is no multiple of 16" in error_of(capsys, *new, "--preset", "faces-64", "--image-size", "50")
    drawn = "evaluate", "--checkpoint", ROOT / "checkpoints/mnist"
    for flags, message in ((["--steps", "0"], "it must be from 1 to T = 1000"), (["--label", "3"], "without labels")):
        assert message in error_of(capsys, *drawn, *flags)


def test_a_presets_data_set_decides_whether_there_are_labels(conditional):
    flags = TrainingFlags(init_from=str(conditional))
    kept = {preset: Train(flags=flags, preset=preset).defaults().classes for preset in ("faces-32", "ddpm-celebahq")}
    assert kept == {"faces-32": 10, "ddpm-celebahq": 0}, "CelebA has, FFHQ has not"


def test_resume_takes_settings_from_the_run_and_flags_override_them(checkpoint, pictures, tmp_path, capsys):
    out, cache = tmp_path / "run", ["--data", str(tmp_path / "data")]
    start = ["train", "--dataset", str(pictures), *cache, "--out", str(out), "--epochs", "1", *SMALL]
    assert main([*start, "--learning-rate", "0.002"]) == 0
    assert main(["train", "--resume", "--out", str(out), "--epochs", "2", *cache]) == 0
    assert "6 steps" in capsys.readouterr().out
    assert "base_channels was 8" in error_of(capsys, "train", "--resume", "--out", out, "--base-channels", "16", *cache)
    told = "there is no folder gone: has it moved? --dataset names where it is now"
    assert told in error_of(capsys, "train", "--resume", "--out", out, "--dataset", "gone", *cache)
    for name in ("config.json", "model.safetensors"):  # as after a kill in the first save
        (out / name).unlink()
    assert main(["train", "--resume", "--out", str(out), "--epochs", "3", *cache]) == 0
    assert ddpm.load_config(out)[0].epochs == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--n", "0"], "n is 0: it must be at least 1"),
        (["--steps", "0"], "from 1 to T = 20"),
        (["--steps", "21"], "from 1 to T = 20"),
        (["--eta", "-0.5"], "eta is -0.5"),
        (["--seed", "-1"], "seed is -1: it must be from 0 to 2^32 - 1"),
        (["--seed", str(2**32)], "seed is 4294967296"),
        (["--batch-size", "0"], "batch_size is 0"),
        (["--device", "nonsense"], 'device "nonsense"'),
        (["--device", "meta"], 'device "meta" is not to be had here'),
        (["--checkpoint", "no/where"], "no/where is not a checkpoint"),
        (["--out", "README.md/x"], "cannot write to the folder README.md/x"),
        (["--guidance", "2"], "was trained without labels"),
        (["--guidance-interval", "5", "15"], "where nothing guides: name a --guide, or a checkpoint with labels"),
        (["--guide", "nowhere", "--guidance", "nan"], "guidance is nan: it must be a number up to a million"),
        (["--guide", "nowhere", "--guidance", "1e300"], "guidance is 1e+300: it must be a number up to a million"),
        (["--guide", "nowhere", "--guidance-interval", "5", "21"], "--guidance-interval 5 21 must be two rising"),
        (["--guide", "nowhere", "--guidance-interval", "3", "6"], "none of the 6 times sampled is in --guidance-inter"),
        (["--label", "3"], "was trained without labels"),
        (["--sampler", "ddpm", "--variance", "learned"], "has learned no variance"),
        (["--sampler", "heun", "--eta", "1"], "heun takes no --eta"),
        (["--variance", "beta"], "ddim takes no --variance"),
        (["--mask", "mask.png"], "give --init-image too"),
        (["--init-image", "README.md"], "README.md is not a readable image"),
        (["--init-image", "nowhere.png"], "nowhere.png is not a readable image"),
        (["--init-image", "digit.png", "--strength", "0"], "strength is 0.0"),
        (["--strength", "0.9"], "--strength is for an --init-image without a --mask"),
        (["--init-image", "digit.png", "--mask", "mask.png", "--strength", "0.9"], "--strength is for an --init-image"),
        (["--init-image", "digit.png", "--resamples", "3"], "--resamples is for filling in what a --mask hides"),
        (["--init-image", "digit.png", "--mask", "small.png"], "the mask is 10 x 9 pixels and the image 28 x 28"),
        (["--init-image", "digit.png", "--mask", "white.png"], "white.png hides nothing: paint black what is to be"),
        (["--init-image", "digit.png", "--mask", "mask.png", "--sampler", "heun"], "leave out --sampler heun"),
        (["--init-image", "digit.png", "--mask", "mask.png", "--eta", "1"], "ddpm takes no --eta"),
    ],
    ids=" ".join,
)
def test_bad_requests_to_sample_end_in_one_line(checkpoint, tmp_path, digit, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").touch()
    Image.new("L", (10, 9)).save("small.png")
    Image.new("L", (28, 28), 255).save("white.png")
    assert message in error_of(capsys, "sample", "--checkpoint", checkpoint, "--steps", "6", *arguments)


def test_spacing_is_that_of_fewer_steps(checkpoint, tmp_path, capsys):
    given = ["likelihood", "--checkpoint", checkpoint, "--out", tmp_path / "x.json"]
    assert "--spacing is that of --steps" in error_of(capsys, *given, "--spacing", "quadratic")
    few = ["--split", "train", "--n", "1", "--data", tmp_path]
    assert "needs at least 2 images, and there are 1" in error_of(capsys, *given, *few)


def test_an_interval_of_guidance_needs_some_guidance(conditional, tmp_path, capsys):
    asked = ["sample", "--checkpoint", conditional, "--steps", "6", "--guidance-interval", "5", "15", "--out", tmp_path]
    for guide in ([], ["--guide", conditional, "--guidance", "1"]):
        assert "where nothing guides: set --guidance to other than 1" in error_of(capsys, *asked, *guide)


@pytest.mark.parametrize("label", ["10", "-1"])
def test_labels_out_of_range_end_in_one_line(conditional, tmp_path, capsys, label):
    arguments = ["--checkpoint", conditional, "--out", tmp_path, "--label", "3", label]
    assert f"label {label} is not one of {conditional}'s 0 to 9" in error_of(capsys, "sample", *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "minst"], 'data set "minst" is unknown: take one of mnist, celeba, ffhq, a folder of images'),
        (["--dataset", "empty"], "empty holds no images"),
        (["--image-size", "30"], "image_size 30 is no multiple of"),
        (["--batch-size", "49"], "batch_size 49 is larger than the data set (48 images)"),
        (["--epochs", "0"], "epochs is 0"),
        (["--epochs", "inf"], "epochs is inf"),
        (["--schedule", "none"], 'schedule "none" is unknown'),
        (["--gradient-clip", "nan"], "gradient_clip is nan: it must be above 0"),
        (["--learning-rate", "inf"], "learning_rate is inf: it must be above 0, and finite"),
        (["--resume", "--preset", "faces-32"], "a resumed run has settings of its own: leave out --preset"),
        (["--objective", "none"], 'objective "none" is unknown'),
        (["--prediction", "none"], 'prediction "none" is unknown'),
        (["--prediction", "none", "--objective", "vlb"], 'prediction "none" is unknown'),
        (["--schedule", "cosine-zero-snr"], 'take prediction "v" or "x0"'),
        (["--classes", "10"], "has no labels: set classes to 0"),
        (["--label-dropout", "0.3"], "--label-dropout hides labels, and there are none"),
        (["--schedule", "cosine", "--beta-T", "0.03"], "schedule cosine has betas of its own"),
        (["--preset", "faces-32", "--beta-1", "1e-3"], "schedule cosine has betas of its own"),
        (["--dataset", "mnist", "--data", str(ROOT / "data"), "--classes", "3"], "set classes to 10"),
        (["--out", "file/run"], "cannot write to the folder file/run"),
        (["--dataset", ".", "--out", "run/mine"], "run/mine is in the folder of images ., and pictures there"),
        (["--resume"], "nothing to resume: there is no "),
    ],
    ids=" ".join,
)
def test_bad_requests_to_train_end_in_one_line(pictures, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    assert message in error_of(capsys, "train", *SMALL, "--dataset", pictures, "--out", "run", *arguments)


def test_train_does_not_overwrite(checkpoint, pictures, capsys):
    arguments = ["--dataset", pictures, "--data", checkpoint.parent / "data", "--out", checkpoint, *SMALL]
    assert "holds a checkpoint already" in error_of(capsys, "train", *arguments)


@pytest.mark.parametrize(
    "failure",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore."),
        RuntimeError("MPS backend out of memory (MPS allocated: 20.00 GiB)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: 20.00 GiB"),
        MemoryError("20.00 GiB"),
    ],
)
def test_memory_that_ends_is_one_line_with_advice(monkeypatch, capsys, failure):
    def drawing(self):
        raise failure

    for command in (Sample, Plan):
        monkeypatch.setattr(command, "run", drawing)
    assert re.search(r"20.00 GiB.*: take less at once \(--batch-size;", error_of(capsys, "sample"))
    assert re.search(r"20.00 GiB.*: use train, .*--accumulation", error_of(capsys, "plan")), "plan has no such flags"


def test_other_failures_keep_their_traceback(monkeypatch):
    def drawing(self):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(Sample, "run", drawing)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        main(["sample"])


def test_a_sampler_of_ones_own_needs_no_options(checkpoint, tmp_path, monkeypatch, capsys):
    def mine(model, schedule, times, xT, noise):
        yield 0, xT, xT

    monkeypatch.setitem(ddpm.SAMPLERS, "ddim", mine)  # the one that is taken where none is named
    common = ["--checkpoint", checkpoint, "--n", "1", "--steps", "4", "--out", tmp_path]
    assert main(["sample", *map(str, common)]) == 0
    assert "ddim takes no --clip: leave it out" in error_of(capsys, "sample", *common, "--clip", "none")


def test_help_names_every_setting_and_unknown_flags_fail(capsys):
    text = ""
    for command in ("train", "sample", "likelihood"):
        with pytest.raises(SystemExit) as stopped:
            main([command, "--help"])
        assert stopped.value.code == 0
        text = text or capsys.readouterr().out  # of train
    missing = [f.name for f in fields(ddpm.Settings) if not re.search(rf"--{f.name.replace('_', '-')}\b", text)]
    assert not missing and "--eta" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(["train", "--preset", "faces-64", "--help"])
    assert stopped.value.code == 0
    assert re.search(r"--image-size INT [^(]*\(default: 64\)", capsys.readouterr().out), "the preset's defaults"
    for wrong in (["train", "--epohcs", "3"], ["sample", "--sampler", "magic"], ["fly"], []):
        with pytest.raises(SystemExit) as stopped:
            main(wrong)
        assert stopped.value.code == 2


def test_a_tilde_is_the_home_folder_wherever_it_begins_a_path(tmp_path, monkeypatch):
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    seen = []
    for command in (Train, Sample, Compare):
        monkeypatch.setattr(command, "run", lambda self: seen.append(self))
    assert main(["train", "--out=~/a=b", "--data", "~", "--dataset", "~/pictures"]) == 0
    assert main(["sample", "--checkpoint", "~/x", "--out=here/~"]) == 0 and main(["compare", "~/a", "b"]) == 0
    train, sample, compare = seen
    assert (train.out, train.data, train.flags.dataset) == (tmp_path / "a=b", tmp_path, str(tmp_path / "pictures"))
    assert (sample.checkpoint, sample.out, compare.first) == (tmp_path / "x", Path("here/~"), tmp_path / "a")


def start(out, pictures, epochs, *more):
    """A training process of its own, as from a shell."""
    data = ["--dataset", str(pictures), "--data", str(out.parent / "data")]
    arguments = ["train", *data, "--out", str(out), "--epochs", str(epochs), *SMALL, *more]
    return subprocess.Popen(
        [sys.executable, "-m", "mnist_ddpm", *arguments],
        cwd=ROOT,
        text=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )


def wait_for(path, process):
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.05)


def test_killed_run_resumes_as_if_nothing_had_been(pictures, tmp_path):
    killed = start(tmp_path / "killed", pictures, 24)
    wait_for(tmp_path / "killed" / "training_state.pt", killed)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert torch.load(tmp_path / "killed" / "training_state.pt", weights_only=True)["step"] < 72
    assert start(tmp_path / "killed", pictures, 24, "--resume").wait() == 0
    assert start(tmp_path / "whole", pictures, 24).wait() == 0
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("killed", "whole"))
    assert all(torch.equal(a[k], b[k]) for k in b)


def test_ctrl_c_saves_and_says_how_to_go_on(pictures, tmp_path):
    process = start(tmp_path / "run", pictures, 100_000)
    wait_for(tmp_path / "run" / "training_state.pt", process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors
    assert f"saved in {tmp_path / 'run'}: resume to go on" in errors
    step = torch.load(tmp_path / "run" / "training_state.pt", weights_only=True)["step"]
    assert f"stopped after step {step} " in errors
    places = f"--out {tmp_path / 'run'} --data {tmp_path / 'data'}"
    assert re.search(rf"that is: \S*python\S* -m mnist_ddpm train --resume {re.escape(places)}", errors)


def test_names_that_the_terminal_cannot_write_stop_nothing(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, "ascii"))
    monkeypatch.setattr(Sample, "run", lambda self: print(os.fsdecode(b"caf\xe9.png"), "日"))
    assert main(["sample"]) == 0
    sys.stdout.flush()
    assert b"caf\\udce9.png" in written.getvalue()


def test_a_samplers_own_defaults_hold_unless_told(monkeypatch):
    monkeypatch.setitem(ddpm.SAMPLERS, "noisy", partial(dpmpp_2m_sampler, eta=1.0))
    monkeypatch.setitem(ddpm.SAMPLERS, "free", partial(ddpm.ddim_sampler, clip=False))
    monkeypatch.setitem(ddpm.SAMPLERS, "asking", lambda model, schedule, times, xT, noise, *, eta: None)
    monkeypatch.setitem(ddpm.SAMPLERS, "wide", partial(ddpm.ddpm_sampler, variance="beta"))
    for flags, name, wanted in (
        ({}, "eta", 0.0), ({"sampler": "dpmpp"}, "eta", 0.0), ({"sampler": "noisy"}, "eta", 1.0),
        ({"sampler": "noisy", "eta": 0.0}, "eta", 0.0), ({"sampler": "ddpm"}, "variance", "posterior"),
        ({"sampler": "wide"}, "variance", "beta"),
        ({"sampler": "wide", "variance": "posterior"}, "variance", "posterior"),
        ({}, "clip", True), ({"sampler": "free"}, "clip", False), ({"clip": "none"}, "clip", False),
        ({"sampler": "asking"}, "eta", 0.0),
    ):  # fmt: skip
        assert Sample(**flags).sampling(ddpm.Settings())[name] == wanted, flags
