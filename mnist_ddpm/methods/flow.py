"""Flow matching and rectified flow: straight lines from images to noise, and their velocity.

arXiv 2210.02747, 2209.03003; t = T is the noise. DDIM with eta = 0 is Euler's step along the path.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mnist_ddpm import ddpm
from mnist_ddpm.ddpm import Network, Objective, Schedule, Time, check, per_image
from mnist_ddpm.methods.predictions import Conversion, squared_error_ratio


def flow(T: int = 1000, beta_1: float = 1e-4, beta_T: float = 0.02) -> Schedule:
    """x_t = (1 - t/T) x_0 + t/T eps, which ends in pure noise. beta_1 and beta_T are not used."""
    b = torch.arange(T + 1, dtype=torch.float64) / T
    return Schedule(1 - b, b)


def x0_from_velocity(schedule: Schedule, xt: Tensor, t: Time, velocity: Tensor) -> Tensor:
    """x_0 from the velocity eps - x_0, on any path. On the straight one it is T dx_t / dt."""
    a_t, b_t = schedule.at(t)
    return (xt - per_image(b_t, xt) * velocity) / per_image(a_t + b_t, xt)


def velocity_from_x0(schedule: Schedule, xt: Tensor, t: Time, x0: Tensor) -> Tensor:
    """The velocity eps - x_0 with which x_t gives x_0."""
    return ddpm.predict_eps(schedule, xt, t, x0) - x0


VELOCITY = Conversion(x0_from_velocity, velocity_from_x0)
LARGEST_WEIGHT = 400  # that of t/T = 0.05 on the straight path


def velocity_weight(schedule: Schedule, t: Tensor) -> Tensor:
    """The weight of x_0's squared error that makes it the velocity's, (N,), but at most 400.

    That bound is JiT's (arXiv 2511.13720), whose divisor t/T is at least 0.05.
    """
    return squared_error_ratio(schedule, t, VELOCITY).clamp(max=LARGEST_WEIGHT)


def number_lookup(images: Tensor) -> Callable[[Tensor], Tensor]:
    """A function from some of these uint8 images, as floats in [-1, 1], to their numbers (N,)."""
    key = torch.randint(2**62, (images[0].numel(),), generator=ddpm.random_generator(0))

    def hashes(images: Tensor) -> Tensor:  # int64 (N,); the sums may overflow
        return torch.cat([(part.flatten(1).long() * key).sum(1) for part in images.split(1024)])

    known, order = hashes(images.cpu()).sort(stable=True)

    def numbers(x0: Tensor) -> Tensor:
        wanted = hashes(ddpm.to_uint8(x0).cpu())
        place = torch.searchsorted(known, wanted).clamp(max=len(known) - 1)
        check(torch.equal(known[place], wanted), "unknown images: pass those of the pairs")
        return order[place]

    return numbers


def reflow(objective: Objective, images: Tensor, seed: int = 0) -> Objective:
    """An objective on pairs of an image and the x_T from which an ODE sampler drew it.

    arXiv 2209.03003, Section 2.2. images: all that were drawn with that seed, in order, uint8
    (N, C, H, W): x_T of image k follows from (seed, k). Raises ValueError for images that are none
    of these, or mirrored.
    """
    numbers = number_lookup(images)

    def on_pairs(network: Network, schedule: Schedule, x0: Tensor, t: Tensor, eps: Tensor):
        xT = ddpm.noise_source(seed, numbers(x0).tolist(), tuple(x0.shape[1:]))()
        return objective(network, schedule, x0, t, xT.to(eps))

    return on_pairs
