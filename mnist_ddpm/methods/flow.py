"""Flow matching and rectified flow: straight lines from images to noise, and their velocity.

arXiv 2210.02747, 2209.03003; t = T is the noise. DDIM with eta = 0 is Euler's step along the path.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mnist_ddpm.ddpm import (
    Network,
    Objective,
    Schedule,
    Time,
    check,
    noise_source,
    per_image,
    predict_eps,
    random_generator,
    to_uint8,
)
from mnist_ddpm.methods.predictions import Conversion


def flow(T: int = 1000, beta_1: float = 1e-4, beta_T: float = 0.02) -> Schedule:
    """x_t = (1 - t/T) x_0 + t/T eps, which ends in pure noise. beta_1 and beta_T are not used."""
    b = torch.arange(T + 1, dtype=torch.float64) / T
    return Schedule(1 - b, b)


def x0_from_velocity(schedule: Schedule, xt: Tensor, t: Time, velocity: Tensor) -> Tensor:
    """x_0 from eps - x_0, on any path. On the straight one it is T dx_t / dt."""
    a_t, b_t = schedule.at(t)
    return (xt - per_image(b_t, xt) * velocity) / per_image(a_t + b_t, xt)


def velocity_from_x0(schedule: Schedule, xt: Tensor, t: Time, x0: Tensor) -> Tensor:
    """eps - x_0 of x_t and x_0."""
    return predict_eps(schedule, xt, t, x0) - x0


VELOCITY = Conversion(x0_from_velocity, velocity_from_x0)


def number_lookup(images: Tensor) -> Callable[[Tensor], Tensor]:
    """A function from some of these uint8 images, as floats in [-1, 1], to their numbers (N,).

    It raises ValueError for an image that is none of them, or changed, as by mirroring.
    """
    key = torch.randint(2**62, (images[0].numel(),), generator=random_generator(0))

    def prints(images: Tensor) -> Tensor:  # int64 (N,), which wraps
        return torch.cat([(each.flatten(1).long() * key).sum(1) for each in images.split(1024)])

    known, order = prints(images.cpu()).sort(stable=True)

    def numbers(x0: Tensor) -> Tensor:
        asked = prints(to_uint8(x0).cpu())
        place = torch.searchsorted(known, asked).clamp(max=len(known) - 1)
        check(torch.equal(known[place], asked), "images are unknown: pass those of the pairs alone")
        return order[place]

    return numbers


def reflow(objective: Objective, images: Tensor, seed: int = 0) -> Objective:
    """An objective on pairs: each image with the noise that a sampler without noise made it of.

    images, uint8 (N, C, H, W), are those that generate or the command sample has drawn with that
    seed, in that order: so the noise of image k is that of (seed, k), and need not be kept
    (arXiv 2209.03003, Section 2.2).
    """
    numbers = number_lookup(images)

    def on_pairs(network: Network, schedule: Schedule, x0: Tensor, t: Tensor, eps: Tensor):
        drawn = noise_source(seed, numbers(x0).tolist(), tuple(x0.shape[1:]))()
        return objective(network, schedule, x0, t, drawn.to(eps))

    return on_pairs
