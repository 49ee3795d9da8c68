"""What a part of `gpu.py` has: its device, sizes and time, and a place to tell what it found."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from mnist_ddpm import catalogue, ddpm, trainer
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.machine import devices
from mnist_ddpm.training.cost import network_cost
from mnist_ddpm.training.presets import preset
from mnist_ddpm.training.recipe import Recipe
from mnist_ddpm.training.throughput import ThroughputMeter

ROOT = Path(__file__).resolve().parents[2]
TINY = {  # a network of some thousand weights, for a look at whether all runs
    "base_channels": 8, "channel_mults": (1, 2), "batch_size": 16, "image_size": 32,
    "patch_size": 4, "T": 50, "blocks_per_level": 1, "attention_resolutions": None,
}  # fmt: skip


@dataclass
class Bench:
    """A device and the time there is. quick: tiny sizes, whose figures mean nothing."""

    device: torch.device
    folder: Path  # for what a part writes
    quick: bool = False
    seconds: float = 60.0  # from now on
    file: Path | None = None  # where rows are kept at once, also of a part that is cut short
    rows: list[dict] = field(default_factory=list)

    def __post_init__(self):
        self.ends = time.monotonic() + self.seconds

    @property
    def left(self) -> float:
        """Seconds."""
        return self.ends - time.monotonic()

    def tell(self, what: str, **figures) -> None:
        """A row of the table."""
        rounded = {name: float(f"{value:.4g}") if isinstance(value, float) else value
                   for name, value in figures.items()}  # fmt: skip
        self.rows.append({"what": what, **rounded})
        if self.file is not None:
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(self.rows[-1]) + "\n")

    def size(self, whole: int, quick: int) -> int:
        """How many of something."""
        return quick if self.quick else whole

    def recipe(self, name: str = "mnist", **changes) -> Recipe:
        """A preset's, in float32 unless told."""
        return preset(name, **((TINY if self.quick else {}) | changes))

    def precisions(self) -> list[str]:
        """All that the device computes in."""
        return [
            name for name in ("float32", "bfloat16", "float16")
            if not devices.emulates(name, self.device)
        ]  # fmt: skip

    @property
    def own(self) -> str:
        """The precision that training takes on this device."""
        return devices.default_precision(self.device)

    @property
    def measuring(self) -> ThroughputMeter:
        return trainer.measure(self.device)

    def digits(self) -> Tensor:
        """MNIST's training images; quick: a few of noise."""
        if not self.quick:
            return ddpm.load_mnist(root=ROOT / "data")
        generator = ddpm.random_generator(0)
        return torch.randint(0, 256, (64, 1, 32, 32), generator=generator, dtype=torch.uint8)

    def drawn_from(self) -> tuple[nn.Module, Recipe]:
        """The shipped network for digits on the device; quick: one that knows nothing."""
        if self.quick:
            recipe = self.recipe()
            network = catalogue.make_network(recipe)
            nn.init.normal_(network.conv_out.weight, std=0.1)
            return network.to(self.device).eval(), recipe
        checkpoint = checkpoints.load(ROOT / "checkpoints" / "mnist", self.device)
        return checkpoint.network, checkpoint.recipe

    def matrix_rate(self, precision: str, seconds: float = 1.0) -> float:
        """Operations a second of the product of two large matrices."""
        size = 256 if self.quick else 8192 if self.device.type == "cuda" else 2048
        a, b = torch.randn(2, size, size, device=self.device, dtype=getattr(torch, precision))
        return 2 * size**3 / self.each(lambda: a @ b, seconds)

    def pace(self, recipe: Recipe, seconds: float = 4.0) -> float:
        """Images trained a second, of black ones that are there already."""
        return self.measuring.pace(recipe, 0.0 if self.quick else seconds)

    def wait(self) -> None:
        """Until the device has done its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def each(self, work: Callable[[], object], seconds: float = 1.0) -> float:
        """Seconds that work takes, the mean of so many seconds."""
        self.timed(work)  # to warm up
        times, took = 0, 0.0
        while times < 2 or (took < seconds and not self.quick):
            took += self.timed(work)
            times += 1
        return took / times

    def timed(self, work: Callable[[], object]) -> float:
        """Seconds that work takes."""
        self.wait()
        began = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - began


def operations(recipe: Recipe) -> int:
    """Of a training step's forward and backward pass, for one image."""
    return 3 * network_cost(replace(recipe, precision="float32"), catalogue.make_network).flops
