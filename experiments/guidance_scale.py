"""Classifier-free guidance: what it gains, and what it costs."""

from functools import partial

import torch
from matplotlib.figure import Figure
from torch import Tensor

from experiments.plots import Experiment, plot_lines, plot_real_distance
from experiments.results import Claim, Row
from experiments.runner import LONG_TRAINING, ExperimentRun
from mnist_ddpm.evaluation.distances import precision_recall
from mnist_ddpm.methods.solvers import dpmpp_2m_sampler

SCALES = 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0


def recall_and_agreement(run: ExperimentRun, labels: Tensor, features: Tensor) -> Row:
    """The recall of images, by their features, and the share classified as their labels say."""
    _, recall = precision_recall(run.training_features, features)
    agrees = run.judge.logits(features).argmax(dim=1) == labels
    return {"recall": recall.value, "agreement": agrees.double().mean().item()}


class GuidanceScale(Experiment):
    """A network with labels, drawn with guidance of different scales."""

    about = """\
        A network that predicts v on the cosine schedule, told the labels 0 to 9 in turn, draws with
        DPM-Solver++ in 20 steps. Left: the dotted line is the distance of real digits. Middle:
        recall is the share of real digits that lie among those drawn. Right: the digit classifier
        says which digits are those asked for."""
    size = 10.0, 3.4
    training = LONG_TRAINING

    def measure(self, run: ExperimentRun, seed: int) -> None:
        changes = {"prediction": "v", "schedule": "cosine", "classes": 10}
        labels = torch.arange(run.scale.n) % 10
        figures = partial(recall_and_agreement, run, labels)
        trained = run.network("v, labels", seed, **changes)
        for scale in SCALES:
            key = {"arm": "guided", "seed": seed, "scale": scale}
            guidance = {"labels": labels, "scale": scale}
            run.measure_images(key, trained, 20, dpmpp_2m_sampler, figures, **guidance)

    def plot(self, rows: list[Row], figure: Figure) -> None:
        panels = [
            ("frechet", "Fréchet distance", "How near to real digits?"),
            ("recall", "recall", "How varied?"),
            ("agreement", "share of digits", "How often as the label says?"),
        ]
        for ax, (column, label, title) in zip(figure.subplots(1, 3), panels):
            plot_lines(ax, rows, column, "scale", {label: {"arm": "guided"}})
            ax.set(title=title, xlabel="guidance scale", ylabel=label)
        first = figure.axes[0]
        plot_real_distance(first, rows)
        first.legend(handles=first.lines[-1:], fontsize=8)

    def claims(self, rows: list[Row]) -> list[Claim]:
        one, two, eight = ({"arm": "guided", "scale": scale} for scale in (1.0, 2.0, 8.0))
        return [
            Claim.of(rows, "frechet", "a scale of 2 draws better than 1", two, one),
            Claim.of(rows, "frechet", "a scale of 2 draws better than 8", two, eight),
            Claim.of(rows, "recall", "a scale of 8 costs variety", eight, one),
            Claim.of(rows, "agreement", "a scale of 2 is followed more often than 1", one, two),
        ]
