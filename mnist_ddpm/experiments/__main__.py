"""`python -m mnist_ddpm.experiments NAME`: one experiment, from training to its picture.

Each writes to experiments/NAME: results.csv (a row for each measurement), plot.png, caption.md, and
record.json (seeds, versions, command). What is there already is not done again: a run that was
stopped goes on, and one that is complete only draws its plot. Remove it, or name another --out, to
start anew.
"""

import shlex
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import matplotlib
import tyro

from mnist_ddpm.catalogue import look_up
from mnist_ddpm.ddpm import check
from mnist_ddpm.evaluation.distances import NEIGHBOURS
from mnist_ddpm.experiments import (
    ddim_table1,
    ddpm_table2,
    ema,
    guidance_scale,
    iddpm_schedules,
    lab,
)
from mnist_ddpm.experiments.plots import Experiment, draw_plot
from mnist_ddpm.training import files, machine, text

EXPERIMENTS: dict[str, Experiment] = {
    "ddpm-table2": ddpm_table2.EXPERIMENT,
    "iddpm-schedules": iddpm_schedules.EXPERIMENT,
    "ddim-table1": ddim_table1.EXPERIMENT,
    "ema": ema.EXPERIMENT,
    "guidance": guidance_scale.EXPERIMENT,
}
NAMES = f"one of {', '.join(EXPERIMENTS)}"


@dataclass(frozen=True, kw_only=True)
class Arguments(lab.Scale):
    """Repeat an experiment of a paper in miniature, on MNIST.

    It takes an hour to half a day on one core, less on a GPU.

    For a night or two: --epochs 5 --width 32 --n 2000 --bits 1000 --long 100 --out night
    """

    name: tyro.conf.Positional[Annotated[str, tyro.conf.arg(help=NAMES)]]
    quick: bool = False  # a few minutes, to see that it works; the results mean nothing
    out: Path = Path("experiments")  # folder in which the experiment's own folder is made
    data: Path = Path("data")  # folder that holds MNIST
    device: str = "auto"  # cpu, cuda, mps


def asked_scale(asked: Arguments) -> lab.Scale:
    """How much to do. Raises ValueError for numbers that are of no use."""
    scale = lab.Scale(**{f.name: getattr(asked, f.name) for f in fields(lab.Scale)})
    if asked.quick:
        check(scale == lab.Scale(), "--quick has numbers of its own: leave out the others")
        return lab.QUICK
    least = NEIGHBOURS + 1
    enough = scale.seeds >= 1 and scale.n >= least and scale.bits >= 2 and 1 <= scale.long <= 1000
    limits = f"--seeds must be at least 1, --n {least}, --bits 2, and --long from 1 to 1000"
    check(enough, limits)
    return scale


def run(asked: Arguments, command: str) -> None:
    """Measures what is not measured yet, and draws. Raises ValueError or OSError."""
    experiment, scale = look_up("experiment", asked.name, EXPERIMENTS), asked_scale(asked)
    out = asked.out / (f"{asked.name}-quick" if asked.quick else asked.name)
    files.writable_folder(out)
    device = machine.pick_device(asked.device)
    place = lab.Lab(out, scale, asked.data, device, experiment.training, command)
    experiment.run(place)
    note = "--quick: too little was trained and drawn to tell anything" if asked.quick else ""
    draw_plot(experiment, place.rows, out, note)
    print(f"{out}: {len(place.rows)} rows in results.csv, plot.png, caption.md")


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, 1 for an error told in one line, 130 after Ctrl-C."""
    matplotlib.use("Agg")
    typed = sys.argv[1:] if arguments is None else arguments
    given = [text.at_home(argument) for argument in typed]
    asked = tyro.cli(Arguments, args=given, prog="python -m mnist_ddpm.experiments")
    try:
        run(asked, shlex.join(["python", "-m", "mnist_ddpm.experiments", *given]))
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped: the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
