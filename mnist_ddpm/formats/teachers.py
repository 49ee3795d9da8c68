"""A checkpoint as a teacher: its denoiser, guided as its config.json advises, or further."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from mnist_ddpm import catalogue
from mnist_ddpm.data.labels import needs_labels
from mnist_ddpm.ddpm import Denoiser, Schedule, check
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.formats.pretrained import initial_weights
from mnist_ddpm.methods import guidance
from mnist_ddpm.methods.guidance import Teacher
from mnist_ddpm.training.recipe import Recipe


def along(
    path: Schedule, checkpoint: checkpoints.Checkpoint, labels: Tensor | None = None
) -> Denoiser:
    """A checkpoint's denoiser on a path, which may be its own, told these labels (N,) or none."""
    network, own, recipe = checkpoint
    network = guidance.with_labels(network, labels)
    same = torch.equal(own.a, path.a) and torch.equal(own.b, path.b)
    return catalogue.make_denoiser(network, own, recipe, path=None if same else path)


def teacher(recipe: Recipe, device: torch.device | str = "cpu") -> Teacher:
    """What a network of this recipe can learn from, along its schedule. It is not clipped.

    recipe.teacher: as checkpoints.find knows it. With labels it is told those of the images, and
    guided away from what it says without. recipe.teacher_guidance: 0 stands for its config.json's
    advice. recipe.teacher_unlabelled: another for images without a label, guided as it advises.
    Raises as checkpoints.load, and ValueError where teacher or recipe have a condition, or differ
    in labels or their images' shape, and for a guidance of a teacher that nothing guides.
    """
    labelled = one_of(recipe, recipe.teacher, recipe.teacher_guidance, device)
    if not recipe.teacher_unlabelled:
        return labelled
    problem = "teacher_unlabelled is for images whose label is hidden, and there are no labels"
    check(recipe.classes > 0, f"{problem}: leave it empty")
    plain = replace(recipe, classes=0, attributes=())
    unlabelled = one_of(plain, recipe.teacher_unlabelled, 0.0, device)(None)

    def told(labels: Tensor | None) -> Denoiser:
        if labels is None:
            return unlabelled
        known = labels.cpu() < recipe.classes
        return guidance.switched(lambda t: known, labelled, lambda labels: unlabelled, labels)

    return told


def one_of(recipe: Recipe, source: str | Path, asked: float, device: torch.device | str) -> Teacher:
    """One of a recipe's teachers, guided so far; 0: as it advises."""
    strong, advice = checkpoints.load(source, device), checkpoints.sampling_defaults(source)
    guide = checkpoints.load(advice["guide"], device) if "guide" in advice else None
    for each in (recipe, strong.recipe, *([guide.recipe] if guide else [])):
        problem = f"teacher is {source}: with a condition nothing can be taught yet"
        check(not each.conditional, problem)
        shapes = f"{each.shape}, and here they are {recipe.shape}"
        check(each.shape == recipe.shape, f"teacher is {source}: it knows images {shapes}")
        found, wanted = (each.classes, each.attributes), (recipe.classes, recipe.attributes)
        problem = f"teacher is {source}: its classes are {found[0]} {' '.join(found[1])}"
        check(found == wanted, f"{problem.strip()}: train with the same")
    able = guide is not None or (recipe.classes > 0 and not needs_labels(strong.recipe))
    problem = f"teacher_guidance is {asked}, and nothing guides {source}"
    check(able or not asked, f"{problem}: leave it at 0")
    scale = asked or advice.get("guidance", guidance.SCALE if guide else 1.0)
    path, interval = catalogue.make_schedule(recipe), advice.get("guidance_interval")

    def plain(labels: Tensor | None) -> Denoiser:
        return along(path, strong, labels)

    def guided(labels: Tensor | None) -> Denoiser:
        weak = along(path, guide, labels) if guide else along(path, strong)
        return guidance.guided(weak, plain(labels), scale)

    def told(labels: Tensor | None) -> Denoiser:
        return guidance.switched(guidance.is_in_interval(tuple(interval)), guided, plain, labels)

    if not able:
        return plain
    return told if interval else guided


def first_weights(recipe: Recipe, network: nn.Module) -> dict[str, Tensor]:
    """Weights that a further network, of the kind shortcut, begins with.

    Those of a teacher, the unlabelled one last, if it has such a network and predicts the same;
    else those that the recipe's network begins with.
    """
    meaning = "schedule", "T", "beta_1", "beta_T", "prediction"
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    for source in filter(None, (recipe.teacher, recipe.teacher_unlabelled, recipe.init_from)):
        labels = recipe.classes > 0
        decided, weights = initial_weights(source, labels, classes=recipe.classes, shortcut=True)
        alike = all(decided[name] == getattr(recipe, name) for name in meaning)
        if alike and shapes == {name: value.shape for name, value in weights.items()}:
            break
    return weights
