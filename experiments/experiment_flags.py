"""The flags of an experiment, without PyTorch: help and errors of flags need not wait for it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

# Of each experiment its class, by module
EXPERIMENTS = {
    "ddpm-table2": "ddpm_table2:PredictionsAndLosses",
    "iddpm-schedules": "iddpm_schedules:SchedulesAndVariances",
    "ddim-table1": "ddim_table1:StepsAndEta",
    "ema": "ema:WeightAveraging",
    "guidance": "guidance_scale:GuidanceScale",
    "plain": "plain:EqualTime",
    "steps": "steps:EvaluationsPerImage",
    "small-sets": "small_sets:SmallSets",
    "one-step": "one_step:FewEvaluations",
}
ONE_OF = f"one of {', '.join(EXPERIMENTS)}"
DEFAULT_VARIES = tyro.conf.arg(help_behavior_hint="(default: the experiment's own)")


@dataclass(frozen=True)
class Scale:
    """How much is done."""

    seeds: int = 3  # trainings of each network, for the intervals
    # of each training
    epochs: Annotated[float | None, DEFAULT_VARIES] = None
    width: int = 16  # of the network's first level
    n: int = 500  # images drawn for a distance
    bits: int = 250  # test images for the bound
    long: int = 1000  # steps of a long chain; for T = 4000 four times as many, too


@dataclass(frozen=True, kw_only=True)
class Arguments(Scale):
    """Repeat an experiment of a paper in miniature, on MNIST.

    It takes an hour to half a day on one core, less on a GPU.

    For a night or two: --epochs 5 --width 32 --n 2000 --bits 1000 --long 100 --out night
    """

    name: tyro.conf.Positional[Annotated[str, tyro.conf.arg(help=ONE_OF)]]
    quick: bool = False  # a few minutes, to see that it works; the results mean nothing
    out: Path = Path("experiments")  # folder in which the experiment's own folder is made
    data: Path = Path("data")  # folder that holds MNIST
    device: str = "auto"  # cpu, cuda, mps
