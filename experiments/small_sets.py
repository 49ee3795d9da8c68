"""Few training images: what shifting them at random gains, and how much is copied."""

from functools import partial

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from torch import Tensor

from experiments.plots import Experiment, plot_lines
from experiments.results import Claim, Row
from experiments.runner import LONG_TRAINING, ExperimentRun
from mnist_ddpm.evaluation.copies import audit_points
from mnist_ddpm.evaluation.distances import frechet_distance
from mnist_ddpm.methods.solvers import dpmpp_2m_sampler

SIZES = 200, 1000, 9000  # training images
AUGMENTATIONS = {"as they are": (), "shifted": ("shift",)}


def compare_with_unseen(run: ExperimentRun, n: int, features: Tensor) -> Row:
    """Of generated images' features: the distance to MNIST's test images, and the share copied.

    n: how many training images the network saw.
    """
    training = run.training_features[:n]
    audit = audit_points([features], lambda: [training], len(training), run.test_features, None)
    return {
        "unseen": frechet_distance(run.test_features, features),
        "copied": audit.figures()["closer"].value,
    }


class SmallSets(Experiment):
    """Networks that differ in the number of training images and in their augmentation."""

    about = """\
        Small networks without labels, all trained for 6,000 steps, on the first images of MNIST;
        drawn with 20 evaluations of DPM-Solver++ with η = 1. Left: the distance to MNIST's 10,000
        test images, which no network has seen. Right: the share of images that are nearer to a
        training image, in the classifier's features, than 99 % of the test images are. Points on
        the left are geometric means, the table has plain ones."""
    size = 9.0, 3.8
    # For a training that is long for few images: a small network, whose steps are fast. The epochs
    # are of all of MNIST, so there are 6,000 steps; the batch divides all SIZES.
    training = LONG_TRAINING | {
        "epochs": 5.0,
        "batch_size": 50,
        "patch_size": 4,
        "prediction": "x0",
    }

    def measure(self, run: ExperimentRun, seed: int) -> None:
        sampler = partial(dpmpp_2m_sampler, eta=1.0)
        for n in SIZES:
            images = run.training_images[:n]
            figures = partial(compare_with_unseen, run, n)
            epochs = run.scale.epochs * len(run.training_images) / n
            for arm, augment in AUGMENTATIONS.items():
                changes = {"augment": augment, "epochs": epochs}
                trained = run.network(f"{n} images, {arm}", seed, images, **changes)
                key = {"arm": arm, "images": n, "seed": seed}
                run.measure_images(key, trained, 20, sampler, figures)

    def plot(self, rows: list[Row], figure: Figure) -> None:
        left_ax, right_ax = figure.subplots(1, 2)
        arms = {arm: {"arm": arm} for arm in AUGMENTATIONS}
        plot_lines(left_ax, rows, "unseen", "images", arms, log=True)
        left_ax.set(title="Are shifted images better teachers?", ylabel="Fréchet distance")
        plot_lines(right_ax, rows, "copied", "images", arms)
        right_ax.set(title="Are fewer images copied?", ylabel="share copied")
        right_ax.set_ylim(bottom=-0.0005)  # no share is below 0, though an interval may be
        for ax in (left_ax, right_ax):
            ax.set(xscale="log", xlabel="training images", xticks=SIZES, xticklabels=SIZES)
            ax.xaxis.set_minor_locator(NullLocator())
            ax.legend(fontsize=8)

    def claims(self, rows: list[Row]) -> list[Claim]:
        claims = []
        for column, text in (("unseen", "better"), ("copied", "copied less")):
            for n in SIZES:
                plain, shifted = ({"arm": arm, "images": n} for arm in AUGMENTATIONS)
                claim = f"of {n} images, with shifts they are {text}"
                claims.append(Claim.of(rows, column, claim, less=shifted, more=plain))
        return claims
