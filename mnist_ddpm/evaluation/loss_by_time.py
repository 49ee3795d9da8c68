"""A denoiser's error on images that training has not seen, by time; and a condition's error.

Beside it, what is known to be reachable: an output of 0, and the best linear prediction.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mnist_ddpm.ddpm import Denoiser, Schedule, Time, l_simple, predict_eps, to_float
from mnist_ddpm.evaluation.distances import covariance_of, roots, shuffled

GAUSSIAN_IMAGES = 10_000  # whose mean and covariance the best linear prediction knows, at most
LARGEST_COVARIANCE = 3072  # numbers of an image: of larger ones only the variances are computed


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
    """Each image's error of eps_hat at a separate time: t (N,), L_simple (N,).

    The times are spread evenly over 1 … T. The denoiser is to be one that does not clip.
    """

    def eps_hat(xt: Tensor, t: Tensor) -> Tensor:
        return denoise(xt, t)[1]

    generator = torch.Generator().manual_seed(seed)
    losses = []
    t = 1 + torch.arange(len(images)) * schedule.T // len(images)
    for part, times in zip(images.split(batch_size), t.split(batch_size)):
        eps = torch.randn(part.shape, generator=generator).to(device)
        x0 = to_float(part.to(device))
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


def gaussian_denoiser(schedule: Schedule, images: Tensor) -> Denoiser:
    """E[x_0 | x_t] of a Gaussian with the mean m and covariance V diag(v) V^T of uint8 images.

    That is the best prediction that is linear in x_t: m + V diag(a v / (a^2 v + b^2)) V^T
    (x_t - a m). Of images larger than LARGEST_COVARIANCE, V is the identity.
    """
    x = to_float(shuffled(images, 0, GAUSSIAN_IMAGES)).flatten(1).double()
    mean = x.mean(dim=0)
    if x.shape[1] <= LARGEST_COVARIANCE:
        scales, axes = roots(covariance_of(x))
        variances = shrunk_variances(scales.square(), len(x))
    else:
        axes = None
        variances = x.var(dim=0)

    def denoise(xt: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        V = None if axes is None else axes.to(xt)
        m = mean.to(xt)
        a_t, b_t = (values.to(xt).view(-1, 1) for values in schedule.at(t))
        centred = xt.flatten(1) - a_t * m
        v = variances.to(xt)
        shrunk = (centred if V is None else centred @ V) * a_t * v / (a_t**2 * v + b_t**2)
        x0_hat = (m + (shrunk if V is None else shrunk @ V.T)).view(xt.shape)
        return x0_hat, predict_eps(schedule, xt, t, x0_hat)

    return denoise


def shrunk_variances(variances: Tensor, n: int) -> Tensor:
    """Eigenvalues (D,) of the covariance of n points, which come out too uneven, nearer their mean.

    This is oracle-approximating shrinkage (arXiv 0907.4698, Eq. 23).
    """
    D = len(variances)
    square = variances.square().sum()
    total = variances.sum() ** 2
    excess = ((n + 1 - 2 / D) * (square - total / D)).clamp(min=1e-12)
    amount = (((1 - 2 / D) * square + total) / excess).clamp(max=1)
    return (1 - amount) * variances + amount * variances.mean()


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
