"""Data sets of images on the Hugging Face hub, by the package datasets."""

from functools import partial
from pathlib import Path

from mnist_ddpm.data.download import load_with_advice
from mnist_ddpm.data.loading import NoSplit
from mnist_ddpm.data.picture_sets import PictureSet
from mnist_ddpm.ddpm import check
from mnist_ddpm.machine.extras import import_extra

HUB_SPLITS = {"train": ("train",), "test": ("test", "validation", "valid")}


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
    labels = [column for column, kind in kinds.items() if kind == "ClassLabel"]
    values = names = None
    if labels:
        values = partial(rows.__getitem__, labels[0])
        names = rows.features[labels[0]].names
    title = f"{name}-{split}"
    return PictureSet(title, len(rows), lambda k: rows[k][pictures[0]], values, names or ())
