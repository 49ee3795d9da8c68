"""What labels mean, for any data set."""

import torch
from torch import Tensor


def typical_labels(labels: Tensor, n: int, seed: int = 0) -> Tensor:
    """n of the labels (N,), drawn at random: their counts vary as those of other real images do."""
    return labels[torch.randint(len(labels), (n,), generator=torch.Generator().manual_seed(seed))]


def needs_labels(recipe) -> bool:
    """Whether a network with labels never trained without, and so knows nothing without them."""
    return recipe.classes > 0 and recipe.label_dropout == 0


def label_names(recipe) -> list[str]:
    """What each label of a network with attributes stands for: those that are present."""
    names = recipe.attributes
    labels = range(2 ** len(names))
    present = [[name for i, name in enumerate(names) if label >> i & 1] for label in labels]
    return [" + ".join(some) or "none of them" for some in present]
