"""The command line as a whole: from training to a card, statuses, help, and errors of one line."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from command_helpers import NETWORK, SMALL, error_of, run, save_network
from conftest import ROOT
from helpers import equal, raising
from safetensors.torch import load_file

from mnist_ddpm.commands import evaluate, plan, sample, train
from mnist_ddpm.commands.command_line import COMMANDS, REPLACED, run_command_line
from mnist_ddpm.evaluation import distances
from mnist_ddpm.evaluation.extractors import Extractor, save_extractor
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.recipe import Recipe
from mnist_ddpm.training import loop


def interrupt_at(step: int, monkeypatch) -> None:
    """Ctrl-C in that step."""
    training_step = loop.training_step

    def interrupted(run, *arguments):
        if run.step + 1 == step:
            signal.raise_signal(signal.SIGINT)
        return training_step(run, *arguments)

    monkeypatch.setattr(loop, "training_step", interrupted)


def test_from_training_to_a_comparison(pictures, tmp_path, monkeypatch, capsys):
    """Train, stop, resume as if nothing had been, draw, judge, measure, compare."""
    out = tmp_path / "run"
    data = ["--data", tmp_path / "data"]
    train = ["train", "--dataset", pictures, *data, *SMALL, "--epochs", 3, "--warmup-steps", 2]
    with monkeypatch.context() as stopped:
        interrupt_at(5, stopped)
        assert run(*train, "--out", out) == 130
    errors = capsys.readouterr().err
    assert f"stopped after step 5 and saved in {out}" in errors
    command = re.escape(f"-m mnist_ddpm train --resume --out {out} --data {tmp_path / 'data'}")
    assert re.search(rf"that is: \S*python\S* {command}", errors)
    assert run("train", "--resume", "--out", out, *data) == 0
    assert f"{out}: 9 steps" in capsys.readouterr().out
    assert run(*train, "--out", tmp_path / "unstopped") == 0
    folders = out, tmp_path / "unstopped"
    assert equal(*(load_file(folder / "model.safetensors") for folder in folders))
    assert "holds a checkpoint already" in error_of(capsys, *train, "--out", out)

    base = ["--checkpoint", out, "--n", 8]
    assert run("sample", *base, "--steps", 4, "--out", tmp_path / "images") == 0
    assert np.load(tmp_path / "images" / "samples.npz")["images"].shape == (8, 16, 16, 3)
    judge = tmp_path / "judge.safetensors"
    save_extractor(judge, Extractor("celeba", 40, (8, 8)), {})
    monkeypatch.setattr(distances, "RESAMPLES", 4)
    card = tmp_path / "card.json"
    assert run("evaluate", *base, *data, "--steps", 4, "--extractor", judge, "--out", card) == 0
    assert json.loads(card.read_text())["reference"].startswith(f"{pictures}, 48 training images")
    bound = tmp_path / "bound.json"
    assert run("likelihood", *base, *data, "--split", "train", "--out", bound) == 0
    assert json.loads(bound.read_text())["pixels"] == [3, 16, 16]
    assert run("compare", card, card) == 0
    written = re.findall(r"^written: (.+)$", capsys.readouterr().out, re.MULTILINE)
    results = [card, tmp_path / "card-closest.png", bound, *(tmp_path / "images").iterdir()]
    assert {*map(str, results)} == {*written}


def test_a_process_of_its_own_is_stopped_and_says_how_to_go_on(pictures, tmp_path):
    """As from a shell; the launcher's Ctrl-C comes once a checkpoint is there."""
    data = ["--dataset", pictures, "--data", tmp_path / "data", "--out", tmp_path / "run"]
    arguments = map(str, ["train", *data, *SMALL, "--epochs", 100_000])
    process = subprocess.Popen(
        [sys.executable, "-m", "mnist_ddpm", *arguments],
        cwd=ROOT, text=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    while not (tmp_path / "run" / "config.json").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130 and "Traceback" not in errors
    step = checkpoints.load_config(tmp_path / "run")[1]["steps"]
    assert f"stopped after step {step} " in errors and "train --resume" in errors


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: 20.00 GiB"),
        MemoryError("20.00 GiB"),
    ],
)
def test_too_little_memory_is_reported_in_one_line_with_advice(monkeypatch, capsys, error):
    monkeypatch.setattr(sample, "run_sample", raising(error))
    monkeypatch.setattr(plan, "run_plan", raising(error))
    assert re.search(r"20.00 GiB.*--batch-size", error_of(capsys, "sample"))
    line = error_of(capsys, "plan")
    assert "--accumulation" in line and "--batch-size" not in line, "plan has no such flag"


def test_the_system_s_errors_are_sentences(monkeypatch, capsys):
    monkeypatch.setattr(sample, "run_sample", raising(OSError(36, "File name too long", "aa")))
    assert error_of(capsys, "sample") == "error: aa: File name too long"


def test_other_failures_keep_their_traceback(monkeypatch):
    monkeypatch.setattr(sample, "run_sample", raising(RuntimeError("shape mismatch")))
    with pytest.raises(RuntimeError):
        run("sample")


@pytest.mark.parametrize("name", REPLACED)
def test_a_command_of_earlier_versions_says_what_replaced_it(capsys, name):
    with pytest.raises(SystemExit) as stopped:
        run(name)
    assert stopped.value.code == 2 and REPLACED[name] in capsys.readouterr().err


MOVED = {  # what each of these methods was trained with, and its sampler
    "drifting": ({"prediction": "x0"}, "consistency"),
    "mean-flow": (
        {"network": "shortcut", "schedule": "flow", "prediction": "velocity"},
        "shortcut",
    ),
}


@pytest.mark.parametrize("objective", MOVED)
def test_a_checkpoint_of_a_method_that_has_left_is_drawn_and_not_trained(
    objective, tmp_path, capsys
):
    changes, sampler = MOVED[objective]
    out = save_network(tmp_path / "old", Recipe(**NETWORK, objective=objective, **changes))
    draw = ["sample", "--checkpoint", out, "--sampler", sampler, "--steps", 1, "--n", 2]
    assert run(*draw, "--out", tmp_path / "images") == 0
    error = error_of(capsys, "train", "--objective", objective, "--out", tmp_path / "new")
    assert f'"{objective}" has left the package' in error and "experiments.methods" in error


def test_methods_outside_the_package_are_trained_by_its_commands(pictures, tmp_path):
    flags = ["--objective", "drifting", "--prediction", "x0", "--epochs", 1, "--device", "cpu"]
    data = ["--dataset", pictures, "--data", tmp_path / "data", "--out", tmp_path / "run"]
    arguments = map(str, ["train", *data, *SMALL, *flags])
    subprocess.run([sys.executable, "-m", "experiments.methods", *arguments], cwd=ROOT, check=True)
    assert checkpoints.load(tmp_path / "run").recipe.objective == "drifting"


def help_of(capsys, *arguments) -> str:
    """The help of a command, in one line."""
    with pytest.raises(SystemExit):
        run(*arguments, "--help")
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_every_flag_does_and_what_its_default_means(capsys, command):
    """A comment that is lost, in a line that is too long, leaves a flag without a word."""
    text = help_of(capsys, command)
    assert "(default: None)" not in text and "(default: )" not in text
    values = re.sub(r"\{[^}]*\}|\[\w+ \[.*?\]\]", "X", text)
    assert re.findall(r"--(?:no-[\w-]+|[\w-]+ [X{}A-Z|]+) \(def", values) == []


def test_help_of_training_has_all_settings_and_the_preset_s_defaults(capsys):
    text = help_of(capsys, "train", "--preset", "faces-64")
    names = {field.name.replace("_", "-") for field in fields(Recipe)}
    from_data = {"label-names", "columns"}
    assert names - from_data <= {*re.findall(r"--([\w-]+)", text)}
    assert re.search(r"--image-size INT\|HxW [^(]*\(default: 64\)", text)


def test_a_tilde_is_the_home_folder_wherever_it_begins_a_path(tmp_path, monkeypatch):
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path))
    seen = []
    monkeypatch.setattr(train, "run_train", seen.append)
    monkeypatch.setattr(sample, "run_sample", seen.append)
    monkeypatch.setattr(evaluate, "run_compare", seen.append)
    assert run("train", "--out=~/a=b", "--data", "~", "--dataset", "~/pictures") == 0
    assert run("sample", "--checkpoint", "~/x", "--out=here/~") == 0
    assert run("compare", "~/a", "b") == 0
    training, drawing, comparing = seen
    assert (training.out, training.data) == (tmp_path / "a=b", tmp_path)
    assert training.recipe.dataset == str(tmp_path / "pictures")
    assert (drawing.checkpoint, drawing.out) == (tmp_path / "x", Path("here/~"))
    assert comparing.first == tmp_path / "a"


def test_names_that_the_terminal_cannot_write_stop_nothing(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, "ascii"))
    name = os.fsdecode(b"caf\xe9.png")
    monkeypatch.setattr(sample, "run_sample", lambda flags: print(name, "日"))
    assert run_command_line(["sample"]) == 0
    sys.stdout.flush()
    assert b"caf\\udce9.png" in written.getvalue()


@pytest.mark.parametrize("command", [["plan", "--dry-run"], ["likelihood"]])
def test_what_one_process_does_is_not_done_by_several(monkeypatch, capsys, command):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "one process" in error_of(capsys, *command)


def test_the_number_of_processes_must_be_that_of_the_flag(tmp_path, capsys):
    line = error_of(capsys, "train", "--processes", 2, "--out", tmp_path / "new")
    assert "2 processes were asked for, and 1 started" in line
    assert not (tmp_path / "new").exists()
