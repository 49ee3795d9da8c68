"""What a training run learns by, beyond a network and images: its method.

This module stands below `methods/`, which defines methods, and `training/`, which trains by them,
since neither of the two imports the other.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn
from torch.optim import Optimizer

from mnist_ddpm.ddpm import Network, Objective, Schedule

MakeOptimizer = Callable[[nn.Module], Optimizer]  # the recipe's optimiser of a network


@dataclass(frozen=True)
class Batch:
    """N images of a training step, and what was drawn for them."""

    x0: Tensor  # (N, C, H, W), in [-1, 1]
    t: Tensor  # (N,), each 1 … T
    eps: Tensor  # noise, like x0
    labels: Tensor | None = None  # (N,), as the network is given them: some are hidden
    true_labels: Tensor | None = None  # (N,), of which none is hidden
    done: float = 1.0  # the share of training that is done, from 0 to 1


class Method:
    """A loss, and the networks and optimisers that only training needs.

    parts: networks that are trained and resumed beside the run's network, each with its own
    optimiser and its gradients clipped by themselves, but never averaged or saved with the weights.
    begin_as_teacher: the names of those that begin with a teacher's weights if they can.
    sampling_defaults: how its result is best drawn, as flags of sample and their values.
    """

    def __init__(self, **parts: nn.Module):
        self.parts = nn.ModuleDict(parts)
        self.begin_as_teacher: tuple[str, ...] = ()
        self.sampling_defaults: dict = {}

    def loss(self, network: Network, schedule: Schedule, batch: Batch) -> Tensor:
        """One loss an image, (N,). network: takes x_t, times, and labels where there are any."""
        raise NotImplementedError

    def optimizer(self, name: str, network: nn.Module, make: MakeOptimizer) -> Optimizer:
        """The optimiser of the part of that name, or of "network".

        A group's "rate_factor", if it has one, multiplies the recipe's learning rate.
        """
        return make(network)


class PlainMethod(Method):
    """An objective (network, schedule, x0, t, eps), such as ddpm.l_simple, as a method."""

    def __init__(self, objective: Objective):
        super().__init__()
        self.objective = objective

    def loss(self, network: Network, schedule: Schedule, batch: Batch) -> Tensor:
        if batch.labels is not None:
            network = partial(network, labels=batch.labels)
        return self.objective(network, schedule, batch.x0, batch.t, batch.eps)


class Decorator(Method):
    """A method that changes another's loss, and is as that one in all else."""

    def __init__(self, method: Method, **parts: nn.Module):
        super().__init__(**method.parts, **parts)
        self.method = method
        self.begin_as_teacher = method.begin_as_teacher
        self.sampling_defaults = method.sampling_defaults

    def optimizer(self, name: str, network: nn.Module, make: MakeOptimizer) -> Optimizer:
        return self.method.optimizer(name, network, make)


def as_method(objective: Objective | Method) -> Method:
    """The method itself, or that of a plain objective."""
    return objective if isinstance(objective, Method) else PlainMethod(objective)
