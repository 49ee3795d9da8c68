"""Saving a run in a folder, resuming it, and never overwriting another."""

import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from pickle import UnpicklingError
from typing import NamedTuple
from zipfile import BadZipFile

import torch
from torch.optim import Optimizer

from mnist_ddpm.datasets import is_own
from mnist_ddpm.ddpm import check
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.formats.checkpoints import (
    CONFIG,
    STATE,
    check_schedule_name,
    config_value,
    is_intact,
    load_weights,
    read_recipe,
    saved_step,
)
from mnist_ddpm.machine.files import flush_to_disk, load_tensors, replacing
from mnist_ddpm.machine.process import is_first_process
from mnist_ddpm.machine.text import describe_error
from mnist_ddpm.recipe import Recipe, changeable
from mnist_ddpm.training.run import Run

# Errors that loading a damaged file raises: those whose messages help users, and others
HELPFUL_ERRORS = OSError, TypeError, ValueError
OTHER_ERRORS = RuntimeError, LookupError, ArithmeticError, AttributeError, EOFError
OTHER_ERRORS += UnpicklingError, BadZipFile, zlib.error
NEW_RUN = "init_from can start a new run from the weights beside it"


def save_run(folder: str | Path, run: Run) -> None:
    """Writes training_state.pt, and after it a checkpoint, for any recipe.

    Raises OSError if they cannot be written.
    """
    folder = Path(folder)
    settings = run.settings
    folder.mkdir(parents=True, exist_ok=True)
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
    run.folder = folder.resolve()
    checkpoints.save_checkpoint(folder, run.ema, settings, run.record(), run.sampling_defaults)
    with suppress(OSError):  # Windows cannot flush folders
        flush_to_disk(folder)  # the names of the three files
    run.last_saved_step = run.step


def states_of(modules: Mapping) -> dict[str, dict]:
    """The state_dict of each module or optimiser, by its name."""
    return {name: each.state_dict() for name, each in modules.items()}


class SavedRun(NamedTuple):
    """The training state in a folder, its recipe, and the step of the checkpoint beside it."""

    state: dict
    recipe: Recipe
    step: int | None


def load_state(folder: str | Path) -> SavedRun:
    """What is saved of a run in a folder, also by the notebook.

    Raises FileNotFoundError; ValueError if it is damaged, and as check_schedule_name.
    """
    step = saved_step(folder)  # read before the state, so that later saves by others are noticed
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
    return SavedRun(state, recipe, step)


def check_changes(saved: Recipe, recipe: Recipe, folder: str | Path) -> None:
    """Raises ValueError if the run saved in a folder cannot be resumed with this recipe."""
    free = {*changeable(), "critic"}
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
    folder: str | Path,
    start: Callable[[Recipe], Run],
    recipe: Recipe | None = None,
    saved: SavedRun | None = None,
) -> Run:
    """The saved run, or one with other settings of those that are changeable.

    start: makes the run at step 0. saved: as load_state has read it, if it has. Raises as
    load_state and check_changes.
    """
    saved = saved or load_state(folder)
    recipe = recipe or saved.recipe
    check_changes(saved.recipe, recipe, folder)
    if recipe.epochs != saved.recipe.epochs and is_first_process():
        change = f"epochs were {saved.recipe.epochs:g} and are {recipe.epochs:g} now"
        print(f"{change}: the learning rate goes on as in a run of that length")
    run = start(recipe)
    try:
        restore(run, saved.state)
    except (*HELPFUL_ERRORS, *OTHER_ERRORS) as error:
        refusal = f"{Path(folder, STATE)} does not fit its own settings ({describe_error(error)})"
        raise ValueError(f"{refusal}: {NEW_RUN}") from error
    run.folder = Path(folder).resolve()
    run.last_saved_step = saved.step
    recorded = config_value(folder, "draw")
    if recorded is not None:
        run.sampling_defaults = recorded
    return run


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


def restore(run: Run, state: dict) -> None:
    """Loads a saved state into a run at step 0. Raises errors of many kinds where it does not fit.

    Only tensors and numbers are loaded: settings of optimisers and scalers stay the run's own.
    """
    load_optimizer(run.optimizer, state["optimizer"])
    load_weights(run.network.state_dict(), state["model"], "model")
    load_weights(run.ema.state_dict(), state["ema"], "ema")
    for name, network in run.method.networks.items():
        load_optimizer(run.method_optimizers[name], state["part_optimizers"][name])
        load_weights(network.state_dict(), state["parts"][name], name)
    if run.time_sampler is not None:
        load_weights(run.time_sampler.state_dict(), state["times"], "times")
    scaler = state.get("scaler") or run.scaler.state_dict()
    numbers = {name: scaler[name] for name in ("scale", "_growth_tracker") if scaler}
    numbers |= {"step": state["step"], "n": state.get("n", 0), "seconds": state.get("seconds", 0.0)}
    for name, value in numbers.items():
        kinds = (int, float) if name in ("scale", "seconds") else (int,)
        check(type(value) in kinds and 0 <= value < 1e38, f"{name} is {value!r}")
    run.scaler.load_state_dict(run.scaler.state_dict() | numbers)
    run.step = numbers["step"]
    run.n_images = numbers["n"]
    run.training_seconds = float(numbers["seconds"])
    check(type(state["losses"]) is list, "losses are no list")
    run.losses = [*map(float, state["losses"])]


def load_optimizer(optimizer: Optimizer, state: dict) -> None:
    """Copies an optimiser's saved tensors, such as Adam's moments, into one that has none yet.

    Raises errors of many kinds where they are not as such an optimiser makes them.
    """
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.zeros_like(p)
    optimizer.step()  # makes the tensors
    optimizer.zero_grad()
    copy_optimizer_state(optimizer.state_dict(), state)


def copy_optimizer_state(own: dict, saved: dict) -> None:
    """Copies saved tensors into those of an optimiser's own state_dict, and 0 where none are."""
    if "param_groups" not in own:  # of optimisers within it, such as Muon's
        for name, inner in own.items():
            copy_optimizer_state(inner, saved[name])
        return
    unknown = saved["state"].keys() - own["state"].keys()
    check(not unknown, f"its optimizer knows no weight {sorted(map(str, unknown))[:3]}")
    for index, tensors in own["state"].items():
        zeros = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
        load_weights(tensors, saved["state"].get(index, zeros), f"optimizer, {index}")
