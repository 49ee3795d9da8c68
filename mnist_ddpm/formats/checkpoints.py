"""The project's own checkpoints: a folder with model.safetensors and config.json.

Format 2 of config.json has the notebook's settings, the method, which is all else that rebuilds
the network and samples from it, and the rest of the recipe. The notebook loads checkpoints of its
own method. Format 1 had all settings in one list. The SHA-256 of the weights shows whether the two
files belong together, and are whole; those of the notebook have none. The shipped checkpoints lie
in a clone's checkpoints/, and some of them in the installed package.
"""

import functools
import hashlib
import json
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mnist_ddpm import catalogue
from mnist_ddpm.ddpm import Schedule, Settings, check
from mnist_ddpm.formats import hub
from mnist_ddpm.machine.files import replacing
from mnist_ddpm.machine.process import is_first_process
from mnist_ddpm.machine.text import describe_error, read_json
from mnist_ddpm.recipe import Recipe, deciding
from mnist_ddpm.sampling import GUIDANCE_OPTIONS, check_advice
from mnist_ddpm.training.cost import count_parameters

FORMAT = 2
BETWEEN_FILES = 0.5  # seconds from one file of a save to the next, at most
CONFIG = "config.json"
STATE = "training_state.pt"  # of a run that can go on
WEIGHTS = "model.safetensors"
TABLES = "a", "b"  # of a schedule that has no name
SHIPPED = "mnist", "mnist-unlabelled", "mnist-few", "mnist-conditional"
SHIPPED += "mnist-guide", "mnist-pixels", "mnist-bits"
SHIPPED += "celeba", "celeba-few", "celeba-guide", "cifar10"
REPLACED = {"mnist-taught": "mnist", "mnist-labelled": "mnist"}  # names of earlier versions
FOLDER = "checkpoints"  # of a clone, with the shipped ones


def wrong_shapes(tensors: dict[str, Tensor], shapes: dict[str, Sequence[int]]) -> list[str]:
    """What is missing or unknown among named shapes, or other than that of a network's tensor."""
    wrong = []
    for name, tensor in tensors.items():
        expected = tuple(tensor.shape)
        if name not in shapes:
            wrong.append(f"{name} is missing, should be {expected}")
        elif tuple(shapes[name]) != expected:
            wrong.append(f"{name} is {tuple(shapes[name])}, should be {expected}")
    return wrong + [f"{name} is unknown" for name in shapes if name not in tensors]


def refuse(wrong: list[str], source: str | Path) -> None:
    """Raises ValueError naming what is wrong with weights, if anything is: the first three."""
    more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    listed = f"{'; '.join(wrong[:3])}{more}"
    check(not wrong, f"the weights of {source} do not fit the network: {listed}")


def load_weights(
    tensors: dict[str, Tensor], weights: dict[str, Tensor], source: str | Path
) -> None:
    """Copies weights into a network's tensors, or an optimiser's.

    source: what messages call them. Raises ValueError naming those that are missing or unknown, of
    another shape, no floats where the tensors are, or not finite.
    """
    refuse(wrong_shapes(tensors, {name: weight.shape for name, weight in weights.items()}), source)
    wrong = []
    for name, tensor in tensors.items():
        weight = weights[name]
        if weight.is_floating_point() != tensor.is_floating_point() or weight.is_complex():
            wrong.append(f"{name} is {weight.dtype}, should be like {tensor.dtype}")
        elif not weight.float().isfinite().all():
            wrong.append(f"{name} is not finite everywhere")
    refuse(wrong, source)
    for name, tensor in tensors.items():
        tensor.copy_(weights[name])


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
        content = safetensors.torch.save(tensors)
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
        return safetensors.torch.load(content)
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


def read_recipe(settings: dict, method: dict, others: dict) -> Recipe:
    """The recipe that a file has in three parts, of this version or an earlier one.

    Raises TypeError or ValueError for what is no recipe's.
    """
    named_settings = {name: each for name, each in method.items() if name not in TABLES}
    values = settings | named_settings | others
    columns = values.pop("columns", ())  # of the vectors that versions before 0.30 drew
    check(not columns, "it is of vectors, which no version since 0.30 draws")
    return Recipe(**values)


def check_schedule_name(method: dict, path: Path) -> None:
    """Raises ValueError for a schedule without a name, of which the notebook saves the tables."""
    refusal = f"{path} has a schedule without a name, and a recipe needs its name"
    advice = "resume and draw in the notebook, or load it with ddpm.load_checkpoint"
    check(method.get("schedule") != "tables", f"{refusal}: {advice}")


def config_value(folder: str | Path, *keys: str) -> object | None:
    """A value from the config.json of a folder's checkpoint; None if missing or damaged."""
    try:
        value = read_json(Path(folder, CONFIG))
        for key in keys:
            value = value[key]
        return value
    except (OSError, ValueError, KeyError, TypeError):
        return None


def saved_step(folder: str | Path) -> int | None:
    """The step of the checkpoint in a folder; None if there is none, or a damaged one."""
    return config_value(folder, "training", "steps")


def recorded_digest(folder: str | Path) -> str | None:
    """The SHA-256 of a checkpoint's weights that its config.json records, if it does."""
    return config_value(folder, "sha256", WEIGHTS)


def is_intact(folder: str | Path) -> bool:
    """Whether a folder has both files of a checkpoint, from one save."""
    path = Path(folder, WEIGHTS)
    if saved_step(folder) is None or not path.is_file():
        return False
    return recorded_digest(folder) in (None, hashlib.sha256(path.read_bytes()).hexdigest())


def method_settings(recipe: Recipe) -> dict:
    """Settings that rebuild the network and sample from it, where they are not the notebook's."""
    names = ["schedule", "prediction"]
    optional = deciding("method")
    names += [name for name in optional if getattr(recipe, name) != getattr(Recipe, name)]
    if isinstance(recipe.image_size, tuple):
        names.append("image_size")
    if recipe.attention != (len(recipe.channel_mults) - 1,):
        names.append("attention_resolutions")
    if catalogue.learns_variance(recipe):
        names.append("objective")
    return {name: getattr(recipe, name) for name in names}


def save_checkpoint(
    folder: str | Path,
    network: nn.Module,
    recipe: Recipe,
    record: dict,
    sampling_defaults: dict | None = None,
) -> None:
    """Writes a checkpoint of an averaged network, and the record of its training.

    sampling_defaults: flags of sample that work best, if known. Raises OSError where it cannot be
    written.
    """
    method = method_settings(recipe)
    write_checkpoint(folder, network, recipe, record, method, sampling_defaults)


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
                "repository (an installed package holds only mnist)"
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


def sampling_defaults(source: str | Path) -> dict:
    """How best to sample from a checkpoint, by "draw" in its config.json; {} where that is missing.

    Some of sampler, steps, spacing, timesteps, eta, guide (a shipped name, or the path of a folder
    in the checkpoint's), guidance and guidance_interval; without the last three where that folder
    is missing. Raises as `find`, and ValueError for other options or values.
    """
    path = find(source) / CONFIG
    options = check_advice(read_json(path).get("draw", {}), path)
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
