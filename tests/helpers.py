"""Small things that many tests use."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from torch import nn
from torchvision.datasets import MNIST

from mnist_ddpm import ddpm
from mnist_ddpm.datasets import DATASETS
from mnist_ddpm.machine.processes import ProcessGroup

PAPER = ddpm.beta_schedule(ddpm.linear_beta())
straight = torch.arange(1001, dtype=torch.float64) / 1000
STRAIGHT = ddpm.Schedule(1 - straight, straight)  # of flow matching
PATHS = pytest.mark.parametrize("path", [PAPER, STRAIGHT], ids=["paper", "straight"])


def notebook_cells(*ids: str) -> SimpleNamespace:
    """What these cells of the notebook define that are not exported."""
    cells = json.loads((ROOT / "MNIST_DDPM.ipynb").read_text(encoding="utf-8"))["cells"]
    names = vars(ddpm) | {"MNIST": MNIST}
    for cell in cells:
        if cell["id"] in ids:
            exec("".join(cell["source"]), names)
    return SimpleNamespace(**names)


notebook = notebook_cells(
    "read-image", "load-images", "load-labels", "save-load", "resume", "denoiser-for"
)


def with_random_weights(network: nn.Module, std: float = 0.1) -> nn.Module:
    """The network with random weights everywhere, also where they start at zero."""
    generator = torch.Generator().manual_seed(0)
    for weight in network.parameters():
        weight.data.copy_(std * torch.randn(weight.shape, generator=generator))
    return network.eval()


def with_flipped_bit(content: bytes, place: int) -> bytes:
    """The bytes with one bit flipped at a place, as a disk may do."""
    return content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :]


def equal(a: object, b: object) -> bool:
    """Whether two states are the same, bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def raising(error: BaseException | type[BaseException]) -> Callable:
    """A function that raises this error, whatever it is given."""

    def fail(*arguments, **options):
        raise error

    return fail


def no_noise():
    """A noise source for samplers that need none."""
    raise AssertionError("noise must not be drawn here")


def change_dataset(monkeypatch, name: str, **changes) -> None:
    """Changes what is known of a data set, for one test."""
    monkeypatch.setitem(DATASETS, name, replace(DATASETS[name], **changes))


def in_processes(size: int, work: Callable[[ProcessGroup], object]) -> list:
    """What work(world) returns in each of several processes, here threads that gather."""
    barrier, sent = threading.Barrier(size), [None] * size

    class Member(ProcessGroup):
        def __init__(self, rank: int):
            self.rank, self.size = rank, size

        def gather(self, x: torch.Tensor) -> torch.Tensor:
            sent[self.rank] = x
            barrier.wait()
            gathered = torch.cat(sent)
            barrier.wait()
            return gathered

        def any(self, flag: bool) -> bool:
            return bool(self.gather(torch.tensor([flag])).any())

    def member(rank: int) -> object:
        try:
            return work(Member(rank))
        except BaseException:
            barrier.abort()  # else the others would wait for ever
            raise

    with ThreadPoolExecutor(size) as pool:
        return [*pool.map(member, range(size))]


def untrained_judge(dataset: str = "mnist", **options):
    """A judge whose extractor has not been trained."""
    from mnist_ddpm.evaluation.extractors import Extractor, Judge

    with torch.random.fork_rng():
        torch.manual_seed(0)
        extractor = Extractor(dataset, 10 if dataset == "mnist" else 40, (8, 8)).eval()
    return Judge(extractor.requires_grad_(False), "untrained", **options)
