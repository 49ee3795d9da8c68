"""A U-Net with Fourier features of its input, for the likelihood (VDM, arXiv 2107.00630).

Most bits of an image lie in its exact grey levels, and from one to the next x_t changes too little
for a network to notice.
"""

import math

import torch
from torch import Tensor

from mnist_ddpm.ddpm import UNet

WAVELENGTHS = 7  # 1, 2, 4 … 64 grey levels


def fourier_features(x: Tensor) -> Tensor:
    """Sines and cosines (N, 14C, H, W) of the grey levels of x, which repeat after 1, 2 … 64."""
    angle = 2 * math.pi * 127.5 * (x + 1)  # 2 pi for each level
    waves = [f(angle / 2**k) for k in range(WAVELENGTHS) for f in (torch.sin, torch.cos)]
    return torch.cat(waves, dim=1)


class FourierUNet(UNet):
    """A U-Net with the Fourier features of x as further input. Its arguments are the U-Net's."""

    def __init__(self, channels: int = 1, *args, out_channels: int | None = None, **options):
        in_channels = (1 + 2 * WAVELENGTHS) * channels
        super().__init__(in_channels, *args, out_channels=out_channels or channels, **options)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return super().forward(torch.cat([x, fourier_features(x)], dim=1), t)
