"""Saving a run in a folder, resuming it, and never overwriting another."""

import hashlib
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from pickle import UnpicklingError
from zipfile import BadZipFile

import torch
from torch import nn

from mnist_ddpm.datasets import is_own
from mnist_ddpm.ddpm import check
from mnist_ddpm.machine.files import flush_to_disk, load_tensors, replacing
from mnist_ddpm.machine.folder_lock import FolderIdentity
from mnist_ddpm.machine.progress import is_first_process
from mnist_ddpm.machine.text import describe_error, read_json
from mnist_ddpm.training.recipe import Recipe
from mnist_ddpm.training.run import Run
from mnist_ddpm.training.state_loading import restore

# Writes a checkpoint for sampling: folder, averaged network, recipe, record
SaveCheckpoint = Callable[[Path, nn.Module, Recipe, dict], object]
STATE = "training_state.pt"
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
TABLES = "a", "b"  # of a schedule that has no name
# Settings that may differ when a run is resumed
CHANGEABLE = """
    epochs learning_rate warmup_steps gradient_clip ema_decay label_dropout teacher_guidance
    precision accumulation gradient_checkpointing compile
""".split()
# Errors that loading a damaged file raises: those whose messages help users, and others
HELPFUL_ERRORS = OSError, TypeError, ValueError
OTHER_ERRORS = RuntimeError, LookupError, ArithmeticError, AttributeError, EOFError
OTHER_ERRORS += UnpicklingError, BadZipFile, zlib.error
NEW_RUN = "init_from can start a new run from the weights beside it"


def save_run(folder: str | Path, run: Run, save_checkpoint: SaveCheckpoint) -> None:
    """Writes training_state.pt, and after it a checkpoint, for any recipe.

    Raises OSError if they cannot be written.
    """
    folder = Path(folder)
    settings = run.settings
    folder.mkdir(parents=True, exist_ok=True)
    folder_identity = FolderIdentity.of(folder)  # now, since the folder may be renamed meanwhile
    state = {
        "settings": asdict(settings),
        "method": {"schedule": settings.schedule, "prediction": settings.prediction},
        "model": run.network.state_dict(),
        "ema": run.ema.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "scaler": run.scaler.state_dict(),
        "parts": states_of(run.method.networks),
        "part_optimizers": states_of(run.method_optimizers),
        "times": {} if run.time_sampler is None else run.time_sampler.state_dict(),
        "n": run.n_images,
        "step": run.step,
        "seconds": run.training_seconds,
        "losses": run.losses,
    }
    # Opened here, since torch.save would write the name of a path into the file
    with replacing(folder / STATE) as path, path.open("wb") as file:
        torch.save(state, file)
    run.folder_identity = folder_identity
    save_checkpoint(folder, run.ema, settings, run.record())
    with suppress(OSError):  # Windows cannot flush folders
        flush_to_disk(folder)  # the names of the three files
    run.last_saved_step = run.step


def states_of(modules: Mapping) -> dict[str, dict]:
    """The state_dict of each module or optimiser, by its name."""
    return {name: each.state_dict() for name, each in modules.items()}


def check_schedule_name(method: dict, path: Path) -> None:
    """Raises ValueError for a schedule without a name, of which the notebook saves the tables."""
    refusal = f"{path} has a schedule without a name, and a recipe needs its name"
    advice = "resume and draw in the notebook, or load it with ddpm.load_checkpoint"
    check(method.get("schedule") != "tables", f"{refusal}: {advice}")


def read_recipe(settings: dict, method: dict, others: dict) -> Recipe:
    """The recipe that a file has in three parts, of this version or an earlier one.

    Raises TypeError or ValueError for what is no recipe's.
    """
    named_settings = {name: each for name, each in method.items() if name not in TABLES}
    values = settings | named_settings | others
    if values.get("objective") == "matching":  # its name before version 0.26.0
        values["objective"] = "distribution-matching"
    columns = values.pop("columns", ())  # of the vectors that versions before 0.30 drew
    check(not columns, "it is of vectors, which no version since 0.30 draws")
    return Recipe(**values)


def load_state(folder: str | Path) -> tuple[dict, Recipe]:
    """The training state saved in a folder, also by the notebook, and its recipe.

    Raises FileNotFoundError; ValueError if it is damaged, and as check_schedule_name.
    """
    path = Path(folder, STATE)
    if not path.is_file():
        raise FileNotFoundError(f"nothing to resume: there is no {path}")
    try:
        state = load_tensors(path)
        check(type(state) is dict, f"it holds a {type(state).__name__}")
        method = state.get("method", {})
        recipe = read_recipe(state["settings"], method, {})
    except (*HELPFUL_ERRORS, *OTHER_ERRORS) as error:
        reason = f" ({describe_error(error)})" if isinstance(error, HELPFUL_ERRORS) else ""
        refusal = f"{path} is damaged or no training state of this version{reason}"
        raise ValueError(f"{refusal}: {NEW_RUN}") from error
    check_schedule_name(method, path)
    return state, recipe


def check_changes(saved: Recipe, recipe: Recipe, folder: str | Path) -> None:
    """Raises ValueError if the run saved in a folder cannot be resumed with this recipe."""
    free = {*CHANGEABLE, "critic"}
    if is_own(saved.dataset) and is_own(recipe.dataset):
        free.add("dataset")  # a folder or file, which may move
    fixed = [field.name for field in fields(Recipe) if field.name not in free]
    for name in ("attributes", *fixed):  # attributes first: they decide the number of classes
        before = getattr(saved, name)
        after = getattr(recipe, name)
        change = f"{name} was {before!r} in the run in {folder} and cannot become {after!r}"
        check(before == after, f"{change}: train a new run for that")
    change = f"critic was {saved.critic!r} in the run in {folder}, and is {recipe.critic!r} here"
    rule = "its weight may change, but not whether there is one"
    check(bool(saved.critic) == bool(recipe.critic), f"{change}: {rule}")


def resume_run(
    folder: str | Path, start: Callable[[Recipe], Run], recipe: Recipe | None = None
) -> Run:
    """The saved run, or one with other CHANGEABLE settings.

    start: makes the run at step 0. Raises as load_state and check_changes.
    """
    step = saved_step(folder)  # read before the state, so that later saves by others are noticed
    state, saved = load_state(folder)
    recipe = recipe or saved
    check_changes(saved, recipe, folder)
    if is_first_process():
        print_changes(state, saved, recipe)
    run = start(recipe)
    try:
        restore(run, state)
    except (*HELPFUL_ERRORS, *OTHER_ERRORS) as error:
        refusal = f"{Path(folder, STATE)} does not fit its own settings ({describe_error(error)})"
        raise ValueError(f"{refusal}: {NEW_RUN}") from error
    run.folder_identity = FolderIdentity.of(folder)
    run.last_saved_step = step
    return run


def print_changes(state: dict, saved: Recipe, recipe: Recipe) -> None:
    """Prints how a resumed run differs from the saved one."""
    if recipe.epochs != saved.epochs:
        change = f"epochs were {saved.epochs:g} and are {recipe.epochs:g} now"
        print(f"{change}: the learning rate goes on as in a run of that length")
    if "generator" in state:
        print("the run was saved by an earlier version: it goes on with other random numbers")


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


def is_saved(folder: str | Path, run: Run) -> bool:
    """Whether the checkpoint in a folder is intact, and of the run's last step."""
    return saved_step(folder) == run.step and is_intact(folder)


def check_not_overwriting(folder: str | Path, run: Run | None = None) -> None:
    """Raises FileExistsError if saving a run, by default a new one, would overwrite another.

    In its own folder a run may overwrite only what it has loaded or saved itself.
    """
    if run is not None and run.is_at(folder):
        step = saved_step(folder)
        if step not in (None, run.last_saved_step):
            other = f"another training has saved step {step} in {folder} meanwhile"
            raise FileExistsError(f"{other}: this would overwrite it")
        return
    has_state = Path(folder, STATE).exists()
    if has_state or Path(folder, CONFIG).exists():
        hint = "resume it, or" if has_state else "init_from can start from it, but"
        message = f"{folder} holds a checkpoint already: {hint} train into another folder"
        raise FileExistsError(message)
