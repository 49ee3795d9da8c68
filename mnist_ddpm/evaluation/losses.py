"""Losses by time on images that training has not seen, and what is known to be reachable."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from mnist_ddpm import catalogue, generation
from mnist_ddpm.data.labels import needs_labels
from mnist_ddpm.ddpm import Denoiser, Network, Schedule, Time, l_simple, predict_eps, to_float
from mnist_ddpm.evaluation.distances import covariance_of, roots, shuffled
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.recipe import Recipe

NOTHING, LINEAR = "knows nothing", "best linear"  # what a loss is compared with
GAUSSIAN_IMAGES = 10_000  # whose mean and covariance the best linear prediction knows, at most
LARGEST_COVARIANCE = 3072  # numbers of an image: of larger ones only the variances are computed
# settings in which a shipped checkpoint must agree, for its loss to be comparable
ALIKE = "dataset", "shape", "schedule", "T", "beta_1", "beta_T", "prediction"


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


@dataclass(frozen=True)
class LossMeter:
    """Measures L_simple of networks of a recipe on images, uint8 (N, C, H, W): loss_by_t."""

    recipe: Recipe
    images: Tensor
    device: torch.device | str = "cpu"

    def losses(self, denoise: Denoiser) -> list[float]:
        """The loss of each image, at its own time. Raises FloatingPointError for NaN."""
        schedule = catalogue.make_schedule(self.recipe)
        _, losses = loss_by_t(denoise, schedule, self.images, device=self.device)
        if not losses.isfinite().all():
            raise FloatingPointError("the loss is not finite")
        return rounded(losses.clamp(min=1e-12))

    def losses_of(self, network: Network) -> list[float]:
        """The losses of a network, in the recipe's precision, and without clipping."""
        network = generation.autocast(network, self.recipe.precision, self.device)
        schedule = catalogue.make_schedule(self.recipe)
        return self.losses(catalogue.make_denoiser(network, schedule, self.recipe))

    def references(self, linear: Denoiser) -> dict[str, list[float]]:
        """The losses of an output of 0, of the best linear prediction, and of a shipped network."""
        factor = 2 if catalogue.learns_variance(self.recipe) else 1

        def zeros(xt: Tensor, t: Tensor) -> Tensor:
            return torch.zeros_like(xt).repeat(1, factor, 1, 1)

        losses = {NOTHING: self.losses_of(zeros), LINEAR: self.losses(linear)}
        name = shipped_alike(self.recipe)
        if name is not None:
            network, schedule, recipe = checkpoints.load(name, self.device)
            denoise = catalogue.make_denoiser(network, schedule, recipe)
            losses[f"shipped {name}"] = self.losses(denoise)
        return losses


def rounded(values: Tensor) -> list[float]:
    """Values (N,) to four digits, for a file."""
    return [float(f"{value:.4g}") for value in values.tolist()]


def shipped_alike(recipe: Recipe) -> str | None:
    """The name of a shipped checkpoint of the same images, noise and prediction, if any."""
    for name in checkpoints.SHIPPED:
        with suppress(FileNotFoundError):
            other, _ = checkpoints.load_config(checkpoints.find(name))
            is_alike = all(getattr(other, each) == getattr(recipe, each) for each in ALIKE)
            if is_alike and not (other.teacher or other.conditional or needs_labels(other)):
                return name
    return None
