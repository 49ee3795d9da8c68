"""Weights to start a training from: a checkpoint's, or those of a diffusers model."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from mnist_ddpm import catalogue
from mnist_ddpm.ddpm import UNet
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.formats.diffusers import CONFIG, CONFIGS, load_diffusers
from mnist_ddpm.formats.hub import read_config
from mnist_ddpm.training.recipe import Recipe
from mnist_ddpm.training.weight_loading import refuse, wrong_shapes

# The settings that determine a network and what its output means
DECISIVE_SETTINGS = """
    network image_size channels base_channels channel_mults blocks_per_level attention_resolutions
    patch_size norm_groups dropout condition classes attributes
    schedule T beta_1 beta_T prediction objective
""".split()
LABEL_STD = 0.5  # of new label vectors: from 0 they would be learned late


def initial_weights(
    source: str | Path,
    labels: bool = True,
    condition: str = "none",
    classes: int = 0,
    shortcut: bool = False,
) -> tuple[dict, dict[str, Tensor]]:
    """Weights to start from, and the settings that determine their network and its output.

    source: a checkpoint, as for checkpoints.find, or a model, as for load_diffusers. Options change
    the network so that it begins with the same output. labels False: it takes none, as if they were
    unknown. condition: a new input, with weights 0. classes: new labels, with small random vectors,
    0 for an unknown one. shortcut: it takes the time where a step ends. Raises as checkpoints.load
    and load_diffusers.
    """
    config = checkpoints.find(source, CONFIGS) / CONFIG
    is_own = config.is_file() and "format" in read_config(config)
    network, _, recipe = checkpoints.load(source) if is_own else load_diffusers(source)
    settings = {name: getattr(recipe, name) for name in DECISIVE_SETTINGS}
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


def fill_with_fresh(
    recipe: Recipe, network: nn.Module, weights: dict[str, Tensor], source: str | Path
) -> tuple[dict[str, Tensor], list[str]]:
    """Weights for a recipe's network: those that fit it, else its own; and the names of the latter.

    So a network begins with another number of channels or labels. network: of the recipe, on any
    device. Raises ValueError where less than half of the numbers fit: then it is another network.
    """
    shapes = {name: weight.shape for name, weight in weights.items()}
    misfits = wrong_shapes(network.state_dict(), shapes)
    if not misfits:
        return weights, []
    fresh = catalogue.make_network(recipe).state_dict()
    fitting = {
        name: weights[name]
        for name, own in fresh.items()
        if name in weights and weights[name].shape == own.shape
    }
    share = sum(own.numel() for own in fitting.values())
    if 2 * share < sum(own.numel() for own in fresh.values()):
        refuse(misfits, source)
    return fresh | fitting, sorted(fresh.keys() - fitting.keys())
