"""Further schedules, sampling times, and the same schedule on fewer steps. All tables are float64 over t = 0 … T."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from mnist_ddpm.ddpm import Model, Schedule, Settings, linear_schedule, transitions


def cosine_schedule(settings: Settings) -> Schedule:
    """alpha_bar_t = f(t) / f(0), f(t) = cos²((t/T + 0.008) / 1.008 · π/2), beta_t at most 0.999.

    Improved DDPM (arXiv 2102.09672), Eq. 17. beta_1 and beta_T are not used.
    """
    t = torch.arange(settings.T + 1, dtype=torch.float64)
    f = torch.cos((t / settings.T + 0.008) / 1.008 * math.pi / 2).square()
    return Schedule.from_beta((1 - f[1:] / f[:-1]).clamp(max=0.999))


def quadratic_schedule(settings: Settings) -> Schedule:
    """The root of beta_t is linear in t, from beta_1 to beta_T (DDIM's code; "scaled linear" in latent diffusion)."""
    root = torch.linspace(settings.beta_1**0.5, settings.beta_T**0.5, settings.T, dtype=torch.float64)
    return Schedule.from_beta(root.square())


def sigmoid_schedule(settings: Settings) -> Schedule:
    """beta_t rises from near beta_1 (above it by 0.25 % of the rise) to near beta_T, along a sigmoid over [-6, 6].

    GeoDiff, arXiv 2203.02923.
    """
    rise = torch.linspace(-6, 6, settings.T, dtype=torch.float64).sigmoid()
    return Schedule.from_beta(settings.beta_1 + (settings.beta_T - settings.beta_1) * rise)


def zero_terminal_snr(schedule: Schedule) -> Schedule:
    """sqrt(alpha_bar) shifted and scaled so that x_T is pure noise and alpha_bar_1 stays (arXiv 2305.08891, Alg. 1).

    Raises ValueError where T is 1.
    """
    if schedule.T < 2:
        raise ValueError("a schedule of one step cannot end without signal: T must be at least 2")
    root = schedule.alpha_bar[1:].sqrt()
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    alpha_bar = torch.cat([torch.ones(1, dtype=torch.float64), root.square()])
    return Schedule.from_beta(1 - alpha_bar[1:] / alpha_bar[:-1])


def rescaled(make: Callable[[Settings], Schedule]) -> Callable[[Settings], Schedule]:
    """The schedule that `make` gives, with zero terminal SNR. Its maker raises ValueError for eps prediction.

    Of little use where the loss gives T little or no weight: min-snr, p2, bound, vlb, and any prediction of mu.
    """

    def make_rescaled(settings: Settings) -> Schedule:
        if settings.prediction == "eps":
            raise ValueError(
                f'schedule "{settings.schedule}" ends in pure noise, where eps does not determine x_0: '
                'take prediction "v" or "x0"'
            )
        return zero_terminal_snr(make(settings))

    return make_rescaled


SCHEDULES = {"cosine": cosine_schedule, "quadratic": quadratic_schedule, "sigmoid": sigmoid_schedule}
SCHEDULES |= {f"{name}-zero-snr": rescaled(make) for name, make in {"linear": linear_schedule, **SCHEDULES}.items()}


def quadratic_times(T: int, n: int) -> np.ndarray:
    """From 1 to T, closer together towards 1 (DDIM, Appendix D.2)."""
    k = np.arange(n)
    rising = 1 + np.round((T - 1) * np.linspace(1, 0, n)[::-1] ** 2)
    return np.maximum.accumulate(rising - k) + k  # some small times would repeat


# n rising times of 1 … T. leading: always 1, but T only if n = T. linspace: evenly from 1 to T
SPACINGS = {
    "leading": lambda T, n: 1 + T * np.arange(n) // n,
    "linspace": lambda T, n: 1 + np.round((T - 1) * np.linspace(1, 0, n)[::-1]),
    "quadratic": quadratic_times,
}


def respace(schedule: Schedule, times: list[int]) -> Schedule:
    """The schedule of len(times) steps whose alpha_bar are those at `times`, falling (Improved DDPM, Eq. 19).

    Raises ValueError unless the times fall strictly within T … 1.
    """
    pairs = transitions(times, schedule.T)[::-1]
    return Schedule.from_beta(torch.stack([1 - schedule.alpha_bar[t] / schedule.alpha_bar[s] for t, s in pairs]))


def respaced(model: Model, times: list[int]) -> Model:
    """The model for respace(schedule, times): it is asked for step k and told the k-th smallest of times."""
    rising = torch.tensor(times[::-1])

    def respaced_model(xt: Tensor, t: Tensor, *args, **kwargs) -> Tensor:
        return model(xt, rising.to(t.device)[t - 1], *args, **kwargs)

    return respaced_model
