"""The notebooks: what they ask of a reader, what they leave behind, and that they run."""

import base64
import io
import json
import linecache
import re
import shutil
import signal
import sys
import types
import zipfile
from functools import partial
from itertools import count
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import ROOT
from helpers import notebook
from PIL import Image

from mnist_ddpm import ddpm
from mnist_ddpm.methods import likelihood, schedules

sys.path.insert(0, str(ROOT / "tools"))
from notebook import FURTHER, NOTEBOOK, export, is_exported, measure

ALL = [NOTEBOOK, *FURTHER]
TINY = {
    "train": True, "image_size": 16, "base_channels": 8, "T": 20, "epochs": 2.0, "batch_size": 16,
    "n_images": 4, "sampling_steps": 5, "watch_minutes": 0,
}  # fmt: skip


def cells_of(path: Path, kind: str = "code") -> list[dict]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == kind]


def outputs_of(path: Path) -> list[dict]:
    return [output for cell in cells_of(path) for output in cell["outputs"]]


SHORTER = {  # loops and their images
    "mnist.data[:, None]": "mnist.data[:99, None]",
    "tqdm(range(1700)": "tqdm(range(4)",
    "range(1000, 0, -20)": "[40, 20]",
    "[500:]": "[2:]",
    "timesteps(paper.T, steps)": "timesteps(paper.T, 2)",
    "torch.randn(4000, 2": "torch.randn(400, 2",
    "range(2000)": "range(2)",
    "range(3000)": "range(4)",
    "counts = (5, 10, 20, 50)": "counts = (5, 10)",
    "n = 48\ndraws = 16": "n = 12\ndraws = 4",
    '("RePaint", 10)': '("RePaint", 2)',
    "(0, 1, 2, 4, 8)": "(0, 8)",
    "seed = 0\nn = 6\n": "seed = 0\nn = 2\n",
}
LINEAR = "schedule = beta_schedule(linear_beta(T, beta_1, beta_T))"
COSINE = """angle = torch.linspace(0, 1.5, T + 1, dtype=torch.float64)
schedule = Schedule(angle.cos(), angle.sin())"""


class Reader:
    """Runs a notebook's cells in order, without a kernel, with other parameters.

    theory: whether with the pictures and checks of the main notebook's first part.
    """

    def __init__(self, path: Path = NOTEBOOK, theory: bool = True, **parameters):
        self.cells, self.parameters = cells_of(path), {"watch_minutes": 0} | parameters
        self.module = types.ModuleType("__main__")  # where dataclasses look for their names
        self.names = vars(self.module)
        if not theory:
            names = [cell["id"] for cell in self.cells]
            first, last = names.index("sixty-lines-code"), names.index("settings")
            self.cells[first:last] = [
                cell
                for cell in self.cells[first:last]
                if is_exported(cell) or cell["id"] in ("schedule-plot", "read-image")
            ]
            self.names |= {"partial": partial, "plt": plt, "device": "cpu", "mnist": None}
            self.names["perf_counter"] = count(0.0, 10.0).__next__

    def run_cell(self, cell: dict) -> None:
        """One cell, whose functions can be asked for their source, as in a kernel."""
        source = "".join(cell["source"])
        for long, short in SHORTER.items():
            source = source.replace(long, short)
        name = f"<{cell['id']} {id(self)}>"
        linecache.cache[name] = len(source), None, source.splitlines(True), name
        exec(compile(source, name, "exec"), self.names)

    def run(self, until: str = "") -> dict:
        """Up to and with the first cell that contains `until`; all of them by default."""
        for cell in self.cells:
            self.run_cell(cell)
            source = "".join(cell["source"])
            if "parameters" in cell["metadata"].get("tags", []):
                self.names |= self.parameters
            if "import perf_counter" in source:  # ten seconds pass between two looks
                self.names["perf_counter"] = count(0.0, 10.0).__next__
            plt.close("all")
            if until and until in source:
                return self.names
        assert not until, f"no cell has {until!r}"
        return self.names

    def after(self, text: str) -> int:
        """The number of the cell that follows the first that contains a text."""
        return 1 + next(k for k, c in enumerate(self.cells) if text in "".join(c["source"]))

    def change(self, old: str, new: str) -> "Reader":
        """The reader of a notebook in which somebody changed a line."""
        for cell in self.cells:
            cell["source"] = "".join(cell["source"]).replace(old, new)
        return self


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """An empty folder, in which the notebook runs, and a folder of pictures of several kinds."""
    monkeypatch.chdir(tmp_path)
    Path("data").symlink_to(ROOT / "data")
    Path("mine").mkdir()
    rng = np.random.default_rng(0)
    for k in range(40):
        pixels = rng.integers(0, 255, (20, 24, 4), dtype=np.uint8)
        mode, suffix = (("RGB", "jpg"), ("RGBA", "png"), ("L", "png"), ("RGB", "webp"))[k % 4]
        Image.fromarray(pixels).convert(mode).save(f"mine/{k:02d}.{suffix}")
    return tmp_path


def test_module_is_a_fresh_export(tmp_path):
    shutil.copy(NOTEBOOK, tmp_path)
    (tmp_path / "mnist_ddpm").mkdir()
    export(tmp_path)
    fresh = (tmp_path / "mnist_ddpm" / "ddpm.py").read_text()
    assert fresh == Path(ddpm.__file__).read_text(), "run `make export`, and commit both"


def test_the_notebook_is_complete_alone_and_its_page_loads():
    found = measure(NOTEBOOK)
    limits = {
        "theory_minutes": 31, "first_drawn": 3, "dry_minutes": 4, "widest_line": 88,
        "imports_package": 0, "megabytes": 1.5,
    }  # fmt: skip
    assert {name: found[name] for name in limits if found[name] > limits[name]} == {}


@pytest.mark.parametrize("path", FURTHER, ids=lambda path: path.stem)
def test_a_further_notebook_is_narrow_and_small(path):
    found = measure(path)
    limits = {"widest_line": 100, "megabytes": 0.7}
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
    last = [cell for cell in cells_of(path) if "alt" in cell["metadata"]][-1]
    assert last["outputs"], "run it to its end, and commit its outputs"


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_pictures_say_in_words_what_they_show(path):
    pictures = [o for o in outputs_of(path) if "image/png" in o.get("data", {})]
    assert pictures and all(o["metadata"]["image/png"]["alt"] for o in pictures)


@pytest.mark.parametrize("name, cell", [("samples", "opening-picture"), ("steps", "opening-strip")])
def test_the_first_pictures_are_those_that_the_notebook_drew(name, cell):
    (shown,) = (c["outputs"] for c in cells_of(NOTEBOOK) if c["id"] == cell)
    picture = base64.b64decode(shown[0]["data"]["image/png"])
    drawn = Image.open(ROOT / "images&samples" / "notebook" / f"{name}.png").convert("RGB")
    assert Image.open(io.BytesIO(picture)).convert("RGB").tobytes() == drawn.tobytes()


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
    prose = "\n".join("".join(cell["source"]) for cell in cells_of(path, "markdown"))
    links = re.findall(r"\]\((?!https?:|attachment:)([^)#]+)", prose)
    assert [link for link in links if not (path.parent / link).exists()] == []


@pytest.mark.parametrize(
    "name, value",
    [
        ("sampler", "foo"), ("image_size", 30), ("image_size", 16), ("patch_size", 3),
        ("beta_1", 0.5), ("beta_1", 0), ("beta_T", 2.0), ("T", 0), ("epochs", -1.0),
        ("epochs", float("nan")), ("batch_size", 0), ("n_images", 0), ("sampling_steps", 1001),
        ("sampling_steps", 2.5), ("eta", 2), ("guidance", -1), ("learning_rate", 0),
        ("learning_rate", 0.1), ("labels", "three"),
    ],
)  # fmt: skip
def test_a_parameter_that_cannot_work_is_refused_at_once(alone, name, value):
    with pytest.raises(ValueError, match="image_size" if name == "patch_size" else name):
        Reader(**{name: value}).run("for value in (")


def test_a_schedule_that_leaves_no_signal_is_refused(alone):
    with pytest.raises(ValueError, match="beta_T"):
        Reader(theory=False, beta_T=0.5).run("schedule = beta_schedule(")


def test_what_cannot_be_saved_or_loaded_is_refused_before_any_work(alone):
    Path("file").write_text("")
    for save_to in ("file", "file/below"):
        with pytest.raises(OSError, match="file"):
            Reader(train=True, save_to=save_to).run("is_training =")
    with pytest.raises(ModuleNotFoundError, match="google"):  # no folder where Drive belongs
        Reader(train=True, save_to="/content/drive/MyDrive/run").run("is_training =")
    Path("kept").mkdir()
    Path("kept", "model.safetensors").write_bytes(b"weights")
    with pytest.raises(ValueError, match="kept"):
        Reader(train=True, save_to="kept").run("is_training =")


def test_a_checkpoint_is_found_by_its_name_and_a_misspelt_one_is_an_error(alone):
    shutil.copytree(ROOT / "checkpoints" / "lessons" / "right", "checkpoints/right")
    names = Reader(checkpoint="right").run("is_training =")
    assert names["folder"] == Path("checkpoints/right") and not names["is_training"]
    with pytest.raises(ValueError, match="right"):
        Reader(checkpoint="rigth").run("is_training =")
    assert Reader(checkpoint="rigth", train=True).run("is_training =")["is_training"]
    assert Reader().run("is_training =")["is_training"], "the form's own, where it is missing"


def test_missing_digits_are_an_error_that_says_where_they_belong(tmp_path, monkeypatch):
    from torchvision import datasets

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])  # no network in tests
    with pytest.raises(FileNotFoundError, match="data/MNIST/raw"):
        Reader().run("is_training =")


@pytest.mark.parametrize("name", ["celeba", "ffhq", "nowhere"])
def test_missing_images_are_named_with_their_place(alone, name):
    reader = Reader(theory=False, dataset=name, image_size=64, patch_size=4)
    with pytest.raises(FileNotFoundError, match=name):
        reader.run("load_images(dataset")


def test_it_trains_stops_goes_on_and_draws_alone(alone, capsys):
    settings = TINY | {"dataset": "mine", "save_to": "whole"}
    Reader(**settings).run()
    settings |= {"theory": False}
    for name in ("samples.png", "steps.png", "generation.gif", "predicted_x0.gif"):
        assert Path("whole", "pictures", name).stat().st_size > 0
    assert zipfile.ZipFile("whole.zip").testzip() is None

    stopping = Reader(**settings | {"save_to": "parts"})
    stopping.run("last_step =")
    bar, steps = stopping.names["progress_bar"], []

    def interrupted(*args, desc="", **kwargs):
        if desc != "training":
            return bar(*args, desc=desc, **kwargs)
        stepping = bar(*args, **kwargs)
        take = stepping.__iter__

        def losses():
            for loss in take():
                steps.append(loss)
                if len(steps) == 2:
                    signal.raise_signal(signal.SIGINT)
                yield loss

        stepping.__class__ = type("Bar", (type(stepping),), {"__iter__": lambda bar: losses()})
        return stepping

    stopping.names["progress_bar"] = interrupted
    for cell in stopping.cells[stopping.after("last_step =") :]:
        stopping.run_cell(cell)
    assert "step 2" in capsys.readouterr().out
    assert len(steps) == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    Reader(**settings | {"save_to": "parts"}).run()  # after the kernel died
    files = [Path(folder, "model.safetensors").read_bytes() for folder in ("whole", "parts")]
    assert files[0] == files[1]
    capsys.readouterr()
    Reader(**settings | {"save_to": "parts"}).run("last_step =")
    assert "raise epochs" in capsys.readouterr().out
    with pytest.raises(ValueError, match="base_channels"):
        Reader(**settings | {"save_to": "parts", "base_channels": 16}).run("last_step =")
    with pytest.raises(ValueError, match="schedule"):
        changed = Reader(**settings | {"save_to": "parts"})
        changed.change(LINEAR, COSINE).run("last_step =")


def test_the_schedule_that_trained_is_the_one_that_samples(alone):
    """The exercise that everyone does: another schedule, in its cell alone."""
    reader = Reader(theory=False, **TINY | {"dataset": "mine", "save_to": "own"})
    trained = reader.change(LINEAR, COSINE).run("last_step =")["schedule"]
    notebook.save_run("own", ddpm.start_run(ddpm.Settings(T=20, base_channels=8)), trained)
    _, loaded, _ = ddpm.load_checkpoint("own")
    assert torch.equal(loaded.a, trained.a) and torch.equal(loaded.b, trained.b)
    assert not torch.equal(loaded.a, ddpm.beta_schedule(ddpm.linear_beta(20)).a)


def test_a_folder_of_labels_is_learned_and_drawn_by_them(alone, capsys):
    for k, path in enumerate(sorted(Path("mine").iterdir())):
        kind = Path("kinds", "cat" if k % 2 else "dog")
        kind.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, kind)
    settings = TINY | {"dataset": "kinds", "save_to": "own", "theory": False, "epochs": 1.0}
    names = Reader(**settings, labels="10").run()
    assert "0 is cat, 1 is dog" in capsys.readouterr().out
    assert names["drawn_labels"].tolist() == [1, 0, 1, 0]
    assert names["trained"].classes == 2
    with pytest.raises(ValueError, match="labels"):
        Reader(**settings, labels="2").run("last_step =")


@pytest.mark.parametrize(
    "extreme", [{"beta_1": 0.02}, {"beta_T": 0.2}, {"T": 1, "sampling_steps": 1}]
)
def test_no_check_in_the_theory_is_a_false_alarm(alone, extreme):
    Reader(**extreme).run("straight = Schedule(")


def test_it_loads_the_shipped_checkpoint_and_draws(monkeypatch):
    monkeypatch.chdir(ROOT)
    names = Reader(n_images=3, sampling_steps=3, watch_minutes=0.001).run()
    assert names["samples"].shape == (3, 1, 32, 32)
    assert len(names["means"]) == 94  # of that checkpoint's training


RUN_HERE = [path for path in FURTHER if path.stem != "break_it"]  # which has a file of tests


@pytest.mark.parametrize("path", RUN_HERE, ids=lambda path: path.stem)
def test_a_further_notebook_runs(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    monkeypatch.setattr(sys, "path", [*sys.path])
    steps, total = ddpm.timesteps, ddpm.total_steps
    monkeypatch.setattr(ddpm, "timesteps", lambda T, n: steps(T, min(n, 2)))
    monkeypatch.setattr(schedules, "quadratic_times", lambda T, n: steps(T, 3))
    monkeypatch.setattr(ddpm, "total_steps", lambda settings, n: min(3, total(settings, n)))
    generate, bound, load = ddpm.generate, likelihood.bits_per_dim, ddpm.load_mnist
    monkeypatch.setattr(ddpm, "load_mnist", lambda *args, **kw: load(*args, **kw)[:50])

    def generate_few(denoise, schedule, n, *args, **options):
        return generate(denoise, schedule, min(n, 30), *args, **options)

    if not path.stem.startswith("8_"):  # where each image has a condition of its own
        monkeypatch.setattr(ddpm, "generate", generate_few)

    def bound_of_few(denoise, schedule, images, *args, **options):
        return bound(denoise, schedule, images[:20], *args, **options | {"times_per_image": 2})

    monkeypatch.setattr(likelihood, "bits_per_dim", bound_of_few)
    Reader(path).run()
