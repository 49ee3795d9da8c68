"""A small recipe, images for it, and what trains it."""

import errno
from functools import partial
from types import SimpleNamespace

import torch
from helpers import raising
from torch import nn

from mnist_ddpm import catalogue, ddpm
from mnist_ddpm.machine import folder_lock, process
from mnist_ddpm.method import as_method
from mnist_ddpm.recipe import Recipe
from mnist_ddpm.training import loop, saving, session
from mnist_ddpm.training.loop import start_run
from mnist_ddpm.training.run import Run, attach_processes, new_run


def stopped_clock(monkeypatch) -> list[float]:
    """The time in training, as a list of one number: it stands still unless a test moves it."""
    now = [100.0]
    for module in (loop, session, process):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def without_locks(monkeypatch) -> None:
    """As on a disk that knows none."""
    refused = raising(OSError(errno.ENOLCK, "No locks available"))
    monkeypatch.setattr(folder_lock.FileLock, "acquire", refused)


TINY = Recipe(
    dataset="squares", channels=1, image_size=16, base_channels=8, channel_mults=(1, 2), T=50,
    epochs=2, batch_size=16, warmup_steps=2,
)  # fmt: skip
NOTEBOOK = ddpm.Settings(
    dataset="squares", image_size=16, base_channels=8, channel_mults=(1, 2), T=50, epochs=1,
    batch_size=16,
)  # fmt: skip
PATH = ddpm.beta_schedule(ddpm.linear_beta(50))


def squares(n: int = 96) -> torch.Tensor:
    """Grey images of one bright square each: uint8 (n, 1, 16, 16)."""
    images = torch.zeros(n, 1, 16, 16, dtype=torch.uint8)
    for k, image in enumerate(images[:, 0]):
        row, column = k % 12, k // 12 % 12
        image[row : row + 4, column : column + 4] = 255
    return images


class Simple(nn.Module):
    """A network of a few numbers, for tests of what happens around it."""

    end_layers = ()

    def __init__(self):
        super().__init__()
        self.shift, self.conv = nn.Embedding(1001, 1), nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x, t, labels=None):
        return self.conv(x) + self.shift(t)[:, :, None, None]


def start_simple(recipe: Recipe, objective=ddpm.l_simple) -> Run:
    """A run at step 0 that takes a tenth of a U-Net's time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = Simple()
    return new_run(recipe, network, partial(catalogue.make_optimizer, recipe=recipe), objective)


def fit(run: Run, folder, objective=None, images=None, **options) -> Run:
    """Trains on squares unless told otherwise, by the run's own method or an objective."""
    run.method = run.method if objective is None else as_method(objective)
    images = squares() if images is None else images
    return loop.fit(run, images, folder, **{"preview": None} | options)


def train(recipe: Recipe, images, folder, labels=None, resume=False, **options) -> Run:
    """Trains a run of this recipe, new or resumed, to its end."""
    run = saving.resume_run(folder, start_run, recipe) if resume else start_run(recipe)
    return loop.fit(run, images, folder, labels=labels, **options)


def steps(run: Run, objective=None, images=None, schedule=PATH, world=None, **options):
    """The steps of a training on squares, one by one, by the run's method or an objective."""
    if world is not None:
        attach_processes(run, world)
    run.method = run.method if objective is None else as_method(objective)
    images = squares() if images is None else images
    return loop.training_loop(run, images, schedule, **options)


def same(a: nn.Module, b: nn.Module) -> bool:
    """Whether all weights are equal, bit for bit."""
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)
