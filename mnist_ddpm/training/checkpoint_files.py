"""A checkpoint's two files: the averaged weights, and config.json, which describes them.

Format 2 of config.json has the notebook's settings, the method, which is all else that rebuilds
the network and samples from it, and the rest of the recipe. The notebook loads checkpoints of its
own method. Format 1 had all settings in one list. The SHA-256 of the weights shows whether the two
files belong together, and are whole; those of the notebook have none.
"""

import functools
import hashlib
import json
import platform
import sys
import time
from dataclasses import asdict, fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor, nn

from mnist_ddpm.ddpm import Settings, check
from mnist_ddpm.machine.files import replacing
from mnist_ddpm.machine.progress import is_first_process
from mnist_ddpm.machine.text import describe_error, read_json
from mnist_ddpm.training.recipe import Recipe
from mnist_ddpm.training.run import count_parameters
from mnist_ddpm.training.saving import (
    CONFIG,
    STATE,
    WEIGHTS,
    check_schedule_name,
    read_recipe,
    recorded_digest,
)
from mnist_ddpm.training.weight_loading import refuse, wrong_shapes

FORMAT = 2
BETWEEN_FILES = 0.5  # seconds from one file of a save to the next, at most


def write_checkpoint(
    folder: str | Path,
    network: nn.Module,
    recipe: Recipe,
    record: dict,
    method: dict,
    sampling_defaults: dict | None = None,
) -> None:
    """Writes model.safetensors, then config.json, into a folder, which is made.

    record: of the training, for people. method: settings that another method than the notebook's
    needs, its schedule and prediction in any case. sampling_defaults: if known. Raises
    OSError where they cannot be written.
    """
    folder = Path(folder)
    tensors = {name: each.cpu().contiguous() for name, each in network.state_dict().items()}
    with replacing(folder / WEIGHTS) as path:
        content = save(tensors)
        path.write_bytes(content)
    config = {
        "format": FORMAT,
        **describe_recipe(recipe, method),
        "data_range": [-1, 1],
        **({"draw": sampling_defaults} if sampling_defaults else {}),
        "sha256": {WEIGHTS: hashlib.sha256(content).hexdigest()},
        "parameters": count_parameters(network),
        "training": record,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }
    config["sha256"] |= description_digests(config)
    with replacing(folder / CONFIG) as path:
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def describe_recipe(recipe: Recipe, method: dict) -> dict[str, dict]:
    """A recipe in three parts: settings, as the notebook has them, method, and recipe."""
    values = asdict(recipe)
    settings = {field.name: values.pop(field.name) for field in fields(Settings)}
    others = {name: value for name, value in values.items() if name not in method}
    return {"settings": settings, "method": method, "recipe": others}


def digest_of(described: dict) -> str:
    """The SHA-256 of settings and method, as they stand in config.json."""
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def description_digests(config: dict) -> dict[str, str]:
    """The SHA-256 of what config.json says of the network, as the notebook has it, and of the rest.

    So an edit, or damage, is noticed when it is loaded.
    """
    parts = {"described": ("settings", "method"), "advised": ("recipe", "draw")}
    return {
        part: digest_of({name: config.get(name) for name in names}) for part, names in parts.items()
    }


def load_config(folder: str | Path) -> tuple[Recipe, dict]:
    """A checkpoint's recipe and the record of its training.

    Raises FileNotFoundError, or ValueError for what is damaged or of a later version, or has a
    schedule that is no recipe's (check_schedule_name).
    """
    path = checkpoint_path(folder, CONFIG)
    try:
        config = read_json(path)
        version = config["format"]
        check(version in (1, FORMAT), f"format {version}: this version reads up to {FORMAT}")
        method = config["method"] if version == FORMAT else {}
        others = config.get("recipe", {}) if version == FORMAT else {}  # not by the notebook
        recipe = read_recipe(config["settings"], method, others)
        record = config["training"]
        recorded = config.get("sha256", {})
        digests = description_digests(config)
        if any(recorded.get(part, digest) != digest for part, digest in digests.items()):
            warn_once(f"{path} was edited after it was saved, or is damaged")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"{path} is damaged or not a checkpoint's of this version"
        raise ValueError(f"{message}: {describe_error(error)}") from error
    check_schedule_name(method, path)
    return recipe, record


def read_weights(folder: str | Path) -> dict[str, Tensor]:
    """A checkpoint's tensors.

    Raises FileNotFoundError, or ValueError for a damaged file, or one that config.json does not
    describe, as after a kill between the two.
    """
    path = checkpoint_path(folder, WEIGHTS)
    content = path.read_bytes()
    recorded = recorded_digest(folder)
    if recorded not in (None, hashlib.sha256(content).hexdigest()):
        time.sleep(BETWEEN_FILES)  # a run may be saving, and have replaced one of the two
        content = path.read_bytes()
        recorded = recorded_digest(folder)
    if recorded is None:
        warn_unverified(path)
    elif recorded != hashlib.sha256(content).hexdigest():
        can_resume = Path(folder, STATE).is_file()
        hint = "resume the run, which saves both again" if can_resume else "copy both once more"
        refusal = f"{path} is damaged, or of another save than {CONFIG} (its SHA-256 differs)"
        raise ValueError(f"{refusal}: {hint}")
    try:
        return load(content)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file ({error})") from error


def warn_unverified(path: Path) -> None:
    """Prints that damage to a file cannot be noticed."""
    message = f"{path} comes without its SHA-256, as from the notebook"
    warn_once(f"{message}: damage to it would not be noticed")


@functools.cache  # once for each
def warn_once(message: str) -> None:
    """Prints a warning, in the first of several processes."""
    if is_first_process():
        print(message, file=sys.stderr)


def checkpoint_path(folder: str | Path, name: str) -> Path:
    """The path of a checkpoint's file. Raises FileNotFoundError where there is none."""
    path = Path(folder, name)
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not a checkpoint: there is no {name} in it")
    return path


def check_header(path: Path, tensors: dict[str, Tensor], source: str | Path) -> None:
    """Compares names and shapes in the header of a safetensors file with a network's tensors.

    It reads no weight, and the tensors may be on the "meta" device, so it takes no memory. source:
    what messages call the weights. Raises ValueError for a damaged file or the weights of another
    network.
    """
    try:
        with safe_open(path, "pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file ({error})") from error
    refuse(wrong_shapes(tensors, shapes), source)
