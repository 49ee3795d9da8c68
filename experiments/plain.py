"""Networks without labels after equal time: which change to the recipe improves them most."""

from functools import partial

from matplotlib.figure import Figure
from torch import Tensor

from experiments.plots import Experiment, plot_points, plot_real_distance
from experiments.results import Claim, Row
from experiments.runner import ExperimentRun
from mnist_ddpm.evaluation.distances import class_balance
from mnist_ddpm.methods.solvers import dpmpp_2m_sampler

FLOW = {"schedule": "flow", "times": "logit-normal"}
NETWORKS = {  # the names of those that ddpm-table2 trains, too
    "eps, L_simple": {},
    "x0, plain error": {"prediction": "x0"},
    "v, plain error": {"prediction": "v"},
    "EDM": {"prediction": "edm", "objective": "edm", "times": "log-normal"},
    "flow matching": FLOW | {"prediction": "velocity"},
    "flow matching, uniform times": {"schedule": "flow", "prediction": "velocity"},
    "eps, logit-normal times": {"times": "logit-normal"},
    "eps, P2 weights": {"objective": "p2"},
    "attention at 8×8, too": {"attention_resolutions": (8, 4)},
    "no patches": {"patch_size": 1},
    "a transformer": {"network": "dit", "patch_size": 4},
    "JiT": FLOW | {"network": "jit", "patch_size": 4, "prediction": "x0", "objective": "velocity"},
    "half the rate": {"learning_rate": 2.5e-3},
    "half the rate, twice as long": {"learning_rate": 2.5e-3},
    "taught by mnist-unlabelled, guided": {"prediction": "v", "teacher": "mnist-unlabelled"},
}
# Epochs, in those of the first. By the time of a step (one core of an AMD EPYC, Zen 4; median of 7)
# most have its time: a step takes 1.16, 4.2, 2.4 and 2.2 times as long with the first four.
LENGTHS = {
    "attention at 8×8, too": 1 / 1.16,
    "no patches": 1 / 4.2,
    "a transformer": 1 / 2.4,
    "JiT": 1 / 1.9,  # on another processor, an AMD EPYC (Zen 3)
    "taught by mnist-unlabelled, guided": 1 / 2.2,
    "half the rate, twice as long": 2.0,
}
CLAIMS = {  # the arm that should be nearer to real digits than the first
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
    "JiT's transformer and loss help": "JiT",
    "half the rate helps": "half the rate",
    "a guided teacher helps": "taught by mnist-unlabelled, guided",
}


def share_unsure(run: ExperimentRun, features: Tensor) -> Row:
    """The share of images, given by their features, that are no clear digit to the classifier."""
    balance = class_balance(run.judge.logits(features))
    return {"unsure": 1 - balance["share_above_0.9"].value}


class EqualTime(Experiment):
    """Networks that differ in one setting, trained for about the same time."""

    about = """\
        Networks without labels, 20 evaluations of DPM-Solver++ with η = 1. All but one were trained
        for about the time of the first. Left: the dotted line is the distance of real digits.
        Right: of how many the classifier is at most 90 % sure. Points are geometric means, the
        table has plain ones."""
    size = 9.5, 4.8

    def measure(self, run: ExperimentRun, seed: int) -> None:
        sampler = partial(dpmpp_2m_sampler, eta=1.0)
        figures = partial(share_unsure, run)
        for arm, changes in NETWORKS.items():
            epochs = run.scale.epochs * LENGTHS.get(arm, 1.0)
            trained = run.network(arm, seed, **changes, epochs=epochs)
            run.measure_images({"arm": arm, "seed": seed}, trained, 20, sampler, figures)

    def plot(self, rows: list[Row], figure: Figure) -> None:
        left_ax, right_ax = figure.subplots(1, 2, sharey=True)
        arms = {arm: {"arm": arm} for arm in NETWORKS}
        plot_points(left_ax, rows, "frechet", arms, log=True)
        plot_real_distance(left_ax, rows, vertical=True)
        left_ax.legend(fontsize=8)
        left_ax.set(title="Which network draws best after equal time?", xlabel="Fréchet distance")
        plot_points(right_ax, rows, "unsure", arms, log=True)
        right_ax.set(title="How many of its digits are doubtful?", xlabel="share of digits")

    def claims(self, rows: list[Row]) -> list[Claim]:
        pairs = {text: (arm, "eps, L_simple") for text, arm in CLAIMS.items()} | {
            "with logit-normal times the straight path helps": (
                "flow matching",
                "eps, logit-normal times",
            ),
            "twice the time helps": ("half the rate, twice as long", "half the rate"),
        }
        nearer = partial(Claim.of, rows, "frechet")
        return [nearer(text, {"arm": a}, {"arm": b}) for text, (a, b) in pairs.items()]
