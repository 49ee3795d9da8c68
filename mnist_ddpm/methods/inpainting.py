"""Starting from an image: variations (SDEdit, arXiv 2108.01073) and inpainting (RePaint)."""

from collections.abc import Callable

import torch
from torch import Tensor

from mnist_ddpm.ddpm import (
    States,
    check,
    posterior_mean,
    posterior_variance,
    q_sample,
    step_variance,
    transitions,
)

Sampler = Callable[..., States]


def sdedit(image: Tensor, sampler: Sampler) -> Sampler:
    """The sampler, beginning with an image (1 or N, C, H, W) in [-1, 1], noised by q.

    Raises ValueError, when called, for an image of uint8 or of another shape than what is drawn.
    """

    def started_sampler(denoise, schedule, times, xT, draw_noise, **options) -> States:
        check_image(image, xT)
        start = q_sample(schedule, image.to(xT), times[0], xT)
        return sampler(denoise, schedule, times, start, draw_noise, **options)

    return started_sampler


def check_shape(name: str, given: Tensor, xT: Tensor) -> None:
    """Raises ValueError unless it is (1 or N, 1 or C, H, W), for xT (N, C, H, W)."""
    found, wanted = tuple(given.shape), tuple(xT.shape)
    fits = len(found) == 4 and found[2:] == wanted[2:]
    fits = fits and found[0] in (1, wanted[0]) and found[1] in (1, wanted[1])
    check(fits, f"the {name} is {found}, which does not fit images (N, C, H, W) = {wanted}")


def check_image(image: Tensor, xT: Tensor) -> None:
    """Raises ValueError unless it is of floats, and as check_shape."""
    check_shape("image", image, xT)
    problem = f"the image is {image.dtype}: it must be floats in [-1, 1], as of to_float"
    check(image.is_floating_point(), problem)


@torch.no_grad()
def repaint_sampler(
    denoise, schedule, times, xT, draw_noise,
    known: Tensor, mask: Tensor, resamples: int = 10, jump: int | None = None,
    variance=posterior_variance,
) -> States:  # fmt: skip
    """Fills in what the mask hides of `known` (1 or N, C, H, W): arXiv 2201.09865, Algorithm 1.

    mask (1 or N, 1 or C, H, W): 1 where the image is known, 0 where it is to be filled in. After
    every step the known part is replaced by its own noised self. Every `jump` steps are walked
    `resamples` times, with noise added in between to go back up, so that the new part can adapt
    to the known one; resamples = 1 is plain replacement. None jumps 4 % of the steps, at least 1,
    as the paper's 10 of 250 are. Unlike in the paper's code, the first jump - 1 and the last are
    walked so too. Costs len(times) * resamples evaluations.
    Yields (t, x_t, x0_hat) on the last walk over each time, then (0, x_0, x_0). Raises ValueError
    where shapes or types do not fit or a mask is not of zeros and ones.
    """
    check_image(known, xT)
    check_shape("mask", mask, xT)
    binary = ((mask == 0) | (mask == 1)).all()
    check(binary, "the mask must be of zeros (to fill in) and ones (known)")
    check(resamples >= 1, f"resamples is {resamples}: take a number from 1")
    x, steps = xT, transitions(times, schedule.T)
    jump = max(1, round(len(steps) / 25)) if jump is None else jump
    check(jump >= 1, f"jump is {jump}: take a number from 1")
    known, mask = known.to(x), mask.to(x)
    for first in range(0, len(steps), jump):
        walk = steps[first : first + jump]
        for repeat in reversed(range(resamples)):
            for t, s in walk:
                x0_hat, _, *exponent = denoise(x, t)
                if repeat == 0:
                    yield t, x, x0_hat
                x = posterior_mean(schedule, x0_hat, x, t, s)
                known_s = known
                if s > 0:
                    x = x + variance(schedule, t, s, *exponent).sqrt().to(x) * draw_noise()
                    known_s = q_sample(schedule, known, s, draw_noise())
                x = mask * known_s + (1 - mask) * x
            if repeat > 0:  # from the walk's end back up to its start
                t = walk[0][0]
                shrink = (schedule.a[t] / schedule.a[s]).item()
                x = shrink * x + step_variance(schedule, t, s).sqrt().item() * draw_noise()
    yield 0, x, x
