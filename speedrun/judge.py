"""What a speedrun's images are worth: a distance, and the gates that a record has to pass."""

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from torch import Tensor

from mnist_ddpm.data import loading
from mnist_ddpm.datasets import dataset_named
from mnist_ddpm.evaluation import cards, copies
from mnist_ddpm.evaluation.extractors import Judge, RealFeatures, RealImages
from mnist_ddpm.recipe import Recipe
from tools.train_extractor import fit_extractor

SHARE = 0.8  # of the precision and recall of unseen real images that a record has to reach
HELD_OUT_COPIES = "nearest_held_out_image_in_pixels"  # of a judged run's card


@dataclass(frozen=True)
class RealData:
    """Images and labels to train on, and others held out: uint8 (N, C, H, W) and int64 (N,)."""

    dataset: str
    training: tuple[Tensor, Tensor]
    held_out: tuple[Tensor, Tensor]

    @classmethod
    def load(cls, dataset: str, root: Path, limit: int | None = None) -> "RealData":
        """A data set below root, or pictures in root/train and root/test, a folder for a label.

        limit: take no more images.
        """
        record = dataset_named(dataset)
        source = str(root) if Path(root, "train").is_dir() else dataset
        channels, classes = record.channels, record.classifier.outputs
        recipe = Recipe(dataset=source, channels=channels, classes=classes)
        splits = []
        for split in ("train", record.held_out):
            images = loading.load_images(recipe, root, split)[:limit]
            splits.append((images, loading.load_labels(recipe, root, split)[:limit]))
        return cls(dataset, *splits)

    @property
    def recipe(self) -> Recipe:
        """As a card wants it."""
        return Recipe(dataset=self.dataset, channels=self.training[0].shape[1])

    def train_judge(self, seed: int, epochs: int) -> Judge:
        """A judge whose extractor is trained on these images."""
        options = {"epochs": epochs, "seed": seed}
        network, accuracy = fit_extractor(self.dataset, self.training, self.held_out, **options)
        about = f"seed {seed}, {epochs} epochs, {accuracy:.2%} right"
        return Judge(network, f"classifier of {self.dataset}, {about}")

    def features(self, judge: Judge) -> RealFeatures:
        """Those of the real images, by a judge."""
        images = self.training[0], self.held_out[0]
        return RealImages(judge, *images, self.recipe.is_mirrored).features()

    def card(self, images: Tensor, judge: Judge, real: RealFeatures) -> dict:
        """All figures of images, uint8 (n, C, H, W), and as "failures" the gates not passed."""
        known, unseen = self.training[0], self.held_out[0]
        card = cards.build_card(images, known, unseen, judge, self.recipe, real=real)
        card[HELD_OUT_COPIES] = copies.audit(images, unseen, known).figures()
        return card | {"failures": failures(card)}


def failures(card: dict) -> list[str]:
    """The gates that a card does not pass, each as a sentence."""
    lines = []
    unseen = card["floor"]["held out against training"]
    for name in ("precision", "recall"):
        value = card["metrics"][name].value
        least = SHARE * unseen[name].value
        if value < least:
            lines.append(f"its {name} is {value:.3f}, below {least:.3f}")
    audits = {"training": cards.audits(card), "held-out": {"pixels": card[HELD_OUT_COPIES]}}
    for kind, by_space in audits.items():
        for space, figures in by_space.items():
            if figures["copies"]:
                lines.append(f"it copies {kind} images, by their {space}")
    return lines


def permutation_p(challenger: list[float], record: list[float]) -> float:
    """Exact one-sided p that a challenger's lower scores are chance.

    The share of all ways to deal the scores out in which its sum is as low as it is, or lower.
    """
    scores = [*challenger, *record]
    slack = 1e-9 * sum(map(abs, scores))  # equal sums may round differently
    sums = [sum(dealt) for dealt in combinations(scores, len(challenger))]
    return sum(total <= sum(challenger) + slack for total in sums) / len(sums)
