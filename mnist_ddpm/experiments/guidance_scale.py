"""Classifier-free guidance: what it gains, and what it costs."""

from functools import partial

import torch
from matplotlib.figure import Figure

from mnist_ddpm import ddpm
from mnist_ddpm.evaluation.distances import precision_recall
from mnist_ddpm.experiments.claims import Claim, claim
from mnist_ddpm.experiments.plots import Experiment, floor_line, lines
from mnist_ddpm.experiments.rows import Row
from mnist_ddpm.experiments.runner import LONGER, Lab, Trained
from mnist_ddpm.methods.solvers import dpmpp_2m_sampler

SCALES = 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0
ABOUT = """\
A network that predicts v on the cosine schedule, told the labels 0 to 9 in turn, draws with
DPM-Solver++ in 20 steps. Left: the dotted line is the distance of real digits. Middle: recall is
the share of real digits that lie among those drawn. Right: the digit classifier says which digits
are those asked for."""


def run(lab: Lab) -> None:
    changes = {"prediction": "v", "schedule": "cosine", "classes": 10}
    for seed in range(lab.scale.seeds):
        trained = lab.network("v, labels", seed, **changes)
        for scale in SCALES:
            key = {"arm": "guided", "seed": seed, "scale": scale}
            lab.measured(key, partial(followed, lab, trained, scale, seed))
    lab.real()


def followed(lab: Lab, trained: Trained, scale: float, seed: int) -> Row:
    """How good guided images are, how varied, and how often they are what was asked for."""
    times, labels = ddpm.timesteps(trained.schedule.T, 20), torch.arange(lab.scale.n) % 10
    images = lab.draw(trained, times, seed, dpmpp_2m_sampler, labels, guidance=scale)
    features = lab.judge.features(images)
    _, recall = precision_recall(lab.known, features)
    agree = lab.judge.logits(features).argmax(dim=1) == labels
    agreement = agree.double().mean().item()
    return {**lab.distance(features), "recall": recall.value, "agreement": agreement}


def plot(rows: list[Row], figure: Figure) -> None:
    columns = {"frechet": "Fréchet distance", "recall": "recall", "agreement": "share of digits"}
    titles = "How near to real digits?", "How varied?", "How often as the label says?"
    for ax, (name, label), title in zip(figure.subplots(1, 3), columns.items(), titles):
        lines(ax, rows, name, "scale", {label: {"arm": "guided"}})
        ax.set(title=title, xlabel="guidance scale", ylabel=label)
    floor_line(first := figure.axes[0], rows)
    first.legend(handles=first.lines[-1:], fontsize=8)


def claims(rows: list[Row]) -> list[Claim]:
    one, two, eight = ({"arm": "guided", "scale": scale} for scale in (1.0, 2.0, 8.0))
    return [
        claim(rows, "frechet", "a scale of 2 draws better than 1", two, one),
        claim(rows, "frechet", "a scale of 2 draws better than 8", two, eight),
        claim(rows, "recall", "a scale of 8 costs variety", eight, one),
        claim(rows, "agreement", "a scale of 2 is followed more often than 1", one, two),
    ]


EXPERIMENT = Experiment(run, plot, claims, ABOUT, (10.0, 3.4), LONGER)
