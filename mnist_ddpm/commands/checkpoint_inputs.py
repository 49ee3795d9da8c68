"""What the flags that name a checkpoint mean: its network, its images, its steps' variance."""

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from mnist_ddpm import catalogue
from mnist_ddpm.commands.flags import DrawingFlags, LikelihoodFlags
from mnist_ddpm.data.labels import needs_labels
from mnist_ddpm.data.pictures import margin
from mnist_ddpm.datasets import is_own
from mnist_ddpm.ddpm import check
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.machine import devices
from mnist_ddpm.machine.partial_results import PartialResults
from mnist_ddpm.machine.process import progress_bar
from mnist_ddpm.recipe import Recipe

# The exponent of each variance of a step, for the bound: as methods.likelihood.bits_per_dim
EXPONENTS = {"posterior": 0.0, "beta": 1.0, "learned": None}
Flags = TypeVar("Flags", DrawingFlags, LikelihoodFlags)


def open_checkpoint(flags: Flags, device: torch.device) -> tuple[checkpoints.Checkpoint, Flags]:
    """The checkpoint, its network compiled if asked, and the flags with what --compile came to."""
    checkpoint = checkpoints.load(flags.checkpoint, device)
    precision = getattr(flags, "precision", "float32")  # likelihood has no other
    flags = replace(flags, compile=flags.compile and devices.compiles(device, precision))
    if flags.compile:
        checkpoint.network.compile()
    return checkpoint, flags


def locate_dataset(recipe: Recipe, folder: str | None) -> Recipe:
    """The recipe, with its folder of images where it is now.

    Raises ValueError where there is none, or the folder is another data set.
    """
    is_moved = folder not in (None, recipe.dataset)
    if is_moved and not (is_own(folder) and is_own(recipe.dataset)):
        message = f"it cannot turn {recipe.dataset} into {folder}"
        raise ValueError(f"--dataset is for a folder or file that has moved: {message}")
    recipe = replace(recipe, dataset=folder or recipe.dataset)
    is_there = not is_own(recipe.dataset) or Path(recipe.dataset).exists()
    message = f"there is no folder or file {recipe.dataset}"
    check(is_there, f"{message}: has it moved? --dataset names where it is now")
    return recipe


def pick_variance(name: str, recipe: Recipe) -> str:
    """What "auto" means for a checkpoint. Raises ValueError for a variance it has not learned."""
    learned = catalogue.learns_variance(recipe)
    if name == "auto":
        return "learned" if learned else "posterior"
    message = "choose another --variance, or train with --objective hybrid"
    check(learned or name != "learned", f"this checkpoint has learned no variance: {message}")
    return name


def check_bound(recipe: Recipe, request: str) -> None:
    """Raises ValueError where no bound can be measured, which the flag or command requests."""
    needs = f"{request} needs a network"
    check(not needs_labels(recipe), f"{needs} that can do without its labels (label_dropout is 0)")
    check(not recipe.conditional, f"{needs} without a condition, and here is {recipe.condition}")


def bound_options(
    flags: DrawingFlags | LikelihoodFlags,
    recipe: Recipe,
    variance: str,
    device: torch.device,
    partial: PartialResults,
) -> dict:
    """What the flags say to likelihood.bits_per_dim, whose parts are kept as partial results."""
    options = {"exponent": EXPONENTS[variance], "margin": margin(recipe), "device": device}
    options |= {"batch_size": flags.batch_size, "seed": flags.seed}
    return options | {"progress": progress_bar, "part": partial.compute}
