"""What several commands share: types of flags, checks of places, and where long work is kept."""

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import torch

from mnist_ddpm import catalogue
from mnist_ddpm.data import sets
from mnist_ddpm.evaluation import extractors
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.machine import devices, files, partial_results
from mnist_ddpm.training.recipe import Recipe

# Of a step's variance, for the bound: likelihood.bits_per_dim
EXPONENTS = {"posterior": 0.0, "beta": 1.0, "learned": None}
# Flags on which neither the images that are drawn nor their bound depend (of --data, what it holds
# counts), and those that name files
ELSEWHERE = (
    "out", "data", "bits", "extractor", "dataset", "command", "processes", "batch_size", "device",
    "condition_image",
)  # fmt: skip
FILES = "checkpoint", "guide", "init_image", "mask"
PACKAGE = Path(catalogue.__file__).parent


def in_words(names: Iterable[str]) -> str:
    """Flags as they are typed: --base-channels and --seed."""
    return " and ".join(f"--{name.replace('_', '-')}" for name in names)


def load_checkpoint(command, source: Path, device: torch.device) -> checkpoints.Checkpoint:
    """A checkpoint, its network compiled if asked; command.compile then says whether it is."""
    checkpoint = checkpoints.load(source, device)
    precision = getattr(command, "precision", "float32")  # likelihood has no other
    command.compile = command.compile and devices.compiles(device, precision)
    if command.compile:
        checkpoint.network.compile()
    return checkpoint


def moved(recipe: Recipe, folder: str | None) -> Recipe:
    """The recipe, with the folder of images where it is now. Raises ValueError if there is none."""
    known = {*sets.DATASETS}
    if folder not in (None, recipe.dataset) and {folder, recipe.dataset} & known:
        problem = f"it cannot turn {recipe.dataset} into {folder}"
        raise ValueError(f"--dataset is for a folder that has moved: {problem}")
    recipe = replace(recipe, dataset=folder or recipe.dataset)
    if recipe.dataset not in known and not Path(recipe.dataset).is_dir():
        problem = f"there is no folder {recipe.dataset}"
        raise ValueError(f"{problem}: has it moved? --dataset names where it is now")
    return recipe


def apart(out: Path, folder: str | Path) -> None:
    """Raises ValueError where pictures written to out would count among a folder's images."""
    if folder in sets.DATASETS or not Path(folder).is_dir():
        return
    # Path.resolve fails where links lead in a circle
    if Path(os.path.realpath(out)).is_relative_to(os.path.realpath(folder)):
        place = f"{out} is in the folder of images {folder}"
        raise ValueError(f"{place}, and pictures there would count: name another")


def write_picture(path: Path, picture: np.ndarray) -> None:
    """(height, width, 1 or 3), whole or not at all. Raises OSError where it cannot be written."""
    # Encoded in memory: on a full disk imageio would try once more as it is thrown away.
    encoded = imageio.imwrite("<bytes>", picture, extension=path.suffix)
    with files.replacing(path) as temporary:
        temporary.write_bytes(encoded)


def tell_written(*paths: Path) -> None:
    """The last lines of a command: each file that it wrote."""
    for path in paths:
        print(f"written: {path}")


def pick_variance(name: str, recipe: Recipe) -> str:
    """What "auto" means for a checkpoint. Raises ValueError for a variance it has not learned."""
    learned = catalogue.learns_variance(recipe)
    if name == "auto":
        return "learned" if learned else "posterior"
    if name == "learned" and not learned:
        advice = "choose another --variance, or train with --objective hybrid"
        raise ValueError(f"this checkpoint has learned no variance: {advice}")
    return name


def keep_parts(
    command, out: Path, counted: partial_results.CountedNetwork, device: torch.device, *images: str
) -> partial_results.PartialResults:
    """Where a command keeps its parts until all are done: a folder beside out.

    It is named for all that the parts depend on. images: digests of those that they depend on.
    """
    flags = {name: value for name, value in vars(command).items() if name not in ELSEWHERE}
    files = sorted(PACKAGE.rglob("[!.]*.py"))
    for name in [name for name in FILES if flags.get(name)]:
        path = flags.pop(name)
        with suppress(OSError):  # who needs a file that is missing says so
            path = checkpoints.find(path) if name in ("checkpoint", "guide") else path
        inside = [path / "config.json", path / "model.safetensors"]
        files += inside if path.is_dir() else [path]
    contents = [path.read_bytes() for path in files if path.is_file()]
    here = {"device": device.type, "hardware": devices.hardware(device), **devices.versions()}
    told = json.dumps([flags, here, images], default=str).encode()
    digest = extractors.digest(told, *contents)
    return partial_results.PartialResults(out.with_name(f"{out.stem}-{digest}.kept"), counted)
