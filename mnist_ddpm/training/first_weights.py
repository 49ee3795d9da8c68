"""Weights to start a training from, and checkpoints as teachers."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from mnist_ddpm import catalogue
from mnist_ddpm.data.labels import needs_labels
from mnist_ddpm.ddpm import Denoiser, Schedule, UNet, check
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.formats.checkpoints import load_weights, refuse, wrong_shapes
from mnist_ddpm.formats.diffusers import CONFIG, CONFIGS, load_diffusers
from mnist_ddpm.formats.hub import read_config
from mnist_ddpm.machine.process import is_first_process
from mnist_ddpm.method import Method
from mnist_ddpm.methods import guidance, paths
from mnist_ddpm.methods.guidance import Teacher
from mnist_ddpm.recipe import Recipe, deciding

LABEL_STD = 0.5  # of new label vectors: from 0 they would be learned late


class Sources:
    """Checkpoints and models by their names, each read once, whoever asks for it."""

    def __init__(self):
        self.known: dict[str, checkpoints.Checkpoint] = {}

    def load(self, source: str | Path) -> checkpoints.Checkpoint:
        """A checkpoint, as for checkpoints.find, or a model, as for load_diffusers."""
        name = str(source)
        if name not in self.known:
            config = checkpoints.find(source, CONFIGS) / CONFIG
            is_own = config.is_file() and "format" in read_config(config)
            self.known[name] = checkpoints.load(source) if is_own else load_diffusers(source)
        return self.known[name]


def initial_weights(
    source: str | Path,
    labels: bool = True,
    condition: str = "none",
    classes: int = 0,
    shortcut: bool = False,
    sources: Sources | None = None,
) -> tuple[dict, dict[str, Tensor]]:
    """Weights to start from, and the settings that determine their network and its output.

    source: as Sources.load takes it; sources: where it is read, or was already. Options change the
    network so that it begins with the same output. labels False: it takes none, as if they were
    unknown. condition: a new input, with weights 0. classes: new labels, with small random vectors,
    0 for an unknown one. shortcut: it takes the time where a step ends. Raises as checkpoints.load
    and load_diffusers.
    """
    network, _, recipe = (sources or Sources()).load(source)
    settings = {name: getattr(recipe, name) for name in deciding("network")}
    settings["init_from"] = str(source)
    weights = network.state_dict()
    if recipe.classes and not labels:
        # The bias of the embedding of t replaces the label's vector
        *known, unknown = weights.pop("label.weight")
        is_trained = recipe.label_dropout > 0
        vector = unknown if is_trained else torch.stack(known).mean(dim=0)
        weights["time.2.bias"] = weights["time.2.bias"] + vector
        settings |= {"classes": 0, "attributes": ()}
    if classes and not recipe.classes:
        settings["classes"] = classes
        fresh = catalogue.make_network(replace(recipe, classes=classes)).label.weight.detach()
        weights["label.weight"] = LABEL_STD * fresh
        weights["label.weight"][classes] = 0
    if shortcut and recipe.network == "unet":
        settings["network"] = "shortcut"
        changes = {name: settings[name] for name in ("network", "classes", "attributes")}
        weights = catalogue.make_network(replace(recipe, **changes)).state_dict() | weights
    if not recipe.conditional and condition != "none" and isinstance(network, UNet):
        settings["condition"] = condition
        channels = catalogue.condition_channels(replace(recipe, condition=condition))
        padding = 0, 0, 0, 0, 0, channels * recipe.patch_size**2  # patches come channel by channel
        weights["conv_in.weight"] = nn.functional.pad(weights["conv_in.weight"], padding)
    return settings, weights


def load_first_weights(
    recipe: Recipe, network: nn.Module, method: Method, sources: Sources
) -> None:
    """Loads into a recipe's network, and its method's, the weights that they begin with.

    Where some of recipe.init_from do not fit, it keeps fresh ones, and prints their names. Raises
    ValueError where they are another network's.
    """
    source = recipe.init_from
    _, weights = initial_weights(
        source,
        labels=recipe.classes > 0,
        condition=recipe.condition,
        classes=recipe.classes,
        shortcut=catalogue.takes_next_time(recipe),
        sources=sources,
    )
    weights, fresh_names = fill_with_fresh(network, weights, source)
    load_weights(network.state_dict(), weights, source)
    if fresh_names and is_first_process():
        fitting = len(weights) - len(fresh_names)
        names = ", ".join(fresh_names)
        print(f"{fitting} of {len(weights)} tensors are those of {source}; new: {names}")
    for name in method.initialized_from_teacher:
        part = method.networks[name]
        load_weights(part.state_dict(), first_weights(recipe, part, sources), source)


def fill_with_fresh(
    network: nn.Module, weights: dict[str, Tensor], source: str | Path
) -> tuple[dict[str, Tensor], list[str]]:
    """Weights for a new network: those that fit it, else its own; and the names of the latter.

    So a network begins with another number of channels or labels. Raises ValueError where less than
    half of the numbers fit: then it is another network.
    """
    shapes = {name: weight.shape for name, weight in weights.items()}
    fresh = network.state_dict()
    misfits = wrong_shapes(fresh, shapes)
    if not misfits:
        return weights, []
    fitting = {
        name: weights[name]
        for name, own in fresh.items()
        if name in weights and weights[name].shape == own.shape
    }
    share = sum(own.numel() for own in fitting.values())
    if 2 * share < sum(own.numel() for own in fresh.values()):
        refuse(misfits, source)
    return fresh | fitting, sorted(fresh.keys() - fitting.keys())


def denoiser_along_schedule(
    sampling_schedule: Schedule, checkpoint: checkpoints.Checkpoint, labels: Tensor | None = None
) -> Denoiser:
    """A checkpoint's denoiser along a schedule, which may be its own, with labels (N,) or none."""
    network, schedule, recipe = checkpoint
    network = guidance.with_labels(network, labels)
    return catalogue.make_denoiser(network, schedule, recipe, sampling_schedule=sampling_schedule)


def load_teacher(
    recipe: Recipe, device: torch.device | str = "cpu", sources: Sources | None = None
) -> Teacher:
    """What a network of this recipe can learn from, along its schedule. It is not clipped.

    recipe.teacher: as checkpoints.find knows it. It is given the images' labels, and guided away
    from its prediction without, by recipe.teacher_guidance; 0 stands for what its config.json says.
    recipe.teacher_unlabelled: another for images without a label, guided as its own says. Raises as
    checkpoints.load, and ValueError where teacher or recipe have a condition, or differ in labels
    or their images' shape, and for a guidance of a teacher that nothing guides.
    """
    sources = sources or Sources()
    labelled = load_one_teacher(recipe, recipe.teacher, recipe.teacher_guidance, device, sources)
    if not recipe.teacher_unlabelled:
        return labelled
    message = "teacher_unlabelled is for hidden labels: without any, leave it empty"
    check(recipe.classes > 0, message)
    without_labels = replace(recipe, classes=0, attributes=())
    unlabelled = load_one_teacher(without_labels, recipe.teacher_unlabelled, 0.0, device, sources)(
        None
    )

    def teacher(labels: Tensor | None) -> Denoiser:
        if labels is None:
            return unlabelled
        has_label = labels.cpu() < recipe.classes
        return guidance.switched(lambda t: has_label, labelled, lambda labels: unlabelled, labels)

    return teacher


def load_one_teacher(
    recipe: Recipe,
    source: str | Path,
    guidance_scale: float,
    device: torch.device | str,
    sources: Sources,
) -> Teacher:
    """One of a recipe's teachers, guided by that scale; 0: as its config.json says."""
    strong = sources.load(source)
    strong.network.to(device)
    defaults = checkpoints.sampling_defaults(source)
    guide = sources.load(defaults["guide"]) if "guide" in defaults else None
    if guide is not None:
        guide.network.to(device)
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
        own_times = paths.own_times(strong.schedule, sampling_schedule)
        is_guided = guidance.is_in_interval(interval, own_times)
        return guidance.switched(is_guided, guided, unguided, labels)

    if not can_guide:
        return unguided
    return guided_in_interval if interval else guided


def first_weights(
    recipe: Recipe, network: nn.Module, sources: Sources | None = None
) -> dict[str, Tensor]:
    """Weights that a further network, of the kind shortcut, begins with.

    Those of a teacher, the unlabelled one last, if it has such a network and predicts the same;
    else those that the recipe's network begins with.
    """
    meaning = "schedule", "T", "beta_1", "beta_T", "prediction"
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    for source in filter(None, (recipe.teacher, recipe.teacher_unlabelled, recipe.init_from)):
        decided, weights = initial_weights(
            source, recipe.classes > 0, classes=recipe.classes, shortcut=True, sources=sources
        )
        alike = all(decided[name] == getattr(recipe, name) for name in meaning)
        if alike and shapes == {name: value.shape for name, value in weights.items()}:
            break
    return weights
