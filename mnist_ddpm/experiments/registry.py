"""The experiments by their names, each from training to its picture."""

from dataclasses import fields

import matplotlib

from mnist_ddpm.ddpm import check
from mnist_ddpm.evaluation.distances import NEIGHBOURS
from mnist_ddpm.experiments import (
    ddim_table1,
    ddpm_table2,
    ema,
    guidance_scale,
    iddpm_schedules,
    plain,
    runner,
    steps,
)
from mnist_ddpm.experiments.experiment_flags import Arguments, Scale
from mnist_ddpm.experiments.plots import Experiment, draw_plot
from mnist_ddpm.machine import devices, files

EXPERIMENTS: dict[str, Experiment] = {
    "ddpm-table2": ddpm_table2.EXPERIMENT,
    "iddpm-schedules": iddpm_schedules.EXPERIMENT,
    "ddim-table1": ddim_table1.EXPERIMENT,
    "ema": ema.EXPERIMENT,
    "guidance": guidance_scale.EXPERIMENT,
    "plain": plain.EXPERIMENT,
    "steps": steps.EXPERIMENT,
}


def asked_scale(asked: Arguments) -> Scale:
    """How much to do. Raises ValueError for numbers that are of no use."""
    scale = Scale(**{f.name: getattr(asked, f.name) for f in fields(Scale)})
    if asked.quick:
        check(scale == Scale(), "--quick has numbers of its own: leave out the others")
        return runner.QUICK
    least = NEIGHBOURS + 1
    enough = scale.seeds >= 1 and scale.n >= least and scale.bits >= 2 and 1 <= scale.long <= 1000
    limits = f"--seeds must be at least 1, --n {least}, --bits 2, and --long from 1 to 1000"
    check(enough, limits)
    return scale


def run(asked: Arguments, command: str) -> None:
    """Measures what is not measured yet, and draws. Raises ValueError or OSError."""
    matplotlib.use("Agg")
    experiment, scale = EXPERIMENTS[asked.name], asked_scale(asked)
    out = asked.out / (f"{asked.name}-quick" if asked.quick else asked.name)
    files.writable_folder(out)
    device = devices.pick_device(asked.device)
    place = runner.Lab(out, scale, asked.data, device, experiment.training, command)
    experiment.run(place)
    note = "--quick: too little was trained and drawn to tell anything" if asked.quick else ""
    draw_plot(experiment, place.rows, out, note)
    print(f"{out}: {len(place.rows)} rows in results.csv, plot.png, caption.md")
