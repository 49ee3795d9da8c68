"""Further schedules, spacings of the sampling times, and a schedule on fewer steps."""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mnist_ddpm import ddpm
from mnist_ddpm.ddpm import Network, Schedule, Time, beta_schedule, check, linear_beta


def linear(T: int = 1000, beta_1: float = 1e-4, beta_T: float = 0.02) -> Schedule:
    """beta_t is linear in t, from beta_1 to beta_T (DDPM, Section 4)."""
    return beta_schedule(linear_beta(T, beta_1, beta_T))


def cosine(T: int = 1000, beta_1: float = 1e-4, beta_T: float = 0.02) -> Schedule:
    """alpha_bar_t = f(t) / f(0), f(t) = cos²((t/T + 0.008) / 1.008 · π/2), beta_t at most 0.999.

    Improved DDPM (arXiv 2102.09672), Eq. 17. beta_1 and beta_T are not used.
    """
    t = torch.arange(T + 1, dtype=torch.float64)
    f = torch.cos((t / T + 0.008) / 1.008 * math.pi / 2).square()
    beta = (1 - f[1:] / f[:-1]).clamp(max=0.999)
    return beta_schedule(F.pad(beta, (1, 0)))


def quadratic(T: int = 1000, beta_1: float = 1e-4, beta_T: float = 0.02) -> Schedule:
    """The root of beta_t is linear in t, from beta_1 to beta_T (DDIM's code, "scaled linear")."""
    return beta_schedule(linear_beta(T, beta_1**0.5, beta_T**0.5).square())


def sigmoid(T: int = 1000, beta_1: float = 1e-4, beta_T: float = 0.02) -> Schedule:
    """beta_t rises from beta_1 to beta_T along a sigmoid over [-6, 6] (arXiv 2203.02923)."""
    rise = torch.linspace(-6, 6, T, dtype=torch.float64).sigmoid()
    return beta_schedule(F.pad(beta_1 + (beta_T - beta_1) * rise, (1, 0)))


def log_snr(T: int = 1000, beta_1: float = 1e-4, beta_T: float = 0.02) -> Schedule:
    """log(a_t² / b_t²) falls evenly, from 13.3 at t = 1 to -5 at T.

    Variational Diffusion Models (arXiv 2107.00630), as they begin. The plain error of eps is then
    the bound, up to a factor. beta_1 and beta_T are not used.
    """
    level = torch.linspace(13.3, -5, T, dtype=torch.float64)
    a = level.sigmoid().sqrt()
    b = (-level).sigmoid().sqrt()
    return Schedule(F.pad(a, (1, 0), value=1.0), F.pad(b, (1, 0)))


def zero_terminal_snr(schedule: Schedule) -> Schedule:
    """A schedule with a_t shifted and scaled so that x_T is pure noise and a_1 stays.

    arXiv 2305.08891, Algorithm 1, for a_t² + b_t² = 1. At T the noise does not determine x_0, so a
    network must not predict eps. Raises ValueError where T is 1.
    """
    check(schedule.T > 1, "T is 1: a schedule that ends in pure noise needs 2 steps or more")
    first, last = schedule.a[[1, -1]]
    a = (schedule.a - last) * (first / (first - last))
    a[0] = 1
    return Schedule(a, (1 - a.square()).sqrt())


def with_zero_snr(make: Callable[..., Schedule]) -> Callable[..., Schedule]:
    """A function of (T, beta_1, beta_T) to the schedule that `make` returns, with zero SNR at T."""
    return lambda T, beta_1, beta_T: zero_terminal_snr(make(T, beta_1, beta_T))


def check_tables(name: str, schedule: Schedule, T: int) -> None:
    """Raises ValueError for tables that are no schedule's, or have another T."""
    check(schedule.T == T, f"the tables of {name} end at {schedule.T}, not at T = {T}")
    t = torch.arange(1, T + 1)
    beta = ddpm.step_variance(schedule, t, t - 1)
    is_valid = schedule.at(0) == (1, 0) and ((beta > 0) & (beta <= 1)).all()
    check(bool(is_valid), f"the tables of {name} need a_0 = 1, b_0 = 0, then 0 < beta_t <= 1")


def by_length(spacing: Callable[[int, int], list[int]]) -> Callable[[Schedule, int], list[int]]:
    """A spacing of (T, n), such as ddpm.timesteps, as one of (schedule, n)."""
    return lambda schedule, n: spacing(schedule.T, n)


def check_steps(T: int, n: int) -> None:
    """Raises ValueError unless n is in 1 … T."""
    check(1 <= n <= T, f"the number of sampling steps is {n}: take one from 1 to T = {T}")


def strictly_rising(times: np.ndarray) -> np.ndarray:
    """Rising whole numbers, each raised to more than the one before where it is not."""
    k = np.arange(len(times))
    return np.maximum.accumulate(times - k) + k


def leading(T: int, n: int) -> list[int]:
    """n falling times, evenly spaced, always to 1; from T only where n = T."""
    check_steps(T, n)
    return [1 + T * k // n for k in reversed(range(n))]


def linspace(T: int, n: int) -> list[int]:
    """n falling times, evenly spaced from T to 1."""
    check_steps(T, n)
    return [1 + round((T - 1) * fraction) for fraction in np.linspace(1, 0, n)]


def quadratic_times(T: int, n: int) -> list[int]:
    """n falling times from T to 1, closer together towards 1 (DDIM, Appendix D.2)."""
    check_steps(T, n)
    rising = 1 + np.round((T - 1) * np.linspace(1, 0, n)[::-1] ** 2)
    return strictly_rising(rising)[::-1].astype(int).tolist()  # some small times would repeat


def even_signal(schedule: Schedule, n: int) -> list[int]:
    """n falling times, always from T, between which a_t rises evenly up to 1.

    For samplers that add fresh noise at each: more of them lie where x_t depends on x_0.
    """
    check_steps(schedule.T, n)
    signal = torch.linspace(0, 1, n + 1, dtype=torch.float64)[1:-1]
    back = torch.searchsorted(schedule.a.flip(0), signal)  # steps back from T
    falling = schedule.T - strictly_rising(np.array([0, *back.tolist()]))
    return np.maximum(falling, np.arange(n, 0, -1)).tolist()


def respaced_schedule(schedule: Schedule, times: list[int]) -> Schedule:
    """The schedule of len(times) steps that goes through falling times (Improved DDPM, Eq. 19)."""
    ddpm.transitions(times, schedule.T)
    rising = [0, *reversed(times)]
    return Schedule(schedule.a[rising], schedule.b[rising])


def respaced_network(network: Network, times: list[int]) -> Network:
    """A network or denoiser for respaced_schedule(schedule, times): step 1 is the smallest time."""
    rising = torch.tensor(times[::-1])

    def network_of_step(xt: Tensor, step: Time):
        return network(xt, rising[torch.as_tensor(step).cpu() - 1])

    return network_of_step
