"""What version 0.27.0 wrote: a checkpoint, a training state, and a run of the notebook.

`train --dataset squares.npz --epochs 2 …` and the notebook's cells wrote these files.
"""

import shutil

import pytest
import torch
from conftest import ROOT

from mnist_ddpm import ddpm
from mnist_ddpm.commands.command_line import run_command_line
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.training import loop, saving

FILES = ROOT / "tests" / "version_0_27"


@pytest.mark.parametrize("who", ["package", "notebook"])
def test_a_checkpoint_draws(who):
    network, schedule, recipe = checkpoints.load(FILES / who)
    x = torch.zeros(2, *recipe.shape)
    assert schedule.T == 20 and network(x, torch.tensor([1, 20])).isfinite().all()


def test_the_notebook_loads_its_own():
    _, schedule, settings = ddpm.load_checkpoint(FILES / "notebook")
    assert settings.base_channels == 4 and schedule.T == 20


def test_a_run_goes_on(tmp_path, monkeypatch):
    shutil.copytree(FILES, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    command = ["train", "--resume", "--out", "package", "--epochs", "3", "--device", "cpu"]
    assert run_command_line(command) == 0
    assert checkpoints.saved_step("package") == 9


def test_a_run_of_the_notebook_goes_on_here():
    run = saving.resume_run(FILES / "notebook", loop.start_run)
    assert run.step == 3 and len(run.losses) == 3
