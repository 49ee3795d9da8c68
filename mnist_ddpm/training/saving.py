"""Runs and their folders: what is saved, how a run goes on, and what must not be overwritten."""

import hashlib
import pickle
import zipfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from mnist_ddpm.datasets import DATASETS
from mnist_ddpm.ddpm import check
from mnist_ddpm.machine.files import first_line, flush_to_disk, load_tensors, replacing
from mnist_ddpm.machine.folder_lock import FolderIdentity
from mnist_ddpm.machine.progress import is_first_process
from mnist_ddpm.machine.text import read_json
from mnist_ddpm.training.recipe import Recipe
from mnist_ddpm.training.restoring import restore
from mnist_ddpm.training.run import Run

# Writes a checkpoint for those who sample: folder, averaged network, recipe, record
SaveCheckpoint = Callable[[Path, nn.Module, Recipe, dict], object]
FIXED = (  # settings that a run cannot change
    "network", "attributes", "teacher", "teacher_unlabelled", "init_from",
    "image_size", "channels", "base_channels", "channel_mults", "blocks_per_level",
    "attention_resolutions", "patch_size", "norm_groups", "dropout", "condition", "classes",
    "schedule", "T", "beta_1", "beta_T", "prediction", "objective", "times", "optimizer",
    "batch_size", "seed",
)  # fmt: skip
OF_A_ZIP = zipfile.BadZipFile, zlib.error  # that is damaged
STATE, CONFIG, WEIGHTS = "training_state.pt", "config.json", "model.safetensors"
TABLES = "a", "b"  # of a schedule that has no name


def save_run(folder: str | Path, run: Run, save_checkpoint: SaveCheckpoint) -> None:
    """training_state.pt, then a checkpoint: a run that has one can be resumed.

    Raises OSError where they cannot be written.
    """
    folder, s = Path(folder), run.settings
    folder.mkdir(parents=True, exist_ok=True)
    place = FolderIdentity.of(folder)  # before it may be moved
    state = {
        "settings": asdict(s), "method": {"schedule": s.schedule, "prediction": s.prediction},
        "model": run.network.state_dict(), "ema": run.ema.state_dict(),
        "optimizer": run.optimizer.state_dict(), "scaler": run.scaler.state_dict(),
        "parts": states_of(run.method.parts), "part_optimizers": states_of(run.part_optimizers),
        "times": {} if run.times is None else run.times.state_dict(),
        "n": run.n, "step": run.step, "seconds": run.seconds, "losses": run.losses,
    }  # fmt: skip
    # not to the path, whose name torch.save would write into the file
    with replacing(folder / STATE) as path, path.open("wb") as file:
        torch.save(state, file)
    run.home = place
    save_checkpoint(folder, run.ema, s, run.record())
    with suppress(OSError):  # Windows syncs no folders
        flush_to_disk(folder)  # the three files' new names, at once
    run.saved = run.step


def states_of(parts: Mapping) -> dict[str, dict]:
    """The states of modules or optimisers, by their names."""
    return {name: part.state_dict() for name, part in parts.items()}


def check_named(method: dict, path: Path) -> None:
    """Raises ValueError for a schedule without a name, of which the notebook saves the tables."""
    problem = f"{path} has a schedule without a name, as tables, and a recipe needs its name"
    advice = "resume and draw in the notebook, or load it with ddpm.load_checkpoint"
    check(method.get("schedule") != "tables", f"{problem}: {advice}")


def load_state(folder: str | Path) -> tuple[dict, Recipe]:
    """The training state saved in a folder, by the notebook too, and its recipe.

    Raises FileNotFoundError, or ValueError where it is damaged, and as check_named.
    """
    path = Path(folder, STATE)
    if not path.is_file():
        raise FileNotFoundError(f"nothing to resume: there is no {path}")
    unreadable = (
        RuntimeError, pickle.UnpicklingError, EOFError, KeyError, AttributeError, *OF_A_ZIP,
    )  # fmt: skip
    telling = OSError, TypeError, ValueError  # what the others say is of no use
    try:
        state = load_tensors(path)
        method = state.get("method", {})
        named = {name: value for name, value in method.items() if name not in TABLES}
        recipe = Recipe(**state["settings"] | named)
    except (*unreadable, *telling) as error:
        reason = f" ({first_line(error)})" if isinstance(error, telling) else ""
        problem = f"{path} is damaged or no training state of this version{reason}"
        instead = "init_from can start a new run from the weights beside it"
        raise ValueError(f"{problem}: {instead}") from error
    check_named(method, path)
    return state, recipe


def check_changes(saved: Recipe, recipe: Recipe, folder: str | Path) -> None:
    """Raises ValueError where the run saved in folder cannot go on with this recipe."""
    named = {saved.dataset, recipe.dataset} & {*DATASETS}  # a folder may move
    for name in ("dataset", *FIXED) if named else FIXED:
        old, new = getattr(saved, name), getattr(recipe, name)
        problem = f"{name} was {old!r} in the run in {folder} and cannot become {new!r}"
        check(old == new, f"{problem}: train a new run for that")
    problem = f"critic was {saved.critic!r} in the run in {folder}, and is {recipe.critic!r} here"
    same = bool(saved.critic) == bool(recipe.critic)
    check(same, f"{problem}: its weight may change, but not whether there is one")


def resume_run(
    folder: str | Path, start: Callable[[Recipe], Run], recipe: Recipe | None = None
) -> Run:
    """The run saved in a folder, with its own recipe, or one of other epochs, rates and the like.

    start: makes the run at step 0. Raises as load_state and check_changes.
    """
    there = saved_step(folder)  # before the state, to notice what others save from now on
    state, saved = load_state(folder)
    recipe = recipe or saved
    check_changes(saved, recipe, folder)
    if is_first_process():
        tell_changes(state, saved, recipe)
    run = start(recipe)
    try:
        restore(run, state)
    except (RuntimeError, LookupError, ValueError, TypeError, AttributeError) as error:
        problem = f"{Path(folder, STATE)} does not fit its own settings"
        raise ValueError(f"{problem} ({first_line(error)}): train a new run") from error
    run.home, run.saved = FolderIdentity.of(folder), there
    return run


def tell_changes(state: dict, saved: Recipe, recipe: Recipe) -> None:
    """Prints in what a run goes on differently."""
    if recipe.epochs != saved.epochs:
        change = f"epochs were {saved.epochs:g} and are {recipe.epochs:g} now"
        print(f"{change}: the learning rate goes on as in a run of that length")
    if "generator" in state:
        print("the run was saved by an earlier version: it goes on with other random numbers")


def saved_step(folder: str | Path) -> int | None:
    """That of the checkpoint in a folder; None where there is none, or a damaged one."""
    try:
        return read_json(Path(folder, CONFIG))["training"]["steps"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def told_digest(folder: str | Path) -> str | None:
    """The SHA-256 of a folder's weights, as its config.json has it; None where it does not."""
    try:
        return read_json(Path(folder, CONFIG))["sha256"][WEIGHTS]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_whole(folder: str | Path) -> bool:
    """Whether the two files of the checkpoint in a folder are there, and of one save."""
    path, told = Path(folder, WEIGHTS), told_digest(folder)
    if saved_step(folder) is None or not path.is_file():
        return False
    return told in (None, hashlib.sha256(path.read_bytes()).hexdigest())


def saved_whole(folder: str | Path, run: Run) -> bool:
    """Whether the checkpoint in a folder is whole, and of the run's last step."""
    return saved_step(folder) == run.step and is_whole(folder)


def must_be_free(folder: str | Path, run: Run | None = None) -> None:
    """Raises FileExistsError where a run would overwrite another.

    That is a new run, or one away from home. At home it is what another training of the same run
    has saved since this one was loaded, or last saved.
    """
    if run is not None and run.is_at(folder):
        found = saved_step(folder)
        if found not in (None, run.saved):
            another = f"another training has saved step {found} in {folder} meanwhile"
            raise FileExistsError(f"{another}: this would overwrite it")
        return
    config, state = (Path(folder, name).exists() for name in (CONFIG, STATE))
    if config or state:
        way = "resume it, or" if state else "init_from can start from it, but"
        problem = f"{folder} holds a checkpoint already"
        raise FileExistsError(f"{problem}: {way} train into another folder")
