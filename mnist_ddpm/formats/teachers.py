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


def denoiser_along_schedule(
    sampling_schedule: Schedule, checkpoint: checkpoints.Checkpoint, labels: Tensor | None = None
) -> Denoiser:
    """A checkpoint's denoiser along a schedule, which may be its own, with labels (N,) or none."""
    network, schedule, recipe = checkpoint
    network = guidance.with_labels(network, labels)
    return catalogue.make_denoiser(network, schedule, recipe, sampling_schedule=sampling_schedule)


def load_teacher(recipe: Recipe, device: torch.device | str = "cpu") -> Teacher:
    """What a network of this recipe can learn from, along its schedule. It is not clipped.

    recipe.teacher: as checkpoints.find knows it. It is given the images' labels, and guided away
    from its prediction without, by recipe.teacher_guidance; 0 stands for what its config.json says.
    recipe.teacher_unlabelled: another for images without a label, guided as its own says. Raises as
    checkpoints.load, and ValueError where teacher or recipe have a condition, or differ in labels
    or their images' shape, and for a guidance of a teacher that nothing guides.
    """
    labelled = load_one_teacher(recipe, recipe.teacher, recipe.teacher_guidance, device)
    if not recipe.teacher_unlabelled:
        return labelled
    message = "teacher_unlabelled is for hidden labels: without any, leave it empty"
    check(recipe.classes > 0, message)
    without_labels = replace(recipe, classes=0, attributes=())
    unlabelled = load_one_teacher(without_labels, recipe.teacher_unlabelled, 0.0, device)(None)

    def teacher(labels: Tensor | None) -> Denoiser:
        if labels is None:
            return unlabelled
        has_label = labels.cpu() < recipe.classes
        return guidance.switched(lambda t: has_label, labelled, lambda labels: unlabelled, labels)

    return teacher


def load_one_teacher(
    recipe: Recipe, source: str | Path, guidance_scale: float, device: torch.device | str
) -> Teacher:
    """One of a recipe's teachers, guided by that scale; 0: as its config.json says."""
    strong = checkpoints.load(source, device)
    defaults = checkpoints.sampling_defaults(source)
    guide = checkpoints.load(defaults["guide"], device) if "guide" in defaults else None
    for other in (recipe, strong.recipe, *([guide.recipe] if guide else [])):
        check(not other.conditional, f"teacher is {source}: no condition can be taught yet")
        shapes = f"{other.shape}, and here they are {recipe.shape}"
        check(other.shape == recipe.shape, f"teacher is {source}: its images are {shapes}")
        alike = (other.classes, other.attributes) == (recipe.classes, recipe.attributes)
        names = " ".join([str(other.classes), *other.attributes])
        check(alike, f"teacher is {source}: its classes are {names}: train with the same")
    can_guide = guide is not None or (recipe.classes > 0 and not needs_labels(strong.recipe))
    advice = f"teacher_guidance is {guidance_scale}, and nothing guides {source}: leave it at 0"
    check(can_guide or not guidance_scale, advice)
    scale = guidance_scale or defaults.get("guidance", guidance.SCALE if guide else 1.0)
    interval = defaults.get("guidance_interval")
    sampling_schedule = catalogue.make_schedule(recipe)

    def unguided(labels: Tensor | None) -> Denoiser:
        return denoiser_along_schedule(sampling_schedule, strong, labels)

    def guided(labels: Tensor | None) -> Denoiser:
        weak = denoiser_along_schedule(
            sampling_schedule, guide or strong, labels if guide else None
        )
        return guidance.guided(weak, unguided(labels), scale)

    def guided_in_interval(labels: Tensor | None) -> Denoiser:
        is_guided = guidance.is_in_interval(tuple(interval))
        return guidance.switched(is_guided, guided, unguided, labels)

    if not can_guide:
        return unguided
    return guided_in_interval if interval else guided


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
