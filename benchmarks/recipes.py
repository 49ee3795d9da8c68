"""Which settings give the best digits in equal time? `python benchmarks/recipes.py`, or `--help`.

Each recipe trains for so many minutes, its learning rate falling to 0 at their end unless steady,
and is judged by the Fréchet distance of what it draws to the training images, and by its loss on
unseen ones. recipes-MINUTES.json holds a recipe as soon as it is judged, so that a run that was
stopped goes on; in the end the .png of the same name shows them.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import matplotlib
import torch
import tyro
from harness import RESULTS, ROOT, command_line, precisions, run
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from mnist_ddpm import catalogue, ddpm, generation
from mnist_ddpm.data import loading
from mnist_ddpm.evaluation import cards, extractors
from mnist_ddpm.evaluation.distances import Estimate, frechet_estimate
from mnist_ddpm.evaluation.losses import loss_by_tenth
from mnist_ddpm.machine import devices
from mnist_ddpm.machine.files import check_writable
from mnist_ddpm.machine.process import progress_bar
from mnist_ddpm.methods.solvers import dpmpp_2m_sampler
from mnist_ddpm.recipe import Recipe
from mnist_ddpm.training import loop, throughput
from mnist_ddpm.training.loop import training_loop
from mnist_ddpm.training.run import Run

SMALL = {"optimizer": "muon", "batch_size": 64, "base_channels": 16}
# The rate's fall is planned for a hundred times the time
STEADY = {"learning_rate": 2.5e-3, "epochs": 100.0}
RECIPES = {
    "batch 128, rate 0.001": {"learning_rate": 1e-3},
    "batch 128, rate 0.002": {},
    "batch 128, rate 0.004": {"learning_rate": 4e-3},
    "batch 64, rate 0.002": {"batch_size": 64},
    "batch 32, rate 0.002": {"batch_size": 32},
    "batch 128, rate 0.002, x0": {"prediction": "x0"},
    "batch 128, rate 0.002, v": {"prediction": "v"},
    "batch 128, rate 0.005, Muon": {"optimizer": "muon"},
    "batch 64, rate 0.005, Muon": {"optimizer": "muon", "batch_size": 64},
    "width 24, batch 64, Muon": {"optimizer": "muon", "batch_size": 64, "base_channels": 24},
    "width 16, batch 64, Muon": SMALL,
    "width 16, batch 128, Muon": {"optimizer": "muon", "base_channels": 16},
    "width 16, batch 64, Muon, EMA 0.99": {**SMALL, "ema_decay": 0.99},
    "width 16, batch 64, Muon, EMA 0.9": {**SMALL, "ema_decay": 0.9},
    "width 16, batch 64, Muon, steady rate": {**SMALL, **STEADY},
    "width 16, batch 64, Muon, steady rate, EMA 0.99": {**SMALL, **STEADY, "ema_decay": 0.99},
    "width 16, batch 64, Muon, min-snr": {**SMALL, "objective": "min-snr"},
    "width 16, batch 64, Muon, p2": {**SMALL, "objective": "p2"},
    "width 32, batch 64, Muon, p2": {**SMALL, "base_channels": 32, "objective": "p2"},
}
SAMPLERS = {
    "ancestral, 50 steps": (ddpm.ddpm_sampler, 50),
    "DPM-Solver++, 20 steps": (dpmpp_2m_sampler, 20),
}


@dataclass
class Arguments:
    minutes: float = 6.0  # of training, for each
    n: int = 1000  # images drawn
    only: tuple[str, ...] = ()  # recipes; all by default
    precision: str | None = None  # of the networks; None: bfloat16, unless it is emulated
    seed: int = 0
    data: Path = ROOT / "data"  # folder that holds MNIST
    out: Path | None = None  # JSON file; by default benchmarks/results/recipes-MINUTES.json
    over_time: tuple[Path, ...] = ()  # draw what these files hold against their minutes, to --out


def train(recipe: Recipe, images: torch.Tensor, minutes: float, fall: float) -> tuple[Run, int]:
    """A run of as many steps as this machine's speed lets expect, and their number.

    It has fewer where the time is up before. fall: the learning rate would be at 0 after so many
    times these steps.
    """
    pace = throughput.ThroughputMeter(torch.device("cpu")).pace(recipe, 10.0)
    recipe = replace(recipe, epochs=0.97 * 60 * minutes * pace / len(images))
    total = ddpm.total_steps(recipe, len(images))
    warmup = min(500, total // 10)
    recipe = replace(recipe, warmup_steps=warmup, epochs=fall * recipe.epochs)
    state, deadline = loop.start_run(recipe), time.monotonic() + 60 * minutes
    steps = islice(training_loop(state, images, catalogue.make_schedule(recipe)), total)
    for _ in progress_bar(steps, total=total, unit="step"):
        if time.monotonic() > deadline:
            break
    return state, total


def judge_run(
    state: Run, n: int, distance: Callable[[torch.Tensor], Estimate], unseen: torch.Tensor
) -> dict:
    """Distances of n images that a run's averaged weights draw, and their loss on unseen ones."""
    recipe, schedule = state.settings, catalogue.make_schedule(state.settings)
    network = generation.autocast(state.ema, recipe.precision, "cpu")
    denoiser_for_batch, row = generation.make_denoiser_for_batch(network, schedule, recipe), {}
    for title, (sampler, steps) in SAMPLERS.items():
        options = {"times": ddpm.timesteps(schedule.T, steps), "sampler": sampler}
        options["seed"] = recipe.seed
        drawn, _ = generation.generate(denoiser_for_batch, schedule, n, recipe.shape, **options)
        row[title] = distance(drawn)._asdict()
    denoise = catalogue.make_denoiser(state.ema, schedule, recipe)
    loss = loss_by_tenth(denoise, schedule, unseen[:1000], seed=recipe.seed)
    return row | {"L_simple": loss["mean"]}


def values_of(rows: list[dict], sampler: str) -> tuple[list[float], list[float]]:
    """The distances in some rows, and half the widths of their intervals."""
    estimates = [Estimate(**row[sampler]) for row in rows]
    return [each.value for each in estimates], [each.half for each in estimates]


def plot(rows: dict, minutes: float, path: Path) -> None:
    """Two bars for each recipe."""
    figure = Figure(figsize=(8, 1.2 + 0.5 * len(rows)), layout="constrained")
    ax, height = figure.subplots(), 0.38
    for k, sampler in enumerate(SAMPLERS):
        places = [i + (k - 0.5) * height for i in range(len(rows))]
        values, spread = values_of([*rows.values()], sampler)
        ax.barh(places, values, height, xerr=spread, label=sampler, error_kw={"lw": 0.8})
    ax.set_yticks(range(len(rows)), rows)
    ax.invert_yaxis()
    title = f"Which settings give the best digits after {minutes:g} minutes?"
    ax.set(xlabel="Fréchet distance", title=title)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=100)


def plot_over_time(files: tuple[Path, ...], path: Path) -> None:
    """A line for each recipe that is in all the files, which differ in their minutes."""
    records = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    for file, record in zip(files, records):
        ddpm.check("recipes" in record, f"{file} is no result of this script: name another")
    records.sort(key=lambda record: record["minutes"])
    minutes = [record["minutes"] for record in records]
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    for ax, sampler in zip(figure.subplots(1, 2, sharey=True), SAMPLERS):
        for name in RECIPES:
            rows = [record["recipes"][name] for record in records if name in record["recipes"]]
            if len(rows) == len(records):
                values, spread = values_of(rows, sampler)
                ax.errorbar(minutes, values, spread, label=name, marker="o", ms=3, capsize=2)
        ax.set(xscale="log", yscale="log", xlabel="minutes of training", title=sampler)
        ax.set_xticks(minutes, [f"{each:g}" for each in minutes])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.grid(alpha=0.3, which="both")
    figure.axes[0].set_ylabel("Fréchet distance")
    figure.axes[0].legend(fontsize=8)
    with matplotlib.rc_context({"axes.formatter.min_exponent": 4}):  # 20, not 2 × 10¹
        figure.savefig(path, dpi=100)


def saved_rows(out: Path, about: dict) -> dict[str, dict]:
    """The rows that a file holds already. Raises ValueError if its settings are not these."""
    check_writable(out)
    ddpm.check(out.suffix != ".png", f"{out} is for JSON, with a plot beside it: name it .json")
    if not out.is_file():
        return {}
    record = json.loads(out.read_text(encoding="utf-8"))
    differing = [name for name, value in about.items() if record.get(name) != value]
    ddpm.check(not differing, f"{out} has another {' and '.join(differing)}: name another --out")
    return record["recipes"]


def measure(flags: Arguments) -> None:
    """Trains and judges each recipe that is not in the file yet, draws and prints all."""
    names = flags.only or RECIPES
    changes = {name: catalogue.look_up("recipe", name, RECIPES) for name in names}
    splits = "train", "test"
    images, unseen = (loading.load_images(Recipe(), flags.data, split) for split in splits)
    judge, precision = (extractors.pick_judge("auto", "mnist"), flags.precision or precisions()[-1])
    about = {"minutes": flags.minutes, "n": flags.n, "seed": flags.seed, "precision": precision}
    about |= {"extractor": judge.name, "device": "cpu", "threads": torch.get_num_threads()}
    about |= {"processor": devices.hardware("cpu"), "torch": torch.__version__}
    out = flags.out or RESULTS / f"recipes-{flags.minutes:g}.json"
    rows, known = saved_rows(out, about), judge.features(images)

    def distance(drawn: torch.Tensor) -> Estimate:
        return frechet_estimate(known, judge.features(drawn), flags.seed)

    for name in [name for name in changes if name not in rows]:
        print(name, flush=True)
        recipe = Recipe(precision=precision, seed=flags.seed, **changes[name])
        state, total = train(recipe, images, flags.minutes, changes[name].get("epochs", 1.0))
        row = {"images": state.step * recipe.batch_size, "steps": state.step, "planned": total}
        row["seconds"] = round(state.training_seconds, 1)
        rows[name] = row | judge_run(state, flags.n, distance, unseen)
        cards.write_card(out, {"command": command_line()} | about | {"recipes": rows})
    rows = {name: rows[name] for name in RECIPES if name in rows}
    plot(rows, flags.minutes, out.with_suffix(".png"))
    for name, row in rows.items():
        distances = ", ".join(str(Estimate(**row[title])) for title in SAMPLERS)
        print(f"{name}: {row['images']:,} images, {distances}, L_simple {row['L_simple']:.4f}")


def main() -> None:
    flags = tyro.cli(Arguments, description=__doc__)
    if flags.over_time:
        plot_over_time(flags.over_time, flags.out or RESULTS / "over-time.png")
    else:
        measure(flags)


if __name__ == "__main__":
    run(main, "stopped: the same command continues, with the recipe that it was training")
