"""A U-Net that sees the last digits of a pixel, for the likelihood.

Most bits of an image lie in its exact grey levels, and from one to the next x_t changes by less
than a network notices. So it is given Fourier features (Variational Diffusion Models, arXiv
2107.00630).
"""

import math

import torch
from torch import Tensor

from mnist_ddpm.ddpm import UNet


def waves(x: Tensor) -> Tensor:
    """Sine and cosine of the level in [0, 255] that x (N, C, H, W) in [-1, 1] stands for.

    (N, 4C, H, W). They repeat after two levels, and after one: together they tell an even level
    from an odd one, and how far x is from the nearest.
    """
    level = math.pi * 127.5 * (x + 1)
    return torch.cat([wave(k * level) for k in (1, 2) for wave in (torch.sin, torch.cos)], dim=1)


class FourierUNet(UNet):
    """A U-Net that is given waves(x) beside x. Its arguments are the U-Net's."""

    def __init__(self, channels: int = 1, *args, out_channels: int | None = None, **options):
        out_channels = out_channels or channels
        super().__init__(5 * channels, *args, out_channels=out_channels, **options)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return super().forward(torch.cat([x, waves(x)], dim=1), t)
