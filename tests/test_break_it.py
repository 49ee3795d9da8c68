"""further/break_it.ipynb: its bugs change the pictures, its quiz and its networks are complete."""

import json
import re
import sys
import types

import matplotlib.pyplot as plt
import pytest
import torch
from conftest import ROOT

from mnist_ddpm import ddpm

CELLS = json.loads((ROOT / "further" / "break_it.ipynb").read_text(encoding="utf-8"))["cells"]
LESSONS = ROOT / "checkpoints" / "lessons"
BUGS = {
    "noise in the last step",
    "wrong neighbour",
    "t off by one",
    "no clipping",
    "data in [0, 1]",
    "mirrored digits",
    "raw weights",
    "one t for a whole batch",
}


@pytest.fixture(scope="module")
def names():
    """The notebook's names after a run with two images in a row, in at most five steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT / "further")
        patch.setattr(sys, "path", [*sys.path])
        patch.setattr(ddpm, "progress_bar", lambda iterable, **options: iterable)
        timesteps = ddpm.timesteps
        patch.setattr(ddpm, "timesteps", lambda T, steps: timesteps(T, min(steps, 5)))
        module = types.ModuleType("__main__")
        for cell in CELLS:
            if cell["cell_type"] == "code":
                source = re.sub(r"^n = 8\b", "n = 2", "".join(cell["source"]), flags=re.M)
                exec(compile(source, cell["id"], "exec"), vars(module))
                plt.close("all")
    return vars(module)


def test_each_bug_changes_the_images(names):
    assert set(names["rows"]) == BUGS
    for bug, (broken, right) in names["rows"].items():
        difference = (broken.float() - right.float()).abs().mean()
        assert broken.shape == right.shape and difference > 2, bug


def test_the_quiz_has_each_visible_bug_once_and_the_text_answers_it(names):
    answers = names["answers"]
    assert sorted(answers.values()) == sorted(BUGS - {"one t for a whole batch"})
    text = "".join(next(cell for cell in CELLS if cell["id"] == "answers")["source"])
    assert "<details>" in text
    assert dict(re.findall(r"\*\*([A-H])\*\*: ([^;.]+)", text)) == answers


@pytest.mark.parametrize("folder", sorted(LESSONS.glob("*/")), ids=lambda folder: folder.name)
def test_each_small_network_loads_and_predicts(folder):
    network, _, settings = ddpm.load_checkpoint(folder)
    x = torch.zeros(2, *settings.shape)
    assert network(x, torch.tensor([1, 1000])).isfinite().all()
    assert (folder / "model.safetensors").stat().st_size <= 1_500_000


def test_the_small_networks_are_small_together():
    assert sum(path.stat().st_size for path in LESSONS.rglob("*.*")) <= 6_000_000
