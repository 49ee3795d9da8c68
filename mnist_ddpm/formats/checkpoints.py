"""The project's own checkpoints: a folder with model.safetensors and config.json.

Their files are those of `mnist_ddpm.training.checkpoint_files`, which training writes too.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from mnist_ddpm import catalogue
from mnist_ddpm.catalogue import save_checkpoint as save
from mnist_ddpm.ddpm import Schedule
from mnist_ddpm.training.checkpoint_files import load_config, load_weights, read_weights
from mnist_ddpm.training.recipe import Recipe
from mnist_ddpm.training.saving import WEIGHTS

__all__ = ["Checkpoint", "load", "load_config", "load_weights", "read_weights", "save"]


class Checkpoint(NamedTuple):
    """What a checkpoint holds; the first three are the arguments of catalogue.make_denoiser."""

    network: nn.Module  # averaged, ready to sample
    schedule: Schedule
    recipe: Recipe
    record: dict  # of its training


def load(folder: str | Path, device: torch.device | str = "cpu") -> Checkpoint:
    """A checkpoint of this project's, or of the notebook's.

    Raises FileNotFoundError where the folder is none, ValueError for files that are damaged or do
    not fit each other.
    """
    recipe, record = load_config(folder)
    weights, network = read_weights(folder), catalogue.make_network(recipe)
    known = recipe.objective in catalogue.OBJECTIVES
    unknown = "" if known else f' (of objective "{recipe.objective}", unknown here)'
    load_weights(network.state_dict(), weights, f"{Path(folder, WEIGHTS)}{unknown}")
    network = network.to(device).eval().requires_grad_(False)
    return Checkpoint(network, catalogue.make_schedule(recipe), recipe, record)
