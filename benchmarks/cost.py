"""What would a training on GPUs take? `python benchmarks/cost.py`, or `--help`.

It is computed from operations; nothing is run. A training step has three times the operations of an
evaluation: forward, and twice as much backward (and once more for --gradient-checkpointing). The
GPUs' rates are their makers' (bfloat16, float16 for V100 and T4; dense). The share of the rate that
a training gets is assumed, as is the price.

With --measure and names of presets, it measures that share on this machine, of its own rate with
large matrices.
"""

from dataclasses import dataclass, replace

import torch
import tyro
from harness import precisions, run

from mnist_ddpm.ddpm import check
from mnist_ddpm.machine import devices
from mnist_ddpm.recipe import preset
from mnist_ddpm.training import throughput
from mnist_ddpm.training.throughput import ThroughputMeter

RATES = {"T4": 65e12, "V100": 125e12, "A100": 312e12, "H100": 989e12}  # operations a second
COUNTS = {"T4": (1,), "V100": (1,), "A100": (1, 8), "H100": (1, 8, 32)}  # of GPUs


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


def print_computed(flags: Arguments) -> None:
    """Prints days, hours and price on some GPUs."""
    check(flags.share > 0, f"--share is {flags.share:g}: it must be above 0")
    flops = throughput.ThroughputMeter(torch.device("cpu")).flops(preset(flags.preset))
    operations = (3 + flags.gradient_checkpointing) * flops * flags.images
    rate = f"at {flags.share:.0%} of the GPUs' rate"
    print(f"{flags.preset}, {flags.images:g} images: {operations:.3g} operations, {rate}")
    print(f"\n| GPUs | days | GPU hours | at {flags.price:g} an hour |\n|---|---|---|---|")
    for name, counts in COUNTS.items():
        hours = operations / (flags.share * RATES[name]) / 3600
        for count in counts:
            days, price = hours / 24 / count, hours * flags.price
            print(f"| {count} × {name} | {days:.2g} | {hours:,.0f} | {price:,.0f} |")


def matrix_rate(
    measuring: ThroughputMeter, precision: str, seconds: float = 3.0, size: int | None = None
) -> float:
    """Operations a second of the product of two large matrices."""
    size = size or (8192 if measuring.device.type == "cuda" else 2048)
    options = {"device": measuring.device, "dtype": getattr(torch, precision)}
    a, b = torch.randn(2, size, size, **options)
    return 2 * size**3 * measuring.items_per_second(lambda n: (a @ b)[0, 0].item(), 1, 1, seconds)


def print_measured(flags: Arguments) -> None:
    """Prints the speed of presets, and which share of the machine's rate that is."""
    device = devices.pick_device("auto")
    measuring = throughput.ThroughputMeter(device)
    precision = precisions()[-1] if device.type == "cpu" else "bfloat16"
    rate = matrix_rate(measuring, precision)
    threads = f"{device}, {torch.get_num_threads()} threads"
    print(f"{threads}: {rate / 1e12:.3g} TFLOP/s with large {precision} matrices")
    titles = "preset", "images trained a second", "TFLOP/s", "share of the matrix rate"
    print(f"\n| {' | '.join(titles)} |\n|---|---|---|---|")
    for name in flags.measure:
        compiled = flags.compile and devices.compiles(device, flags.precision)
        recipe = replace(preset(name), precision=flags.precision, compile=compiled)
        pace = measuring.pace(recipe, 10.0)
        used = 3 * measuring.flops(recipe) * pace
        print(f"| {name} | {pace:.3g} | {used / 1e12:.3g} | {used / rate:.0%} |", flush=True)


def main() -> None:
    flags = tyro.cli(Arguments, description=__doc__)
    (print_measured if flags.measure else print_computed)(flags)


if __name__ == "__main__":
    run(main)
