"""Sampling along another path (a schedule) than that of training: x_t rescaled, t matched by SNR.

The distribution at each SNR is the same but for its scale, so ODE solvers end in the same images.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mnist_ddpm.ddpm import Denoiser, Network, Schedule, Time, per_image, predict_eps


def match_snr(schedule: Schedule, path: Schedule) -> tuple[Tensor, Schedule]:
    """The schedule's times with the SNR of the path's 0 … T, and the schedule at these times.

    Times are float64 (path.T + 1,), fractions among them, between which a and b are interpolated
    linearly. They are limited to 1 … T.
    """
    own_angle, path_angle = (torch.atan2(each.b, each.a) for each in (schedule, path))
    last = torch.tensor(schedule.T - 1)
    low = torch.searchsorted(own_angle, path_angle, right=True).sub(1).clamp(0, last)
    a = schedule.a
    b = schedule.b
    rise = (b[low + 1] - b[low]) * path.a
    fall = (a[low] - a[low + 1]) * path.b
    fraction = (a[low] * path.b - b[low] * path.a) / (rise + fall)
    times = (low + fraction).clamp(1, schedule.T)
    low = times.long().minimum(last)
    tables = (torch.lerp(table[low], table[low + 1], times - low) for table in (a, b))
    return times, Schedule(*tables)


def own_times(schedule: Schedule, path: Schedule) -> Tensor:
    """The schedule's times with the SNR of the path's 0 … T: float64 (path.T + 1,)."""
    if torch.equal(schedule.a, path.a) and torch.equal(schedule.b, path.b):
        return torch.arange(path.T + 1, dtype=torch.float64)
    return match_snr(schedule, path)[0]


def denoiser_along(
    path: Schedule, network: Network, schedule: Schedule, make_denoiser: Callable
) -> Denoiser:
    """The denoiser, on a path, of a network that was trained on a schedule, maybe the same.

    make_denoiser: from network and schedule, for any prediction but mu, the mean of a step of the
    schedule. The network must accept fractions of t.
    """
    if torch.equal(schedule.a, path.a) and torch.equal(schedule.b, path.b):
        return make_denoiser(network, schedule)
    times, matched = match_snr(schedule, path)
    ratio = matched.a.hypot(matched.b) / path.a.hypot(path.b)

    def network_at_matched_time(xt: Tensor, t: Time) -> Tensor:
        return network(xt, times[torch.as_tensor(t).cpu()])

    denoise = make_denoiser(network_at_matched_time, matched)

    def denoise_along(xt: Tensor, t: Time) -> tuple[Tensor, ...]:
        scale = ratio[torch.as_tensor(t).cpu()]
        x0_hat, _, *exponent = denoise(per_image(scale, xt) * xt, t)
        return x0_hat, predict_eps(path, xt, t, x0_hat), *exponent

    return denoise_along
