"""Methods for few evaluations that begin with random weights, after equal time."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from torch import Tensor

from experiments.methods.drifting import Drifting, pixel_features
from experiments.plain import FLOW
from experiments.plots import Experiment, plot_lines, plot_real_distance
from experiments.results import Claim, Row
from experiments.runner import ExperimentRun
from mnist_ddpm import catalogue
from mnist_ddpm.evaluation.distances import frechet_distance, shuffled
from mnist_ddpm.evaluation.extractors import (
    Extractor,
    Judge,
    load_extractor,
    pick_judge,
    save_extractor,
)
from mnist_ddpm.method import Method
from mnist_ddpm.recipe import Recipe
from tools.train_extractor import fit_extractor, labelled_images

VELOCITY = FLOW | {"prediction": "velocity"}
DRIFTING = {"objective": "drifting", "prediction": "x0"}
BASELINE = "flow matching"
BUDGETS = 1, 2, 4  # evaluations an image


def classifier_features(classifier: Extractor, images: Tensor) -> list[Tensor]:
    """Pixels and features by a classifier, to drift in: sets (L, N, D) of images in [-1, 1].

    Of each pair of convolutions: the mean of each channel in 4×4 cells, and its mean and standard
    deviation over all positions.
    """
    sets = pixel_features(images)
    for x in classifier.stages(images):
        cells = F.adaptive_avg_pool2d(x, 4)
        deviation, mean = torch.std_mean(x, dim=(2, 3))
        sets += [cells.flatten(2).permute(2, 0, 1), torch.stack([mean, deviation])]
    return sets


def train_classifier(run: ExperimentRun) -> Extractor:
    """A classifier that the judge is not: trained from seed 1 for an epoch, or read."""
    path = run.networks_folder / "classifier.safetensors"
    if not path.exists():
        data = (labelled_images("mnist", run.data, split) for split in ("train", "test"))
        options = {"epochs": 1, "seed": 1, "device": run.device}
        classifier, accuracy = fit_extractor("mnist", *data, **options)
        save_extractor(path, classifier, {"seed": 1, "epochs": 1, "accuracy": accuracy})
    return load_extractor(path)[0].to(run.device)


def drift_in_features(run: ExperimentRun, recipe: Recipe) -> Method:
    """Drifting in the features of a classifier, which is trained when it is first needed."""
    features = partial(classifier_features, train_classifier(run))
    return Drifting(catalogue.conversion_of(recipe), features)


class SecondJudge:
    """Distances by a network that has seen no digit, the classifier of faces."""

    def __init__(self, run: ExperimentRun):
        self.run = run

    @cached_property
    def judge(self) -> Judge:
        return pick_judge("checkpoints/extractors/celeba.safetensors", "mnist", self.run.device)

    @cached_property
    def real_features(self) -> Tensor:
        return self.features(shuffled(self.run.training_images, 0, 5000))

    def features(self, images: Tensor) -> Tensor:
        """Those of grey images, uint8 (N, 1, H, W)."""
        return self.judge.features(images.expand(-1, 3, -1, -1))

    def distance(self, images: Tensor) -> float:
        """The Fréchet distance of images to 5,000 training images."""
        return frechet_distance(self.real_features, self.features(images))


@dataclass(frozen=True)
class Arm:
    """A method: its changes to the recipe, and how it draws."""

    changes: dict
    sampler: str
    cost: float = 1.0  # time of a training step, in those of BASELINE
    budgets: tuple[int, ...] = BUDGETS
    make_method: Callable[[ExperimentRun, Recipe], Method] | None = None  # None: the recipe's


# Costs: processor time on one core of an AMD EPYC (Zen 3), median of 9 steps. That of the last one
# has the training of the classifier in it, a quarter of its time; without, it is 1.9.
ARMS = {
    BASELINE: Arm(VELOCITY, "ddim"),
    "shortcuts": Arm(
        VELOCITY | {"network": "shortcut", "objective": "shortcuts"}, "shortcut", cost=1.48
    ),
    "mean flows": Arm(
        VELOCITY | {"network": "shortcut", "objective": "mean-flow"}, "shortcut", cost=2.32
    ),
    "consistency": Arm(
        {"objective": "consistency", "prediction": "v", "learning_rate": 1e-3},
        "consistency",
        cost=1.3,
    ),
    "drifting in pixels": Arm(DRIFTING, "consistency", cost=1.03, budgets=(1,)),
    "drifting in features": Arm(
        DRIFTING, "consistency", cost=2.5, budgets=(1,), make_method=drift_in_features
    ),
}


class FewEvaluations(Experiment):
    """Methods that learn to draw in few evaluations, without a teacher."""

    about = """\
        Networks without labels, trained from random weights, without a teacher, for about the same
        time, and drawn by their own samplers. (The classifier of drifting in features was trained
        with labels.) The dotted line is the distance of real digits. Points are geometric means,
        the table has plain ones. The second judge is the classifier of faces, which has seen no
        digit; it compares with 5,000 training images."""
    size = 6.0, 4.2

    def measure(self, run: ExperimentRun, seed: int) -> None:
        second_judge = SecondJudge(run)

        def distances(images: Tensor) -> Row:
            own = run.distance(run.judge.features(images))
            return own | {"faces": second_judge.distance(images)}

        run.measure_once({"arm": "real"}, lambda: distances(run.real_images()))
        for name, arm in ARMS.items():
            epochs = run.scale.epochs / arm.cost
            make_method = arm.make_method and partial(arm.make_method, run)
            trained = run.network(name, seed, make_method=make_method, **arm.changes, epochs=epochs)
            for S in arm.budgets:
                spacing = "signal" if arm.sampler == "consistency" else "trailing"
                times = catalogue.sampling_times(trained.schedule, S, spacing)
                next_times = catalogue.next_times(arm.sampler, times, trained.recipe)
                sampler = catalogue.SAMPLERS[arm.sampler]
                draw = partial(run.draw, trained, times, seed, sampler, next_times=next_times)
                key = {"arm": name, "seed": seed, "S": S}
                run.measure_once(key, lambda draw=draw: distances(draw()))

    def plot(self, rows: list[Row], figure: Figure) -> None:
        ax = figure.subplots()
        plot_lines(ax, rows, "frechet", "S", {name: {"arm": name} for name in ARMS}, log=True)
        plot_real_distance(ax, rows)
        ax.set(title="Which method draws best in few evaluations?", ylabel="Fréchet distance")
        ax.set(xscale="log", xlabel="network evaluations", xticks=BUDGETS, xticklabels=BUDGETS)
        ax.xaxis.set_minor_locator(NullLocator())
        ax.legend(fontsize=8)

    def claims(self, rows: list[Row]) -> list[Claim]:
        pairs = [(name, BASELINE) for name in ARMS if name != BASELINE]
        pairs += [
            ("shortcuts", "mean flows"),
            ("drifting in pixels", "shortcuts"),
            ("drifting in features", "drifting in pixels"),
        ]
        claims = []
        for a, b in pairs:
            less, more = ({"arm": name, "S": 1} for name in (a, b))
            text = f"one evaluation: {a} nearer than {b}"
            claims.append(Claim.of(rows, "frechet", text, less, more))
        text += ", by the second judge"
        return [*claims, Claim.of(rows, "faces", text, less, more)]
