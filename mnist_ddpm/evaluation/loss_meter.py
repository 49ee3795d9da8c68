"""The losses of a run's network on the same images at the same times, and those to compare with."""

from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from mnist_ddpm import catalogue
from mnist_ddpm.data.labels import needs_labels
from mnist_ddpm.ddpm import Denoiser, Network
from mnist_ddpm.evaluation import generation
from mnist_ddpm.evaluation.loss_by_time import loss_by_t
from mnist_ddpm.evaluation.progress_file import LINEAR, NOTHING
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.training.recipe import Recipe

# settings in which a shipped checkpoint must agree, for its loss to be comparable
ALIKE = "dataset", "shape", "schedule", "T", "beta_1", "beta_T", "prediction"


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
