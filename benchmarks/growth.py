"""How time and memory grow: `python benchmarks/growth.py` writes growth.json and growth.png.

Each measurement runs in a new process, whose peak memory it reports. Run it on an idle
machine. The networks compute in bfloat16, or in float32 where the processor only emulates that.
"""

import tempfile
import time
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from harness import RESULTS, make_parser, peak_memory, precisions, run, write_result
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from mnist_ddpm import catalogue, ddpm, generation
from mnist_ddpm.machine.process import progress_bar
from mnist_ddpm.recipe import Recipe
from mnist_ddpm.training import loop
from mnist_ddpm.training.loop import training_loop

TRAINING = {"image_size": 32, "batch": 128, "data_set": 2000}
SAMPLING = {"n": 64, "steps": 20}
GROWTH = {  # what grows: its values, and whether training or sampling is measured
    "image_size": ((16, 32, 64, 128), TRAINING),
    "batch": ((16, 32, 64, 128, 256, 512), TRAINING),
    "data_set": ((2000, 10_000, 60_000), TRAINING),
    "n": ((64, 256, 1024), SAMPLING),
    "steps": ((10, 50, 200, 1000), SAMPLING),
}


def time_training(precision: str, image_size: int, batch: int, data_set: int) -> float:
    """Seconds of a training step, the mean of five."""
    options = {"dataset": "random", "channels": 1, "epochs": 100, "precision": precision}
    recipe = Recipe(image_size=image_size, batch_size=batch, **options)
    images = torch.randint(0, 256, (data_set, *recipe.shape), dtype=torch.uint8)
    steps = training_loop(loop.start_run(recipe), images, catalogue.make_schedule(recipe))
    next(steps)
    began = time.perf_counter()
    for _ in range(5):
        next(steps)
    return (time.perf_counter() - began) / 5


def time_sampling(precision: str, n: int, steps: int) -> float:
    """Seconds of drawing n images in batches of 64, and a GIF of 36 of them."""
    recipe = Recipe()
    schedule, network = catalogue.make_schedule(recipe), catalogue.make_network(recipe).eval()
    began = time.perf_counter()
    network = generation.autocast(network, precision, "cpu")
    denoiser_for_batch = generation.make_denoiser_for_batch(network, schedule, recipe)
    options = {"times": ddpm.timesteps(schedule.T, steps), "batch_size": 64, "film_images": 36}
    options["progress"] = False
    _, film = generation.generate(denoiser_for_batch, schedule, n, recipe.shape, **options)
    with tempfile.TemporaryDirectory() as folder:
        ddpm.save_gif(Path(folder, "film.gif"), film, columns=6)
    return time.perf_counter() - began


def measure(precision: str, arguments: dict) -> dict:
    """The seconds, and this process's peak memory in MB."""
    work = time_training if "batch" in arguments else time_sampling
    return {**arguments, "seconds": work(precision, **arguments), "MB": peak_memory()}


def plot(growth: dict, path: Path) -> None:
    """Seconds above, memory below, a column for each that grows."""
    figure = Figure(figsize=(13, 5), layout="constrained")
    axes = figure.subplots(2, len(growth), sharex="col", squeeze=False)
    for column, (name, rows) in zip(axes.T, growth.items()):
        plot_column(*column, name, rows)
    axes[0, 0].set_ylabel("seconds")
    axes[1, 0].set_ylabel("peak memory, MB")
    figure.savefig(path, dpi=100)


def plot_column(above: Axes, below: Axes, name: str, rows: list[dict]) -> None:
    """Both axes of the seconds are logarithmic.

    A dotted line shows growth in proportion, of a side in proportion to its square, the pixels.
    """
    title = "a training step" if "batch" in rows[0] else "drawing, with a GIF"
    x, seconds, memory = (np.array([row[key] for row in rows]) for key in (name, "seconds", "MB"))
    growing = (x / x[0]) ** (2 if name == "image_size" else 1)
    above.plot(x, seconds[0] * growing, ":", color="grey", lw=1)
    for ax, y in ((above, seconds), (below, memory)):
        ax.plot(x, y, "o-", ms=3, lw=1)
        ax.set_xscale("log")
        ax.set_xticks(x, [f"{value:,}" for value in x], rotation=40)
        ax.minorticks_off()
        ax.grid(alpha=0.3)
    if name == "batch":
        for size, y in zip(x, seconds):
            offset = {"xytext": (4, -9), "textcoords": "offset points", "fontsize": 7}
            above.annotate(f"{size / y:.0f}", (size, y), **offset)
        title += ", images/s beside"
    most = max(seconds.max(), 10 * seconds.min())
    above.set(yscale="log", ylim=(0.5 * seconds.min(), 2 * most))
    above.minorticks_off()
    above.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
    above.yaxis.set_major_formatter("{x:g}")
    above.set_title(title, fontsize=9)
    below.set_ylim(bottom=0, top=1.2 * max(memory))
    below.set_xlabel(name.replace("_", " "))


def main() -> None:
    parser = make_parser(__doc__, RESULTS / "growth.json")
    parser.add_argument("--only", nargs="+", choices=GROWTH, default=[*GROWTH])
    flags = parser.parse_args()
    growth, precision = {}, precisions()[-1]
    for name in flags.only:
        values, base = GROWTH[name]
        trials = [{**base, name: value} for value in values]
        with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            results = pool.imap(partial(measure, precision), trials)
            growth[name] = [*progress_bar(results, total=len(values), desc=name)]
    write_result(flags.out, {"growth": growth, "precision": precision})
    plot(growth, flags.out.with_suffix(".png"))


if __name__ == "__main__":
    run(main)
