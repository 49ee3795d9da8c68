"""Folders of one's own images."""

import re
from functools import partial
from pathlib import Path

from PIL import Image
from torch import Tensor

from mnist_ddpm import ddpm
from mnist_ddpm.data.cache import load_files
from mnist_ddpm.data.pictures import fitted, padded
from mnist_ddpm.data.search import Files, walk
from mnist_ddpm.datasets import dataset_named


def image_files(folder: str | Path) -> list[Path]:
    """All images below a folder, sorted. Hidden files and folders do not count.

    Raises ValueError where there is none, OSError where a folder cannot be read.
    """
    known = {suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN}
    files = [place / name for place, names in walk(folder, _raise) for name in names]
    paths = sorted(path for path in files if path.suffix.lower() in known)
    ddpm.check(bool(paths), f"{folder} holds no images (files such as .png or .jpg)")
    return paths


def load_folder(recipe, folder: str | Path, cache: str | Path = "data/cache") -> Tensor:
    """All images below a folder, padded or cropped, and resized: uint8 (N, *recipe.shape).

    Raises as image_files, ValueError where more than a few cannot be read, OSError where the
    images cannot be saved.
    """
    names = [path.relative_to(folder).as_posix() for path in image_files(folder)]
    kind = f"{recipe.dataset}-" if dataset_named(recipe.dataset).padded_side else ""
    label = re.sub(r"\W+", "-", Path(folder).resolve().name)[:50] or "images"
    fit = partial(_fit, recipe=recipe)
    return load_files(Files(Path(folder), names), recipe.shape, Path(cache), kind + label, fit)


def _fit(image: Image.Image, recipe) -> Image.Image:
    return fitted(padded(image, recipe), recipe.shape)


def _raise(error: OSError) -> None:
    """Without this a part of the images would be taken for all."""
    raise error


def load_own_folder(recipe, root: str | Path = "data", split: str = "train") -> Tensor:
    """load_folder for recipe.dataset. Raises ValueError for a split other than "train"."""
    ddpm.check(split == "train", f"the folder {recipe.dataset} has no {split} split: take train")
    return load_folder(recipe, recipe.dataset, Path(root, "cache"))
