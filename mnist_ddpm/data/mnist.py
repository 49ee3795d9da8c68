"""MNIST's digits and their labels."""

from pathlib import Path

from torch import Tensor

from mnist_ddpm import ddpm
from mnist_ddpm.data.download import fetched

SIDE = 28  # of a digit, in pixels
SPLITS = "train", "test"
ADVICE = "restore the four .gz archives in {}, and delete every other file beside them"


def margin(recipe) -> int:
    """Width of the black margin around MNIST's 28 x 28 pixels; 0 for other data sets."""
    return (recipe.image_size - SIDE) // 2 if recipe.dataset == "mnist" else 0


def load_mnist(recipe, root: str | Path = "data", split: str = "train") -> Tensor:
    """Digits with a black margin: uint8 (60000 or, to test, 10000, 1, image_size, image_size).

    Raises ValueError for another split or a size that padding cannot reach, FileNotFoundError
    for archives that are missing or damaged.
    """
    size = recipe.image_size
    fits = size >= SIDE and size % 2 == 0
    ddpm.check(fits, f"image_size is {size}: mnist is padded, so take an even number from {SIDE}")
    return read(lambda train: ddpm.load_mnist(size, root, train), root, split)


def mnist_labels(recipe, root: str | Path = "data", split: str = "train") -> Tensor:
    """The digits' values: int64 (60000 or, to test, 10000). Raises as load_mnist does.

    Raises ValueError, too, where the recipe has attributes, or other than 10 classes.
    """
    fits = recipe.classes == 10 and not recipe.attributes
    ddpm.check(fits, f"classes is {recipe.classes}: for mnist take 10, and name no attributes")

    def targets(train: bool) -> Tensor:
        from torchvision import datasets  # takes two seconds, which sampling need not wait for

        return datasets.MNIST(root, train, download=True).targets

    return read(targets, root, split)


def read(load, root: str | Path, split: str) -> Tensor:
    """load(whether to train), with clear errors."""
    ddpm.check(split in SPLITS, f'MNIST has no split "{split}": take train or test')
    advice = ADVICE.format(Path(root, "MNIST", "raw"))
    return fetched("MNIST", lambda: load(split == "train"), advice)
