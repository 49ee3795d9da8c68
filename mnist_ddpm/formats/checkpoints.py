"""The project's own checkpoints: a folder with model.safetensors and config.json.

`mnist_ddpm.training.checkpoint_files` reads and writes the files. The shipped ones lie in a clone's
checkpoints/, and some of them in the installed package.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from mnist_ddpm import catalogue
from mnist_ddpm.ddpm import Schedule, check
from mnist_ddpm.formats import hub
from mnist_ddpm.machine.text import read_json
from mnist_ddpm.trainer import save_checkpoint as save
from mnist_ddpm.training.checkpoint_files import (
    check_header,
    checkpoint_path,
    load_config,
    read_weights,
)
from mnist_ddpm.training.recipe import Recipe
from mnist_ddpm.training.saving import CONFIG, WEIGHTS
from mnist_ddpm.training.weight_loading import load_weights

__all__ = ["Checkpoint", "find", "load", "load_config", "load_weights", "read_weights", "save"]

SHIPPED = "mnist", "mnist-labelled", "mnist-few", "mnist-conditional"
SHIPPED += "mnist-guide", "mnist-pixels", "mnist-bits"
SHIPPED += "celeba", "celeba-few", "celeba-guide", "cifar10"
REPLACED = {"mnist-taught": "mnist-labelled"}  # names of earlier versions
FOLDER = "checkpoints"  # of a clone, with the shipped ones
GUIDANCE_OPTIONS = "guide", "guidance", "guidance_interval"


class Checkpoint(NamedTuple):
    """What a checkpoint holds: the arguments of catalogue.make_denoiser."""

    network: nn.Module  # averaged, ready to sample
    schedule: Schedule
    recipe: Recipe


def shipped_path(name: str) -> Path:
    """The path of a file or folder of the shipped checkpoints, whether it exists or not."""
    package = Path(catalogue.__file__).parent
    installed = package / "shipped"
    return (installed if installed.is_dir() else package.parent / FOLDER) / name


def find(source: str | Path, files: tuple[str, ...] = (CONFIG, WEIGHTS)) -> Path:
    """The folder of a checkpoint: a path, else a shipped name, else "owner/name[@revision]".

    That is a repository on the hub, from which those of `files` that exist are downloaded. Raises
    FileNotFoundError where there is no such checkpoint, OSError where the download fails.
    """
    path = Path(source)
    name = path.as_posix()
    if path.is_dir() and ((path / CONFIG).is_file() or name not in SHIPPED):
        return path
    own = name.removeprefix(f"{FOLDER}/")
    if own in SHIPPED:
        folder = shipped_path(own)
        if not (folder / CONFIG).is_file():
            raise FileNotFoundError(
                f"{own} is not in {folder.parent}: take {FOLDER}/{own} of a clone of the "
                "repository (an installed package holds only mnist and mnist-guide)"
            )
        return folder
    if own in REPLACED:
        message = f"{own} is no longer shipped: {REPLACED[own]} has taken its place"
        raise FileNotFoundError(message)
    no_folder = f"{source} is not a checkpoint: there is no folder {path.absolute()}"
    # An existing folder is no owner on the hub
    is_local = path.parent.is_dir() or name.startswith(f"{FOLDER}/")
    if is_local or not hub.repository_and_revision(name):
        present = [name for name in SHIPPED if (shipped_path(name) / CONFIG).is_file()]
        raise FileNotFoundError(f"{no_folder}, and the shipped ones are {', '.join(present)}")
    try:
        return hub.download(name, None, files)
    except OSError as error:
        message = f"{no_folder}, no shipped checkpoint has this name, and {error}"
        raise type(error)(message) from error


def is_number(value: object, *types: type) -> bool:
    """Whether a value is a number of one of these types, and not absurdly large."""
    return type(value) in types and abs(value) <= 10**6


# What config.json may have under "draw", with what is a value of it
SAMPLING_OPTIONS: dict[str, Callable[[object], bool]] = {
    "sampler": lambda x: x in [*catalogue.SAMPLERS],
    "spacing": lambda x: x in [*catalogue.SPACINGS],
    "steps": lambda x: is_number(x, int),
    "timesteps": lambda x: type(x) is list and x and all(is_number(t, int) for t in x),
    "eta": lambda x: is_number(x, int, float),
    "guidance": lambda x: is_number(x, int, float),
    "guidance_interval": lambda x: type(x) is list and [is_number(t, int) for t in x] == [True] * 2,
    # a name without a folder, since nothing outside the checkpoint's is read
    "guide": lambda x: type(x) is str and bool(re.fullmatch(r"\w[\w.-]*", x)),
}


def sampling_defaults(source: str | Path) -> dict:
    """How best to sample from a checkpoint, by "draw" in its config.json; {} where that is missing.

    Some of sampler, steps, spacing, timesteps, eta, guide (a shipped name, or the path of a folder
    in the checkpoint's), guidance and guidance_interval; without the last three where that folder
    is missing. Raises as `find`, and ValueError for other options or values.
    """
    path = find(source) / CONFIG
    options = read_json(path).get("draw", {})
    is_known = type(options) is dict and options.keys() <= SAMPLING_OPTIONS.keys()
    is_valid = is_known and all(SAMPLING_OPTIONS[name](x) for name, x in options.items())
    check(is_valid, f'{path} has options of another version under "draw": name a --sampler')
    if options.get("guide", SHIPPED[0]) in SHIPPED:
        return options
    guide = path.with_name(options["guide"])
    if (guide / CONFIG).is_file():
        return options | {"guide": str(guide)}
    return {name: value for name, value in options.items() if name not in GUIDANCE_OPTIONS}


def load(source: str | Path, device: torch.device | str = "cpu") -> Checkpoint:
    """A checkpoint of this package or of the notebook, by what `find` takes.

    Raises as `find`, and ValueError for damaged files and a schedule without a name.
    """
    folder = find(source)
    recipe, _ = load_config(folder)
    name = str(Path(folder, WEIGHTS))
    if recipe.objective not in catalogue.OBJECTIVES:
        name += f' (of objective "{recipe.objective}", unknown here)'
    try:
        schedule = catalogue.make_schedule(recipe)
        catalogue.conversion_of(recipe)
        with torch.device("meta"):  # without memory, should config.json describe a huge network
            expected = catalogue.make_network(recipe).state_dict()
    except ValueError as error:
        raise ValueError(f"{Path(folder, CONFIG)} cannot be used here: {error}") from error
    check_header(checkpoint_path(folder, WEIGHTS), expected, name)
    network = catalogue.make_network(recipe)
    load_weights(network.state_dict(), read_weights(folder), name)
    network = network.to(device).eval().requires_grad_(False)
    return Checkpoint(network, schedule, recipe)
