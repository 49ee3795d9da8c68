"""The data sets of torchvision: any with images, by their names there."""

import inspect
from difflib import get_close_matches
from functools import partial
from pathlib import Path

from torch.utils.data import Dataset

from mnist_ddpm.data.download import load_with_advice
from mnist_ddpm.data.loading import NoSplit
from mnist_ddpm.data.picture_sets import PictureSet
from mnist_ddpm.ddpm import check

KIND_OPTIONS = {"EMNIST": {"split": "balanced"}}  # what cannot be left out
SPLIT_NAMES = {"train": ("train",), "test": ("test", "val", "valid")}  # where a set has such names
LABEL_ATTRIBUTES = "targets", "labels", "_labels"  # under which sets keep the labels of all images


def set_class(name: str) -> type[Dataset]:
    """The class of a data set. Raises ValueError for a name that torchvision has not."""
    from torchvision import datasets  # takes two seconds

    kind = name.partition(":")[2]
    known = [each for each in datasets.__all__ if takes_download(getattr(datasets, each))]
    similar = get_close_matches(kind, known, n=1, cutoff=0.4)
    hint = (
        f"did you mean torchvision:{similar[0]}?" if similar else f"take one of {', '.join(known)}"
    )
    check(kind in known, f"torchvision has no data set {kind} to download: {hint}")
    return getattr(datasets, kind)


def takes_download(kind: type) -> bool:
    """Whether it is a set that torchvision knows how to download."""
    return "download" in inspect.signature(kind).parameters


def split_options(name: str, parameters: dict, split: str) -> list[dict]:
    """What to ask for to get a split, by its parameters: the first that the set accepts.

    Raises NoSplit where it has none.
    """
    options = KIND_OPTIONS.get(name.partition(":")[2], {})
    if "train" in parameters:
        return [options | {"train": split == "train"}]
    if "split" in parameters:
        return [{"split": each} for each in SPLIT_NAMES[split]]
    if split != "train":
        raise NoSplit(f"{name} is not divided into splits: take train")
    return [options]


def torchvision_split(name: str, root: str | Path, split: str) -> PictureSet:
    """A split, from files below root, or downloaded there.

    Raises NoSplit, ValueError for an unknown name, and FileNotFoundError where loading it fails.
    """
    check(split in SPLIT_NAMES, f'{name} has no split "{split}": take {" or ".join(SPLIT_NAMES)}')
    kind = set_class(name)
    advice = f"see what torchvision.datasets.{kind.__name__} needs, and put its files below {root}"
    options = split_options(name, inspect.signature(kind).parameters, split)

    def load() -> Dataset:
        for each in options[:-1]:
            try:
                return kind(root, download=True, **each)
            except ValueError:  # it has no split of this name
                continue
        return kind(root, download=True, **options[-1])

    images = load_with_advice(name, load, advice)
    values = next(
        (getattr(images, each) for each in LABEL_ATTRIBUTES if hasattr(images, each)), None
    )
    names = [str(each).partition(" - ")[0] for each in getattr(images, "classes", ())]
    label_values = partial(whole_numbers, name, images, values)
    title = f"{name}-{split}"
    return PictureSet(title, len(images), lambda k: images[k][0], label_values, names)


def whole_numbers(name: str, images: Dataset, values) -> list[int]:
    """The label of each image. Raises ValueError where these are no whole numbers."""
    values = [images[k][1] for k in range(len(images))] if values is None else values
    try:
        return [int(value) for value in values]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} has no label for each image: set classes to 0") from error
