"""A U-Net that sees the last digits of a pixel, for the likelihood.

Most bits of an image lie in its exact grey levels, and from one to the next x_t changes by less
than a network notices. So it is given Fourier features (Variational Diffusion Models, arXiv
2107.00630).
"""

import math

import torch
from torch import Tensor

from mnist_ddpm.ddpm import UNet

WAVELENGTHS = 7  # of waves, from those that repeat after a level to those that do after 64


def fourier_features(x: Tensor) -> Tensor:
    """Sine and cosine of the level in [0, 255] that x (N, C, H, W) in [-1, 1] stands for.

    (N, 14C, H, W). They repeat after 1, 2, 4 … 64 levels, so that for noise up to such a width
    some of them are about as wide.
    """
    angle = 2 * math.pi * 127.5 * (x + 1)  # once round for each level
    return torch.cat(
        [f(angle / 2**k) for k in range(WAVELENGTHS) for f in (torch.sin, torch.cos)], 1
    )


class FourierUNet(UNet):
    """A U-Net that is given waves(x) beside x. Its arguments are the U-Net's."""

    def __init__(self, channels: int = 1, *args, out_channels: int | None = None, **options):
        out_channels, seen = out_channels or channels, (1 + 2 * WAVELENGTHS) * channels
        super().__init__(seen, *args, out_channels=out_channels, **options)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return super().forward(torch.cat([x, fourier_features(x)], dim=1), t)
