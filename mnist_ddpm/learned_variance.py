"""Learned variances of the reverse steps (Improved DDPM, arXiv 2102.09672, Sections 3.1 and 3.3).

The network has a second output v, of the shape of the first. The variance of a step is
exp(e log beta_t + (1 - e) log beta-tilde_t) with e = (v + 1) / 2. L_simple says nothing of it; the bound does.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mnist_ddpm.ddpm import Model, Objective, Schedule, Settings, q_sample
from mnist_ddpm.likelihood import bound_term
from mnist_ddpm.parameterisation import convert, interpret


def l_vlb(prediction: str = "eps") -> Objective:
    """T L_{t-1} in bits/dim, whose mean over uniform t is the bound but for its constant L_T."""

    def objective(model: Model, schedule: Schedule, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        xt = q_sample(schedule, x0, t, eps)
        guess = interpret(schedule, xt, t, model(xt, t), prediction)
        return schedule.T * bound_term(schedule, x0, xt, t, guess).mean(dim=(1, 2, 3))

    return objective


def l_hybrid(prediction: str = "eps", weight: float = 0.001) -> Objective:
    """L_simple + weight · L_vlb (Eq. 16), where L_vlb teaches the variance alone: its mean is detached.

    x0_hat is clipped in that mean, as it will be in use. (The authors' code does not clip it; then, early on, the
    errors at large t outweigh everything.)
    """

    def objective(model: Model, schedule: Schedule, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        xt = q_sample(schedule, x0, t, eps)
        value, v = model(xt, t).to(x0.dtype).chunk(2, dim=1)
        target = eps if prediction == "eps" else convert(schedule, xt, t, x0, "x0", prediction)
        simple = (value - target).square().mean(dim=(1, 2, 3))
        guess = interpret(schedule, xt, t, torch.cat([value.detach(), v], dim=1), prediction)
        guess = guess._replace(x0_hat=guess.x0_hat.clamp(-1, 1))
        vlb = schedule.T * bound_term(schedule, x0, xt, t, guess).mean(dim=(1, 2, 3))
        return simple + weight * vlb

    return objective


class ImportanceTimes(nn.Module):
    """Draws t in proportion to the root mean square of its last 10 losses (Eq. 18); uniformly until each t has 10.

    A thousandth of the draws stays uniform, so that no t is forgotten.
    """

    def __init__(self, T: int, history: int = 10):
        super().__init__()
        self.register_buffer("losses", torch.zeros(T, history))
        self.register_buffer("seen", torch.zeros(T, dtype=torch.long))

    def probability(self) -> Tensor:
        """Of each of t = 1 … T, (T,)."""
        T, history = self.losses.shape
        if (self.seen < history).any():
            return torch.full((T,), 1 / T, device=self.losses.device)
        size = self.losses.square().mean(dim=1).sqrt()
        return 0.999 * size / size.sum() + 0.001 / T

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Times (n,) and the weights of their losses, 1 / (T p_t)."""
        p = self.probability()
        index = torch.multinomial(p, n, replacement=True, generator=generator)
        return index + 1, 1 / (len(p) * p[index])

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Remembers the losses (N,) at times t (N,), the oldest of each t making room."""
        seen = self.seen.tolist()  # read and written once: on a GPU each time is a wait
        for index, loss in zip((t - 1).tolist(), losses):
            self.losses[index, seen[index] % self.losses.shape[1]] = loss
            seen[index] += 1
        self.seen.copy_(torch.tensor(seen))


OBJECTIVES: dict[str, Callable[[Settings], Objective]] = {
    "hybrid": lambda settings: l_hybrid(settings.prediction),
    "vlb": lambda settings: l_vlb(settings.prediction),
}
TIME_SAMPLERS = {"vlb": ImportanceTimes}
