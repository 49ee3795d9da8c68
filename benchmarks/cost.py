"""What a training on GPUs would take, from its operations: `python benchmarks/cost.py`, or `--help`. Nothing is run.

Operations of a step are three times those of an evaluation: the way there, and twice as much on the way back (and once
more for --gradient-checkpointing). The GPUs' rates are their makers' (bfloat16, float16 for V100 and T4; dense). The
share of the rate that a training gets is assumed, as is the price.

With --measure and names of presets, it measures that share on this machine, of its own rate with large matrices.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))

from mnist_ddpm import ddpm, machine, planning
from mnist_ddpm.presets import cost, preset

RATES = {"T4": 65e12, "V100": 125e12, "A100": 312e12, "H100": 989e12}  # operations a second
MACHINES = ("T4", 1), ("V100", 1), ("A100", 1), ("A100", 8), ("H100", 1), ("H100", 8), ("H100", 32)


@dataclass
class Arguments:
    preset: str = "ddpm-celebahq"
    images: float = 32e6  # seen in all: DDPM's 256 x 256 models took 0.5 million steps of 64, and more
    share: float = 0.4  # of the GPU's rate that a training gets
    price: float = 2.0  # of an hour of one GPU
    gradient_checkpointing: bool = False  # blocks are computed again on the way back, where memory is short
    measure: tuple[str, ...] = ()  # presets to train for some seconds here, instead of all this
    precision: str = "bfloat16"  # of what is measured
    compile: bool = False  # what is measured


def computed(asked: Arguments) -> None:
    if not asked.share > 0:
        raise ValueError(f"--share is {asked.share:g}: it must be above 0")
    operations = (3 + asked.gradient_checkpointing) * cost(preset(asked.preset)).flops * asked.images
    print(
        f"{asked.preset}, {asked.images:g} images: {operations:.3g} operations, at {asked.share:.0%} of the GPUs' rate"
    )
    print(f"\n| GPUs | days | GPU hours | at {asked.price:g} an hour |\n|---|---|---|---|")
    for name, count in MACHINES:
        hours = operations / (asked.share * RATES[name]) / 3600
        print(f"| {count} × {name} | {hours / 24 / count:.2g} | {hours:,.0f} | {hours * asked.price:,.0f} |")


def matrix_rate(device: torch.device, seconds: float = 3.0) -> float:
    """Operations a second of the product of two large bfloat16 matrices."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = torch.randn(2, size, size, device=device, dtype=torch.bfloat16)
    return 2 * size**3 * planning.per_second(lambda: (a @ b)[0, 0].item(), seconds)


def measured(asked: Arguments) -> None:
    device = ddpm.best_device()
    rate = matrix_rate(device)
    print(f"{device}, {torch.get_num_threads()} threads: {rate / 1e12:.3g} TFLOP/s with large bfloat16 matrices")
    print("\n| preset | images trained a second | TFLOP/s | share of the matrix rate |\n|---|---|---|---|")
    for name in asked.measure:
        compiled = asked.compile and machine.compiles(device)
        settings = replace(preset(name), precision=asked.precision, compile=compiled)
        pace = planning.measured_pace(settings, device, 10.0)
        done = 3 * cost(settings).flops * pace
        print(f"| {name} | {pace:.3g} | {done / 1e12:.3g} | {done / rate:.0%} |", flush=True)


if __name__ == "__main__":
    asked = tyro.cli(Arguments, description=__doc__)
    try:
        measured(asked) if asked.measure else computed(asked)
    except ValueError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped")
