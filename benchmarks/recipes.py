"""Which settings give the best digits in equal time? `python benchmarks/recipes.py`, or `--help`.

Each recipe trains for so many minutes, its learning rate falling to 0 at their end unless steady,
and is judged by the Fréchet distance of what it draws to the training images, and by its loss on
unseen ones. recipes-MINUTES.json holds a recipe as soon as it is judged, so that a run that was
stopped goes on; in the end the .png of the same name shows them.
"""

import json
import shlex
import sys
import time
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import matplotlib
import torch
import tyro
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

sys.path.insert(1, str(Path(__file__).parents[1]))

from processor import precisions

from mnist_ddpm import catalogue, ddpm, trainer
from mnist_ddpm.data import sets
from mnist_ddpm.evaluation import cards, extractors, generation
from mnist_ddpm.evaluation.distances import Estimate, frechet_estimate
from mnist_ddpm.evaluation.losses import loss_by_tenth
from mnist_ddpm.machine import devices
from mnist_ddpm.machine.files import check_writable
from mnist_ddpm.machine.progress import progress_bar
from mnist_ddpm.methods.solvers import dpmpp_2m_sampler
from mnist_ddpm.training.loop import training_loop
from mnist_ddpm.training.recipe import Recipe
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
    only: tuple[str, ...] = ()  # recipes; all unless told
    precision: str | None = None  # of the networks; None: bfloat16, unless it is emulated
    seed: int = 0
    data: Path = Path("data")  # folder that holds MNIST
    out: Path | None = None  # JSON file; benchmarks/results/recipes-MINUTES.json unless told
    over_time: tuple[Path, ...] = ()  # draw what these files hold against their minutes, to --out


def trained(
    recipe: Recipe, images: torch.Tensor, minutes: float, fall: float = 1.0
) -> tuple[Run, int]:
    """A run of as many steps as this machine's pace lets expect, and their number.

    It has fewer where the time is up before. fall: the learning rate would be at 0 after so many
    times these steps.
    """
    pace = trainer.measure(torch.device("cpu")).pace(recipe, 10.0)
    recipe = replace(recipe, epochs=0.97 * 60 * minutes * pace / len(images))
    total = ddpm.total_steps(recipe, len(images))
    warmup = min(500, total // 10)
    recipe = replace(recipe, warmup_steps=warmup, epochs=fall * recipe.epochs)
    run, deadline = trainer.start_run(recipe), time.monotonic() + 60 * minutes
    schedule, objective = catalogue.make_schedule(recipe), catalogue.make_objective(recipe)
    steps = islice(training_loop(run, images, schedule, objective), total)
    for _ in progress_bar(steps, total=total, unit="step"):
        if time.monotonic() > deadline:
            break
    return run, total


@dataclass
class Judging:
    """What recipes are judged by."""

    judge: extractors.Judge
    known: torch.Tensor  # features of the training images
    unseen: torch.Tensor
    n: int  # images drawn

    def figures(self, run: Run) -> dict:
        """Distances of what a run's averaged weights draw, and their loss."""
        recipe, schedule, row = run.settings, catalogue.make_schedule(run.settings), {}
        network = generation.autocast(run.ema, recipe.precision, "cpu")
        source = generation.denoisers(network, schedule, recipe)
        for title, (sampler, steps) in SAMPLERS.items():
            options = {"times": ddpm.timesteps(schedule.T, steps), "sampler": sampler}
            options |= {"seed": recipe.seed}
            drawn, _ = generation.generate(source, schedule, self.n, recipe.shape, **options)
            found = frechet_estimate(self.known, self.judge.features(drawn), recipe.seed)
            row[title] = found._asdict()
        denoise = catalogue.make_denoiser(run.ema, schedule, recipe)
        loss = loss_by_tenth(denoise, schedule, self.unseen[:1000], seed=recipe.seed)
        return row | {"L_simple": loss["mean"]}


def plot(rows: dict, minutes: float, path: Path) -> None:
    """Two bars for each recipe."""
    figure = Figure(figsize=(8, 1.2 + 0.5 * len(rows)), layout="constrained")
    ax, height = figure.subplots(), 0.38
    for k, title in enumerate(SAMPLERS):
        places = [i + (k - 0.5) * height for i in range(len(rows))]
        found = [Estimate(**row[title]) for row in rows.values()]
        values, spread = [each.value for each in found], [each.half for each in found]
        ax.barh(places, values, height, xerr=spread, label=title, error_kw={"lw": 0.8})
    ax.set_yticks(range(len(rows)), rows)
    ax.invert_yaxis()
    title = f"Which settings give the best digits after {minutes:g} minutes?"
    ax.set(xlabel="Fréchet distance", title=title)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=100)


def plot_over_time(files: tuple[Path, ...], path: Path) -> None:
    """A line for each recipe that is in all the files, which differ in their minutes."""
    made = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    for file, record in zip(files, made):
        problem = f"{file} is no result of this script"
        ddpm.check("recipes" in record, f"{problem}: name those of --minutes")
    made.sort(key=lambda record: record["minutes"])
    minutes = [record["minutes"] for record in made]
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    for ax, title in zip(figure.subplots(1, 2, sharey=True), SAMPLERS):
        for name in RECIPES:
            if all(name in record["recipes"] for record in made):
                found = [Estimate(**record["recipes"][name][title]) for record in made]
                values, spread = [each.value for each in found], [each.half for each in found]
                ax.errorbar(minutes, values, spread, label=name, marker="o", ms=3, capsize=2)
        ax.set(xscale="log", yscale="log", xlabel="minutes of training", title=title)
        ax.set_xticks(minutes, [f"{each:g}" for each in minutes])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.grid(alpha=0.3, which="both")
    figure.axes[0].set_ylabel("Fréchet distance")
    figure.axes[0].legend(fontsize=8)
    with matplotlib.rc_context({"axes.formatter.min_exponent": 4}):  # 20, not 2 × 10¹
        figure.savefig(path, dpi=100)


def started(out: Path, about: dict) -> dict[str, dict]:
    """The rows that a file holds already. Raises ValueError where it was made otherwise."""
    check_writable(out)
    problem = f"{out} is for the figures, as JSON, and their plot goes beside it"
    ddpm.check(out.suffix != ".png", f"{problem}: name it .json")
    if not out.is_file():
        return {}
    found = json.loads(out.read_text(encoding="utf-8"))
    alike = {name: found.get(name) for name in about} == about
    ddpm.check(alike, f"{out} was made otherwise: name another --out")
    return found["recipes"]


def measure(asked: Arguments) -> None:
    """Trains and judges each recipe that is not in the file yet, draws and prints all."""
    precision = asked.precision or precisions()[-1]
    names = asked.only or RECIPES
    recipes = {name: catalogue.look_up("recipe", name, RECIPES) for name in names}
    images, unseen = (sets.load_images(Recipe(), asked.data, split) for split in ("train", "test"))
    judge = extractors.pick_judge("auto", "mnist")
    about = {
        "minutes": asked.minutes, "n": asked.n, "seed": asked.seed, "precision": precision,
        "extractor": judge.name, "device": "cpu", "threads": torch.get_num_threads(),
        "processor": devices.hardware("cpu"), "torch": torch.__version__,
    }  # fmt: skip
    out = asked.out or Path(f"benchmarks/results/recipes-{asked.minutes:g}.json")
    rows = started(out, about)
    judging = Judging(judge, judge.features(images), unseen, asked.n)
    command = {"command": shlex.join(["python", *sys.argv])}
    for name, changes in recipes.items():
        if name in rows:
            continue
        print(name, flush=True)
        recipe = Recipe(precision=precision, seed=asked.seed, **changes)
        run, total = trained(recipe, images, asked.minutes, changes.get("epochs", 1.0))
        rows[name] = {
            "images": run.step * recipe.batch_size, "seconds": round(run.seconds, 1),
            "steps": run.step, "planned": total,
        } | judging.figures(run)  # fmt: skip
        cards.write_card(out, command | about | {"recipes": rows})
    rows = {name: rows[name] for name in RECIPES if name in rows}
    plot(rows, asked.minutes, out.with_suffix(".png"))
    for name, row in rows.items():
        first, second = (Estimate(**row[title]) for title in SAMPLERS)
        loss = f"L_simple {row['L_simple']:.4f}"
        print(f"{name}: {row['images']:,} images, {first}, {second}, {loss}")


def main(asked: Arguments) -> None:
    if asked.over_time:
        out = asked.out or Path("benchmarks/results/over-time.png")
        plot_over_time(asked.over_time, out)
    else:
        measure(asked)


if __name__ == "__main__":
    try:
        main(tyro.cli(Arguments, description=__doc__))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped: the same command goes on, with the recipe that was at work")
