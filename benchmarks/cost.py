"""What a training on GPUs would take, from its operations: `python benchmarks/cost.py`, or `--help`. Nothing is run.

Operations of a step are three times those of an evaluation: the way there, and twice as much on the way back. The
GPUs' rates are their makers' (bfloat16, float16 for V100 and T4; dense). The share of the rate that a training gets
is assumed, as is the price.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))

from mnist_ddpm.presets import PRESETS, cost, preset

RATES = {"T4": 65e12, "V100": 125e12, "A100": 312e12, "H100": 989e12}  # operations a second
MACHINES = ("T4", 1), ("V100", 1), ("A100", 1), ("A100", 8), ("H100", 1), ("H100", 8), ("H100", 32)


@dataclass
class Arguments:
    preset: str = "ddpm-celebahq"
    images: float = 32e6  # seen in all: DDPM's 256 x 256 models took 0.5 million steps of 64, and more
    share: float = 0.4  # of the GPU's rate that a training gets
    price: float = 2.0  # of an hour of one GPU


def main(asked: Arguments) -> None:
    if asked.preset not in PRESETS:
        raise SystemExit(f"error: preset {asked.preset} is unknown: take one of {', '.join(PRESETS)}")
    operations = 3 * cost(preset(asked.preset)).flops * asked.images
    print(
        f"{asked.preset}, {asked.images:g} images: {operations:.3g} operations, at {asked.share:.0%} of the GPUs' rate"
    )
    print(f"\n| GPUs | days | GPU hours | at {asked.price:g} an hour |\n|---|---|---|---|")
    for name, count in MACHINES:
        hours = operations / (asked.share * RATES[name]) / 3600
        print(f"| {count} × {name} | {hours / 24 / count:.2g} | {hours:,.0f} | {hours * asked.price:,.0f} |")


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
