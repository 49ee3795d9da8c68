"""Folders of one's own images."""

import re
from pathlib import Path

from PIL import Image
from torch import Tensor

from mnist_ddpm import ddpm
from mnist_ddpm.data.cache import load_files
from mnist_ddpm.data.image_files import Files, walk_folders
from mnist_ddpm.data.pictures import crop_and_resize, known_formats, with_margin
from mnist_ddpm.datasets import dataset_named


def list_image_files(folder: str | Path) -> list[Path]:
    """All images below a folder, sorted. Hidden files and folders do not count.

    Raises ValueError where there is none, OSError where a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise error  # without this a part of the images would be taken for all

    formats = known_formats()
    known = {suffix for suffix, name in Image.registered_extensions().items() if name in formats}
    files = [place / name for place, names in walk_folders(folder, refuse) for name in names]
    paths = sorted(path for path in files if path.suffix.lower() in known)
    ddpm.check(bool(paths), f"{folder} holds no images (files such as .png or .jpg)")
    return paths


def load_folder(recipe, folder: str | Path, cache: str | Path = "data/cache") -> Tensor:
    """All images below a folder, padded or cropped, and resized: uint8 (N, *recipe.shape).

    Raises as list_image_files, ValueError where more than a few cannot be read, OSError where the
    images cannot be saved.
    """

    def fit(image: Image.Image) -> Image.Image:
        return crop_and_resize(with_margin(image, recipe), recipe.shape)

    names = [path.relative_to(folder).as_posix() for path in list_image_files(folder)]
    label = re.sub(r"\W+", "-", Path(folder).resolve().name)[:50] or "images"
    if dataset_named(recipe.dataset).padded_side:
        label = f"{recipe.dataset}-{label}"
    return load_files(Files(Path(folder), names), recipe.shape, Path(cache), label, fit)


def load_own_folder(recipe, root: str | Path = "data", split: str = "train") -> Tensor:
    """load_folder for recipe.dataset. Raises ValueError for a split other than "train"."""
    ddpm.check(split == "train", f"the folder {recipe.dataset} has no {split} split: take train")
    return load_folder(recipe, recipe.dataset, Path(root, "cache"))
