"""The command line as a user meets it: exit status, one line for an error, files on disk."""

import os
import signal
import subprocess
import sys
import time

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from safetensors.torch import load_file

from mnist_ddpm.__main__ import main

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
    assert main(["train", "--dataset", str(pictures), "--out", str(out), "--epochs", "1", *SMALL]) == 0
    return out


def error_of(capsys, *arguments):
    assert main([str(a) for a in arguments]) == 1
    *_, line = capsys.readouterr().err.strip().split("\r")[-1].splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize("sampler", [["ddim", "--eta", "0.5"], ["ddpm"], ["ddpm", "--variance", "beta"]])
def test_sample_writes_everything_it_promises(checkpoint, tmp_path, sampler):
    out = tmp_path / "a & b"
    arguments = ["--n", "5", "--steps", "6", "--batch-size", "2", "--seed", "3", "--out", str(out)]
    assert main(["sample", "--checkpoint", str(checkpoint), "--sampler", *sampler, *arguments]) == 0
    names = {"samples.png", "steps.png", "generation.gif", "predicted_x0.gif", "samples.npz"}
    assert {path.name for path in out.iterdir()} == names
    images = np.load(out / "samples.npz")["images"]
    assert images.shape == (5, 32, 32, 1) and images.dtype == np.uint8
    grid = imageio.imread(out / "samples.png")
    assert grid.shape[:2] == (2 * (2 + 2 * 34), 2 * (2 + 3 * 34))
    assert np.array_equal(grid[4:68:2, 4:68:2, 0], images[0, :, :, 0]), "the grid shows the images of the array"


def test_sampling_again_gives_the_same_images(checkpoint, tmp_path):
    for name, batch in (("a", "5"), ("b", "2")):
        arguments = ["--n", "5", "--steps", "6", "--batch-size", batch, "--out", str(tmp_path / name)]
        assert main(["sample", "--checkpoint", str(checkpoint), *arguments]) == 0
    a, b = (np.load(tmp_path / name / "samples.npz")["images"].astype(int) for name in "ab")
    assert np.abs(a - b).max() <= 1


def test_resume_takes_settings_from_the_run_and_flags_override_them(checkpoint, pictures, tmp_path, capsys):
    out = tmp_path / "run"
    start = [
        "train",
        "--dataset",
        str(pictures),
        "--out",
        str(out),
        "--epochs",
        "1",
        "--learning-rate",
        "0.002",
        *SMALL,
    ]
    assert main(start) == 0
    assert main(["train", "--resume", "--out", str(out), "--epochs", "2"]) == 0
    assert "6 steps" in capsys.readouterr().out
    assert "base_channels was 8" in error_of(capsys, "train", "--resume", "--out", out, "--base-channels", "16")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--n", "0"], "n = 0"),
        (["--steps", "0"], "from 1 to T = 20"),
        (["--steps", "21"], "from 1 to T = 20"),
        (["--eta", "-0.5"], "eta is -0.5"),
        (["--seed", "-1"], "seed = -1"),
        (["--batch-size", "0"], "batch_size = 0"),
        (["--device", "nonsense"], 'device "nonsense"'),
        (["--checkpoint", "no/where"], "no/where is not a checkpoint"),
        (["--out", "README.md/x"], "cannot write to the folder README.md/x"),
    ],
    ids=" ".join,
)
def test_bad_requests_to_sample_end_in_one_line(checkpoint, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").touch()
    assert message in error_of(capsys, "sample", "--checkpoint", checkpoint, "--steps", "6", *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "minst"], '"minst" is neither a data set'),
        (["--dataset", "empty"], "empty holds no images"),
        (["--image-size", "30"], "image_size 30 is no multiple of"),
        (["--batch-size", "49"], "batch_size 49 is larger than the data set (48 images)"),
        (["--epochs", "0"], "epochs is 0"),
        (["--schedule", "none"], 'schedule "none" is unknown'),
        (["--out", "file/run"], "cannot write to the folder file/run"),
        (["--resume"], "is not a checkpoint"),
    ],
    ids=" ".join,
)
def test_bad_requests_to_train_end_in_one_line(pictures, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    assert message in error_of(capsys, "train", *SMALL, "--dataset", pictures, "--out", "run", *arguments)


def test_train_does_not_overwrite(checkpoint, pictures, capsys):
    assert "holds a checkpoint already" in error_of(capsys, "train", "--dataset", pictures, "--out", checkpoint, *SMALL)


def test_help_names_every_setting_and_unknown_flags_fail(capsys):
    for command in ("train", "sample"):
        with pytest.raises(SystemExit) as stopped:
            main([command, "--help"])
        assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "--learning-rate" in text and "Adam's peak rate" in text and "--eta" in text
    for wrong in (["train", "--epohcs", "3"], ["sample", "--sampler", "magic"], ["fly"], []):
        with pytest.raises(SystemExit) as stopped:
            main(wrong)
        assert stopped.value.code == 2


def start(out, pictures, epochs, *more):
    """A training process of its own, as from a shell."""
    arguments = ["train", "--dataset", str(pictures), "--out", str(out), "--epochs", str(epochs), *SMALL, *more]
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
