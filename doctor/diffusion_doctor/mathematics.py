"""Diffusion as the doctor knows it, written apart from any code that it examines.

x_t = a_t x_0 + b_t eps for t = 0 … T, with a_0 = 1, b_0 = 0. Equations are those of DDPM
(arXiv 2006.11239) and DDIM (arXiv 2010.02502), for steps from any t to any s < t.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

Time = int | Tensor
Network = Callable[[Tensor, Tensor], Tensor]
Denoiser = Callable[[Tensor, Time], tuple[Tensor, Tensor]]  # (x_t, t) to x0_hat and eps_hat
States = Iterator[tuple[int, Tensor, Tensor]]  # t, x_t and x0_hat


def check(condition: bool, message: str) -> None:
    """Raises ValueError with this message unless the condition holds."""
    if not condition:
        raise ValueError(message)


class Schedule(NamedTuple):
    """The tables a and b, float64 (T + 1,)."""

    a: Tensor
    b: Tensor

    @property
    def T(self) -> int:
        """The number of steps."""
        return len(self.a) - 1

    def at(self, t: Time) -> tuple[Tensor, Tensor]:
        """a_t and b_t, of one time or of times (N,)."""
        t = torch.as_tensor(t).cpu()
        return self.a[t], self.b[t]


def beta_schedule(beta: Tensor) -> Schedule:
    """The schedule of beta_1 … beta_T, (T,)."""
    alpha_bar = torch.cat([beta.new_ones(1), (1 - beta.double()).cumprod(0)])
    return Schedule(alpha_bar.sqrt(), (1 - alpha_bar).sqrt())


def linear(T: int = 1000) -> Schedule:
    """DDPM's: beta rises evenly from 1e-4 to 0.02."""
    return beta_schedule(torch.linspace(1e-4, 0.02, T, dtype=torch.float64))


def cosine(T: int = 1000) -> Schedule:
    """Improved DDPM's (arXiv 2102.09672, Eq. 17), with beta at most 0.999."""
    t = torch.arange(T + 1, dtype=torch.float64)
    f = torch.cos((t / T + 0.008) / 1.008 * math.pi / 2).square()
    return beta_schedule((1 - f[1:] / f[:-1]).clamp(max=0.999))


def respaced(schedule: Schedule, times: list[int]) -> Schedule:
    """The schedule of len(times) steps that goes through falling times."""
    rising = [0, *reversed(times)]
    return Schedule(schedule.a[rising], schedule.b[rising])


def per_image(values: Tensor, x: Tensor) -> Tensor:
    """One value or (N,) in the type of x (N, …), to be multiplied with it."""
    return values.to(x).reshape(-1, *[1] * (x.ndim - 1))


def q_sample(schedule: Schedule, x0: Tensor, t: Time, eps: Tensor) -> Tensor:
    """x_t of x_0 and noise."""
    a_t, b_t = schedule.at(t)
    return per_image(a_t, x0) * x0 + per_image(b_t, x0) * eps


def predict_x0(schedule: Schedule, xt: Tensor, t: Time, eps: Tensor) -> Tensor:
    """The x_0 with which this noise gives x_t."""
    a_t, b_t = schedule.at(t)
    return (xt - per_image(b_t, xt) * eps) / per_image(a_t, xt)


def predict_eps(schedule: Schedule, xt: Tensor, t: Time, x0: Tensor) -> Tensor:
    """The noise with which this x_0 gives x_t."""
    a_t, b_t = schedule.at(t)
    return (xt - per_image(a_t, xt) * x0) / per_image(b_t, xt)


class Conversion(NamedTuple):
    """From a predicted value to x_0 and back: functions of (schedule, xt, t, value)."""

    to_x0: Callable[[Schedule, Tensor, Time, Tensor], Tensor]
    from_x0: Callable[[Schedule, Tensor, Time, Tensor], Tensor]


def x0_from_v(schedule: Schedule, xt: Tensor, t: Time, v: Tensor) -> Tensor:
    """x_0 from v = a_t eps - b_t x_0 (arXiv 2202.00512), for any a_t² + b_t²."""
    a_t, b_t = (per_image(value, xt) for value in schedule.at(t))
    return (a_t * xt - b_t * v) / (a_t**2 + b_t**2)


def v_from_x0(schedule: Schedule, xt: Tensor, t: Time, x0: Tensor) -> Tensor:
    """v of x_t and its x_0."""
    a_t, b_t = (per_image(value, xt) for value in schedule.at(t))
    return a_t * predict_eps(schedule, xt, t, x0) - b_t * x0


def x0_from_velocity(schedule: Schedule, xt: Tensor, t: Time, velocity: Tensor) -> Tensor:
    """x_0 from the velocity eps - x_0 of flow matching (arXiv 2210.02747)."""
    a_t, b_t = (per_image(value, xt) for value in schedule.at(t))
    return (xt - b_t * velocity) / (a_t + b_t)


def velocity_from_x0(schedule: Schedule, xt: Tensor, t: Time, x0: Tensor) -> Tensor:
    """The velocity of x_t and its x_0."""
    return predict_eps(schedule, xt, t, x0) - x0


def x0_from_score(schedule: Schedule, xt: Tensor, t: Time, score: Tensor) -> Tensor:
    """x_0 from the score, which is -eps / b_t."""
    _, b_t = schedule.at(t)
    return predict_x0(schedule, xt, t, -score * per_image(b_t, xt))


def score_from_x0(schedule: Schedule, xt: Tensor, t: Time, x0: Tensor) -> Tensor:
    """The score of x_t and its x_0."""
    _, b_t = schedule.at(t)
    return -predict_eps(schedule, xt, t, x0) / per_image(b_t, xt)


CONVERSIONS: dict[str, Conversion] = {
    "eps": Conversion(predict_x0, predict_eps),
    "x0": Conversion(lambda schedule, xt, t, x0: x0, lambda schedule, xt, t, x0: x0),
    "v": Conversion(x0_from_v, v_from_x0),
    "score": Conversion(x0_from_score, score_from_x0),
    "velocity": Conversion(x0_from_velocity, velocity_from_x0),
}


def denoiser(network: Network, schedule: Schedule, conversion: Conversion) -> Denoiser:
    """The denoiser of a network whose output is the conversion's value."""

    def denoise(xt: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        value = network(xt, torch.as_tensor(t).expand(len(xt))).to(xt.dtype)
        x0_hat = conversion.to_x0(schedule, xt, t, value)
        if conversion == CONVERSIONS["eps"]:
            return x0_hat, value
        return x0_hat, predict_eps(schedule, xt, t, x0_hat)

    return denoise


def ideal_denoiser(schedule: Schedule, points: Tensor) -> Denoiser:
    """The exact E[x_0 | x_t] for data of these equally likely points (K, C, H, W)."""
    flat = points.double().flatten(1)

    def denoise(xt: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        a_t, b_t = (value.reshape(-1, 1) for value in schedule.at(t))
        x = xt.double().flatten(1)
        square = (x[:, None] - a_t[:, :, None] * flat).square().sum(dim=2)
        weights = torch.softmax(-square / (2 * b_t**2), dim=1)
        x0_hat = (weights @ flat).view(xt.shape).to(xt)
        return x0_hat, predict_eps(schedule, xt, t, x0_hat)

    return denoise


@torch.no_grad()
def ddpm_sampler(
    denoise: Denoiser, schedule: Schedule, times: list[int], x: Tensor, draw_noise: Callable
) -> States:
    """Ancestral sampling along falling times, with the posterior's variance (DDPM, Eq. 6 and 7)."""
    for t, s in zip(times, [*times[1:], 0]):
        x0_hat, _ = denoise(x, t)
        yield t, x, x0_hat
        (a_t, b_t), (a_s, b_s) = (schedule.at(each) for each in (t, s))
        ratio = a_t / a_s
        variance = b_t**2 - ratio**2 * b_s**2  # of q(x_t | x_s)
        x = (a_s * variance * x0_hat.double() + ratio * b_s**2 * x.double()) / b_t**2
        x = x.to(x0_hat)
        if s > 0:
            x = x + (variance * b_s**2 / b_t**2).sqrt().item() * draw_noise()
    yield 0, x, x


@torch.no_grad()
def ddim_sampler(
    denoise: Denoiser, schedule: Schedule, times: list[int], x: Tensor, draw_noise: Callable
) -> States:
    """DDIM without noise along falling times (DDIM, Eq. 12)."""
    for t, s in zip(times, [*times[1:], 0]):
        x0_hat, eps_hat = denoise(x, t)
        yield t, x, x0_hat
        a_s, b_s = (value.item() for value in schedule.at(s))
        x = a_s * x0_hat + b_s * eps_hat
    yield 0, x, x


def random_generator(*keys: int) -> torch.Generator:
    """A generator on the processor that depends on these whole numbers alone."""
    seed = 0
    for key in keys:
        seed = (seed * 6_364_136_223_846_793_005 + key + 1_442_695_040_888_963_407) % 2**63
    return torch.Generator().manual_seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, the processor's random numbers are those of a seed; afterwards the user's go on."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
