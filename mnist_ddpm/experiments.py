"""The papers in miniature, on MNIST: `python -m mnist_ddpm.experiments NAME`, or `--help`.

Each writes to experiments/NAME: results.csv (a row for each measurement), plot.png, and record.json (seeds, versions,
command). What is there already is not done again, so that a run that was stopped goes on, and one that is complete
only draws its plot; remove it, or name another --out, to start anew.
"""

import csv
import json
import math
import shlex
import sys
import textwrap
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import cache, cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Annotated, NamedTuple

import matplotlib
import numpy as np
import torch
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation
from torch import Tensor

from mnist_ddpm import ddpm, evaluation, extractors, guidance, likelihood, machine, resumable, runs, solvers

Row = dict[str, str | int | float]
Network = Callable[[], ddpm.Model]  # trained when it is first called, or read
# 97.5 % quantiles of Student's t, by seeds
STUDENT = {2: 12.71, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}


@dataclass(frozen=True)
class Scale:
    """How much is done."""

    seeds: int = 3  # trainings of each network, for the intervals
    epochs: float | None = None  # of each training; None: what the experiment says
    width: int = 16  # of the network's first level
    n: int = 500  # images drawn for a distance
    bits: int = 250  # test images for the bound
    long: int = 1000  # steps of a long chain; of those trained for 4000 steps, four times as many, too


QUICK = Scale(seeds=2, epochs=0.2, n=100, bits=20, long=50)

# Where one network's samplers are compared
LONGER = {
    "epochs": 6.0, "batch_size": 128, "optimizer": "muon", "learning_rate": 5e-3, "warmup_steps": 500,
    "precision": "float32",
}  # fmt: skip
BRIEFLY = {**LONGER, "epochs": 3.0}  # where many networks are


class Lab:
    """Trains networks and measures them, each once; rows of results go to a CSV file as they come."""

    def __init__(self, out: Path, scale: Scale, data: Path, device: torch.device, common: dict, command: str = ""):
        if scale.epochs is None:
            scale = replace(scale, epochs=common["epochs"])
        self.out, self.scale, self.data, self.device, self.command = out, scale, data, device, command
        self.common = {**common, "base_channels": scale.width, "epochs": scale.epochs}  # settings of all networks
        self.runs = out.parent / ("runs-quick" if scale == QUICK else "runs")  # experiments share their networks
        self.path, self.rows = out / "results.csv", []
        if self.path.is_file():
            with self.path.open(newline="", encoding="utf-8") as file:
                self.rows = [
                    {name: text if name == "arm" else number(text) for name, text in row.items()}
                    for row in csv.DictReader(file)
                ]
        record = out / "record.json"  # what it says when the work begins
        self.before = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
        self.networks = dict(self.before.get("networks", {}))  # by name, what each changes in the common settings
        self.check_record()

    @cached_property
    def training(self) -> Tensor:
        return ddpm.load_images(ddpm.Settings(), self.data)

    @cached_property
    def unseen(self) -> Tensor:
        return ddpm.load_images(ddpm.Settings(), self.data, "test")

    @cached_property
    def judge(self) -> extractors.Judge:
        return extractors.pick_judge("auto", "mnist", self.device)

    @cached_property
    def known(self) -> Tensor:
        """Features of all training images."""
        return self.judge.features(self.training)

    def settings(self, seed: int, **changes) -> ddpm.Settings:
        return ddpm.Settings(**{**self.common, "seed": seed, **changes})

    def training_run(self, folder: Path, settings: ddpm.Settings) -> ddpm.Run:
        """The run in folder, where it was stopped, or a new one. Raises ValueError if it has other settings."""
        if not (folder / "training_state.pt").is_file():
            return ddpm.start_run(settings, self.device)
        run = runs.resume_run(folder, device=self.device)
        if run.settings != settings:
            raise ValueError(f"{folder} was trained with other settings: remove it, or choose another --out")
        return run

    def network(self, name: str, seed: int, **changes) -> tuple[Network, ddpm.Schedule, ddpm.Settings]:
        """The network of this name and seed, trained to its end from where it was stopped, but only if needed."""
        settings, folder = self.settings(seed, **changes), self.runs / f"{slug(name)}-{seed}"
        self.networks[name] = changes

        @cache
        def trained() -> ddpm.Model:
            run = self.training_run(folder, settings)
            if run.step < ddpm.total_steps(settings, self.training) or not runs.saved_whole(folder, run):
                print(f"{name}, seed {seed}", flush=True)
                labels = guidance.load_labels(settings, self.data)[: len(self.training)] if settings.classes else None
                runs.fit(run, self.training, ddpm.make_schedule(settings), folder, labels=labels)
            return ddpm.load_checkpoint(folder, self.device)[0]

        return trained, ddpm.make_schedule(settings), settings

    def measured(self, key: Row, measure: Callable[[], Row]) -> Row:
        """The row that begins with key: from the file if it is there, else measured now."""
        if found := matching(self.rows, key):
            return found[0]
        self.rows.append({**key, **measure()})
        evaluation.write_card(self.out / "record.json", self.record())
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        with resumable.replacing(self.path) as path, path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names, restval="")
            writer.writeheader()
            writer.writerows(self.rows)
        return self.rows[-1]

    def draw(self, model: ddpm.Model, schedule: ddpm.Schedule, times: list[int], seed: int, **options) -> Tensor:
        common = {"seed": seed, "device": self.device, "precision": self.common["precision"]}
        options = {"sampler": ddpm.ddpm_sampler, **common, **options}
        return ddpm.generate(model, schedule, self.scale.n, (1, 32, 32), steps=times, **options)[0]

    def quality(self, key: Row, network: Network, schedule: ddpm.Schedule, times: list[int], **options) -> Row:
        """The row of what a sampler draws with the seed in key."""
        return self.measured(key, lambda: self.distance(self.draw(network(), schedule, times, key["seed"], **options)))

    def distance(self, images: Tensor) -> Row:
        """What a row says of drawn images."""
        return {"n": len(images), "frechet": evaluation.frechet_distance(self.known, self.judge.features(images))}

    def real(self) -> None:
        """The row of what real images score: as many unseen ones, chosen at random."""
        self.measured({"arm": "real"}, partial(self.distance, evaluation.shuffled(self.unseen, 0, self.scale.n)))

    def check_record(self) -> None:
        """Raises ValueError where the folder holds results of another scale (but for seeds), training or extractor."""
        if not self.before:
            return
        record = self.record()
        for name in ("scale", "training", "extractor"):
            had, now = self.before.get(name, record[name]), record[name]
            if had != now and (name != "scale" or had | {"seeds": 0} != now | {"seeds": 0}):
                raise ValueError(f"{self.out} holds results of another {name}, {had}, not {now}: choose another --out")

    def record(self) -> dict:
        """How the results come about, those of earlier runs on another machine among them."""
        here = {
            "device": str(self.device), "hardware": machine.hardware(self.device),
            "threads": torch.get_num_threads(), "versions": machine.versions(),
        }  # fmt: skip
        there = {name: self.before[name] for name in here if name in self.before}
        earlier = [machine for machine in self.before.get("earlier", []) if machine not in (here, there)]
        earlier += [there] if there and there != here else []
        return {
            "command": self.command, "scale": asdict(self.scale), "seeds": list(range(self.scale.seeds)),
            "training": self.common, "networks": self.networks, "extractor": self.judge.name,
            "reference": "60,000 training images", **here,
        } | ({"earlier": earlier} if earlier else {})  # fmt: skip


def slug(name: str) -> str:
    """A name as part of a path."""
    return name.replace(", ", "-").replace(" ", "-")


def number(text: str) -> str | int | float:
    """A cell of a CSV file as it was before it was written."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def matching(rows: list[Row], key: Row) -> list[Row]:
    """The rows that have all of key's values."""
    return [row for row in rows if all(row.get(name) == value for name, value in key.items())]


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half of the 95 % interval (Student's t). nan without any values, or with one."""
    if not values:
        return math.nan, math.nan
    mean, n = float(np.mean(values)), len(values)
    if n == 1:
        return mean, math.nan
    quantile = STUDENT.get(n, 1.96 + 2.6 / (n - 1))  # within 0.01 for more
    return mean, float(quantile * np.std(values, ddof=1) / math.sqrt(n))


def column(rows: list[Row], name: str, **key) -> list[float]:
    """The values in the rows that match: one for each seed."""
    return [row[name] for row in matching(rows, key) if row.get(name, "") != ""]


def verdict(claim: str, differences: list[float]) -> str:
    """Whether differences, one for each seed and negative where the claim holds, bear it out."""
    mean, half = interval(differences)
    if mean + half < 0:
        return f"{claim}: holds here"
    if mean - half > 0:
        return f"{claim}: the other way round here"
    return f"{claim}: {'seen here' if mean < 0 else 'not seen here'}, within the noise of {len(differences)} seeds"


def paired(rows: list[Row], name: str, less: Row, more: Row) -> list[float]:
    """Differences of a column between two kinds of rows, for each seed that both have."""
    first, second = (
        {row["seed"]: row[name] for row in matching(rows, key) if row.get(name, "") != ""} for key in (less, more)
    )
    return [first[seed] - second[seed] for seed in first if seed in second]


def verdicts(rows: list[Row], name: str, *claims: tuple[str, Row, Row]) -> str:
    """A line for each claim that a column is less in the first kind of rows than in the second."""
    return "\n".join(verdict(claim, paired(rows, name, less, more)) for claim, less, more in claims)


def spread(columns: list[list[float]], log: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The mean of each column (K,) and how far its interval reaches below and above (2, K); log: of logarithms."""
    to, back = (np.log, np.exp) if log else (np.asarray, np.asarray)
    middle, half = np.array([interval(list(to(values))) for values in columns]).T
    return back(middle), np.abs(back([middle - half, middle + half]) - back(middle))


def points(ax: Axes, rows: list[Row], name: str, arms: list[str], log: bool = False, **key) -> None:
    """A point for each arm, with its interval over seeds."""
    middle, ends = spread([column(rows, name, arm=arm, **key) for arm in arms], log)
    ax.errorbar(middle, range(len(arms)), xerr=ends, fmt="o", ms=4, capsize=2, lw=1)
    ax.set_yticks(range(len(arms)), arms)
    ax.invert_yaxis()
    ax.set_xscale("log" if log else "linear")
    ax.grid(alpha=0.3, which="both")


def lines(ax: Axes, rows: list[Row], name: str, x: str, arms: dict[str, Row], log: bool = False) -> None:
    """A line for each arm over x, with its interval over seeds; log: of the logarithms, on a scale of them.

    What lies at the same x is drawn side by side, lest one interval hide another.
    """
    for i, (label, key) in enumerate(arms.items()):
        at = sorted({row[x] for row in matching(rows, key)})
        middle, ends = spread([column(rows, name, **key, **{x: value}) for value in at], log)
        drawn = ax.errorbar(at, middle, ends, label=label, marker="o", ms=3, capsize=2, lw=1)
        beside = ScaledTranslation((i - (len(arms) - 1) / 2) / 28, 0, ax.figure.dpi_scale_trans)  # inches
        for artist in drawn.get_children():
            artist.set_transform(ax.transData + beside)
    if log:
        ax.set_yscale("log")
    ax.set_xlabel(x)
    ax.grid(alpha=0.3, which="both")


def floor_line(ax: Axes, rows: list[Row]) -> None:
    for row in matching(rows, {"arm": "real"}):
        ax.axhline(row["frechet"], color="0.5", ls=":", lw=1, label=f"real, n = {row['n']}")


# --- DDPM, Table 2: what to predict, and what to minimise

PREDICTIONS = {
    "eps, L_simple": {},
    "eps, L": {"prediction": "eps", "objective": "bound"},
    "mu, L": {"prediction": "mu", "objective": "bound"},
    "mu, plain error": {"prediction": "mu"},
    "v, plain error": {"prediction": "v"},
    "x0, plain error": {"prediction": "x0"},
    "eps, L_hybrid": {"prediction": "eps", "objective": "hybrid"},
}


def ddpm_table2(lab: Lab) -> None:
    for seed in range(lab.scale.seeds):
        for arm, changes in PREDICTIONS.items():
            network, schedule, settings = lab.network(arm, seed, **changes)
            times = ddpm.timesteps(settings.T, 50)
            for variance in ("posterior", "learned") if settings.learned_variance else ("posterior",):
                name = f"{arm}, learned variance" if variance == "learned" else arm
                lab.quality({"arm": name, "seed": seed}, network, schedule, times, variance=variance)
    lab.real()


def plot_ddpm_table2(rows: list[Row], figure: Figure) -> None:
    ax, arms = figure.subplots(), [*PREDICTIONS, "eps, L_hybrid, learned variance"]
    points(ax, rows, "frechet", arms, log=True)
    for row in matching(rows, {"arm": "real"}):
        ax.axvline(row["frechet"], color="0.3", ls=":", lw=1)
    simple = {"arm": "eps, L_simple"}
    found = verdicts(
        rows, "frechet",
        ("L_simple beats L", simple, {"arm": "eps, L"}),
        ("eps with L_simple beats mu with L", simple, {"arm": "mu, L"}),
        ("eps beats x0", simple, {"arm": "x0, plain error"}),
        ("fixed variance beats the one that L_hybrid learns", simple, {"arm": "eps, L_hybrid, learned variance"}),
    )  # fmt: skip
    ax.set(title=found, xlabel="Fréchet distance, ancestral sampling; dotted: real digits")


# --- Improved DDPM: schedules, learned variance, and chains of few steps

CHAINS = {
    "1k linear, simple": {},
    "1k cosine, simple": {"schedule": "cosine"},
    # four times the steps must not add four times the noise
    "4k linear, simple": {"T": 4000, "beta_1": 1e-4 / 4, "beta_T": 0.02 / 4},
    "4k linear, hybrid": {"T": 4000, "beta_1": 1e-4 / 4, "beta_T": 0.02 / 4, "objective": "hybrid"},
    "4k cosine, simple": {"T": 4000, "schedule": "cosine"},
    "4k cosine, hybrid": {"T": 4000, "schedule": "cosine", "objective": "hybrid"},
    "4k cosine, vlb": {"T": 4000, "schedule": "cosine", "objective": "vlb"},
}
SKIPPED = 0.1, 0.2, 0.3, 0.4, 0.5


def iddpm_schedules(lab: Lab) -> None:
    for seed in range(lab.scale.seeds):
        for arm, changes in CHAINS.items():
            name = arm if changes else "eps, L_simple"  # the same as in ddpm-table2
            network, schedule, settings = lab.network(name, seed, **changes)
            variance = "learned" if settings.learned_variance else "posterior"
            for steps in sorted({10, 25, 50, 100, lab.scale.long, lab.scale.long * settings.T // 1000}):
                times = ddpm.timesteps(settings.T, min(steps, settings.T))
                key = {"arm": arm, "seed": seed, "steps": len(times), "skipped": 0.0}
                lab.quality(key, network, schedule, times, variance=variance)
            for part in SKIPPED if arm.startswith("1k") else ():
                times = [t for t in ddpm.timesteps(settings.T, 50) if t <= (1 - part) * settings.T]
                key = {"arm": arm, "seed": seed, "steps": 50, "skipped": part}
                lab.quality(key, network, schedule, times, variance=variance)
            key = {"arm": arm, "seed": seed, "steps": settings.T, "measure": "bound"}
            lab.measured(key, partial(bound, lab, network, schedule, variance, seed))
    lab.real()


def bound(lab: Lab, network: Network, schedule: ddpm.Schedule, variance: str, seed: int) -> Row:
    """The bound of unseen digits."""
    found = likelihood.bits_per_dim(
        network(), schedule, lab.unseen[: lab.scale.bits], variance=variance, times_per_image=min(50, schedule.T),
        margin=2, seed=seed, device=lab.device,
    )  # fmt: skip
    return {"bits_per_dim": found.mean}


def plot_iddpm_schedules(rows: list[Row], figure: Figure) -> None:
    first, second, third = figure.subplots(1, 3)
    points(first, rows, "bits_per_dim", list(CHAINS), measure="bound")
    hybrid, simple, vlb = ({"arm": f"4k cosine, {kind}"} for kind in ("hybrid", "simple", "vlb"))
    found = verdicts(
        rows, "bits_per_dim",
        ("cosine needs fewer bits than linear", hybrid, {"arm": "4k linear, hybrid"}),
        ("with it, 4000 steps fewer than 1000", simple, {"arm": "1k cosine, simple"}),
        ("hybrid fewer than simple", hybrid, simple),
        ("vlb fewest", vlb, hybrid),
    )  # fmt: skip
    first.set(title=found, xlabel="bits/dim")
    lines(second, rows, "frechet", "steps", {arm: {"arm": arm, "skipped": 0.0} for arm in CHAINS}, log=True)
    longest = max(row["steps"] for row in matching(rows, hybrid | {"skipped": 0.0}))
    few, many, most = ({"steps": steps, "skipped": 0.0} for steps in (25, 100, longest))
    found = verdicts(
        rows, "frechet",
        ("learned variance helps in 25 steps", hybrid | few, simple | few),
        ("vlb draws worse than hybrid", hybrid | many, vlb | many),
        (f"hybrid: {longest} steps beat 100", hybrid | most, hybrid | many),
    )  # fmt: skip
    second.set(title=found, xscale="log")
    second.set_ylabel("Fréchet distance")
    second.legend(fontsize=7, ncols=2, loc="upper right")
    arms = ("1k linear, simple", "1k cosine, simple")
    lines(third, rows, "frechet", "skipped", {arm: {"arm": arm, "steps": 50} for arm in arms}, log=True)
    kinds = [[{"arm": arm, "steps": 50, "skipped": part} for part in (0.2, 0.0)] for arm in arms]
    claim = [a - b for a, b in zip(*(paired(rows, "frechet", *pair) for pair in kinds))]
    third.set(title=verdict("skipping a fifth costs linear less", claim), xlabel="share of the way skipped, from T")
    third.set_ylabel("Fréchet distance, 50 steps")
    third.legend(fontsize=7)


# --- DDIM, Table 1: steps against eta

METHODS = {
    **{f"η = {eta:g}": ("ddim", {"eta": eta}) for eta in (0.0, 0.2, 0.5, 1.0)},
    "σ̂": ("ddpm", {"variance": "beta"}), "Heun": ("heun", {}),
    "DPM-Solver++": ("dpmpp", {}), "DPM-Solver++, η = 1": ("dpmpp", {"eta": 1.0}),
}  # fmt: skip


def ddim_table1(lab: Lab) -> None:
    for seed in range(lab.scale.seeds):
        network, schedule, settings = lab.network("eps, longer", seed)
        for S in (10, 20, 50, 100, lab.scale.long):
            for arm, (sampler, options) in METHODS.items():
                times = ddpm.timesteps(settings.T, (S + 1) // 2 if sampler == "heun" else S)
                options = {"sampler": ddpm.SAMPLERS[sampler], **options}
                lab.quality({"arm": arm, "seed": seed, "S": S}, network, schedule, times, **options)
            times = ddpm.timesteps(settings.T, S)
            key = {"arm": "reconstruction", "seed": seed, "S": S}
            lab.measured(key, partial(reconstruction, lab, network, schedule, times))
    lab.real()


def reconstruction(lab: Lab, network: Network, schedule: ddpm.Schedule, times: list[int]) -> Row:
    """What 100 unseen digits lose on the way to their noise and back."""
    model, x0 = network(), ddpm.to_float(lab.unseen[:100]).to(lab.device)
    *_, (_, code, _) = solvers.ddim_encoder(model, schedule, times, x0)
    *_, (_, again, _) = ddpm.ddim_sampler(model, schedule, times, code, noise=None)
    return {"reconstruction": (again - x0).square().mean().item()}


def plot_ddim_table1(rows: list[Row], figure: Figure) -> None:
    first, second = figure.subplots(1, 2)
    lines(first, rows, "frechet", "S", {arm: {"arm": arm} for arm in METHODS}, log=True)
    floor_line(first, rows)
    none, full, second_order = ({"arm": arm, "S": 10} for arm in ("η = 0", "η = 1", "DPM-Solver++"))
    noisy = {"arm": "DPM-Solver++, η = 1", "S": 20}
    found = verdicts(
        rows, "frechet",
        ("10 steps: η = 0 beats η = 1", none, full),
        ("10 steps: second order beats first", second_order, none),
        ("20 steps, η = 1: second order beats first", noisy, {"arm": "η = 1", "S": 20}),
    )  # fmt: skip
    first.set(title=found, xscale="log", xlabel="network evaluations (Heun: one fewer)")
    first.set_ylabel("Fréchet distance")
    first.legend(fontsize=7, loc="upper right", ncols=2)
    lines(second, rows, "reconstruction", "S", {"encoded and decoded": {"arm": "reconstruction"}}, log=True)
    few, many = ({"arm": "reconstruction", "S": S} for S in (10, 100))
    found = verdicts(rows, "reconstruction", ("more steps, smaller error", many, few))
    second.set(title=found, xscale="log", xlabel="steps")
    second.set_ylabel("mean squared error of 100 unseen digits")


# --- what averaging the weights is worth


# How much more training the rate's fall is planned for, and where it falls from
RATES = {"falling rate": (1, 5e-3), "steady rate": (100, 2.5e-3)}


def ema(lab: Lab) -> None:
    for seed in range(lab.scale.seeds):
        total = ddpm.total_steps(lab.settings(seed), lab.training)
        for rate, (more, peak) in RATES.items():
            lab.networks[rate] = {"epochs": more * lab.scale.epochs, "learning_rate": peak}
            settings = lab.settings(seed, **lab.networks[rate])
            folder = lab.runs / f"{slug(rate)}-{seed}"
            for end in [part * total // 6 for part in range(1, 7)]:
                keys = [{"arm": f"{arm}, {rate}", "seed": seed, "step": end} for arm in ("raw", "averaged")]
                if all(matching(lab.rows, key) for key in keys):
                    continue
                run = lab.training_run(folder, settings)
                if run.step > end:
                    raise ValueError(f"{folder} is past step {end}, which was not measured: remove it to start anew")
                left = end - run.step
                loop = islice(ddpm.training_loop(run, lab.training, ddpm.make_schedule(settings)), left)
                for _ in ddpm.progress_bar(loop, total=left, unit="step"):
                    pass
                runs.save_run(folder, run)
                schedule = ddpm.make_schedule(settings).to(lab.device)
                for key, model in zip(keys, (run.model, run.ema)):
                    lab.quality(key, lambda model=model: model, schedule, ddpm.timesteps(settings.T, 50))
    lab.real()


def plot_ema(rows: list[Row], figure: Figure) -> None:
    for ax, rate in zip(figure.subplots(1, 2, sharey=True), RATES):
        raw, averaged = ({"arm": f"{arm}, {rate}"} for arm in ("raw", "averaged"))
        lines(ax, rows, "frechet", "step", {"raw": raw, "averaged": averaged}, log=True)
        floor_line(ax, rows)
        last = {"step": max(row["step"] for row in matching(rows, raw))}
        found = verdicts(rows, "frechet", (f"{rate}: averaging helps", averaged | last, raw | last))
        ax.set(title=found, xlabel="training step")
        ax.legend()
    figure.axes[0].set_ylabel("Fréchet distance, ancestral, 50 steps")


# --- guidance: what it gains and what it loses


def guidance_scale(lab: Lab) -> None:
    for seed in range(lab.scale.seeds):
        network, schedule, settings = lab.network("v, labels", seed, prediction="v", schedule="cosine", classes=10)
        times, labels = ddpm.timesteps(settings.T, 20), torch.arange(lab.scale.n) % 10
        for scale in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0):
            key = {"arm": "guided", "seed": seed, "scale": scale}
            lab.measured(key, partial(followed, lab, network, scale, schedule, times, labels, seed))
    lab.real()


def followed(
    lab: Lab, network: Network, scale: float, schedule: ddpm.Schedule, times: list[int], labels: Tensor, seed: int
) -> Row:  # fmt: skip
    """How good the images of a guided model are, how varied, and how often they are what was asked for."""
    model = guidance.guided(network(), scale)
    images = lab.draw(model, schedule, times, seed, sampler=ddpm.SAMPLERS["dpmpp"], labels=labels)
    _, recall = evaluation.precision_recall(lab.known, lab.judge.features(images))
    agree = lab.judge.logits(images).argmax(dim=1) == labels[: len(images)]
    return {**lab.distance(images), "recall": recall.value, "agreement": agree.double().mean().item()}


def plot_guidance(rows: list[Row], figure: Figure) -> None:
    columns = ("frechet", "Fréchet distance"), ("recall", "recall"), ("agreement", "digits that are the label's")
    for ax, (name, label) in zip(figure.subplots(1, 3), columns):
        lines(ax, rows, name, "scale", {label: {"arm": "guided"}})
        ax.set(xlabel="guidance scale", ylabel=label)
    first, second, third = figure.axes
    floor_line(first, rows)
    first.legend(fontsize=7)
    one, two, eight = ({"arm": "guided", "scale": scale} for scale in (1.0, 2.0, 8.0))
    first.set_title(verdicts(rows, "frechet", ("some is best: 2 beats 1", two, one), ("2 beats 8", two, eight)))
    second.set_title(verdicts(rows, "recall", ("8 costs variety", eight, one)))
    third.set_title(verdicts(rows, "agreement", ("2 gains agreement", one, two)))


class Experiment(NamedTuple):
    run: Callable[[Lab], None]
    plot: Callable[[list[Row], Figure], None]
    width: float  # of the plot, in inches
    common: dict  # settings of its networks


EXPERIMENTS = {
    "ddpm-table2": Experiment(ddpm_table2, plot_ddpm_table2, 7.0, BRIEFLY),
    "iddpm-schedules": Experiment(iddpm_schedules, plot_iddpm_schedules, 15.0, BRIEFLY),
    "ddim-table1": Experiment(ddim_table1, plot_ddim_table1, 11.0, LONGER),
    "ema": Experiment(ema, plot_ema, 11.0, BRIEFLY),
    "guidance": Experiment(guidance_scale, plot_guidance, 13.0, LONGER),
}


@dataclass(frozen=True, kw_only=True)
class Arguments(Scale):
    """Repeat an experiment of a paper in miniature, on MNIST: an hour to half a day on one core, less on a GPU.

    For a night or two: --epochs 5 --width 32 --n 2000 --bits 1000 --long 100 --out night
    """

    name: tyro.conf.Positional[Annotated[str, tyro.conf.arg(help="one of " + ", ".join(EXPERIMENTS))]]
    quick: bool = False  # a few minutes, to see that it works; the results mean nothing
    out: Path = Path("experiments")  # folder in which the experiment's own folder is made
    data: Path = Path("data")  # folder that holds MNIST
    device: str = "auto"  # cpu, cuda, mps


def draw_plot(name: str, rows: list[Row], path: Path, note: str | None = None) -> None:
    """The plot of an experiment's rows, as a PNG, with a note above it."""
    experiment = EXPERIMENTS[name]
    figure = Figure(figsize=(experiment.width, 4.2), layout="constrained")
    experiment.plot(rows, figure)
    wide = int(10 * experiment.width / len(figure.axes))  # letters above each part
    for ax in figure.axes:
        title = "\n".join(textwrap.fill(line, wide) for line in ax.get_title().splitlines())
        ax.set_title(title, fontsize=9)
    if note:
        figure.suptitle(note, fontsize=9, color="tab:red")
    with matplotlib.rc_context({"axes.formatter.min_exponent": 4}):  # on logarithmic scales 20, not 2 × 10¹
        figure.savefig(path, dpi=110)


def main(arguments: list[str] | None = None) -> int:
    """Runs one experiment and returns the exit status: 0, 1 for an error told in one line, 130 after Ctrl-C."""
    matplotlib.use("Agg")
    given = [machine.at_home(argument) for argument in (sys.argv[1:] if arguments is None else arguments)]
    asked = tyro.cli(Arguments, args=given, prog="python -m mnist_ddpm.experiments")
    try:
        experiment = ddpm.look_up("experiment", asked.name, EXPERIMENTS)
        scale = Scale(**{f.name: getattr(asked, f.name) for f in fields(Scale)})
        if asked.quick and scale != Scale():
            raise ValueError("--quick has numbers of its own: leave out the others")
        scale = QUICK if asked.quick else scale
        least = evaluation.NEIGHBOURS + 1
        if scale.seeds < 1 or scale.n < least or scale.bits < 2 or not 1 <= scale.long <= 1000:
            raise ValueError(f"--seeds must be at least 1, --n {least}, --bits 2, and --long from 1 to 1000")
        out = resumable.writable_folder(asked.out / (f"{asked.name}-quick" if asked.quick else asked.name))
        command = shlex.join(["python", "-m", "mnist_ddpm.experiments", *given])
        lab = Lab(out, scale, asked.data, machine.pick_device(asked.device), experiment.common, command)
        experiment.run(lab)
        note = "--quick: too little was trained and drawn to tell anything" if asked.quick else None
        draw_plot(asked.name, lab.rows, out / "plot.png", note)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped: the same command goes on from here", file=sys.stderr)
        return 130
    print(f"{out}: {len(lab.rows)} rows in results.csv, plot.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
