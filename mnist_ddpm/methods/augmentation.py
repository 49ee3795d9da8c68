"""Augmentation that samples do not show: it fades out before training ends.

Shifted and recoloured copies may help where images are few, but a network also learns to draw
them (EDM, arXiv 2206.00364, Appendix F.2, whose network is given them instead). Here ever fewer
images are changed, and in the last part of training none. Shifts did not help digits, which are
centred: experiments/small-sets.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from mnist_ddpm.ddpm import Network, Schedule
from mnist_ddpm.method import Batch, Decorator, Method
from mnist_ddpm.methods.conditioning import grey

END = 0.7  # the share of training after which images stay as they are
LONGEST_SHIFT = 1 / 10  # of a side
STRONGEST = 0.3  # of changes of contrast, brightness and saturation

Augmentation = Callable[[Tensor], Tensor]  # images (N, C, H, W) in [-1, 1] to changed ones


def cut_out(
    images: Tensor, first_row: Tensor, first_column: Tensor, height: int, width: int
) -> Tensor:
    """Of each image (N, C, H, W) the part of that size whose first row and column are (N, 1)."""
    device = images.device
    rows = first_row + torch.arange(height, device=device)
    columns = first_column + torch.arange(width, device=device)
    k = torch.arange(len(images), device=device)[:, None, None]
    return images.permute(0, 2, 3, 1)[k, rows[:, :, None], columns[:, None]].permute(0, 3, 1, 2)


def randomly_shifted(x: Tensor) -> Tensor:
    """Each image moved by up to a tenth of its sides; what is uncovered shows its reflection."""
    n, _, height, width = x.shape
    margins = [max(1, round(LONGEST_SHIFT * side)) for side in (height, width)]
    padded = F.pad(x, [margins[1], margins[1], margins[0], margins[0]], mode="reflect")
    offsets = [torch.randint(0, 2 * margin + 1, (n, 1), device=x.device) for margin in margins]
    return cut_out(padded, *offsets, height, width)


def randomly_recoloured(x: Tensor) -> Tensor:
    """Each image with another contrast, brightness and, of three channels, saturation."""
    contrast, brightness, saturation = STRONGEST * (
        2 * torch.rand(3, len(x), 1, 1, 1, device=x.device, dtype=x.dtype) - 1
    )
    if x.shape[1] == 3:
        luminance = grey(x)
        x = luminance + (1 + saturation) * (x - luminance)
    return ((1 + contrast) * x + brightness).clamp(-1, 1)


AUGMENTATIONS: dict[str, Augmentation] = {"shift": randomly_shifted, "colour": randomly_recoloured}


class Augmented(Decorator):
    """A method whose images are changed with a probability that falls from 1 to 0 in training."""

    def __init__(self, method: Method, augmentations: list[Augmentation]):
        super().__init__(method)
        self.augmentations = augmentations

    def loss(self, network: Network, schedule: Schedule, batch: Batch) -> Tensor:
        share = max(0.0, 1 - batch.progress / END)
        x0 = batch.x0
        for augment in self.augmentations if share > 0 else ():
            is_changed = torch.rand(len(x0), 1, 1, 1, device=x0.device) < share
            x0 = torch.where(is_changed, augment(x0), x0)
        return self.method.loss(network, schedule, replace(batch, x0=x0))
