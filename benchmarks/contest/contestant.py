"""What a contestant is. Imports the package of none."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import ClassVar

import numpy as np
import torch
from harness import command_line, peak_memory
from torch import Tensor, nn

FEW = 10  # evaluations, at most, with which a contestant draws by a sampler made for few


@dataclass(frozen=True)
class Task:
    """What a contestant is told."""

    name: str  # in CONTESTANTS
    precision: str
    batch: int
    seed: int
    rate: float | None  # learning rate of a peer; None: its own
    steps: int = 1_000_000  # where a learning rate that decays ends

    @property
    def warmup(self) -> int:
        """Steps in which the learning rate rises: 500 as in diffusers, fewer in a short race."""
        return min(500, self.steps // 10)

    def batches(self, images: Tensor) -> Iterator[Tensor]:
        """Whole ones, shuffled, without end."""
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            order = torch.randperm(len(images), generator=generator)
            for i in range(len(images) // self.batch):
                yield images[order[i * self.batch : (i + 1) * self.batch]]


class Contestant:
    """A project with its network, training and sampler. The docstring says how, for people.

    To add one: training(images) trains on uint8 (N, 1, 32, 32) and yields after each step;
    sample(n, evaluations, seed) gives uint8 (n, 1, 32, 32), before training from random weights.
    """

    package, names = "", ()  # what it imports
    FEWER = "By the same sampler."  # how it draws with few evaluations
    NETWORK: ClassVar[dict] = {}  # its network's arguments
    BATCH = 128  # in a race
    network: nn.Module  # that samples

    def __init__(self, task: Task):
        self.task = task

    @classmethod
    def imported(cls) -> list:
        return [getattr(import_module(cls.package), name) for name in cls.names]

    def in_precision(self, network: nn.Module) -> nn.Module:
        """For bfloat16 as Accelerate does it: weights and outputs stay float32.

        All three peers train with it.
        """
        if self.task.precision == "float32":
            return network
        from accelerate import Accelerator

        return Accelerator(cpu=True, mixed_precision="bf16").prepare_model(network)

    @classmethod
    def described(cls) -> dict:
        """What a result says of where it comes from."""
        from mnist_ddpm.machine.devices import hardware

        about = {"command": command_line(), "processor": hardware("cpu")}
        return about | {"how": " ".join(cls.__doc__.split()), "network": cls.NETWORK}

    def networks(self) -> list[nn.Module]:
        """All that sampling evaluates."""
        return [self.network]

    def parameters(self) -> int:
        return sum(p.numel() for network in self.networks() for p in network.parameters())

    def memory(self) -> float:
        return peak_memory()

    def load(self, images: np.ndarray) -> None:
        self.steps = self.training(torch.from_numpy(images))

    def train(self, seconds: float) -> tuple[int, float]:
        """Steps done in about so many seconds, and how long they took.

        None are done where training has come to its end.
        """
        began, steps, end = time.perf_counter(), 0, object()
        while time.perf_counter() - began < seconds and next(self.steps, end) is not end:
            steps += 1
        return steps, time.perf_counter() - began

    def draw(self, n: int, evaluations: int, seed: int) -> tuple[np.ndarray, int, float]:
        """Images, the evaluations of the network that they took, and the seconds."""
        sizes, began = [], time.perf_counter()
        count = lambda _, inputs: sizes.append(len(inputs[0]))  # noqa: E731
        hooks = [network.register_forward_pre_hook(count) for network in self.networks()]
        with torch.no_grad():
            images = self.sample(n, evaluations, seed)
        for hook in hooks:
            hook.remove()
        return images.numpy(), sum(sizes), time.perf_counter() - began
