"""The experiments by their names, each from training to its picture."""

from dataclasses import fields
from pkgutil import resolve_name

from experiments import experiment_flags, methods, runner
from experiments.experiment_flags import Arguments, Scale
from experiments.plots import Experiment, write_plot
from mnist_ddpm.ddpm import check
from mnist_ddpm.evaluation.distances import NEIGHBOURS
from mnist_ddpm.machine import devices, files

TEST_IMAGES = 10_000  # that MNIST has
EXPERIMENTS: dict[str, Experiment] = {
    name: resolve_name(f"experiments.{where}")()
    for name, where in experiment_flags.EXPERIMENTS.items()
}


def requested_scale(arguments: Arguments) -> Scale:
    """How much to do. Raises ValueError for numbers that are too small or too large."""
    scale = Scale(**{field.name: getattr(arguments, field.name) for field in fields(Scale)})
    if arguments.quick:
        check(scale == Scale(), "--quick sets all numbers: leave out the others")
        return runner.QUICK
    for name, least, most in (
        ("seeds", 1, 1000),
        ("n", NEIGHBOURS + 1, TEST_IMAGES),
        ("bits", 2, TEST_IMAGES),
        ("long", 1, 1000),
    ):
        value = getattr(scale, name)
        check(least <= value <= most, f"--{name} is {value}: take {least} to {most}")
    return scale


def run_experiment(arguments: Arguments, command: str) -> None:
    """Measures what is not measured yet, and plots it. Raises ValueError or OSError."""
    methods.add_methods()
    experiment = EXPERIMENTS[arguments.name]
    scale = requested_scale(arguments)
    out = arguments.out / (f"{arguments.name}-quick" if arguments.quick else arguments.name)
    files.writable_folder(out)
    device = devices.pick_device(arguments.device)
    run = runner.ExperimentRun(out, scale, arguments.data, device, experiment.training, command)
    for seed in range(scale.seeds):
        experiment.measure(run, seed)
    run.measure_real_images()
    note = "--quick: too little was trained and drawn to tell anything" if arguments.quick else ""
    write_plot(experiment, run.rows, out, note)
    print(f"{out}: {len(run.rows)} rows in results.csv, plot.png, caption.md")
