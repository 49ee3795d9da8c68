"""An image as the condition: the network sees c(x_0) beside x_t, as further channels.

So SR3 (arXiv 2104.07636) makes large images of small ones, and Palette (arXiv 2111.05826) colours
grey ones. A condition is a function of x_0 (N, C, H, W) in [-1, 1] that returns c (N, K, H, W).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mnist_ddpm.ddpm import Network, Objective, Schedule, check

Condition = Callable[[Tensor], Tensor]
LUMINANCE = 0.299, 0.587, 0.114  # of red, green, blue: ITU-R BT.601, as Pillow's mode "L"
FACTOR = 4  # pixels of x_0 in one of the small image, on each side


def grey(x0: Tensor) -> Tensor:
    """The luminance (N, 1, H, W). Raises ValueError for images that have no colour."""
    problem = f"condition grey needs colour, and channels is {x0.shape[1]}"
    check(x0.shape[1] == 3, f"{problem}: set it to 3, or take another condition")
    return (x0.new_tensor(LUMINANCE).view(1, 3, 1, 1) * x0).sum(dim=1, keepdim=True)


def downsampled(x0: Tensor) -> Tensor:
    """The mean of each square of 4 x 4 pixels: (N, C, H/4, W/4). Raises ValueError if some stay."""
    height, width = x0.shape[2:]
    problem = f"condition small takes squares of {FACTOR} x {FACTOR} pixels of {height} x {width}"
    check(height % FACTOR == width % FACTOR == 0, f"{problem}: take multiples of {FACTOR}")
    return F.avg_pool2d(x0, FACTOR)


def small(x0: Tensor) -> Tensor:
    """The same in full size (N, C, H, W), each mean all over its square."""
    return F.interpolate(downsampled(x0), scale_factor=float(FACTOR), mode="nearest")


def with_condition(network: Network, c: Tensor) -> Network:
    """A network whose input is x_t and then c, which is always given this c (N, K, H, W).

    Raises ValueError, when called, for another number of images.
    """

    def network_given(xt: Tensor, t: Tensor) -> Tensor:
        found = f"there are {len(c)} conditions: there must be one for each of {len(xt)} images"
        check(len(c) == len(xt), found)
        return network(torch.cat([xt, c.to(xt)], dim=1), t)

    return network_given


def conditioned(objective: Objective, condition: Condition) -> Objective:
    """The objective of a network that is also given the condition of each x_0."""

    def told(network: Network, schedule: Schedule, x0: Tensor, *rest: Tensor) -> Tensor:
        return objective(with_condition(network, condition(x0)), schedule, x0, *rest)

    return told
