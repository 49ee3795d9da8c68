"""Times of training that are not drawn alike: a normal distribution of log(b_t / a_t)."""

import torch
from torch import Tensor, nn

from mnist_ddpm.ddpm import Schedule


class NormalTimes(nn.Module):
    """Draws t so that log(b_t / a_t) is normal, with this mean and deviation.

    t is the first time at which it is no less than what was drawn. Losses are not weighed: to look
    more closely at some times is the purpose. On flow matching's path log(b_t / a_t) is the logit
    of t/T: 0 and 1 are the logit-normal times of arXiv 2403.03206, Section 3.1. -1.2 and 1.2 are
    the noise levels of EDM (arXiv 2206.00364, Table 1).
    """

    def __init__(self, schedule: Schedule, mean: float = 0.0, std: float = 1.0):
        super().__init__()
        level = (schedule.b / schedule.a).log()[1:-1]  # beyond them are 1 and T
        self.ends = (level - mean) / std

    def probability(self) -> Tensor:
        """Of each of t = 1 … T, float64 (T,)."""
        below = torch.cat([torch.zeros(1), torch.special.ndtr(self.ends), torch.ones(1)])
        return below.diff()

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Times (n,), and weights of 1."""
        level = torch.randn(n, generator=generator, dtype=torch.float64)
        return 1 + torch.searchsorted(self.ends, level), torch.ones(n)

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Learns nothing."""
