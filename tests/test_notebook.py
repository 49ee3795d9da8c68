"""The notebooks: what they ask of a reader, what they leave behind, and that they run."""

import base64
import json
import re
import shutil
import signal
import sys
import types
from itertools import count
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from mnist_ddpm import ddpm
from mnist_ddpm.methods import likelihood

sys.path.insert(0, str(ROOT / "tools"))
from notebook import FURTHER, NOTEBOOK, export, measure

ALL = [NOTEBOOK, *FURTHER]
TINY = {
    "train": True, "image_size": 16, "base_channels": 8, "T": 20, "epochs": 2.0, "batch_size": 16,
    "n_images": 4, "sampling_steps": 5,
}  # fmt: skip


def cells_of(path: Path, kind: str = "code") -> list[dict]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == kind]


def outputs_of(path: Path) -> list[dict]:
    return [output for cell in cells_of(path) for output in cell["outputs"]]


class Reader:
    """Runs a notebook's cells in order, without a kernel, with other parameters."""

    def __init__(self, path: Path = NOTEBOOK, **parameters):
        self.cells, self.parameters = cells_of(path), parameters
        self.module = types.ModuleType("__main__")  # where dataclasses look for their names
        self.names = vars(self.module)

    def run(self, until: str = "") -> dict:
        """Up to and with the first cell that contains `until`; all of them by default."""
        for cell in self.cells:
            source = "".join(cell["source"])
            exec(compile(source, "cell", "exec"), self.names)
            if "parameters" in cell["metadata"].get("tags", []):
                self.names |= self.parameters
            if "import perf_counter" in source:  # ten seconds pass between two looks
                self.names["perf_counter"] = count(0.0, 10.0).__next__
            plt.close("all")
            if until and until in source:
                break
        return self.names


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """An empty folder, in which the notebook runs, and a folder of pictures of several kinds."""
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    rng = np.random.default_rng(0)
    for k in range(40):
        pixels = rng.integers(0, 255, (20, 24, 4), dtype=np.uint8)
        mode, suffix = (("RGB", "jpg"), ("RGBA", "png"), ("L", "png"), ("RGB", "webp"))[k % 4]
        Image.fromarray(pixels).convert(mode).save(f"mine/{k:02d}.{suffix}")
    return tmp_path


# what a reader meets


def test_module_is_a_fresh_export(tmp_path):
    for name in (NOTEBOOK.name, "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "mnist_ddpm").mkdir()
    export(tmp_path)
    fresh = (tmp_path / "mnist_ddpm" / "ddpm.py").read_text()
    assert fresh == Path(ddpm.__file__).read_text(), "run `make export`, and commit both"


def test_the_notebook_is_one_sitting_and_complete_alone():
    found = measure(NOTEBOOK)
    limits = {
        "minutes": 45, "words": 3200, "code_cells": 45, "lines": 600, "exported": 440,
        "longest_cell": 40, "widest_line": 100, "parameters": 18, "imports_package": 0,
        "megabytes": 1.5,
    }  # fmt: skip
    assert {name: found[name] for name in limits if found[name] > limits[name]} == {}


@pytest.mark.parametrize("path", FURTHER, ids=lambda path: path.stem)
def test_a_further_notebook_is_short(path):
    found = measure(path)
    limits = {"minutes": 12, "longest_cell": 40, "widest_line": 100, "megabytes": 0.7}
    assert {name: found[name] for name in limits if found[name] > limits[name]} == {}


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_outputs_are_of_a_whole_clean_run(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    ids = [cell["id"] for cell in notebook["cells"]]
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len(set(ids)) == len(ids)
    assert "widgets" not in notebook["metadata"]
    assert str(ROOT) not in path.read_text(encoding="utf-8")
    outputs = outputs_of(path)
    assert {o.get("name", "stdout") for o in outputs} == {"stdout"}
    assert "error" not in {o["output_type"] for o in outputs}
    last = [c for c in cells_of(path) if "fig-alt" in "".join(c["source"])][-1]
    assert last["outputs"], "run it to its end, and commit its outputs"


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_pictures_say_in_words_what_they_show(path):
    pictures = [o for o in outputs_of(path) if "image/png" in o.get("data", {})]
    assert pictures and all(o["metadata"]["image/png"]["alt"] for o in pictures)


def test_the_picture_at_the_head_is_the_gallery_s():
    head = next(c for c in cells_of(NOTEBOOK, "markdown") if "attachments" in c)
    picture = head["attachments"]["samples.png"]["image/png"]
    assert base64.b64decode(picture) == (ROOT / "images&samples" / "samples.png").read_bytes()


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
    prose = "\n".join("".join(cell["source"]) for cell in cells_of(path, "markdown"))
    links = re.findall(r"\]\((?!https?:|attachment:)([^)#]+)", prose)
    assert [link for link in links if not (path.parent / link).exists()] == []


# what it does


@pytest.mark.parametrize(
    "name, value",
    [
        ("sampler", "foo"), ("image_size", 30), ("image_size", 16), ("beta_1", 0.5),
        ("beta_T", 2.0), ("T", 0), ("epochs", -1.0), ("batch_size", 0), ("n_images", 0),
        ("seed", -1),
    ],
)  # fmt: skip
def test_a_setting_that_cannot_work_is_refused_at_once(alone, name, value):
    with pytest.raises(ValueError, match=name):
        Reader(**{name: value}).run("settings = Settings(")


@pytest.mark.parametrize("name, value", [("sampling_steps", 21), ("sampling_steps", 0), ("eta", 2)])
def test_sampling_that_cannot_work_is_refused_before_training(alone, name, value):
    with pytest.raises(ValueError, match=name):
        Reader(**TINY | {"dataset": "mine", name: value}).run("draw_strip(film)")


@pytest.mark.parametrize("name", ["celeba", "ffhq", "nowhere"])
def test_missing_data_are_told_with_their_place(alone, name):
    reader = Reader(dataset=name, image_size=64, patch_size=4)
    with pytest.raises(FileNotFoundError, match=name):
        reader.run("load_images(dataset")


def test_it_trains_stops_goes_on_and_draws_alone(alone):
    settings = TINY | {"dataset": "mine", "save_to": "whole"}
    Reader(**settings).run()
    for name in ("samples.png", "steps.png", "generation.gif", "predicted_x0.gif"):
        assert Path("images&samples/latest", name).stat().st_size > 0

    stopping = Reader(**settings | {"save_to": "parts"})
    stopping.run("first, total = run.step")
    bar, steps = stopping.names["progress_bar"], []

    def interrupted(*args, **kwargs):
        for loss in bar(*args, **kwargs):
            steps.append(loss)
            if len(steps) == 2:
                signal.raise_signal(signal.SIGINT)
            yield loss

    stopping.names["progress_bar"] = interrupted
    train = next(c for c in stopping.cells if "signal.SIGINT" in "".join(c["source"]))
    with pytest.raises(ValueError, match="step 2"):
        exec("".join(train["source"]), stopping.names)
    assert len(steps) == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    Reader(**settings | {"save_to": "parts"}).run()  # after the kernel died
    files = [Path(folder, "model.safetensors").read_bytes() for folder in ("whole", "parts")]
    assert files[0] == files[1]
    with pytest.raises(ValueError, match="base_channels"):
        Reader(**settings | {"save_to": "parts", "base_channels": 16}).run("resume_run(save_to")


def test_it_loads_the_shipped_checkpoint_and_shows_a_short_training(monkeypatch):
    monkeypatch.chdir(ROOT)
    names = Reader(n_images=4, sampling_steps=3).run()
    assert names["samples"].shape == (4, 1, 32, 32)
    assert 0 < names["run"].step < 5


@pytest.mark.parametrize("path", FURTHER, ids=lambda path: path.stem)
def test_a_further_notebook_runs(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    monkeypatch.setattr(sys, "path", [*sys.path])
    steps, total = ddpm.timesteps, ddpm.total_steps
    monkeypatch.setattr(ddpm, "timesteps", lambda T, n: steps(T, min(n, 2)))
    monkeypatch.setattr(ddpm, "total_steps", lambda settings, n: min(12, total(settings, n)))
    generate, bound = ddpm.generate, likelihood.bits_per_dim

    def generate_few(denoise, schedule, n, *args, **options):
        return generate(denoise, schedule, min(n, 100), *args, **options)

    if not path.stem.startswith("7_"):  # where each image has a condition of its own
        monkeypatch.setattr(ddpm, "generate", generate_few)
    few = {"times_per_image": 2}
    monkeypatch.setattr(likelihood, "bits_per_dim", lambda *args, **kw: bound(*args, **kw | few))
    Reader(path).run()
