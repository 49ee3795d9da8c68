"""EDM (arXiv 2206.00364, Table 1) on the path x_t = a_t x_0 + b_t eps, with sigma = b_t / a_t.

Its preconditioning is a prediction, its loss the plain one of what is predicted, its noise levels
are NormalTimes, and its steps a spacing of times. c_noise is left out: the network is told t.
"""

import numpy as np
import torch
from torch import Tensor

from mnist_ddpm.ddpm import Schedule, Time, check, per_image
from mnist_ddpm.methods.predictions import Conversion, snr

SIGMA_DATA = 0.5  # deviation of the data
SIGMA_MIN, SIGMA_MAX, RHO = 0.002, 80.0, 7


def scale(schedule: Schedule, t: Time) -> Tensor:
    """c_in / a_t, by which x_t is multiplied for the network: 1 / sqrt(b_t² + a_t² sigma_data²)."""
    a_t, b_t = schedule.at(t)
    return 1 / torch.hypot(b_t, SIGMA_DATA * a_t)


def weights(schedule: Schedule, xt: Tensor, t: Time) -> tuple[Tensor, Tensor]:
    """c_skip / a_t and c_out, to multiply x_t and the network's output."""
    a_t, b_t = schedule.at(t)
    c_in = scale(schedule, t)
    return (per_image(a_t * (SIGMA_DATA * c_in) ** 2, xt), per_image(b_t * SIGMA_DATA * c_in, xt))


def x0_from_output(schedule: Schedule, xt: Tensor, t: Time, output: Tensor) -> Tensor:
    """c_skip x_t / a_t + c_out F. At t = 0 it is x_0 itself, for any F."""
    skip, out = weights(schedule, xt, t)
    return skip * xt + out * output


def output_from_x0(schedule: Schedule, xt: Tensor, t: Time, x0: Tensor) -> Tensor:
    """F of x_t and x_0."""
    skip, out = weights(schedule, xt, t)
    return (x0 - skip * xt) / out


EDM = Conversion(x0_from_output, output_from_x0, scale)


def weight(schedule: Schedule, t: Tensor) -> Tensor:
    """Of x_0's squared error: 1 / c_out² = SNR + 1 / sigma_data²."""
    return snr(schedule, t) + 1 / SIGMA_DATA**2


def karras_times(schedule: Schedule, n: int) -> list[int]:
    """n falling times, always from T, with sigma^(1/7) evenly spaced from 80 to 0.002 (Eq. 5).

    Or from the largest sigma of the schedule to its smallest, where they lie between. Each is the
    time of the nearest sigma that no other has taken.
    """
    T = schedule.T
    check(1 <= n <= T, f"the number of sampling steps is {n}: take one from 1 to T = {T}")
    sigma = (schedule.b / schedule.a).numpy()
    most = min(SIGMA_MAX, sigma[-1])
    least = min(most, max(SIGMA_MIN, sigma[1]))
    wanted = np.linspace(least ** (1 / RHO), most ** (1 / RHO), n) ** RHO
    middles = np.sqrt(sigma[1:-1] * np.minimum(sigma[2:], 1e9))
    k = np.arange(n)
    rising = 1 + np.searchsorted(middles, wanted)
    rising[-1] = T
    distinct = np.maximum.accumulate(rising - k) + k
    return np.minimum(distinct, T - k[::-1])[::-1].tolist()
