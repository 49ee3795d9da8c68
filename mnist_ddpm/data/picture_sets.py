"""Pictures that come one by one, from another library or an array, with their labels."""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from mnist_ddpm.data.cache import load_cached
from mnist_ddpm.data.labels import distinct_names, numbered_labels
from mnist_ddpm.data.loading import reader
from mnist_ddpm.data.pictures import crop_and_resize, with_margin
from mnist_ddpm.datasets import dataset_named
from mnist_ddpm.ddpm import check
from mnist_ddpm.machine.progress import progress_bar

DIGESTED = 16  # pictures that a cache is recognised by, spread over all


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
        if not names:
            return [*map(str, values)]
        unknown = [value for value in values if not 0 <= value < len(names)]
        check(
            not unknown, f"{self.title} has {len(unknown)} images without a label: set classes to 0"
        )
        return [names[value] for value in values]

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

    def write_all(write: Callable[[bytes], object]) -> list[str]:
        options = {"desc": "decoding images", "unit": "image", "leave": False, "delay": 2}
        for k in progress_bar(range(pictures.count), **options):
            write(pixels(k))
        return []

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
