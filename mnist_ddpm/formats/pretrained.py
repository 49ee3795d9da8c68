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

# The settings that decide a network and what its output means
DECISIVE_SETTINGS = (
    "network", "image_size", "channels", "base_channels", "channel_mults", "blocks_per_level",
    "attention_resolutions", "patch_size", "norm_groups", "dropout", "condition", "classes",
    "attributes", "schedule", "T", "beta_1", "beta_T", "prediction", "objective",
)  # fmt: skip
LABELS = 0.5  # deviation of the first vectors of labels: from 0 they are learned late


def initial_weights(
    source: str | Path, labels: bool = True, condition: str = "none", classes: int = 0,
    shortcut: bool = False,
) -> tuple[dict, dict[str, Tensor]]:  # fmt: skip
    """Weights to start from, and the settings that decide their network and its output's meaning.

    source: a checkpoint, as checkpoints.find knows it, or what load_diffusers reads. labels:
    whether there are any to train with; if not, a network with labels becomes one without, which
    predicts what it did for no label. condition: one that a network without begins to use, from
    weights 0. classes: labels that it begins to use, each from a small random vector. shortcut: it
    begins to use where steps go, too. Raises as checkpoints.load and load_diffusers.
    """
    config = checkpoints.find(source, CONFIGS) / CONFIG
    own = config.is_file() and "format" in read_config(config)
    found = checkpoints.load(source) if own else load_diffusers(source)
    network, recipe = found[0], found[2]
    decided = {name: getattr(recipe, name) for name in DECISIVE_SETTINGS} | {
        "init_from": str(source)
    }
    weights = network.state_dict()
    if recipe.classes and not labels:
        # What is added to the embedding of t, a bias may add too.
        *told, unknown = weights.pop("label.weight")
        trained = recipe.label_dropout > 0
        unknown = unknown if trained else torch.stack(told).mean(dim=0)
        weights["time.2.bias"] = weights["time.2.bias"] + unknown
        decided |= {"classes": 0, "attributes": ()}
    if classes and not recipe.classes:
        decided["classes"] = classes
        fresh = catalogue.make_network(replace(recipe, classes=classes)).label.weight.detach()
        weights["label.weight"] = LABELS * fresh
        weights["label.weight"][classes] = 0  # for no label it is what it was
    if shortcut and recipe.network == "unet":
        decided["network"] = "shortcut"
        whole = {name: decided[name] for name in ("network", "classes", "attributes")}
        weights = catalogue.make_network(replace(recipe, **whole)).state_dict() | weights
    if not recipe.conditional and condition != "none" and isinstance(network, UNet):
        decided["condition"] = condition
        more = catalogue.condition_channels(replace(recipe, condition=condition))
        last = 0, 0, 0, 0, 0, more * recipe.patch_size**2  # patches come channel by channel
        weights["conv_in.weight"] = nn.functional.pad(weights["conv_in.weight"], last)
    return decided, weights
