"""EDM (arXiv 2206.00364, Table 1) on the path x_t = a_t x_0 + b_t eps, with sigma = b_t / a_t.

Its preconditioning is a prediction, its loss the plain one of what is predicted, its noise levels
are NormalTimes, and its steps a spacing of times. There is no c_noise: the network gets t.
"""

import numpy as np
import torch
from torch import Tensor

from mnist_ddpm.ddpm import Schedule, Time, per_image
from mnist_ddpm.methods.predictions import Conversion, snr
from mnist_ddpm.methods.schedules import check_steps, strictly_rising

SIGMA_DATA = 0.5  # deviation of the data
SIGMA_MIN = 0.002
SIGMA_MAX = 80.0
RHO = 7


def input_scale(schedule: Schedule, t: Time) -> Tensor:
    """c_in / a_t, by which x_t is multiplied for the network: 1 / sqrt(b_t² + a_t² sigma_data²)."""
    a_t, b_t = schedule.at(t)
    return 1 / torch.hypot(b_t, SIGMA_DATA * a_t)


def output_scales(schedule: Schedule, xt: Tensor, t: Time) -> tuple[Tensor, Tensor]:
    """c_skip / a_t and c_out, the factors of x_t and of the network's output F in x0_hat."""
    a_t, b_t = schedule.at(t)
    c_in = input_scale(schedule, t)
    return per_image(a_t * (SIGMA_DATA * c_in) ** 2, xt), per_image(b_t * SIGMA_DATA * c_in, xt)


def x0_from_output(schedule: Schedule, xt: Tensor, t: Time, output: Tensor) -> Tensor:
    """x_0 from the output F: c_skip x_t / a_t + c_out F. At t = 0 it is x_t, for any F."""
    c_skip, c_out = output_scales(schedule, xt, t)
    return c_skip * xt + c_out * output


def output_from_x0(schedule: Schedule, xt: Tensor, t: Time, x0: Tensor) -> Tensor:
    """The output F with which x_t gives x_0."""
    c_skip, c_out = output_scales(schedule, xt, t)
    return (x0 - c_skip * xt) / c_out


EDM = Conversion(x0_from_output, output_from_x0, input_scale)


def edm_weight(schedule: Schedule, t: Tensor) -> Tensor:
    """The weight of x_0's squared error: 1 / c_out² = SNR + 1 / sigma_data²."""
    return snr(schedule, t) + 1 / SIGMA_DATA**2


def karras_times(schedule: Schedule, n: int) -> list[int]:
    """n falling times, always from T, with sigma^(1/7) evenly spaced from 80 to 0.002 (Eq. 5).

    Both are limited to the schedule's sigmas. Each time is that of the nearest sigma that is still
    free. Raises ValueError unless n is in 1 … T.
    """
    T = schedule.T
    check_steps(T, n)
    sigma = (schedule.b / schedule.a).numpy()
    largest = min(SIGMA_MAX, sigma[-1])
    smallest = min(largest, max(SIGMA_MIN, sigma[1]))
    levels = np.linspace(smallest ** (1 / RHO), largest ** (1 / RHO), n) ** RHO
    midpoints = np.sqrt(sigma[1:-1] * np.minimum(sigma[2:], 1e9))
    rising = 1 + np.searchsorted(midpoints, levels)
    rising[-1] = T
    return np.minimum(strictly_rising(rising), T - np.arange(n)[::-1])[::-1].tolist()
