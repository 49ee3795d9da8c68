"""Starting from an image: variations (SDEdit, arXiv 2108.01073) and inpainting (RePaint)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mnist_ddpm import ddpm
from mnist_ddpm.ddpm import States, check, q_sample

Sampler = Callable[..., States]


def sdedit(image: Tensor, sampler: Sampler) -> Sampler:
    """The sampler started from an image (1 or N, C, H, W) in [-1, 1], noised to its first time.

    Raises ValueError, when called, for an image of uint8 or of another shape than what is drawn.
    """

    def sampler_from_image(denoise, schedule, times, xT, draw_noise, **options) -> States:
        check_image(image, xT)
        xt = q_sample(schedule, image.to(xT), times[0], xT)
        return sampler(denoise, schedule, times, xt, draw_noise, **options)

    return sampler_from_image


def check_shape(name: str, images: Tensor, xT: Tensor) -> None:
    """Raises ValueError unless these are (1 or N, 1 or C, H, W), for xT (N, C, H, W)."""
    shape = tuple(images.shape)
    N, C, *sides = xT.shape
    is_broadcastable = (
        len(shape) == 4 and shape[0] in (1, N) and shape[1] in (1, C) and [*shape[2:]] == sides
    )
    check(is_broadcastable, f"the {name} is {shape}, which does not fit images {tuple(xT.shape)}")


def check_image(image: Tensor, xT: Tensor) -> None:
    """Raises ValueError unless the image is of floats and fits, as in check_shape."""
    check_shape("image", image, xT)
    check(image.is_floating_point(), f"the image is {image.dtype}: convert it with to_float")


@torch.no_grad()
def repaint_sampler(
    denoise,
    schedule,
    times,
    xT,
    draw_noise,
    known: Tensor,
    mask: Tensor,
    resamples: int = 10,
    jump: int | None = None,
    variance=ddpm.posterior_variance,
) -> States:
    """Inpaints what the mask hides of `known` (1 or N, C, H, W): arXiv 2201.09865, Algorithm 1.

    mask (1 or N, 1 or C, H, W): 1 where the image is known, else 0. After each step the known part
    is replaced by q(x_s | known). Each run of `jump` steps is walked `resamples` times, going back
    up by adding noise, so that the new part adapts to the known one; resamples = 1 only replaces.
    jump None is 4 % of the steps, as the paper's 10 of 250, at least 1. Unlike in the paper's code
    the first jump - 1 steps and the last are repeated too: len(times) * resamples evaluations.
    Yields (t, x_t, x0_hat) on the last walk over each time, then (0, x_0, x_0). Raises ValueError
    where shapes or types do not fit or a mask is not of zeros and ones.
    """
    check_image(known, xT)
    check_shape("mask", mask, xT)
    is_binary = ((mask == 0) | (mask == 1)).all()
    check(is_binary, "the mask must be of ones (known) and zeros (to inpaint)")
    check(resamples >= 1, f"resamples is {resamples}: take a number from 1")
    steps = ddpm.transitions(times, schedule.T)
    jump = max(1, round(len(steps) / 25)) if jump is None else jump
    check(jump >= 1, f"jump is {jump}: take a number from 1")
    x = xT
    known = known.to(x)
    mask = mask.to(x)
    for first in range(0, len(steps), jump):
        walk = steps[first : first + jump]
        for repeat in reversed(range(resamples)):
            for t, s in walk:
                x0_hat, _, *exponent = denoise(x, t)
                if repeat == 0:
                    yield t, x, x0_hat
                x = ddpm.posterior_mean(schedule, x0_hat, x, t, s)
                known_s = known
                if s > 0:
                    x = x + variance(schedule, t, s, *exponent).sqrt().to(x) * draw_noise()
                    known_s = q_sample(schedule, known, s, draw_noise())
                x = mask * known_s + (1 - mask) * x
            if repeat > 0:  # from the walk's end back up to its start
                t = walk[0][0]
                shrink = (schedule.a[t] / schedule.a[s]).item()
                noise_level = ddpm.step_variance(schedule, t, s).sqrt().item()
                x = shrink * x + noise_level * draw_noise()
    yield 0, x, x


def slerp(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """From a (N, C, H, W) at weight 0 to b at 1 along a great circle, image by image.

    Averages of noise have too small a variance for a sampler; points on the arc do not. Between
    parallel images it is a straight line.
    """
    flat_a = a.flatten(1).cpu().double()
    flat_b = b.flatten(1).cpu().double()
    cosine = F.cosine_similarity(flat_a, flat_b, dim=1).clamp(-1, 1)
    angle = torch.arccos(cosine).unsqueeze(1)
    straight = angle.sin() < 1e-6
    sine = angle.sin().masked_fill(straight, 1)
    weight_a = torch.where(straight, 1 - weight, ((1 - weight) * angle).sin() / sine)
    weight_b = torch.where(straight, weight, (weight * angle).sin() / sine)
    return (weight_a * flat_a + weight_b * flat_b).view(a.shape).to(a)
