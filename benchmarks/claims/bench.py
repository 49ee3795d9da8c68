"""What a part of `gpu.py` works with: its device, sizes and time, and a list for its results."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from cost import matrix_rate
from harness import ROOT
from torch import Tensor, nn

from mnist_ddpm import catalogue, ddpm
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.machine import devices
from mnist_ddpm.recipe import Recipe, preset
from mnist_ddpm.training import loop, throughput
from mnist_ddpm.training.loop import training_loop
from mnist_ddpm.training.run import Run, training_step

TINY = {"base_channels": 8, "channel_mults": (1, 2), "batch_size": 16, "image_size": 32}
TINY |= {"patch_size": 4, "T": 50, "blocks_per_level": 1, "attention_resolutions": None}


@dataclass
class Bench:
    """A device and the time there is. quick: tiny sizes, whose figures mean nothing."""

    device: torch.device
    folder: Path  # for what a part writes
    quick: bool = False
    seconds: float = 60.0  # from now on
    file: Path | None = None  # where rows are written at once, also of a part that is cut short
    rows: list[dict] = field(default_factory=list)

    def __post_init__(self):
        self.ends = time.monotonic() + self.seconds
        self.measuring = throughput.ThroughputMeter(self.device)
        self.is_gpu = self.device.type == "cuda"
        self.default_precision = devices.default_precision(self.device)  # of training
        self.two_precisions = [*dict.fromkeys(("float32", self.default_precision))]

    @property
    def seconds_left(self) -> float:
        """Until its time is over."""
        return self.ends - time.monotonic()

    def add(self, what: str, **figures) -> None:
        """Adds a row to the results."""
        for name, value in figures.items():
            figures[name] = float(f"{value:.4g}") if isinstance(value, float) else value
        self.rows.append({"what": what, **figures})
        if self.file is not None:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(self.rows[-1]) + "\n")

    def size(self, full: int, quick: int) -> int:
        """How many of something."""
        return quick if self.quick else full

    def recipe(self, name: str = "mnist", **changes) -> Recipe:
        """A preset's, in float32 by default."""
        return preset(name, **((TINY if self.quick else {}) | changes))

    def precisions(self) -> list[str]:
        """All that the device computes in."""
        every = "float32", "bfloat16", "float16"
        return [name for name in every if not devices.emulates(name, self.device)]

    def digits(self) -> Tensor:
        """MNIST's training images; quick: 64 of noise."""
        if not self.quick:
            return ddpm.load_mnist(root=ROOT / "data")
        return torch.randint(0, 256, (64, 1, 32, 32), dtype=torch.uint8)

    def load_mnist_network(self) -> tuple[nn.Module, Recipe]:
        """The shipped network for digits on the device; quick: an untrained one."""
        if self.quick:
            recipe = self.recipe()
            network = catalogue.make_network(recipe)
            nn.init.normal_(network.conv_out.weight, std=0.1)
            return network.to(self.device).eval(), recipe
        checkpoint = checkpoints.load(ROOT / "checkpoints" / "mnist-unlabelled", self.device)
        return checkpoint.network, checkpoint.recipe

    def start(
        self, recipe: Recipe, images: Tensor, run: Run | None = None
    ) -> tuple[Run, Iterator[float]]:
        """A run, new unless it is passed, and the training steps that it takes next."""
        run = run or loop.start_run(recipe, self.device)
        return run, training_loop(run, images, catalogue.make_schedule(recipe))

    def make_step(self, recipe: Recipe) -> Callable[[], float]:
        """A training step on black images, as a function to call again and again."""
        run = loop.start_run(recipe, self.device)
        schedule = catalogue.make_schedule(recipe)
        x0 = torch.zeros(recipe.batch_size, *recipe.shape, device=self.device)
        noise = ddpm.random_generator(0)
        return lambda: training_step(run, x0, schedule, noise)

    def matrix_rate(self, precision: str) -> float:
        """Operations a second of the product of two large matrices."""
        size = 256 if self.quick else None
        return matrix_rate(self.measuring, precision, self.size(1, 0), size)

    def pace(self, recipe: Recipe) -> float:
        """Images trained a second, of black ones that are there already."""
        return self.measuring.pace(recipe, self.size(4, 0))

    def mean_seconds(self, work: Callable[[], object]) -> float:
        """Seconds that work takes, the mean over a second or at least two times."""
        self.timed(work)  # to warm up
        times = [self.timed(work), self.timed(work)]
        while sum(times) < self.size(1, 0):
            times.append(self.timed(work))
        return sum(times) / len(times)

    def timed(self, work: Callable[[], object]) -> float:
        """Seconds that work takes, once."""
        synchronize = torch.cuda.synchronize if self.is_gpu else lambda: None
        synchronize()
        began = time.perf_counter()
        work()
        synchronize()
        return time.perf_counter() - began
