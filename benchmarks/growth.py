"""How time and memory grow, with what: `python benchmarks/growth.py` writes growth.json and growth.png.

Each measurement has a process of its own, so that its peak memory is its own. Run it on an idle machine.
"""

import json
import shlex
import sys
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

sys.path.insert(0, str(Path(__file__).parents[1]))

from peers import peak_memory

from mnist_ddpm import ddpm, machine

RESULTS = Path(__file__).parent / "results"
TRAINING, SAMPLING = {"image_size": 32, "batch": 128, "data_set": 2000}, {"n": 64, "steps": 20}
GROWTH = {  # what grows: its values, and whether training or sampling is measured
    "image_size": ((16, 32, 64, 128), TRAINING),
    "batch": ((16, 32, 64, 128, 256, 512), TRAINING),
    "data_set": ((2000, 10_000, 60_000), TRAINING),
    "n": ((64, 256, 1024), SAMPLING),
    "steps": ((10, 50, 200, 1000), SAMPLING),
}


def training(image_size: int, batch: int, data_set: int) -> float:
    """Seconds of a training step."""
    settings = ddpm.Settings(image_size=image_size, batch_size=batch, precision="bfloat16", epochs=100)
    images = torch.randint(0, 256, (data_set, 1, image_size, image_size), dtype=torch.uint8)
    loop = ddpm.training_loop(ddpm.start_run(settings), images, ddpm.make_schedule(settings))
    next(loop)
    began, steps = time.perf_counter(), 5
    for _ in range(steps):
        next(loop)
    return (time.perf_counter() - began) / steps


def sampling(n: int, steps: int) -> float:
    """Seconds of drawing n images in batches of 64, and a GIF of 36 of them."""
    settings = ddpm.Settings()
    model, schedule = ddpm.make_model(settings), ddpm.make_schedule(settings)
    began = time.perf_counter()
    options = {"batch_size": 64, "film": 36, "precision": "bfloat16", "progress": False}
    _, film = ddpm.generate(model, schedule, n, (1, 32, 32), steps=steps, **options)
    with tempfile.TemporaryDirectory() as folder:
        ddpm.save_gif(Path(folder, "film.gif"), film, columns=6)
    return time.perf_counter() - began


def measured(arguments: dict) -> dict:
    """In a new process: the seconds, and the peak memory in MB."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (arguments,))


def measure(arguments: dict) -> dict:
    seconds = (training if "batch" in arguments else sampling)(**arguments)
    return {**arguments, "seconds": seconds, "MB": peak_memory()}


def plot(growth: dict, path: Path) -> None:
    """Seconds with both axes logarithmic, beside a dotted line of growth in proportion (to pixels, for their side)."""
    figure = Figure(figsize=(13, 5), layout="constrained")
    axes = figure.subplots(2, len(growth), sharex="col")
    for column, (name, rows) in zip(axes.T, growth.items()):
        what = "a training step" if "batch" in rows[0] else "drawing, with a GIF"
        x, seconds, memory = (np.array([row[key] for row in rows]) for key in (name, "seconds", "MB"))
        column[0].plot(x, seconds[0] * (x / x[0]) ** (2 if name == "image_size" else 1), ":", color="grey", lw=1)
        for ax, y in zip(column, (seconds, memory)):
            ax.plot(x, y, "o-", ms=3, lw=1)
            ax.set_xscale("log")
            ax.set_xticks(x, [f"{value:,}" for value in x], rotation=40)
            ax.minorticks_off()
            ax.grid(alpha=0.3)
        if name == "batch":
            for size, y in zip(x, seconds):
                column[0].annotate(f"{size / y:.0f}", (size, y), (4, -9), textcoords="offset points", fontsize=7)
            what += ", images/s beside"
        column[0].set(yscale="log", ylim=(0.5 * seconds.min(), 2 * max(seconds.max(), 10 * seconds.min())))
        column[0].minorticks_off()
        column[0].yaxis.set_major_locator(LogLocator(subs=(1, 3)))
        column[0].yaxis.set_major_formatter("{x:g}")
        column[0].set_title(f"{what}:\n{name.replace('_', ' ')}", fontsize=10)
        column[1].set_ylim(bottom=0, top=1.2 * max(memory))
        column[1].set_xlabel(name.replace("_", " "))
    axes[0, 0].set_ylabel("seconds")
    axes[1, 0].set_ylabel("peak memory, MB")
    figure.savefig(path, dpi=100)


def main() -> None:
    if len(sys.argv) > 1:
        sys.exit(__doc__)
    matplotlib.use("Agg")
    growth = {}
    for name, (values, base) in GROWTH.items():
        growth[name] = [measured({**base, name: value}) for value in ddpm.progress_bar(values, desc=name)]
    record = {
        "command": shlex.join(["python", *sys.argv]), "growth": growth, "threads": torch.get_num_threads(),
        "device": "cpu", "processor": machine.hardware("cpu"), "torch": torch.__version__,
    }  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "growth.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    plot(growth, RESULTS / "growth.png")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nstopped")
