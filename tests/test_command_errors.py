"""Requests of `sample`, `evaluate` and `likelihood` that end in one line, before the work."""

import json
import os
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from command_helpers import DIGITS, NETWORK, blobs, error_of, run, save_network
from helpers import raising
from PIL import Image

from mnist_ddpm.commands import dispatch
from mnist_ddpm.data import loading
from mnist_ddpm.evaluation.extractors import Extractor, save_extractor
from mnist_ddpm.machine.partial_results import CountedNetwork, PartialResults
from mnist_ddpm.recipe import Recipe
from mnist_ddpm.training import loop, saving
from mnist_ddpm.training.first_weights import initial_weights


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Untrained checkpoints of digits, and of colours in a folder, and an extractor."""
    folder = tmp_path_factory.mktemp("places")
    save_network(folder / "digits", DIGITS)
    save_network(folder / "plain", DIGITS, objective="simple", classes=0)
    sizes = {"image_size": 16, "base_channels": 8, "channel_mults": (1, 2), "T": 20}
    save_network(folder / "colours", Recipe(dataset="faces", **sizes))
    save_extractor(folder / "judge.safetensors", Extractor("mnist", 10, (8, 8)), {})
    return folder


@pytest.fixture
def few_digits(monkeypatch):
    parts = {"train": blobs(60), "test": blobs(24, 60)}
    monkeypatch.setattr(loading, "load_images", lambda recipe, root, split="train": parts[split])


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("sample --n 0", "n is 0"),
        ("sample --steps 21", "1 to T = 20"),
        ("sample --eta -0.5", "eta is -0.5"),
        ("sample --seed -1", "seed is -1"),
        ("sample --batch-size 0", "batch_size is 0"),
        ("sample --checkpoint no/where", "no/where is not a checkpoint"),
        ("sample --out README.md/x", "README.md/x"),
        ("sample --guidance 2", "without labels"),
        ("sample --guidance-interval 5 15", "a checkpoint with labels"),
        ("sample --init-image nowhere", "nowhere is not a readable image (No such file"),
        ("sample --guide nowhere --guidance nan", "guidance is nan"),
        ("sample --guide nowhere --guidance-interval 5 21", "T = 20"),
        ("sample --guide nowhere --guidance-interval 3 6", "none of the 6 times"),
        ("sample --label 3", "without labels"),
        ("sample --sampler ddpm --variance learned", "learned no variance"),
        ("sample --sampler heun --eta 1", "heun takes no --eta"),
        ("sample --variance beta", "ddim takes no --variance"),
        ("sample --mask mask.png", "--init-image"),
        ("sample --init-image README.md", "README.md is not a readable image"),
        ("sample --init-image digit.png --strength 0", "strength is 0.0"),
        ("sample --strength 0.9", "--strength"),
        ("sample --init-image digit.png --mask mask.png --strength 0.9", "--strength"),
        ("sample --init-image digit.png --resamples 3", "--resamples"),
        ("sample --init-image digit.png --jump 3", "--jump"),
        ("sample --init-image digit.png --mask mask.png --jump 0", "jump is 0"),
        ("sample --init-image digit.png --mask small.png", "10 x 9 pixels and the image 28 x 28"),
        ("sample --init-image digit.png --mask white.png", "white.png hides nothing"),
        ("sample --init-image digit.png --mask mask.png --sampler heun", "--sampler heun"),
        ("sample --init-image digit.png --mask mask.png --eta 1", "ddpm takes no --eta"),
        ("evaluate --extractor nowhere", "no extractor nowhere"),
        ("evaluate --n 3", "3 and 60"),
        ("evaluate --extractor README.md", "README.md is damaged"),
        ("evaluate --images README.md", "no zip archive"),
        (f"evaluate --images {os.devnull}", f"{os.devnull} is neither"),
        ("evaluate --out folder", "folder is a folder"),
        ("evaluate --images x.npz --steps 9 --eta 1", "--steps and --eta"),
        ("evaluate --images x.npz --guidance-interval 1 9", "--guidance-interval"),
        ("evaluate --images x.npz --bits 9 --variance posterior", "x.npz is neither"),
        ("evaluate --images folder --out folder/card.json", "in the folder of images folder"),
        ("evaluate --bits 1", "--bits is 1"),
        ("evaluate --label 3", "without labels"),
        ("likelihood --variance learned", "learned no variance"),
        ("likelihood --n 1", "at least 2 images, and there are 1"),
        ("likelihood --steps 21", "1 to T = 20"),
        ("likelihood --times-per-image 21", "times_per_image is 21"),
        ("likelihood --seed -1", "seed is -1"),
        ("likelihood --spacing quadratic", "--steps"),
        ("sample --n 1000000000000", "n is 1000000000000"),
        ("sample --n 1000000000", "n is 1,000,000,000"),
        ("sample --seed 99999999999999999999", "seed is 99999999999999999999"),
        ("sample --out loop", "loop"),
        ("sample --init-image folder", "folder"),
        ("sample --init-image x\x1b]0;title\x07", "control"),
        ("sample --out x\u202egnp.exe", "control"),
        ("evaluate --bits 99999999999999999999", "--bits"),
        ("train --dataset=", "--dataset"),
        ("train --out loop --dataset folder", "loop"),
        ("train --T 1000000000000", "T is 1000000000000"),
    ],
)
def test_bad_requests(places, few_digits, tmp_path, monkeypatch, capsys, command, named):
    """Also what is far beyond sense, empty, or a trap."""
    monkeypatch.chdir(tmp_path)
    for name in ("digit.png", "mask.png"):
        Image.fromarray(np.eye(28, dtype=np.uint8) * 255).save(name)
    Image.new("L", (10, 9)).save("small.png")
    Image.new("L", (28, 28), 255).save("white.png")
    Path("README.md").write_text("text")
    Path("folder").mkdir()
    os.symlink("loop", "loop")
    name, *flags = command.split()
    base = {
        "sample": ["--checkpoint", places / "colours", "--steps", 6],
        "evaluate": ["--checkpoint", places / "plain", "--n", 4, "--out", "card"],
        "likelihood": ["--checkpoint", places / "plain", "--n", 4, "--out", "l.json"],
    }.get(name, [])
    if name == "evaluate":
        base += ["--extractor", places / "judge.safetensors"]
        base += [] if {"--images", "--steps"} & {*flags} else ["--steps", 4]
    line = error_of(capsys, name, *base, *flags)
    assert named in line and line.isprintable()


def test_labels_and_guidance_must_be_of_use(places, tmp_path, capsys):
    digits = places / "digits"
    base = ["sample", "--checkpoint", digits, "--out", tmp_path]
    for label in ("10", "-1"):
        assert f"label {label} " in error_of(capsys, *base, "--label", "3", label)
    interval = ["--steps", 6, "--guidance-interval", 5, 15]
    for guide in ([], ["--guide", digits, "--guidance", 1]):
        assert "--guidance to other than 1" in error_of(capsys, *base, *interval, *guide)
    always_labelled = save_network(tmp_path / "labelled", DIGITS, label_dropout=0.0)
    base = ["sample", "--checkpoint", always_labelled, "--guidance", 2, "--out", tmp_path]
    assert "label_dropout 0" in error_of(capsys, *base)


BOMBS = {
    "deep": "[" * 200_000, "deeper": '{"metrics": ' * 100_000, "null": "null", "text": '"text"',
    "list": "[1]", "number": "1" + "0" * 400, "digits": "1" + "0" * 5000, "empty": "",
    "huge": '{"format": 1' + "0" * 400 + "}", "format": '{"format": 2, "settings": []}',
    "latin": "ä", "long": '{"format": 2, "settings": {"%s": 1}, "method": {}}' % ("a" * 10**6),
    "title": '{"format": 2, "settings": {"a\\u001b[2J": 1}, "method": {}, "training": {}}',
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_json_that_is_none_of_ours_is_damaged(tmp_path, capsys, name):
    card = tmp_path / "card.json"
    folder = tmp_path / "run"
    folder.mkdir()
    for path in (card, folder / "config.json"):
        path.write_text(BOMBS[name], encoding="latin-1")
    assert str(card) in error_of(capsys, "compare", card, card)
    line = error_of(capsys, "sample", "--checkpoint", folder, "--out", tmp_path / "out")
    assert str(folder / "config.json") in line and line.isprintable() and len(line) < 3000
    assert "Error(" not in line and "codec" not in line
    with pytest.raises(ValueError, match=str(folder)):
        initial_weights(folder)


def test_an_odd_environment_is_no_traceback(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "x")  # of no launcher
    assert "missing" in error_of(capsys, "compare", tmp_path / "missing", tmp_path / "b.json")
    broken = ModuleType("dispatch")
    broken.__getattr__ = raising(ValueError("no float: 'x'"))  # as of TQDM_MININTERVAL=x
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, dispatch.__name__, broken)
        assert "no float" in error_of(capsys, "compare", "a.json", "b.json")
    monkeypatch.setattr(dispatch, "import_module", raising(OSError("no writable cache")))
    assert "writable" in error_of(capsys, "compare", "a.json", "b.json")


def test_text_from_a_card_cannot_steer_the_terminal(tmp_path, capsys):
    estimate = {"value": 1.0, "low": 0.5, "high": 1.5}
    plain = {"n": 10, "extractor": "x", "reference": "y", "metrics": {"fid": estimate}}
    for name, checkpoint in (("a.json", "a\x1b]0;title\x07"), ("b.json", "b\rerror: c\n\u202ed")):
        (tmp_path / name).write_text(json.dumps(plain | {"checkpoint": checkpoint}))
    assert run("compare", tmp_path / "a.json", tmp_path / "b.json") == 0
    printed = capsys.readouterr().out
    assert all(line.isprintable() for line in printed.split("\n")) and "title" in printed
    assert not any(line.startswith("error") for line in printed.splitlines())


def test_a_state_that_lacks_something_is_damaged(tmp_path):
    out = tmp_path / "run"
    run_of_faces = loop.start_run(Recipe(dataset="faces", **NETWORK))
    saving.save_run(out, run_of_faces)
    path = out / "training_state.pt"
    state = torch.load(path)
    broken = {name: {k: v for k, v in state.items() if k != name} for name in state}
    # which the states of the notebook and of earlier versions lack
    for name in ("scaler", "times", "n", "seconds", "method", "parts", "part_optimizers"):
        del broken[name]
    broken |= {"steps": state | {"step": -1}, "names": state | {"step": "x"}}
    broken |= {
        "list": [state],
        "all": None,
        "tensor": torch.zeros(3),
        "settings of none": state | {"settings": None},
    }
    broken |= {"moments": state | {"optimizer": {}}, "loss": state | {"losses": [None]}}
    for name, each in broken.items():
        torch.save(each, path)
        with pytest.raises(ValueError, match=str(path)):
            saving.resume_run(out, loop.start_run)
            pytest.fail(name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("damage", ["empty", "text", "header", "pickle", "other", "pipe"])
def test_a_damaged_partial_result_is_computed_again(tmp_path, damage):
    partial = PartialResults(tmp_path, CountedNetwork(None))
    path = tmp_path / "part.npz"
    header = b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'shape': ((((".ljust(128)
    if damage == "pipe":
        os.mkfifo(path)
    elif damage == "pickle":
        np.savez(path, cost=np.array([None, {}], dtype=object))
    elif damage == "other":
        np.savez(path, images=np.zeros(3))
    else:
        path.write_bytes({"empty": b"", "text": b"text", "header": header}[damage])
    assert partial.compute("part", lambda: {"x": torch.ones(2)})["x"].tolist() == [1, 1]
