"""Faster solvers of the probability-flow ODE and SDE, the ODE's reversal, and thresholding of the predicted x_0.

With sigma = sqrt(1 - alpha_bar) / sqrt(alpha_bar) and x / sqrt(alpha_bar) in the place of x, the ODE is
dx / dsigma = eps_hat(x, sigma). DDIM with eta = 0 is Euler's method for it, of first order; these are of second.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from mnist_ddpm.ddpm import Clip, Model, Schedule, States, predict, transitions


@torch.no_grad()
def dpmpp_2m_sampler(
    model: Model, schedule: Schedule, times: list[int], xT: Tensor, noise: Callable[[], Tensor] | None = None,
    *, eta: float = 0.0, clip: Clip = True,
) -> States:  # fmt: skip
    """DPM-Solver++(2M), multistep, one evaluation a step (arXiv 2211.01095, Algorithm 2), first order at both ends.

    h is the step in lambda, half the log SNR. Where it is more than twice the step before, as at the end of "linspace"
    and "leading", the order is first too: what x0_hat did in so short a step says nothing about so long a one.
    eta: noise() brings 1 - exp(-2 eta h) of the variance 1 - alpha_bar_s of x_s; the rest stays from x_t. 1 is that
    paper's SDE-DPM-Solver++(2M), which at first order is ancestral sampling; below 1 it adds more than DDIM with the
    same eta.
    Yields (t, x_t, x0_hat) for each time, then (0, x_0, x_0). Raises ValueError unless eta is finite and >= 0.
    """
    if not 0 <= eta < math.inf:
        raise ValueError(f"eta is {eta}: it must be at least 0 (deterministic), such as 1 (as noisy as DDPM)")
    x, older, last_h = xT, xT, 0.0
    lam = 0.5 * (schedule.alpha_bar / (1 - schedule.alpha_bar)).log()  # inf at t = 0
    for t, s in transitions(times, schedule.T):
        x0_hat = predict(model, schedule, x, t, clip).x0_hat
        yield t, x, x0_hat
        h = (lam[s] - lam[t]).item()
        direction = x0_hat
        if s > 0 and h <= 2 * last_h:  # at s = 0 h is infinite
            direction = x0_hat + (x0_hat - older) * (h / (2 * last_h))
        alpha_bar_t, alpha_bar_s = schedule.alpha_bar[t].item(), schedule.alpha_bar[s].item()
        shrink = math.sqrt((1 - alpha_bar_s) / (1 - alpha_bar_t))
        kept = math.exp(-eta * h) if eta > 0 else 1.0  # h is infinite at s = 0
        x = shrink * kept * x - math.sqrt(alpha_bar_s) * math.expm1(-(1 + eta) * h) * direction
        if eta > 0 and s > 0:
            x = x + math.sqrt((1 - alpha_bar_s) * (1 - kept**2)) * noise()
        older, last_h = x0_hat, h
    yield 0, x, x


@torch.no_grad()
def heun_sampler(
    model: Model, schedule: Schedule, times: list[int], xT: Tensor, noise: Callable[[], Tensor] | None = None,
    *, clip: Clip = True,
) -> States:  # fmt: skip
    """Heun's method in sigma, two evaluations a step (EDM, arXiv 2206.00364, Algorithm 1).

    Euler's, with one, to sigma = 0 and where sigma falls more than tenfold in a step, as with a cosine schedule at
    first, and with any in very few steps: there eps_hat at the end, times so large a difference, would swamp the
    image.
    Yields (t, x_t, x0_hat) for each time, then (0, x_0, x_0). Draws no noise.
    """
    x = xT
    for t, s in transitions(times, schedule.T):
        x0_hat, eps_hat, _ = predict(model, schedule, x, t, clip)
        yield t, x, x0_hat
        alpha_bar_t, alpha_bar_s = schedule.alpha_bar[t].item(), schedule.alpha_bar[s].item()
        euler = math.sqrt(alpha_bar_s) * x0_hat + math.sqrt(1 - alpha_bar_s) * eps_hat
        sigma_t, sigma_s = (math.sqrt((1 - a) / a) if a else math.inf for a in (alpha_bar_t, alpha_bar_s))
        if sigma_t > 10 * sigma_s:  # so too at s = 0, where eps_hat is not defined
            x = euler
            continue
        slope = (eps_hat + predict(model, schedule, euler, s, clip).eps_hat) / 2
        x = math.sqrt(alpha_bar_s / alpha_bar_t) * x + math.sqrt(alpha_bar_s) * (sigma_s - sigma_t) * slope
    yield 0, x, x


@torch.no_grad()
def ddim_encoder(model: Model, schedule: Schedule, times: list[int], x0: Tensor, *, clip: Clip = True) -> States:
    """The way back: from images x0 (N, C, H, W) in [-1, 1] to the noise that DDIM turns into them (DDIM, Eq. 14).

    times fall, as for a sampler, and clip must be the sampler's, which would go another way else. Yields
    (t, x_t, x0_hat) for 0 and each time, rising. At x_0, where eps_hat is not defined, the network is asked for t = 1.
    """
    x = x0
    for t, s in transitions(times, schedule.T)[::-1]:
        x0_hat, eps_hat, _ = predict(model, schedule, x, max(s, 1), clip)
        yield s, x, x0_hat
        alpha_bar_t = schedule.alpha_bar[t].item()
        x = math.sqrt(alpha_bar_t) * (x0_hat if s else x0) + math.sqrt(1 - alpha_bar_t) * eps_hat
    yield t, x, predict(model, schedule, x, t, clip).x0_hat


def dynamic_threshold(quantile: float = 0.995) -> Callable[[Tensor], Tensor]:
    """For a sampler's clip: each image's x0_hat is clipped to its own quantile q of |x0_hat|, then divided by q.

    q is at least 1 (Imagen, arXiv 2205.11487, Section 2.3). Raises ValueError unless 0 < quantile <= 1.
    """
    if not 0 < quantile <= 1:
        raise ValueError(f"quantile is {quantile}: it must be in (0, 1]")

    def clip(x0_hat: Tensor) -> Tensor:
        q = x0_hat.abs().flatten(1).quantile(quantile, dim=1).clamp(min=1).view(-1, 1, 1, 1)
        return x0_hat.clamp(-q, q) / q

    return clip


SAMPLERS = {"dpmpp": dpmpp_2m_sampler, "heun": heun_sampler}
