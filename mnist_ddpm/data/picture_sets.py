"""Pictures that come one by one, from another library or an array, with their labels."""

import hashlib
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from mnist_ddpm.data.cache import load_cached
from mnist_ddpm.data.labels import distinct_names, numbered_labels
from mnist_ddpm.data.loading import NoSplit, load_with_advice, reader
from mnist_ddpm.data.pictures import crop_and_resize, with_margin
from mnist_ddpm.datasets import dataset_named
from mnist_ddpm.ddpm import check
from mnist_ddpm.machine.process import import_extra, progress_bar

DIGESTED = 16  # pictures that a cache is recognised by, spread over all
KIND_OPTIONS = {"EMNIST": {"split": "balanced"}}  # what cannot be left out
SPLIT_NAMES = {"train": ("train",), "test": ("test", "val", "valid")}  # where a set has such names
LABEL_ATTRIBUTES = "targets", "labels", "_labels"  # under which sets keep the labels of all images
LABEL_COLUMNS = "label", "labels", "class", "category"  # of the hub, where they have no classes
HUB_SPLITS = {"train": ("train",), "test": ("test", "validation", "valid")}


@dataclass(frozen=True)
class PictureSet:
    """One split of a data set: its pictures, and their labels if they have some."""

    title: str  # of the split
    count: int
    picture: Callable[[int], Image.Image]  # by number
    label_values: Callable[[], Sequence[int | str]] | None = None  # of all pictures
    value_names: Sequence[str] = ()  # value k is called value_names[k]; (): by the value itself

    def labels(self) -> list[str]:
        """The name of each picture's label. Raises ValueError where there is none."""
        check(self.label_values is not None, f"{self.title} has no labels: set classes to 0")
        values = self.label_values()
        names = self.value_names
        unknown = [
            each for each in values if each is None or (names and not 0 <= each < len(names))
        ]
        message = f"{self.title} has {len(unknown)} images without a label: set classes to 0"
        check(not unknown, message)
        return [names[value] if names else str(value) for value in values]

    def label_names(self) -> tuple[str, ...]:
        """The names of the labels that pictures have: in their order, or sorted without one."""
        return distinct_names(self.labels(), self.value_names)


def open_split(name: str, root: str | Path, split: str) -> PictureSet:
    """A split of a data set whose record says how. Raises ValueError for one that has none."""
    return reader(dataset_named(name).pictures)(name, root, split)


def load_pictures(recipe, root: str | Path = "data", split: str = "train") -> Tensor:
    """The pictures of a split, padded or cropped, and resized: uint8 (N, *recipe.shape).

    They are kept in a cache below root. Raises ValueError for what is no picture, and as open_split
    and load_cached.
    """
    pictures = open_split(recipe.dataset, root, split)
    mode = "L" if recipe.channels == 1 else "RGB"

    def pixels(k: int) -> bytes:
        picture = pictures.picture(k)
        is_picture = isinstance(picture, Image.Image)
        kind = type(picture).__name__
        check(is_picture, f"{pictures.title} holds no pictures, but values of kind {kind}")
        picture = crop_and_resize(with_margin(picture.convert(mode), recipe), recipe.shape)
        return np.atleast_3d(picture).transpose(2, 0, 1).tobytes()

    def write_all(write: Callable[[bytes], object]) -> dict[str, str]:
        indices = range(pictures.count)
        for k in progress_bar(indices, desc="decoding images", unit="image", leave=False, delay=2):
            write(pixels(k))
        return {}

    check(pictures.count > 1, f"{pictures.title} has {pictures.count} image(s): train on 2 or more")
    digest = hashlib.sha256(f"{pictures.count}".encode())
    for k in range(0, pictures.count, -(-pictures.count // DIGESTED)):
        digest.update(pixels(k))
    label = re.sub(r"\W+", "-", pictures.title)[:80]
    size = "x".join(map(str, recipe.shape[1:] + recipe.shape[:1]))
    path = Path(root, "cache", f"{label}-{size}-{digest.hexdigest()[:16]}.npy")
    return load_cached(path, recipe.shape, pictures.count, write_all)


def picture_labels(recipe, root: str | Path = "data", split: str = "train") -> Tensor:
    """Labels of the pictures of a split: int64 (N,). Raises as open_split and numbered_labels."""
    pictures = open_split(recipe.dataset, root, split)
    names = recipe.label_names or open_split(recipe.dataset, root, "train").label_names()
    return numbered_labels(pictures.labels(), recipe, names)


def picture_settings(name: str, root: str | Path, labelled: bool) -> dict:
    """The names of the labels of a data set. Raises as open_split."""
    return {"label_names": open_split(name, root, "train").label_names()} if labelled else {}


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
    classes = getattr(images, "classes", ())
    first_names = [each[0] if isinstance(each, tuple) else each for each in classes]
    names = [str(each).partition(" - ")[0] for each in first_names]
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


def is_label_column(feature: object) -> bool:
    """Whether a column of the hub's holds words or whole numbers."""
    return str(getattr(feature, "dtype", "")).startswith(("string", "large_string", "int", "uint"))


def hub_split(name: str, root: str | Path, split: str) -> PictureSet:
    """A split of hub:owner/name, or hub:owner/name:configuration; downloaded where it is not there.

    Raises NoSplit; ValueError without the package, or for a set without images; FileNotFoundError
    where loading it fails.
    """
    (library,) = import_extra("data", "datasets")
    path, _, configuration = name.partition(":")[2].partition(":")
    arguments = path, configuration or None
    advice = "name it as on its page, hub:owner/name, and see that the network is there"

    def load():
        there = library.get_dataset_split_names(*arguments)
        known = [each for each in HUB_SPLITS.get(split, ()) if each in there]
        return known and library.load_dataset(*arguments, split=known[0])

    rows = load_with_advice(name, load, advice)
    if isinstance(rows, list):
        raise NoSplit(f"{name} has no {split} split")
    kinds = {column: type(feature).__name__ for column, feature in rows.features.items()}
    pictures = [column for column, kind in kinds.items() if kind == "Image"]
    check(bool(pictures), f"{name} has no column of images: it has {', '.join(kinds)}")
    by_name = [column for column in LABEL_COLUMNS if is_label_column(rows.features.get(column))]
    labels = [column for column, kind in kinds.items() if kind == "ClassLabel"] + by_name
    values = names = None
    if labels:
        values = partial(rows.__getitem__, labels[0])
        names = getattr(rows.features[labels[0]], "names", None)
    title = f"{name}-{split}"
    return PictureSet(title, len(rows), lambda k: rows[k][pictures[0]], values, names or ())
