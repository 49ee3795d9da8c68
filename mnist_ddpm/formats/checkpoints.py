"""The project's own checkpoints: a folder with model.safetensors and config.json.

Their files are those of `mnist_ddpm.training.checkpoint_files`, which training writes too. The
shipped ones lie in a clone's checkpoints/, and in the package where it was installed.
"""

import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from mnist_ddpm import catalogue
from mnist_ddpm.ddpm import Schedule, check
from mnist_ddpm.formats import hub
from mnist_ddpm.machine.text import read_json
from mnist_ddpm.trainer import save_checkpoint as save
from mnist_ddpm.training.checkpoint_files import load_config, load_weights, read_weights
from mnist_ddpm.training.recipe import Recipe
from mnist_ddpm.training.saving import CONFIG, WEIGHTS

__all__ = ["Checkpoint", "find", "load", "load_config", "load_weights", "read_weights", "save"]

SHIPPED = (
    "mnist", "mnist-taught", "mnist-few", "mnist-conditional", "mnist-guide", "mnist-pixels",
    "mnist-bits", "celeba", "celeba-few", "celeba-guide",
)  # fmt: skip
FOLDER = "checkpoints"  # of a clone, before a shipped name
GUIDANCE_OPTIONS = "guide", "guidance", "guidance_interval"
FOLDER_NAME = re.compile(r"\w[\w.-]*")  # the name of a folder


class Checkpoint(NamedTuple):
    """What a checkpoint holds: the arguments of catalogue.make_denoiser."""

    network: nn.Module  # averaged, ready to sample
    schedule: Schedule
    recipe: Recipe


def shipped_path(name: str) -> Path:
    """Where a file or folder of the shipped checkpoints lies, be there one or not."""
    package = Path(catalogue.__file__).parent
    installed, clone = package / "shipped", package.parent / FOLDER
    return (installed if installed.is_dir() else clone) / name


def find(source: str | Path, files: tuple[str, ...] = (CONFIG, WEIGHTS)) -> Path:
    """The folder that is meant: by a path, a shipped name, or "owner/name[@revision]" on the hub.

    A path goes before a name. files: what is downloaded, of those that there are. Raises
    FileNotFoundError where there is none, OSError where the hub does not give it.
    """
    path, name = Path(source), Path(source).as_posix()
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
    problem = f"{source} is not a checkpoint: there is no folder {path.absolute()}"
    # a folder that holds others is no owner on the hub
    if (
        path.parent.is_dir()
        or name.startswith(f"{FOLDER}/")
        or not hub.repository_and_revision(name)
    ):
        raise FileNotFoundError(f"{problem}, and those shipped are {', '.join(SHIPPED)}")
    try:
        return hub.download(name, None, files)
    except OSError as error:
        raise type(error)(f"{problem}, it is none of those shipped, and {error}") from error


def sampling_defaults(source: str | Path) -> dict:
    """How to draw best with a checkpoint, as its config.json says under "draw"; {} if it does not.

    Of sampler, steps, spacing, eta, guide (a shipped name, or a folder in the checkpoint's, whose
    path is returned), guidance and guidance_interval. Without what it has on a guide where that
    folder is not there. Raises as `find` and ValueError for what is none of these.
    """
    path = find(source) / CONFIG
    found = read_json(path).get("draw", {})

    def number(x, *kinds: type) -> bool:
        return type(x) in kinds and abs(x) <= 10**6

    fits = {
        "sampler": lambda x: x in [*catalogue.SAMPLERS], "steps": lambda x: number(x, int),
        "eta": lambda x: number(x, int, float), "spacing": lambda x: x in [*catalogue.SPACINGS],
        "guide": lambda x: type(x) is str and FOLDER_NAME.fullmatch(x),
        "guidance": lambda x: number(x, int, float),
        "guidance_interval": lambda x: (
            type(x) is list and len(x) == 2 and all(number(each, int) for each in x)
        ),
    }  # fmt: skip
    known = type(found) is dict and found.keys() <= fits.keys()
    good = known and all(fits[name](value) for name, value in found.items())
    check(good, f'{path} has advice of another version under "draw": name a --sampler')
    if found.get("guide", SHIPPED[0]) in SHIPPED:
        return found
    guide = path.with_name(found["guide"])
    if (guide / CONFIG).is_file():
        return found | {"guide": str(guide)}
    return {name: value for name, value in found.items() if name not in GUIDANCE_OPTIONS}


def load(source: str | Path, device: torch.device | str = "cpu") -> Checkpoint:
    """A checkpoint of this project's, or of the notebook's, as `find` knows it.

    Raises FileNotFoundError where there is none, OSError where the hub does not give it, ValueError
    for files that are damaged or do not fit each other, or a schedule without a name.
    """
    folder = find(source)
    recipe, _ = load_config(folder)
    weights, network = read_weights(folder), catalogue.make_network(recipe)
    known = recipe.objective in catalogue.OBJECTIVES
    unknown = "" if known else f' (of objective "{recipe.objective}", unknown here)'
    load_weights(network.state_dict(), weights, f"{Path(folder, WEIGHTS)}{unknown}")
    network = network.to(device).eval().requires_grad_(False)
    return Checkpoint(network, catalogue.make_schedule(recipe), recipe)
