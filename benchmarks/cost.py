"""What would a training on GPUs take? `python benchmarks/cost.py`, or `--help`.

It is computed from operations; nothing is run. Those of a step are three times those of an
evaluation: the way there, and twice as much on the way back (and once more for
--gradient-checkpointing). The GPUs' rates are their makers' (bfloat16, float16 for V100 and T4;
dense). The share of the rate that a training gets is assumed, as is the price.

With --measure and names of presets, it measures that share on this machine, of its own rate with
large matrices.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro

sys.path.insert(1, str(Path(__file__).parents[1]))

from processor import precisions

from mnist_ddpm import catalogue, trainer
from mnist_ddpm.ddpm import check
from mnist_ddpm.machine import devices
from mnist_ddpm.training.cost import network_cost
from mnist_ddpm.training.presets import preset
from mnist_ddpm.training.recipe import Recipe
from mnist_ddpm.training.throughput import ThroughputMeter

RATES = {"T4": 65e12, "V100": 125e12, "A100": 312e12, "H100": 989e12}  # operations a second
MACHINES = (
    ("T4", 1), ("V100", 1), ("A100", 1), ("A100", 8), ("H100", 1), ("H100", 8), ("H100", 32),
)  # fmt: skip


@dataclass
class Arguments:
    preset: str = "ddpm-celebahq"
    images: float = 32e6  # seen in all: DDPM's 256 x 256 models took half a million steps of 64
    share: float = 0.4  # of the GPU's rate that a training gets
    price: float = 2.0  # of an hour of one GPU
    gradient_checkpointing: bool = False  # compute blocks again on the way back, to save memory
    measure: tuple[str, ...] = ()  # presets to train for some seconds here, instead of all this
    precision: str = "bfloat16"  # of what is measured
    compile: bool = False  # what is measured


def flops(recipe: Recipe) -> int:
    """Operations of one evaluation of one image."""
    return network_cost(recipe, catalogue.make_network).flops


def computed(asked: Arguments) -> None:
    """Prints days, hours and price on some GPUs."""
    check(asked.share > 0, f"--share is {asked.share:g}: it must be above 0")
    each = (3 + asked.gradient_checkpointing) * flops(preset(asked.preset))
    operations = each * asked.images
    rate = f"at {asked.share:.0%} of the GPUs' rate"
    print(f"{asked.preset}, {asked.images:g} images: {operations:.3g} operations, {rate}")
    print(f"\n| GPUs | days | GPU hours | at {asked.price:g} an hour |\n|---|---|---|---|")
    for name, count in MACHINES:
        hours = operations / (asked.share * RATES[name]) / 3600
        days, price = hours / 24 / count, hours * asked.price
        print(f"| {count} × {name} | {days:.2g} | {hours:,.0f} | {price:,.0f} |")


def matrix_rate(measuring: ThroughputMeter, precision: str, seconds: float = 3.0) -> float:
    """Operations a second of the product of two large matrices."""
    size = 8192 if measuring.device.type == "cuda" else 2048
    options = {"device": measuring.device, "dtype": getattr(torch, precision)}
    a, b = torch.randn(2, size, size, **options)
    times = measuring.items_per_second(lambda n: (a @ b)[0, 0].item(), 1, 1, seconds)
    return 2 * size**3 * times


def measured(asked: Arguments) -> None:
    """Prints the pace of presets, and which share of the machine's rate that is."""
    device = devices.pick_device("auto")
    measuring = trainer.measure(device)
    widest = precisions()[-1] if device.type == "cpu" else "bfloat16"
    rate = matrix_rate(measuring, widest)
    threads = f"{device}, {torch.get_num_threads()} threads"
    print(f"{threads}: {rate / 1e12:.3g} TFLOP/s with large {widest} matrices")
    titles = "preset", "images trained a second", "TFLOP/s", "share of the matrix rate"
    print(f"\n| {' | '.join(titles)} |\n|---|---|---|---|")
    for name in asked.measure:
        compiled = asked.compile and devices.compiles(device, asked.precision)
        recipe = replace(preset(name), precision=asked.precision, compile=compiled)
        pace = measuring.pace(recipe, 10.0)
        done = 3 * flops(recipe) * pace
        print(f"| {name} | {pace:.3g} | {done / 1e12:.3g} | {done / rate:.0%} |", flush=True)


if __name__ == "__main__":
    asked = tyro.cli(Arguments, description=__doc__)
    try:
        measured(asked) if asked.measure else computed(asked)
    except ValueError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped")
