"""An image as the condition: the network sees a function of x_0 beside x_t, as more channels.

So SR3 (arXiv 2104.07636) makes large images of small ones, and Palette (arXiv 2111.05826) colours
grey ones. The condition (N, K, H, W) is computed from x_0 (N, C, H, W) in [-1, 1].
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mnist_ddpm.ddpm import Network, Schedule, check
from mnist_ddpm.method import Batch, Decorator, Method

ConditionFunction = Callable[[Tensor], Tensor]  # from x_0 to the condition
LUMINANCE = 0.299, 0.587, 0.114  # of red, green, blue: ITU-R BT.601, as Pillow's mode "L"
FACTOR = 4  # by which downsampled images are smaller on each side


def grey(x0: Tensor) -> Tensor:
    """The luminance (N, 1, H, W). Raises ValueError for images that have no colour."""
    channels = x0.shape[1]
    check(channels == 3, f"condition grey needs colour: channels is {channels}, set it to 3")
    return (x0.new_tensor(LUMINANCE).view(1, 3, 1, 1) * x0).sum(dim=1, keepdim=True)


def downsampled(x0: Tensor) -> Tensor:
    """Means of 4 x 4 pixels (N, C, H/4, W/4). Raises ValueError unless 4 divides both sides."""
    height, width = x0.shape[2:]
    is_divisible = height % FACTOR == width % FACTOR == 0
    message = f"condition small needs sides that {FACTOR} divides, not {height} x {width}"
    check(is_divisible, message)
    return F.avg_pool2d(x0, FACTOR)


def small(x0: Tensor) -> Tensor:
    """The image downsampled, then enlarged again (N, C, H, W): each square has its mean."""
    return F.interpolate(downsampled(x0), scale_factor=float(FACTOR), mode="nearest")


def with_condition(network: Network, condition: Tensor) -> Network:
    """A network of (x_t and condition as channels, t) as one of (x_t, t).

    condition (N, K, H, W): of the N images to come.
    """

    def conditional_network(xt: Tensor, t: Tensor, **labels: Tensor) -> Tensor:
        n_conditions = len(condition)
        check(n_conditions == len(xt), f"there are {n_conditions} conditions for {len(xt)} images")
        return network(torch.cat([xt, condition.to(xt)], dim=1), t, **labels)

    return conditional_network


class Conditioned(Decorator):
    """A method whose network also gets the condition of each x_0."""

    def __init__(self, method: Method, condition_function: ConditionFunction):
        super().__init__(method)
        self.condition_function = condition_function

    def loss(self, network: Network, schedule: Schedule, batch: Batch) -> Tensor:
        conditional = with_condition(network, self.condition_function(batch.x0))
        return self.method.loss(conditional, schedule, batch)
