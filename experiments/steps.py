"""Shipped checkpoints and samplers at equal cost, from one network evaluation to fifty."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from matplotlib.figure import Figure

from experiments.plots import Experiment, plot_lines, plot_real_distance
from experiments.results import Claim, Row, select_rows
from experiments.runner import NO_TRAINING, ExperimentRun
from mnist_ddpm import ddpm
from mnist_ddpm.methods.consistency import consistency_sampler
from mnist_ddpm.methods.schedules import even_signal
from mnist_ddpm.methods.solvers import dpmpp_2m_sampler, heun_sampler

BUDGETS = 1, 2, 4, 8, 20, 50  # evaluations an image
NETWORK = "mnist-unlabelled"  # sampled with each of SAMPLERS
FEW_STEPS = "mnist-few"  # the checkpoint that was trained for few steps
FEW_STEPS_ARM = "mnist-few, anew"  # with the consistency sampler, which adds new noise
SAMPLERS = {
    "DDPM": ddpm.ddpm_sampler,
    "DDIM": ddpm.ddim_sampler,
    "DPM-Solver++": dpmpp_2m_sampler,
    "DPM-Solver++, η = 1": partial(dpmpp_2m_sampler, eta=1.0),
    "Heun": heun_sampler,
}
BEST = "DPM-Solver++, η = 1"
# drawn with that one, in few steps
OTHERS = "mnist-conditional", "mnist-pixels", "mnist-guide"


def count_evaluations(sampler: Callable, schedule: ddpm.Schedule, times: list[int]) -> int:
    """How often a sampler evaluates its network along these times."""
    x = torch.zeros(1, 1, 1, 1)
    calls = []

    def denoise(xt: torch.Tensor, t: ddpm.Time) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(t)
        return xt, xt

    for _ in sampler(denoise, schedule, times, x, lambda: x):
        pass
    return len(calls)


def times_within(budget: int, sampler: Callable, schedule: ddpm.Schedule) -> list[int]:
    """The most times along which a sampler needs no more evaluations than the budget."""
    times = ddpm.timesteps(schedule.T, min(schedule.T, budget))
    while count_evaluations(sampler, schedule, times) > budget:
        times = ddpm.timesteps(schedule.T, len(times) - 1)
    return times


class EvaluationsPerImage(Experiment):
    """Shipped checkpoints and samplers, each with the same numbers of network evaluations."""

    about = """\
        Shipped checkpoints, without guide or labels, in float32. Left: mnist-unlabelled with five
        samplers, and mnist-few, which was trained for few steps, with its own. Right: each with
        DPM-Solver++ at η = 1, mnist-few again with its own. The dotted line is the distance of
        real digits. Points are geometric means, the table has plain ones."""
    size = 10.0, 4.2
    training = NO_TRAINING
    seeds_are = "Draws with each sampler, of other noise each time"

    def measure(self, run: ExperimentRun, seed: int) -> None:
        arms = {f"{NETWORK}, {name}": (NETWORK, sampler) for name, sampler in SAMPLERS.items()}
        arms |= {f"{name}, {BEST}": (name, SAMPLERS[BEST]) for name in OTHERS}
        arms[FEW_STEPS_ARM] = FEW_STEPS, consistency_sampler
        for arm, (name, sampler) in arms.items():
            trained = run.shipped_network(name)
            if trained is None:
                if seed == 0:
                    print(f"{name} is left out: there is no such checkpoint", flush=True)
                continue
            trained = replace(trained, recipe=replace(trained.recipe, precision="float32"))
            for budget in BUDGETS[:4] if name == FEW_STEPS else BUDGETS:
                times = times_within(budget, sampler, trained.schedule)
                if name == FEW_STEPS:  # as its config.json recommends
                    times = even_signal(trained.schedule, budget)
                S = count_evaluations(sampler, trained.schedule, times)
                run.measure_images({"arm": arm, "seed": seed, "S": S}, trained, times, sampler)

    def plot(self, rows: list[Row], figure: Figure) -> None:
        left_ax, right_ax = figure.subplots(1, 2, sharey=True)
        left_ax.set(title="What does an evaluation buy?", ylabel="Fréchet distance")
        right_ax.set(title="And with which network?")
        samplers = {name: f"{NETWORK}, {name}" for name in SAMPLERS}
        networks = {name: f"{name}, {BEST}" for name in (NETWORK, *OTHERS)}
        measured = {row["arm"] for row in rows}
        for ax, arms in ((left_ax, samplers), (right_ax, networks)):
            arms |= {FEW_STEPS_ARM: FEW_STEPS_ARM}
            keys = {label: {"arm": arm} for label, arm in arms.items() if arm in measured}
            plot_lines(ax, rows, "frechet", "S", keys, log=True)
            plot_real_distance(ax, rows)
            ax.set(xscale="log", xlabel="network evaluations")
            ax.set_xticks(BUDGETS, BUDGETS)
            ax.legend(fontsize=7)

    def claims(self, rows: list[Row]) -> list[Claim]:
        nearer = partial(Claim.of, rows, "frechet")
        best_8, best_20, best_50 = ({"arm": f"{NETWORK}, {BEST}", "S": S} for S in (8, 20, 50))
        ddim_8 = {"arm": f"{NETWORK}, DDIM", "S": 8}
        claims = [
            nearer("in 8 evaluations, second order with η = 1 beats DDIM", best_8, ddim_8),
            nearer(
                "in 8 evaluations, DDIM beats ancestral sampling",
                ddim_8,
                {"arm": f"{NETWORK}, DDPM", "S": 8},
            ),
            nearer("with η = 1, 50 evaluations beat 20", best_50, best_20),
        ]
        few_1, few_2 = ({"arm": FEW_STEPS_ARM, "S": S} for S in (1, 2))
        if select_rows(rows, few_1):
            claims += [
                nearer("two evaluations of mnist-few beat one", few_2, few_1),
                nearer(
                    "two evaluations of mnist-few beat eight of mnist-unlabelled", few_2, best_8
                ),
            ]
        return claims
