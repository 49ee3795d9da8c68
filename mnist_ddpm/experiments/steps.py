"""What an evaluation buys: samplers and shipped checkpoints, from one evaluation to fifty."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from matplotlib.figure import Figure

from mnist_ddpm import ddpm
from mnist_ddpm.experiments.claims import Claim, claim
from mnist_ddpm.experiments.plots import Experiment, floor_line, lines
from mnist_ddpm.experiments.rows import Row, matching
from mnist_ddpm.experiments.runner import Lab
from mnist_ddpm.methods.consistency import consistency_sampler
from mnist_ddpm.methods.schedules import even_signal
from mnist_ddpm.methods.solvers import dpmpp_2m_sampler, heun_sampler

BUDGETS = 1, 2, 4, 8, 20, 50  # evaluations an image
FEW = "mnist-few"  # the checkpoint that was trained for few steps
SAMPLERS = {
    "DDPM": ddpm.ddpm_sampler,
    "DDIM": ddpm.ddim_sampler,
    "DPM-Solver++": dpmpp_2m_sampler,
    "DPM-Solver++, η = 1": partial(dpmpp_2m_sampler, eta=1.0),
    "Heun": heun_sampler,
}
BEST = "DPM-Solver++, η = 1"
# drawn with that one, in few steps
OTHERS = "mnist-taught", "mnist-conditional", "mnist-pixels", "mnist-guide"
ABOUT = """\
Shipped checkpoints, without guide or labels, in float32. Left: mnist with five samplers, and
mnist-few, which was trained for few steps, with its own. Right: each with DPM-Solver++ at η = 1,
mnist-few again with its own. The dotted line is the distance of real digits. Points are geometric
means, the table has plain ones."""


def run(lab: Lab) -> None:
    arms = {f"mnist, {name}": ("mnist", sampler, BUDGETS) for name, sampler in SAMPLERS.items()}
    arms |= {f"{name}, {BEST}": (name, SAMPLERS[BEST], BUDGETS) for name in OTHERS}
    arms[f"{FEW}, anew"] = FEW, consistency_sampler, BUDGETS[:4]
    for arm, (name, sampler, budgets) in arms.items():
        trained = lab.shipped(name)
        if trained is None:
            print(f"{name} is left out: there is no such checkpoint", flush=True)
            continue
        trained = replace(trained, recipe=replace(trained.recipe, precision="float32"))
        for budget in budgets:
            times = times_within(budget, sampler, trained.schedule)
            if name == FEW:  # as its config.json advises
                times = even_signal(trained.schedule, budget)
            S = evaluations(sampler, trained.schedule, times)
            for seed in range(lab.scale.seeds):
                lab.quality({"arm": arm, "seed": seed, "S": S}, trained, times, sampler)
    lab.real()


def evaluations(sampler: Callable, schedule: ddpm.Schedule, times: list[int]) -> int:
    """How often a sampler asks its network along these times."""
    asked, x = [], torch.zeros(1, 1, 1, 1)

    def denoise(xt: torch.Tensor, t: ddpm.Time) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append(t)
        return xt, xt

    for _ in sampler(denoise, schedule, times, x, lambda: x):
        pass
    return len(asked)


def times_within(budget: int, sampler: Callable, schedule: ddpm.Schedule) -> list[int]:
    """The most times along which a sampler asks no more often than the budget says."""
    times = ddpm.timesteps(schedule.T, min(schedule.T, budget))
    while evaluations(sampler, schedule, times) > budget:
        times = ddpm.timesteps(schedule.T, len(times) - 1)
    return times


def arms_of(rows: list[Row], arms: dict[str, str]) -> dict[str, Row]:
    """By their labels, those arms that there are."""
    there = {row["arm"] for row in rows}
    return {label: {"arm": arm} for label, arm in arms.items() if arm in there}


def plot(rows: list[Row], figure: Figure) -> None:
    first, second = figure.subplots(1, 2, sharey=True)
    few = {f"{FEW}, anew": f"{FEW}, anew"}
    samplers = {name: f"mnist, {name}" for name in SAMPLERS} | few
    networks = {name: f"{name}, {BEST}" for name in ("mnist", *OTHERS)} | few
    first.set(title="What does an evaluation buy?", ylabel="Fréchet distance")
    second.set(title="And with which network?")
    for ax, arms in ((first, samplers), (second, networks)):
        lines(ax, rows, "frechet", "S", arms_of(rows, arms), log=True)
        floor_line(ax, rows)
        ax.set(xscale="log", xlabel="network evaluations")
        ax.set_xticks(BUDGETS, BUDGETS)
        ax.legend(fontsize=7)


def claims(rows: list[Row]) -> list[Claim]:
    nearer = partial(claim, rows, "frechet")
    few, many = ({"arm": f"mnist, {BEST}", "S": S} for S in (20, 50))
    euler, ddpms = ({"arm": f"mnist, {name}", "S": 8} for name in ("DDIM", "DDPM"))
    eight = {"arm": f"mnist, {BEST}", "S": 8}
    found = [
        nearer("in 8 evaluations, second order with η = 1 beats DDIM", eight, euler),
        nearer("in 8 evaluations, DDIM beats ancestral sampling", euler, ddpms),
        nearer("with η = 1, 50 evaluations beat 20", many, few),
    ]
    one, two = ({"arm": f"{FEW}, anew", "S": S} for S in (1, 2))
    if matching(rows, one):
        found += [
            nearer("two evaluations of mnist-few beat one", two, one),
            nearer("two evaluations of mnist-few beat eight of mnist", two, eight),
        ]
    return found


EXPERIMENT = Experiment(
    run, plot, claims, ABOUT, (10.0, 4.2), {}, "Draws with each sampler, of other noise each time"
)
