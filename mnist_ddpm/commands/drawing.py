"""What the commands that draw or judge share: the checkpoint, the device, the labels, the guide."""

from dataclasses import fields, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from mnist_ddpm.commands.flags import DrawingFlags, LikelihoodFlags
from mnist_ddpm.data.labels import label_number
from mnist_ddpm.datasets import is_own
from mnist_ddpm.ddpm import check
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.formats.checkpoints import Checkpoint
from mnist_ddpm.machine import devices, processes
from mnist_ddpm.machine.process import is_first_process
from mnist_ddpm.machine.processes import ProcessGroup
from mnist_ddpm.recipe import Recipe
from mnist_ddpm.sampling import Sampling

MAX_IMAGES = 10**9
Flags = TypeVar("Flags", DrawingFlags, LikelihoodFlags)
GUIDES_SHARE = "image_size", "channels", "condition", "classes", "attributes", "label_names", "T"


def pick_processes_and_device(flags: DrawingFlags) -> tuple[ProcessGroup, torch.device]:
    """The processes that share the work, and this one's device. Checks the flags' ranges."""
    for name in ("n", "batch_size"):
        value = getattr(flags, name)
        check(1 <= value <= MAX_IMAGES, f"{name} is {value}: it must be from 1 to {MAX_IMAGES:,}")
    check(0 <= flags.seed < 2**32, f"seed is {flags.seed}: it must be from 0 to 2^32 - 1")
    scale = flags.guidance or 0
    check(abs(scale) <= 1e6, f"guidance is {scale}: it must be a number up to a million")
    world = processes.connect_world(flags.processes, flags.device == "cpu")
    device = devices.pick_device(flags.device, world)
    devices.check_precision(flags.precision, device)
    return world, device


def open_checkpoint(flags: Flags, device: torch.device) -> tuple[Checkpoint, Flags]:
    """The checkpoint, its network compiled if asked, and the flags with what --compile came to."""
    checkpoint = checkpoints.load(flags.checkpoint, device)
    precision = getattr(flags, "precision", "float32")  # likelihood has no other
    flags = replace(flags, compile=flags.compile and devices.compiles(device, precision))
    if flags.compile:
        checkpoint.network.compile()
    return checkpoint, flags


def sampling_of(
    flags: DrawingFlags,
    recipe: Recipe,
    *,
    is_followed: bool = True,
    starts_at_T: bool = True,
    default: str = "ddim",
) -> Sampling:
    """How the flags say to draw, and what the checkpoint advises where they do not, printed.

    All advice is ignored with --sampler, or unless it is_followed; then the sampler is the default.
    """
    names = [each.name for each in fields(Sampling) if hasattr(DrawingFlags, each.name)]
    typed = {name: getattr(flags, name) for name in names}
    typed = {name: value for name, value in typed.items() if value != getattr(DrawingFlags, name)}
    is_followed = is_followed and flags.sampler is None
    advice = checkpoints.sampling_defaults(flags.checkpoint) if is_followed else {}
    sampling = Sampling.chosen(typed, advice, recipe.T, starts_at_T, default)
    if sampling.advised and is_first_process():
        words = sampling.advised_flags()
        print(f"as {flags.checkpoint} advises, with {words} (a flag that you type wins)")
    return sampling


def labels_in_turn(flags: DrawingFlags, recipe: Recipe) -> Tensor:
    """The labels that images get in turn, those of --label, else all: int64."""
    numbers = [label_number(label, recipe) for label in flags.label]
    return torch.tensor(numbers or range(recipe.classes))


def load_guide(
    sampling: Sampling, checkpoint: Checkpoint, flags: DrawingFlags, device: torch.device
) -> Checkpoint | None:
    """The guide of autoguidance, if there is one.

    Raises ValueError where it is for other images or noise.
    """
    if not sampling.guide:
        return None
    guide = checkpoints.load(sampling.guide, device)
    refusal = f"{sampling.guide} cannot guide {flags.checkpoint}"
    for name in GUIDES_SHARE:
        ours, theirs = (getattr(each.recipe, name) for each in (checkpoint, guide))
        check(ours == theirs, f"{refusal}: its {name} is {theirs}, and should be {ours}")
    is_same = torch.equal(guide.schedule.a, checkpoint.schedule.a)
    check(is_same, f"{refusal}: train it with the same --schedule, --beta-1 and --beta-T")
    if flags.compile:
        guide.network.compile()
    return guide


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
