"""DDPM, Table 2: what to predict, and what to minimise."""

from matplotlib.figure import Figure

from mnist_ddpm import ddpm
from mnist_ddpm.experiments.claims import Claim, claim
from mnist_ddpm.experiments.plots import Experiment, floor_line, points
from mnist_ddpm.experiments.rows import Row
from mnist_ddpm.experiments.runner import BRIEFLY, Lab, ancestral

NETWORKS = {
    "eps, L_simple": {},
    "eps, L": {"prediction": "eps", "objective": "bound"},
    "mu, L": {"prediction": "mu", "objective": "bound"},
    "mu, plain error": {"prediction": "mu"},
    "v, plain error": {"prediction": "v"},
    "x0, plain error": {"prediction": "x0"},
    "eps, L_hybrid": {"prediction": "eps", "objective": "hybrid"},
}
LEARNED = "eps, L_hybrid, learned variance"  # the last network again
ABOUT = """\
Distances of what eight networks draw by ancestral sampling in 50 of 1000 steps. The dotted line
is that of real digits. Points are geometric means, the table has plain ones."""


def run(lab: Lab) -> None:
    for seed in range(lab.scale.seeds):
        for arm, changes in NETWORKS.items():
            trained = lab.network(arm, seed, **changes)
            times = ddpm.timesteps(trained.schedule.T, 50)
            key = {"arm": arm, "seed": seed}
            lab.quality(key, trained, times, ancestral("posterior"))
            if trained.learns_variance:
                key = {"arm": LEARNED, "seed": seed}
                lab.quality(key, trained, times, ancestral("learned"), with_exponent=True)
    lab.real()


def plot(rows: list[Row], figure: Figure) -> None:
    ax = figure.subplots()
    points(ax, rows, "frechet", [*NETWORKS, LEARNED], log=True)
    floor_line(ax, rows, across=False)
    ax.legend(fontsize=8, loc="lower right")
    ax.set(title="Which prediction and which loss draw best?", xlabel="Fréchet distance")


def claims(rows: list[Row]) -> list[Claim]:
    others = {
        "L_simple beats L": "eps, L",
        "eps with L_simple beats mu with L": "mu, L",
        "eps beats x0": "x0, plain error",
        "a fixed variance beats the one that L_hybrid learns": LEARNED,
    }
    simple = {"arm": "eps, L_simple"}
    return [claim(rows, "frechet", text, simple, {"arm": arm}) for text, arm in others.items()]


EXPERIMENT = Experiment(run, plot, claims, ABOUT, (7.5, 3.8), BRIEFLY)
