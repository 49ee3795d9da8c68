"""A better network without labels, in equal time: target, times, eyes, length, a teacher."""

from functools import partial

from matplotlib.figure import Figure

from mnist_ddpm import ddpm
from mnist_ddpm.evaluation.distances import class_balance
from mnist_ddpm.experiments.claims import Claim, claim
from mnist_ddpm.experiments.plots import Experiment, floor_line, points
from mnist_ddpm.experiments.rows import Row
from mnist_ddpm.experiments.runner import BRIEFLY, Lab, Trained
from mnist_ddpm.methods.solvers import dpmpp_2m_sampler

NETWORKS = {  # the names of those that ddpm-table2 trains, too
    "eps, L_simple": {},
    "x0, plain error": {"prediction": "x0"},
    "v, plain error": {"prediction": "v"},
    "EDM": {"prediction": "edm", "objective": "edm", "times": "log-normal"},
    "flow matching": {"schedule": "flow", "prediction": "velocity", "times": "logit-normal"},
    "flow matching, uniform times": {"schedule": "flow", "prediction": "velocity"},
    "eps, logit-normal times": {"times": "logit-normal"},
    "eps, P2 weights": {"objective": "p2"},
    "attention at 8×8, too": {"attention_resolutions": (8, 4)},
    "no patches": {"patch_size": 1},
    "a transformer": {"network": "dit", "patch_size": 4},
    "half the rate": {"learning_rate": 2.5e-3},
    "half the rate, twice as long": {"learning_rate": 2.5e-3},
    "taught by mnist, guided": {"prediction": "v", "teacher": "mnist"},
}
# Epochs, in those of the first. By the time of a step (one core of an AMD EPYC, Zen 4; median of 7)
# most have its time: a step takes 1.16, 4.2, 2.4 and 2.2 times as long with the first four.
LENGTHS = {
    "attention at 8×8, too": 1 / 1.16, "no patches": 1 / 4.2, "a transformer": 1 / 2.4,
    "taught by mnist, guided": 1 / 2.2, "half the rate, twice as long": 2.0,
}  # fmt: skip
ABOUT = """\
Networks without labels, 20 evaluations of DPM-Solver++ with η = 1. All but one were trained
for about the time of the first. Left: the dotted line is the distance of real digits. Right: of
how many the classifier is at most 90 % sure. Points are geometric means, the table has plain
ones."""


def run(lab: Lab) -> None:
    for seed in range(lab.scale.seeds):
        for arm, changes in NETWORKS.items():
            epochs = lab.scale.epochs * LENGTHS.get(arm, 1.0)
            trained = lab.network(arm, seed, **changes, epochs=epochs)
            quality(lab, {"arm": arm, "seed": seed}, trained)
    lab.real()


def quality(lab: Lab, key: Row, trained: Trained) -> Row:
    """The row of what a network draws, and of how much of it is no digit to the classifier."""

    def measure() -> Row:
        times = ddpm.timesteps(trained.schedule.T, 20)
        images = lab.draw(trained, times, key["seed"], partial(dpmpp_2m_sampler, eta=1.0))
        features = lab.judge.features(images)
        told = class_balance(lab.judge.logits(features))
        return lab.distance(features) | {"unsure": 1 - told["share_above_0.9"].value}

    return lab.measured(key, measure)


def plot(rows: list[Row], figure: Figure) -> None:
    first, second = figure.subplots(1, 2, sharey=True)
    points(first, rows, "frechet", [*NETWORKS], log=True)
    floor_line(first, rows, across=False)
    first.legend(fontsize=8)
    first.set(title="Which network draws best after equal time?", xlabel="Fréchet distance")
    points(second, rows, "unsure", [*NETWORKS], log=True)
    second.set(title="How many of its digits are doubtful?", xlabel="share of digits")


def claims(rows: list[Row]) -> list[Claim]:
    others = {
        "predicting x0 helps": "x0, plain error",
        "predicting v helps": "v, plain error",
        "EDM's preconditioning helps": "EDM",
        "flow matching helps": "flow matching",
        "flow matching helps with uniform times": "flow matching, uniform times",
        "logit-normal times help without it": "eps, logit-normal times",
        "P2's weights help": "eps, P2 weights",
        "attention at 8×8 helps": "attention at 8×8, too",
        "seeing single pixels helps": "no patches",
        "a transformer helps": "a transformer",
        "half the rate helps": "half the rate",
        "a guided teacher helps": "taught by mnist, guided",
    }
    first = {"arm": "eps, L_simple"}
    found = [claim(rows, "frechet", text, {"arm": arm}, first) for text, arm in others.items()]
    straight = [{"arm": arm} for arm in ("flow matching", "eps, logit-normal times")]
    longer = [{"arm": f"half the rate{more}"} for more in (", twice as long", "")]
    return [
        *found,
        claim(rows, "frechet", "with logit-normal times the straight path helps", *straight),
        claim(rows, "frechet", "twice the time helps", *longer),
    ]


EXPERIMENT = Experiment(run, plot, claims, ABOUT, (9.5, 4.8), BRIEFLY)
