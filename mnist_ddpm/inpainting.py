"""Starting from an image: to vary it (SDEdit, arXiv 2108.01073), or to fill in a part (RePaint, arXiv 2201.09865)."""

from collections.abc import Callable

import torch
from torch import Tensor

from mnist_ddpm.ddpm import Clip, Model, Schedule, States, ancestral_step, predict, q_sample, transitions, with_variance


def started_from(image: Tensor, sampler: Callable[..., States]) -> Callable[..., States]:
    """The sampler, beginning not with pure noise but with an image (1 or N, C, H, W) in [-1, 1], noised by q.

    Raises ValueError, when it is called, for an image of uint8 or of another shape than what is drawn.
    """

    def started_sampler(
        model: Model, schedule: Schedule, times: list[int], xT: Tensor, noise: Callable[[], Tensor], **options
    ) -> States:
        check_image(image, xT)
        return sampler(model, schedule, times, q_sample(schedule, image, times[0], xT), noise, **options)

    return started_sampler


def check_shape(name: str, given: Tensor, xT: Tensor) -> None:
    """Raises ValueError unless it is (1 or N, 1 or C, H, W), for xT (N, C, H, W)."""
    of, wanted = tuple(given.shape), tuple(xT.shape)
    if not (len(of) == 4 and of[0] in (1, wanted[0]) and of[1] in (1, wanted[1]) and of[2:] == wanted[2:]):
        raise ValueError(f"the {name} is {of}, which does not fit images (N, C, H, W) = {wanted}")


def check_image(image: Tensor, xT: Tensor) -> None:
    """Raises ValueError unless it is of floats, and as check_shape."""
    check_shape("image", image, xT)
    if not image.is_floating_point():
        raise ValueError("the image must be in [-1, 1]: to_float makes it of uint8")


@torch.no_grad()
def repaint_sampler(
    model: Model, schedule: Schedule, times: list[int], xT: Tensor, noise: Callable[[], Tensor],
    *, known: Tensor, mask: Tensor, resamples: int = 10, jump: int = 10, variance: str = "posterior",
    clip: Clip = True,
) -> States:  # fmt: skip
    """Ancestral sampling of what the mask hides from `known` (1 or N, C, H, W) in [-1, 1] (Algorithm 1).

    N images are drawn at once, a batch of `generate`'s. mask (1 or N, 1 or C, H, W): 1 where the image is known, 0
    where it is to be filled in. At every step, the known part is replaced by its own noised self. Every `jump` steps
    are walked `resamples` times, with noise added in between to go back up, so that the new part can adapt to the
    known one; resamples = 1 is plain replacement. Unlike in the paper's code, the first jump - 1 and the last are too.
    Costs about len(times) * resamples evaluations. Yields (t, x_t, x0_hat) on the last walk over each time, then
    (0, x_0, x_0). Raises ValueError where shapes or types do not fit or a mask is not of zeros and ones.
    """
    check_image(known, xT)
    check_shape("mask", mask, xT)
    if not ((mask == 0) | (mask == 1)).all():
        raise ValueError("the mask must be of zeros (to fill in) and ones (known)")
    if resamples < 1 or jump < 1:
        raise ValueError(f"resamples = {resamples} and jump = {jump} must be at least 1")
    x, steps = xT, transitions(times, schedule.T)
    mask = mask.to(x.dtype)
    for first in range(0, len(steps), jump):
        walk = steps[first : first + jump]
        for repeat in range(resamples):
            for t, s in walk:
                prediction = with_variance(variance, predict(model, schedule, x, t, clip))
                if repeat == resamples - 1:
                    yield t, x, prediction.x0_hat
                x = ancestral_step(schedule, x, t, s, prediction, noise)
                x = mask * (q_sample(schedule, known, s, noise()) if s else known) + (1 - mask) * x
            if repeat < resamples - 1:  # from the walk's end back up to its start
                alpha = schedule.alpha_bar[walk[0][0]] / schedule.alpha_bar[walk[-1][1]]
                x = alpha.sqrt().to(x.dtype) * x + (1 - alpha).sqrt().to(x.dtype) * noise()
    yield 0, x, x
