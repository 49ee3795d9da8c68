"""Which settings give the best digits after equal time: `python benchmarks/recipes.py --out mine.json`, or `--help`.

Each recipe trains for so many minutes, its learning rate falling to 0 at their end unless steady, and is judged by the
Fréchet distance of what it draws to the training images, and by its loss on unseen ones. recipes-MINUTES.json holds a
recipe as soon as it is judged, so that a run that was stopped goes on; in the end the .png of the same name shows them.
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

sys.path.insert(0, str(Path(__file__).parents[1]))

from mnist_ddpm import ddpm, evaluation, extractors, machine, planning, resumable

SMALL = {"optimizer": "muon", "batch_size": 64, "base_channels": 16}
STEADY = {"learning_rate": 2.5e-3, "epochs": 100.0}  # the rate's fall is planned for a hundred times the time
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
SAMPLERS = {"ancestral, 50 steps": ("ddpm", 50), "DPM-Solver++, 20 steps": ("dpmpp", 20)}


@dataclass
class Arguments:
    minutes: float = 6.0  # of training, for each
    n: int = 1000  # images drawn
    only: tuple[str, ...] = ()  # recipes; all unless told
    precision: str = "bfloat16"  # of the networks
    seed: int = 0
    data: Path = Path("data")  # folder that holds MNIST
    out: Path | None = None  # JSON file; benchmarks/results/recipes-MINUTES.json unless told
    over_time: tuple[Path, ...] = ()  # instead of all this, draw what these files hold against their minutes, to --out


def trained(settings: ddpm.Settings, images: torch.Tensor, minutes: float, fall: float = 1.0) -> tuple[ddpm.Run, int]:
    """A run of as many steps as the pace of this machine lets expect, and their number; late, it has fewer.

    fall: the learning rate would be at 0 after so many times these steps.
    """
    pace = planning.measured_pace(settings, "cpu", 10.0)
    settings = replace(settings, epochs=0.97 * 60 * minutes * pace / len(images))
    total = ddpm.total_steps(settings, images)
    settings = replace(settings, warmup_steps=min(500, total // 10), epochs=fall * settings.epochs)
    run, deadline = ddpm.start_run(settings), time.monotonic() + 60 * minutes
    loop = ddpm.training_loop(run, images, ddpm.make_schedule(settings))
    for _ in ddpm.progress_bar(islice(loop, total), total=total, unit="step"):
        if time.monotonic() > deadline:
            break
    return run, total


def judged(run: ddpm.Run, judge: extractors.Judge, known: torch.Tensor, unseen: torch.Tensor, n: int) -> dict:
    settings, schedule = run.settings, ddpm.make_schedule(run.settings)
    model, row = ddpm.make_denoiser(run.ema, schedule, settings), {}
    for title, (sampler, steps) in SAMPLERS.items():
        options = {"sampler": ddpm.SAMPLERS[sampler], "steps": steps, "precision": settings.precision}
        drawn, _ = ddpm.generate(model, schedule, n, (1, 32, 32), seed=settings.seed, **options)
        row[title] = evaluation.frechet_estimate(known, judge.features(drawn), settings.seed)._asdict()
    loss = evaluation.loss_by_tenth(model, schedule, unseen[:1000], seed=settings.seed)
    return row | {"L_simple": loss["mean"]}


def plot(rows: dict, minutes: float, path: Path) -> None:
    figure = Figure(figsize=(8, 1.2 + 0.5 * len(rows)), layout="constrained")
    ax, height = figure.subplots(), 0.38
    for k, title in enumerate(SAMPLERS):
        places = [i + (k - 0.5) * height for i in range(len(rows))]
        values = [row[title]["value"] for row in rows.values()]
        spread = [evaluation.Estimate(**row[title]).half for row in rows.values()]
        ax.barh(places, values, height, xerr=spread, label=title, error_kw={"lw": 0.8})
    ax.set_yticks(range(len(rows)), rows)
    ax.invert_yaxis()
    title = f"Which settings give the best digits after {minutes:g} minutes?"
    ax.set(xlabel="Fréchet distance", title=title)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=100)


def plot_over_time(files: tuple[Path, ...], path: Path) -> None:
    """A line for each recipe that is in all the files, made alike but for their minutes."""
    made = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    for file, record in zip(files, made):
        if "recipes" not in record:
            raise ValueError(f"{file} is no result of this script: name those of --minutes")
    made.sort(key=lambda record: record["minutes"])
    minutes = [record["minutes"] for record in made]
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    for ax, title in zip(figure.subplots(1, 2, sharey=True), SAMPLERS):
        for name in RECIPES:
            if all(name in record["recipes"] for record in made):
                found = [evaluation.Estimate(**record["recipes"][name][title]) for record in made]
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


def main(asked: Arguments) -> None:
    if asked.over_time:
        plot_over_time(asked.over_time, asked.out or Path("benchmarks/results/over-time.png"))
        return
    recipes = {name: ddpm.look_up("recipe", name, RECIPES) for name in asked.only or RECIPES}
    images, unseen = (ddpm.load_images(ddpm.Settings(), asked.data, split) for split in ("train", "test"))
    judge = extractors.pick_judge("auto", "mnist")
    record = {
        "minutes": asked.minutes, "n": asked.n, "seed": asked.seed, "precision": asked.precision,
        "extractor": judge.name, "device": "cpu", "threads": torch.get_num_threads(),
        "processor": machine.hardware("cpu"), "torch": torch.__version__,
    }  # fmt: skip
    rows, out = {}, asked.out or Path(f"benchmarks/results/recipes-{asked.minutes:g}.json")
    resumable.writable_file(out)
    if out.suffix == ".png":
        raise ValueError(f"{out} is for the figures, as JSON, and their plot goes beside it: name it .json")
    if out.is_file():
        found = json.loads(out.read_text(encoding="utf-8"))
        if {name: found.get(name) for name in record} != record:
            raise ValueError(f"{out} was made otherwise: name another --out")
        rows = found["recipes"]
    known = judge.features(images)
    for name, changes in recipes.items():
        if name in rows:
            continue
        print(name, flush=True)
        settings = ddpm.Settings(precision=asked.precision, seed=asked.seed, **changes)
        run, total = trained(settings, images, asked.minutes, changes.get("epochs", 1.0))
        rows[name] = {
            "images": run.step * settings.batch_size, "seconds": round(run.seconds, 1), "steps": run.step,
            "planned": total,
        }  # fmt: skip
        rows[name] |= judged(run, judge, known, unseen, asked.n)
        evaluation.write_card(out, {"command": shlex.join(["python", *sys.argv]), **record, "recipes": rows})
    rows = {name: rows[name] for name in RECIPES if name in rows}
    plot(rows, asked.minutes, out.with_suffix(".png"))
    for name, row in rows.items():
        scores = [evaluation.Estimate(**row[title]) for title in SAMPLERS]
        print(f"{name}: {row['images']:,} images, {scores[0]}, {scores[1]}, L_simple {row['L_simple']:.4f}")


if __name__ == "__main__":
    try:
        main(tyro.cli(Arguments, description=__doc__))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped: the same command goes on, with the recipe that was at work")
