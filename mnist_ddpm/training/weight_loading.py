"""Copies tensors into a network or an optimiser, and names those that do not fit."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from mnist_ddpm.ddpm import check


def wrong_shapes(tensors: dict[str, Tensor], shapes: dict[str, Sequence[int]]) -> list[str]:
    """What is missing or unknown among named shapes, or other than that of a network's tensor."""
    wrong = []
    for name, tensor in tensors.items():
        expected = tuple(tensor.shape)
        if name not in shapes:
            wrong.append(f"{name} is missing, should be {expected}")
        elif tuple(shapes[name]) != expected:
            wrong.append(f"{name} is {tuple(shapes[name])}, should be {expected}")
    return wrong + [f"{name} is unknown" for name in shapes if name not in tensors]


def refuse(wrong: list[str], source: str | Path) -> None:
    """Raises ValueError naming what is wrong with weights, if anything is: the first three."""
    more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    listed = f"{'; '.join(wrong[:3])}{more}"
    check(not wrong, f"the weights of {source} do not fit the network: {listed}")


def load_weights(
    tensors: dict[str, Tensor], weights: dict[str, Tensor], source: str | Path
) -> None:
    """Copies weights into a network's tensors, or an optimiser's.

    source: what messages call them. Raises ValueError naming those that are missing or unknown, of
    another shape, no floats where the tensors are, or not finite.
    """
    refuse(wrong_shapes(tensors, {name: weight.shape for name, weight in weights.items()}), source)
    wrong = []
    for name, tensor in tensors.items():
        weight = weights[name]
        if weight.is_floating_point() != tensor.is_floating_point() or weight.is_complex():
            wrong.append(f"{name} is {weight.dtype}, should be like {tensor.dtype}")
        elif not weight.float().isfinite().all():
            wrong.append(f"{name} is not finite everywhere")
    refuse(wrong, source)
    for name, tensor in tensors.items():
        tensor.copy_(weights[name])
