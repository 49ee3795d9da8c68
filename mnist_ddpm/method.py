"""A training method: the loss, plus any extra networks and optimisers.

This module is a layer below `methods/`, which defines methods, and `training/`, which trains with
them, since neither of the two imports the other.
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
    """N images of a training step, with their times, noise and labels."""

    x0: Tensor  # (N, C, H, W), in [-1, 1]
    t: Tensor  # (N,), each 1 … T
    eps: Tensor  # noise, like x0
    labels: Tensor | None = None  # (N,), as the network gets them: some hidden by label dropout
    true_labels: Tensor | None = None  # (N,), none hidden
    progress: float = 1.0  # the share of training that is done, from 0 to 1


class Method:
    """A loss, and the extra networks and optimisers that only training needs.

    networks: the extra networks, by name. They are trained and resumed with the run's network, but
    never averaged or saved in a checkpoint. Each has its own optimiser and gradient clipping.
    initialized_from_teacher: the names of those that start from the teacher's weights if they can.
    sampling_defaults: how best to sample from the trained network, as flags of sample and values.
    """

    def __init__(self, **networks: nn.Module):
        self.networks = nn.ModuleDict(networks)
        self.initialized_from_teacher: tuple[str, ...] = ()
        self.sampling_defaults: dict = {}

    def loss(self, network: Network, schedule: Schedule, batch: Batch) -> Tensor:
        """The loss of each image, (N,). network: takes x_t, times, and any labels."""
        raise NotImplementedError

    def optimizer(self, name: str, network: nn.Module, make: MakeOptimizer) -> Optimizer:
        """The optimiser of one of its networks, or of the run's, whose name is "network".

        make: makes the recipe's optimiser. A parameter group's "rate_factor", if it has one,
        multiplies the recipe's learning rate.
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
    """A method that changes another's loss, and takes everything else from it."""

    def __init__(self, method: Method, **networks: nn.Module):
        super().__init__(**method.networks, **networks)
        self.method = method
        self.initialized_from_teacher = method.initialized_from_teacher
        self.sampling_defaults = method.sampling_defaults

    def optimizer(self, name: str, network: nn.Module, make: MakeOptimizer) -> Optimizer:
        return self.method.optimizer(name, network, make)


def as_method(objective: Objective | Method) -> Method:
    """The method itself, or a PlainMethod of an objective."""
    return objective if isinstance(objective, Method) else PlainMethod(objective)
