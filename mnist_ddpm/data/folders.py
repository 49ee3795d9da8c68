"""Folders of one's own images, whose subfolders may be labels, or the splits train and test."""

import re
from collections import Counter
from pathlib import Path

from PIL import Image
from torch import Tensor

from mnist_ddpm.data.cache import cache_path, load_files, skipped_names
from mnist_ddpm.data.labels import SHOWN, distinct_names, numbered_labels
from mnist_ddpm.data.loading import NoSplit
from mnist_ddpm.data.pictures import (
    ROOT_ONLY,
    Files,
    crop_and_resize,
    known_formats,
    walk_folders,
    with_margin,
)
from mnist_ddpm.datasets import dataset_named
from mnist_ddpm.ddpm import check
from mnist_ddpm.machine.process import is_first_process
from mnist_ddpm.machine.text import printable

# Names of a subfolder that has a split, whatever their case
SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "test": ("test", "testing", "valid", "val", "validation"),
}


def list_files(folder: str | Path) -> tuple[list[Path], list[Path]]:
    """All images below a folder, and all other files, sorted. Hidden ones do not count.

    Raises OSError where a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise error  # without this a part of the images would be taken for all

    formats = known_formats()
    known = {suffix for suffix, name in Image.registered_extensions().items() if name in formats}
    files = sorted(place / name for place, names in walk_folders(folder, refuse) for name in names)
    images = [path for path in files if path.suffix.lower() in known]
    return images, [path for path in files if path.suffix.lower() not in known]


def list_image_files(folder: str | Path) -> list[Path]:
    """All images below a folder, sorted. Raises as list_files, ValueError where there is none."""
    paths, others = list_files(folder)
    message = f"{folder} holds no images (files such as .png or .jpg)"
    check(bool(paths), f"{message}{describe_others(others)}")
    return paths


def describe_others(paths: list[Path]) -> str:
    """How many files that are no images there are of each suffix, and how HEIC can be read."""
    counts = Counter(path.suffix.lower() or path.name for path in paths)
    listed = ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common(SHOWN))
    has_heic = {".heic", ".heif"} & {*counts}
    advice = "; pip install pillow-heif reads .heic" if has_heic else ""
    return f": {listed}, of no known image format{advice}" if paths else ""


def folder_files(recipe, folder: str | Path) -> tuple[Files, str]:
    """The images below a folder, and the label of their cache. Raises as list_image_files."""
    names = [path.relative_to(folder).as_posix() for path in list_image_files(folder)]
    label = re.sub(r"\W+", "-", Path(folder).resolve().name)[:50] or "images"
    if dataset_named(recipe.dataset).padded_side:
        label = f"{recipe.dataset}-{label}"
    return Files(Path(folder), names), label


def load_folder(recipe, folder: str | Path, cache: str | Path = "data/cache") -> Tensor:
    """All images below a folder, padded or cropped, and resized: uint8 (N, *recipe.shape).

    Raises as list_image_files, ValueError where more than a few cannot be read, OSError where the
    images cannot be saved.
    """

    def fit(image: Image.Image) -> Image.Image:
        return crop_and_resize(with_margin(image, recipe), recipe.shape)

    files, label = folder_files(recipe, folder)
    others = describe_others(list_files(folder)[1])
    if others and is_first_process():
        print(printable(f"left out of {folder}{others}"))
    return load_files(files, recipe.shape, Path(cache), label, fit)


def split_folders(folder: Path) -> dict[str, Path]:
    """The subfolders of both splits, named as in SPLIT_FOLDERS; else the folder, for training."""
    below = {path.name.lower(): path for path in sorted(folder.iterdir()) if path.is_dir()}
    places = {
        split: below[name]
        for split, names in SPLIT_FOLDERS.items()
        for name in reversed(names)  # the first counts
        if name in below
    }
    return places if len(places) == len(SPLIT_FOLDERS) else {"train": folder}


def split_folder(folder: str | Path, split: str) -> Path:
    """The folder of a split, as split_folders. Raises NoSplit where there is none."""
    places = split_folders(Path(folder))
    if split not in places:
        raise NoSplit(f"the folder {folder} has no {split} split: take {' or '.join(places)}")
    return places[split]


def load_own_folder(recipe, root: str | Path = "data", split: str = "train") -> Tensor:
    """load_folder for a split of recipe.dataset. Raises NoSplit where there is none."""
    folder = Path(recipe.dataset)
    place = split_folder(folder, split)
    if place != folder and is_first_process():
        others = sorted(path.name for path in folder.iterdir() if path != place)
        print(printable(f"{split} images are those in {place}, and not in {', '.join(others)}"))
    return load_folder(recipe, place, Path(root, "cache"))


def subfolder_names(folder: Path, names: list[str]) -> list[str]:
    """Of each image file below a folder, the subfolder that it lies in.

    Raises ValueError where one lies in none, and for a subfolder without images.
    """
    beside = [name for name in names if "/" not in name]
    names_of_labels = "whose names would be the labels: move it, or set classes to 0"
    message = f"{folder} has no labels: {[*beside, ''][0]} lies in no subfolder"
    check(not beside, f"{message}, {names_of_labels}")
    subfolders = [name.partition("/")[0] for name in names]
    present = {path.name for path in folder.iterdir() if path.is_dir()} - {ROOT_ONLY}
    empty = sorted(name for name in present - {*subfolders} if not name.startswith("."))
    advice = "add some, or remove the folder"
    check(not empty, f"{folder} has no images of {', '.join(empty)}: {advice}")
    return subfolders


def folder_settings(name: str, root: str | Path, labelled: bool) -> dict:
    """The label names of a folder. Raises as list_image_files and subfolder_names."""
    if not labelled:
        return {}
    folder = split_folder(name, "train")
    names = [path.relative_to(folder).as_posix() for path in list_image_files(folder)]
    return {"label_names": distinct_names(subfolder_names(folder, names))}


def folder_labels(recipe, root: str | Path = "data", split: str = "train") -> Tensor:
    """Labels of load_own_folder's images: int64 (N,), numbered as the subfolders' names are sorted.

    Call that first: its cache knows the images that cannot be read, which are left out here too.
    Raises as folder_settings, and ValueError where these are not the recipe's labels.
    """
    folder = split_folder(recipe.dataset, split)
    files, label = folder_files(recipe, folder)
    skipped = {*skipped_names(cache_path(files, recipe.shape, Path(root, "cache"), label))}
    subfolders = subfolder_names(folder, [name for name in files.names if name not in skipped])
    names = recipe.label_names or folder_settings(recipe.dataset, root, True)["label_names"]
    return numbered_labels(subfolders, recipe, names)
