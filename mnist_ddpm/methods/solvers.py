"""Second-order solvers of the probability-flow ODE and SDE, DDIM inversion, and thresholding.

With sigma = b_t / a_t and x / a_t in the place of x, the ODE is dx / dsigma = eps_hat.
DDIM with eta = 0 is Euler's method for it, of first order.
"""

import math

import torch
from torch import Tensor

from mnist_ddpm.ddpm import Denoiser, Schedule, States, Time, check, predict_eps, transitions


@torch.no_grad()
def dpmpp_2m_sampler(denoise, schedule, times, xT, draw_noise, eta: float = 0.0) -> States:
    """DPM-Solver++(2M), one evaluation a step (arXiv 2211.01095, Algorithm 2).

    h is the step in lambda = log(a_t / b_t). The order is first at both ends and where h is more
    than twice the h before, as at the end of "linspace" and "leading": too long a step to
    extrapolate x0_hat over.
    eta: draw_noise() makes up 1 - exp(-2 eta h) of the variance b_s² of x_s, x_t the remainder.
    1 is the paper's SDE-DPM-Solver++(2M), which at first order is ancestral sampling; below 1 it
    adds more noise than DDIM with the same eta. Raises ValueError unless eta is finite and >= 0.
    """
    check(0 <= eta < math.inf, f"eta is {eta}: take a number from 0; 1 is as noisy as DDPM")
    x = xT
    last_x0_hat = xT
    last_h = 0.0
    lam = (schedule.a / schedule.b).log()  # inf at t = 0
    for t, s in transitions(times, schedule.T):
        x0_hat, _ = denoise(x, t)
        yield t, x, x0_hat
        h = (lam[s] - lam[t]).item()
        direction = x0_hat
        if s > 0 and h <= 2 * last_h:  # at s = 0 h is infinite
            direction = x0_hat + (x0_hat - last_x0_hat) * (h / (2 * last_h))
        _, b_t = schedule.at(t)
        a_s, b_s = schedule.at(s)
        decay = math.exp(-eta * h) if eta > 0 else 1.0
        x = (b_s / b_t * decay).item() * x
        x = x - a_s.item() * math.expm1(-(1 + eta) * h) * direction
        if eta > 0 and s > 0:
            x = x + b_s.item() * math.sqrt(1 - decay**2) * draw_noise()
        last_x0_hat = x0_hat
        last_h = h
    yield 0, x, x


@torch.no_grad()
def heun_sampler(denoise, schedule, times, xT, draw_noise) -> States:
    """Heun's method in sigma, two evaluations a step (EDM, arXiv 2206.00364, Algorithm 1).

    Euler's method, with one, for a step to sigma = 0 or to less than a tenth of sigma, as the first
    of a cosine schedule or of very few: eps_hat at its end, times so large a difference, would
    dominate the image. Draws no noise.
    """
    x = xT
    sigma = schedule.b / schedule.a
    for t, s in transitions(times, schedule.T):
        x0_hat, eps_hat = denoise(x, t)
        yield t, x, x0_hat
        a_s, b_s = (value.item() for value in schedule.at(s))
        euler = a_s * x0_hat + b_s * eps_hat
        if sigma[t] > 10 * sigma[s]:  # always at s = 0, where eps_hat is not defined
            x = euler
            continue
        slope = (eps_hat + denoise(euler, s)[1]) / 2
        x = (a_s / schedule.a[t]).item() * x
        x = x + a_s * (sigma[s] - sigma[t]).item() * slope
    yield 0, x, x


@torch.no_grad()
def ddim_encoder(denoise: Denoiser, schedule: Schedule, times: list[int], x0: Tensor) -> States:
    """From images x0 (N, C, H, W) to the noise that DDIM turns into them (DDIM, Eq. 14).

    times fall, as for a sampler. Yields (t, x_t, x0_hat) for 0 and each time, rising. For x_0,
    where eps_hat is not defined, the denoiser is called with t = 1.
    """
    x = x0
    for t, s in transitions(times, schedule.T)[::-1]:
        x0_hat, eps_hat = denoise(x, max(s, 1))
        yield s, x, x0_hat
        a_t, b_t = (value.item() for value in schedule.at(t))
        x = a_t * (x0_hat if s else x0) + b_t * eps_hat
    yield t, x, denoise(x, t)[0]


def thresholded(denoise: Denoiser, schedule: Schedule, quantile: float = 0.995) -> Denoiser:
    """A denoiser with dynamic thresholding of x0_hat, and eps_hat to match (arXiv 2205.11487, 2.3).

    Each image's x0_hat is clipped to its own quantile q >= 1 of |x0_hat|, then divided by q. Raises
    ValueError unless 0 < quantile <= 1.
    """
    check(0 < quantile <= 1, f"quantile is {quantile}: take a number above 0, at most 1")

    def denoise_and_threshold(xt: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        x0_hat, _ = denoise(xt, t)
        size = x0_hat.abs().flatten(1).quantile(quantile, dim=1)
        q = size.clamp(min=1).view(-1, 1, 1, 1)
        x0_hat = x0_hat.clamp(-q, q) / q
        return x0_hat, predict_eps(schedule, xt, t, x0_hat)

    return denoise_and_threshold
