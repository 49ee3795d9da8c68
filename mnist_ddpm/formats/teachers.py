"""A checkpoint as a teacher: its denoiser, guided as its config.json advises."""

from pathlib import Path

import torch

from mnist_ddpm import catalogue
from mnist_ddpm.ddpm import Denoiser, Schedule, check
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.methods import guidance
from mnist_ddpm.training.recipe import Recipe


def along(path: Schedule, checkpoint: checkpoints.Checkpoint) -> Denoiser:
    """A checkpoint's denoiser on a path, which may be its own."""
    network, own, recipe, _ = checkpoint
    same = torch.equal(own.signal, path.signal) and torch.equal(own.noise, path.noise)
    return catalogue.make_denoiser(network, own, recipe, path=None if same else path)


def teacher(source: str | Path, recipe: Recipe, device: torch.device | str = "cpu") -> Denoiser:
    """What a network of this recipe can learn from, along its schedule. It is not clipped.

    source: as checkpoints.find knows it. Raises as checkpoints.load, and ValueError where teacher
    or recipe have labels or a condition, or differ in their images' shape.
    """
    strong, told = checkpoints.load(source, device), checkpoints.advice(source)
    found = [strong, *([checkpoints.load(told["guide"], device)] if "guide" in told else [])]
    for each in (recipe, *(each.recipe for each in found)):
        problem = f"teacher is {source}: with labels or a condition"
        check(not each.classes and not each.conditional, f"{problem} nothing can be taught yet")
        shapes = f"{each.shape}, and here they are {recipe.shape}"
        check(each.shape == recipe.shape, f"teacher is {source}: it knows images {shapes}")
    made = [along(catalogue.make_schedule(recipe), each) for each in found]
    if len(made) == 1:
        return made[0]
    guided = guidance.guided(made[1], made[0], told.get("guidance", guidance.SCALE))
    interval = told.get("guidance_interval")
    return guidance.within(tuple(interval), guided, made[0]) if interval else guided
