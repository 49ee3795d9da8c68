"""The data sets by their names: their images, labels, and what is held out of training."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from mnist_ddpm import ddpm
from mnist_ddpm.data import celeba, ffhq, folders, labels, mnist
from mnist_ddpm.ddpm import check
from mnist_ddpm.machine.text import printable
from mnist_ddpm.training.loop import Augment
from mnist_ddpm.training.recipe import Recipe

# (recipe, root, split) to images, uint8 (N, C, H, W); any other name is that of a folder
DATASETS: dict[str, Callable[..., Tensor]] = {
    "mnist": mnist.load_mnist,
    "celeba": celeba.load_celeba,
    "ffhq": ffhq.load_ffhq,
}
HELD_OUT = {"mnist": "test", "celeba": "valid", "ffhq": "test"}  # the split to compare with
# (recipe, root, split) to labels of those images, int64 (N,)
LABELS: dict[str, Callable[..., Tensor]] = {
    "mnist": mnist.mnist_labels,
    "celeba": celeba.celeba_labels,
}
# of a batch in training, by data set
AUGMENTATIONS: dict[str, Augment] = {"celeba": ddpm.mirrored, "ffhq": ddpm.mirrored}


def look_up_data_set(name: str) -> Callable[..., Tensor]:
    """What loads a data set or, where none has that name, a folder of images.

    Raises ValueError where there is no such folder either.
    """
    if name not in DATASETS and Path(name).is_dir():
        return folders.load_own_folder
    known = f"take one of {', '.join(DATASETS)}, or a folder of images"
    check(name in DATASETS, f'data set "{name}" is unknown: {known}')
    return DATASETS[name]


def load_images(recipe: Recipe, root: str | Path = "data", split: str = "train") -> Tensor:
    """The images that recipe.dataset names: uint8 (N, *recipe.shape).

    Raises ValueError for an unknown name, a split that the data set lacks, or another number of
    channels.
    """
    images = look_up_data_set(recipe.dataset)(recipe, root, split)
    found, asked = images.shape[1], recipe.channels
    problem = f"{recipe.dataset} has {found} channel(s)"
    check(found == asked, f"{problem}: set channels to that, not to {asked}")
    return images


def load_labels(recipe: Recipe, root: str | Path = "data", split: str = "train") -> Tensor:
    """The labels of those images: int64 (N,), each 0 … classes - 1.

    Raises ValueError where the data set has none, not these or not so many.
    """
    problem = f"{recipe.dataset} has no labels"
    known = recipe.dataset in LABELS
    check(known, f"{problem}: set classes to 0, and name no attributes")
    return LABELS[recipe.dataset](recipe, root, split)


def check_labelled(recipe: Recipe, root: str | Path = "data") -> None:
    """Raises as load_labels, before images are decoded."""
    labels.check_labelled(recipe, root, load_labels)


def held_out(recipe: Recipe, root: str | Path = "data") -> Tensor | None:
    """Images that training has not seen, as load_images; None, which is told, if there are none."""
    if recipe.dataset not in HELD_OUT:  # a folder
        return None
    try:
        return load_images(recipe, root, HELD_OUT[recipe.dataset])
    except (ValueError, FileNotFoundError) as error:
        print(f"no held-out images to compare with: {printable(error)}")
        return None


def known_margin(recipe: Recipe) -> tuple[int, int]:
    """Pixels above and below, left and right that are known to be black: around MNIST's 28 x 28."""
    return mnist.margin(recipe)
