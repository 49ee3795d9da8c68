"""A denoiser's error on images that training has not seen, by time; and a condition's error."""

from collections.abc import Callable

import torch
from torch import Tensor

from mnist_ddpm.ddpm import Denoiser, Schedule, l_simple, to_float
from mnist_ddpm.training.run import floats_of


@torch.no_grad()
def loss_by_t(
    denoise: Denoiser,
    schedule: Schedule,
    images: Tensor,
    *,
    batch_size: int = 250,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Each image's or vector's error of eps_hat at a separate time: t (N,), L_simple (N,).

    The times are spread evenly over 1 … T. The denoiser is to be one that does not clip.
    """

    def eps_hat(xt: Tensor, t: Tensor) -> Tensor:
        return denoise(xt, t)[1]

    generator = torch.Generator().manual_seed(seed)
    losses = []
    t = 1 + torch.arange(len(images)) * schedule.T // len(images)
    for part, times in zip(images.split(batch_size), t.split(batch_size)):
        eps = torch.randn(part.shape, generator=generator).to(device)
        x0 = floats_of(part.to(device))
        losses.append(l_simple(eps_hat, schedule, x0, times, eps).cpu())
    return t, torch.cat(losses)


def loss_by_tenth(denoise: Denoiser, schedule: Schedule, images: Tensor, **options) -> dict:
    """For a card: the mean of loss_by_t, and those over ten stretches of 1 … T (None: no times).

    options: as loss_by_t takes them.
    """
    t, losses = loss_by_t(denoise, schedule, images, **options)
    parts = [losses[(t - 1) * 10 // schedule.T == k] for k in range(10)]
    means = [round(part.mean().item(), 6) if len(part) else None for part in parts]
    return {"n": len(images), "mean": losses.mean().item(), "by_tenth_of_T": means}


def condition_error(
    compute_condition: Callable[[Tensor], Tensor],
    images: Tensor,
    condition_images: Tensor,
    batch_size: int = 250,
) -> float:
    """Mean absolute difference between the conditions of two sets of images, in 1/255 of the range.

    Both sets are uint8 (N, C, H, W): generated images, and those whose condition the network saw.
    """
    total = 0.0
    for pair in zip(images.split(batch_size), condition_images.split(batch_size)):
        drawn, wanted = (compute_condition(to_float(part)).double() for part in pair)
        total += (drawn - wanted).abs().mean().item() * 127.5 * len(drawn)
    return round(total / len(images), 4)
