"""Training times that are not uniform: log(b_t / a_t) has a normal distribution."""

from typing import Protocol

import torch
from torch import Tensor, nn

from mnist_ddpm.ddpm import Schedule


class NormalTimes(nn.Module):
    """Draws t so that log(b_t / a_t) is normal with this mean and standard deviation.

    t is the first time that reaches the drawn value. Losses have weight 1, since to emphasise some
    times is the purpose. Mean -1.2 and std 1.2 are EDM's (arXiv 2206.00364, Table 1). On flow
    matching's path, where log(b_t / a_t) is the logit of t/T, 0 and 1 are the logit-normal times of
    arXiv 2403.03206, Section 3.1.
    """

    def __init__(self, schedule: Schedule, mean: float = 0.0, std: float = 1.0):
        super().__init__()
        level = (schedule.b / schedule.a).log()[1:-1]  # below them is t = 1, above t = T
        self.ends = (level - mean) / std

    def probability(self) -> Tensor:
        """The probabilities of t = 1 … T, float64 (T,)."""
        below = torch.cat([torch.zeros(1), torch.special.ndtr(self.ends), torch.ones(1)])
        return below.diff()

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Times (n,), and weights of 1."""
        level = torch.randn(n, generator=generator, dtype=torch.float64)
        return 1 + torch.searchsorted(self.ends, level), torch.ones(n)

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Does nothing: the distribution is fixed."""


class TimeSampler(Protocol):
    """Draws non-uniform training times. An nn.Module on the CPU."""

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Times (n,), and the weights (n,) of their losses.

        Importance weights 1 / (T p_t), where t has probability p_t, keep the expected loss that of
        uniform t. Weights of 1 emphasise the times that are drawn more often.
        """

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Learns from the losses (N,) at times t (N,)."""

    def state_dict(self) -> dict: ...

    def load_state_dict(self, state: dict) -> object: ...
