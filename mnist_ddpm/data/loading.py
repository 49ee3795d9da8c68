"""The data sets by their names: their images, labels, and what is held out of training."""

import errno
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from pkgutil import resolve_name
from typing import TypeVar

from torch import Tensor

from mnist_ddpm.data.labels import check_count
from mnist_ddpm.datasets import DATASETS, OWN_FILES, Reader, dataset_named, is_own
from mnist_ddpm.ddpm import check
from mnist_ddpm.machine.text import printable
from mnist_ddpm.recipe import Recipe

T = TypeVar("T")
DISK_ERRORS = errno.EACCES, errno.ENOSPC, errno.EROFS


class NotDownloaded(ValueError):
    """Files are missing that will be downloaded when the images are loaded."""


def load_with_advice(name: str, load: Callable[[], T], advice: str) -> T:
    """What load() returns, from files that are there, or downloads.

    Raises FileNotFoundError, in one line, where it fails; the disk's own error where that is why.
    """
    try:
        return load()
    except Exception as error:  # no network, no gdown, a quota, a damaged archive …
        reason = error.__cause__ if isinstance(error, FileNotFoundError) else None
        reason = reason or error
        if getattr(reason, "errno", None) in DISK_ERRORS:  # the archives are sound
            raise reason from None
        message = " ".join(str(reason).split())
        raise FileNotFoundError(f"{name} could not be loaded ({message}): {advice}") from error


class NoSplit(ValueError):
    """The data set has no such split."""


def reader(function: Reader) -> Callable[..., Tensor]:
    """The function that a record names, imported if it is given as "module:function"."""
    return resolve_name(function) if isinstance(function, str) else function


def check_dataset(name: str) -> None:
    """Raises ValueError for a name that is neither a data set's nor a folder's."""
    path = Path(name)
    known = not is_own(name) or path.is_dir() or (path.suffix in OWN_FILES and path.is_file())
    take = f"take one of {', '.join(DATASETS)}, torchvision:NAME, hub:NAME"
    own = f"a folder, or a file that ends in {', '.join(OWN_FILES)}"
    check(known, f'data set "{name}" is unknown: {take}, {own}')


def load_images(recipe: Recipe, root: str | Path = "data", split: str = "train") -> Tensor:
    """One split of recipe.dataset, uint8 (N, *recipe.shape).

    Raises ValueError for an unknown name, a split that the data set lacks, or another number of
    channels.
    """
    check_dataset(recipe.dataset)
    images = reader(dataset_named(recipe.dataset).images)(recipe, root, split)
    channels = images.shape[1]
    advice = f"set channels to that, not to {recipe.channels}"
    check(channels == recipe.channels, f"{recipe.dataset} has {channels} channel(s): {advice}")
    return images


def data_settings(name: str, root: str | Path, classes: int | str) -> dict:
    """The settings of a recipe that the data decide, such as the names of labels.

    classes: a number of labels, or "auto": as many as there are names. Raises ValueError for an
    unknown name, labels without names, and another number of them.
    """
    check_dataset(name)
    dataset = dataset_named(name)
    settings = reader(dataset.settings)(name, root, classes != 0) if dataset.settings else {}
    names = settings.get("label_names", dataset.label_names)
    if classes == "auto":
        advice = "take a number, or name attributes, such as Smiling"
        check(bool(names), f"{name} has no names of labels to count: {advice}")
        return settings | {"classes": len(names)}
    if classes and names:
        check_count(classes, name, names)
    return settings


def load_labels(recipe: Recipe, root: str | Path = "data", split: str = "train") -> Tensor:
    """The labels of those images: int64 (N,), each 0 … classes - 1.

    Raises ValueError where the data set has none, not these or not so many.
    """
    labels = dataset_named(recipe.dataset).labels
    advice = "set classes to 0, and name no attributes"
    check(bool(labels), f"{recipe.dataset} has no labels: {advice}")
    return reader(labels)(recipe, root, split)


def check_labelled(recipe: Recipe, root: str | Path = "data") -> None:
    """Raises as load_labels, before images are decoded, unless these are still to be downloaded."""
    if recipe.classes:
        with suppress(NotDownloaded):
            load_labels(recipe, root)


def held_out(recipe: Recipe, root: str | Path = "data") -> Tensor | None:
    """Images that training has not seen, as load_images; None if there are none.

    Prints a line where there should be some.
    """
    split = dataset_named(recipe.dataset).held_out
    if not split:
        return None
    try:
        return load_images(recipe, root, split)
    except NoSplit:
        return None
    except (ValueError, FileNotFoundError) as error:
        print(f"no held-out images to compare with: {printable(error)}")
        return None
