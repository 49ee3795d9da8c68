"""A network along another path than that it was trained on: x_t rescaled, t matched by SNR.

What leads from data to noise is then the path that is asked for, and so are the sampler's steps.
The distribution at each SNR is the same but for its scale, so solvers end in the same images.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mnist_ddpm.ddpm import Denoiser, Network, Schedule, Time, per_image, predict_eps


def match_snr(schedule: Schedule, path: Schedule) -> tuple[Tensor, Schedule]:
    """The schedule's times, fractions too, with the SNR of the path's 0 … T; its tables there.

    Times are float64 (path.T + 1,). Between two times the tables run straight. A path's SNR beyond
    that of 1 or of the schedule's T is matched by those times.
    """
    ours, theirs = (torch.atan2(each.b, each.a) for each in (schedule, path))
    last = torch.tensor(schedule.T - 1)
    low = torch.searchsorted(ours, theirs, right=True).sub(1).clamp(0, last)
    a, b = schedule.a, schedule.b
    rise = (b[low + 1] - b[low]) * path.a
    fall = (a[low] - a[low + 1]) * path.b
    part = (a[low] * path.b - b[low] * path.a) / (rise + fall)
    times = (low + part).clamp(1, schedule.T)
    low = times.long().minimum(last)
    tables = (torch.lerp(table[low], table[low + 1], times - low) for table in (a, b))
    return times, Schedule(*tables)


def denoiser_along(
    path: Schedule, network: Network, schedule: Schedule,
    make_denoiser: Callable[[Network, Schedule], Denoiser],
) -> Denoiser:  # fmt: skip
    """The denoiser, on a path, of a network that was trained on a schedule.

    make_denoiser: as ddpm.eps_denoiser, or that of another prediction; not of mu, which means a
    step of the schedule. The network must take fractions of t, as sines and cosines of it do.
    """
    times, own = match_snr(schedule, path)
    size = own.a.hypot(own.b) / path.a.hypot(path.b)

    def network_along(xt: Tensor, t: Time) -> Tensor:
        return network(xt, times[torch.as_tensor(t).cpu()])

    denoise = make_denoiser(network_along, own)

    def denoise_along(xt: Tensor, t: Time) -> tuple[Tensor, ...]:
        scale = size[torch.as_tensor(t).cpu()]
        x0_hat, _, *more = denoise(per_image(scale, xt) * xt, t)
        return x0_hat, predict_eps(path, xt, t, x0_hat), *more

    return denoise_along
