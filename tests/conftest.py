import os

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # on all machines alike, on the processor; before torch looks
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for each of the processes that share the tests

from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch

from mnist_ddpm import ddpm, runs
from mnist_ddpm.ddpm import Settings, make_schedule

ROOT = Path(__file__).resolve().parent.parent

# a network small enough to train in a test
TINY = Settings(
    base_channels=8, channel_mults=(1, 2), attention_resolutions=(8,), T=50, epochs=2, batch_size=16, warmup_steps=2
)


def pytest_configure(config):
    archives = (ROOT / "data" / "MNIST" / "raw").glob("*.gz")
    if not hasattr(config, "workerinput") and not all(path.with_suffix("").exists() for path in archives):
        ddpm.load_mnist(Settings(), ROOT / "data")  # unpacks all four, before those processes would all do so


def restless(model: torch.nn.Module, std: float = 0.1) -> torch.nn.Module:
    """The network with random weights everywhere, also where they start at zero."""
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data.copy_(std * torch.randn(p.shape, generator=generator))
    return model.eval()


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def no_noise():
    raise AssertionError("noise must not be drawn here")


@pytest.fixture
def tiny() -> Settings:
    return TINY


@pytest.fixture
def blobs() -> torch.Tensor:
    """96 grey images of one bright square each: uint8 (96, 1, 32, 32)."""
    images = torch.zeros(96, 1, 32, 32, dtype=torch.uint8)
    for k, image in enumerate(images[:, 0]):
        row, column = 2 * (k % 8), 2 * (k // 8)
        image[row : row + 8, column : column + 8] = 255
    return images


@pytest.fixture(scope="session")
def paper():
    """The paper's schedule."""
    return make_schedule(Settings())


@pytest.fixture
def fits(monkeypatch):
    """What runs.fit is called with, in the place of training: (run, images, labels) each time."""
    calls = []

    def fit(run, images, schedule, folder, labels, **options):
        calls.append((run, images, labels))
        run.step, run.seconds = 1, 1.0
        return run

    monkeypatch.setattr(runs, "fit", fit)
    return calls


@pytest.fixture
def without_films(monkeypatch):
    """Strips and GIFs take most of the time of `sample`: for tests that do not look at them."""
    monkeypatch.setattr(ddpm, "draw_strip", lambda film: plt.figure())
    monkeypatch.setattr(ddpm, "save_gif", lambda *arguments, **options: None)


@pytest.fixture
def dropout(tiny) -> Settings:
    return replace(tiny, dropout=0.2)
