"""The published formulas that carry x_t to x_s: DDPM's, DDIM's, DPM-Solver's, Heun's.

Each is a function of Steps to the mean of x_s and the deviation of the noise around it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from diffusion_doctor.mathematics import CONVERSIONS, Schedule
from diffusion_doctor.subject import levels_at


@dataclass(frozen=True)
class Steps:
    """Some steps of a recorded run as a code with given levels would see them.

    Images are float64 (K, N, D), levels (K, 1, 1): of this time, the next, and the one before.
    """

    schedule: Schedule
    t: Tensor  # entries (K,) of the schedule; they may lie between two
    s: Tensor
    t_before: Tensor
    x: Tensor
    x0: Tensor
    eps: Tensor
    x_before: Tensor  # of the call before; of the first step its own
    x0_before: Tensor
    eps_before: Tensor
    is_first: Tensor  # (K, 1, 1): there was no call before
    is_corrector: Tensor  # (K, 1, 1): the next call has the same time, as in Heun's method
    y: Tensor  # what came out: x_s
    allowed: Tensor  # (K, 1, 1): the deviation of rounding

    def levels(self, entries: Tensor) -> tuple[Tensor, Tensor]:
        """a and b at entries (K,), each (K, 1, 1)."""
        a, b = levels_at(self.schedule, entries)
        return a.view(-1, 1, 1), b.view(-1, 1, 1)

    @cached_property
    def now(self) -> tuple[Tensor, Tensor]:
        """a_t and b_t."""
        return self.levels(self.t)

    @cached_property
    def next(self) -> tuple[Tensor, Tensor]:
        """a_s and b_s."""
        return self.levels(self.s)

    @cached_property
    def before(self) -> tuple[Tensor, Tensor]:
        """a and b of the call before."""
        return self.levels(self.t_before)


Formula = Callable[[Steps], tuple[Tensor, Tensor]]


def predicted(prediction: str, schedule: Schedule, entries: Tensor, x: Tensor, output: Tensor):
    """x0_hat and eps_hat (K, N, D) of outputs that are predictions of this kind."""
    a, b = levels_at(schedule, entries)
    levels = Schedule(a, b.clamp(min=1e-4))
    k = torch.arange(len(x))
    images, values = (each.unsqueeze(1) for each in (x, output))
    x0 = CONVERSIONS[prediction].to_x0(levels, images, k, values).squeeze(1)
    return x0, (x - a.view(-1, 1, 1) * x0) / levels.b.view(-1, 1, 1)


def step_variance(steps: Steps) -> Tensor:
    """The variance of q(x_t | x_s)."""
    (a_t, b_t), (a_s, b_s) = steps.now, steps.next
    return (b_t**2 - (a_t / a_s * b_s) ** 2).clamp(min=0)


def posterior(steps: Steps) -> Tensor:
    """The variance of q(x_s | x_t, x_0)."""
    (_, b_t), (_, b_s) = steps.now, steps.next
    return step_variance(steps) * (b_s / b_t) ** 2


def ddpm_step(steps: Steps, variance: Callable[[Steps], Tensor] = posterior):
    """DDPM's step: the mean of q(x_s | x_t, x0_hat), and noise."""
    (a_t, b_t), (a_s, b_s) = steps.now, steps.next
    x_weight = a_t / a_s * (b_s / b_t) ** 2
    x0_weight = a_s * step_variance(steps) / b_t**2
    return x_weight * steps.x + x0_weight * steps.x0, variance(steps).sqrt()


def ddim_step(steps: Steps, eta: float = 0.0):
    """DDIM's step: a_s x0_hat + sqrt(b_s² - sigma²) eps_hat, and noise of sigma."""
    a_s, b_s = steps.next
    sigma = eta * posterior(steps).sqrt()
    return a_s * steps.x0 + (b_s**2 - sigma**2).clamp(min=0).sqrt() * steps.eps, sigma


def dpmpp_step(steps: Steps, eta: float = 0.0):
    """DPM-Solver++(2M), or its SDE where eta is 1. Of first order in the steps that are so."""
    (a_t, b_t), (a_s, b_s) = steps.now, steps.next
    a_before, b_before = steps.before
    lam = (a_t / b_t).log()
    h = (a_s / b_s).log() - lam
    ratio = h / (2 * (lam - (a_before / b_before).log()))
    decay = (-eta * h).exp()
    scale = -a_s * torch.expm1(-(1 + eta) * h)
    first_order = b_s / b_t * decay * steps.x + scale * steps.x0
    second_order = first_order + scale * ratio * (steps.x0 - steps.x0_before)
    errors = [(steps.y - mean).square().mean((1, 2), True) for mean in (first_order, second_order)]
    is_second = ~steps.is_first & (errors[1] < errors[0])
    mean = torch.where(is_second, second_order, first_order)
    return mean, b_s * (1 - decay**2).clamp(min=0).sqrt()


def heun_step(steps: Steps):
    """Heun's method in sigma: Euler's step, then from x_t again with the mean of both slopes."""
    euler, sigma = ddim_step(steps)
    (a_start, b_start), (a_s, b_s) = steps.before, steps.next
    slope = (steps.eps + steps.eps_before) / 2
    corrected = a_s * (steps.x_before / a_start + (b_s / a_s - b_start / a_start) * slope)
    return torch.where(steps.is_corrector, corrected, euler), sigma


def gradient_estimation(steps: Steps):
    """DDIM with 2 eps_hat - eps_hat before (arXiv 2306.04848)."""
    eps = torch.where(steps.is_first, steps.eps, 2 * steps.eps - steps.eps_before)
    a_t, b_t = steps.now
    a_s, b_s = steps.next
    return a_s * (steps.x / a_t + (b_s / a_s - b_t / a_t) * eps), 0 * b_s


RIGHT: dict[str, Formula] = {
    "DDPM, posterior variance": ddpm_step,
    "DDPM, variance beta": partial(ddpm_step, variance=step_variance),
    "DDIM": ddim_step,
    "DPM-Solver++(2M)": dpmpp_step,
    "SDE-DPM-Solver++(2M)": partial(dpmpp_step, eta=1.0),
    "Heun": heun_step,
    "gradient estimation": gradient_estimation,
}
