"""`python -m mnist_ddpm likelihood`."""

import math

from torch import Tensor

from mnist_ddpm import catalogue
from mnist_ddpm.commands import flags
from mnist_ddpm.commands.common import (
    EXPONENTS,
    keep_parts,
    load_checkpoint,
    moved,
    pick_variance,
    tell_written,
)
from mnist_ddpm.data import sets
from mnist_ddpm.data.labels import always_told
from mnist_ddpm.ddpm import Denoiser, Network, Schedule
from mnist_ddpm.evaluation import cards, extractors
from mnist_ddpm.machine import devices, files
from mnist_ddpm.machine.partial_results import CountedNetwork
from mnist_ddpm.machine.progress import progress_bar
from mnist_ddpm.methods import likelihood, schedules
from mnist_ddpm.methods.learned_variance import LearnedDenoiser
from mnist_ddpm.training.cost import check_drawing
from mnist_ddpm.training.recipe import Recipe


class MeasureLikelihood(flags.MeasureLikelihood):
    """The bound of images."""

    def run(self) -> None:
        """Measures, prints and writes. What cannot be measured is told before."""
        device = devices.pick_device(self.device)
        checkpoint = load_checkpoint(self, self.checkpoint, device)
        recipe = moved(checkpoint.recipe, self.dataset)
        counted = CountedNetwork(checkpoint.network)
        variance = pick_variance(self.variance, recipe)
        learned = variance == "learned"
        denoise, schedule = self.chain(counted, checkpoint.schedule, recipe, learned)
        images = self.images(recipe)
        batch_size = self.batch_size if device.type == "cpu" else 1
        check_drawing(recipe, len(images), batch_size)
        margin = sets.known_margin(recipe)
        files.check_writable(self.out)
        kept = keep_parts(self, self.out, counted, device, extractors.digest(images))
        with kept.stoppable():
            bound = likelihood.bits_per_dim(
                denoise, schedule, images, exponent=EXPONENTS[variance],
                times_per_image=self.times_per_image, margin=margin, batch_size=self.batch_size,
                seed=self.seed, device=device, progress=progress_bar, part=kept.compute,
            )  # fmt: skip
            sides = [side - 2 * black for side, black in zip(recipe.shape[1:], margin)]
            each = kept.evaluations / len(images)
            card = {
                **bound_figures(bound), "n": len(images), "dataset": recipe.dataset,
                "split": self.split, "pixels": [recipe.channels, *sides],
                "evaluations_per_image": each, "seconds": round(kept.seconds, 1),
                "checkpoint": str(self.checkpoint), "schedule": recipe.schedule, "T": recipe.T,
                "steps": schedule.T, "variance": variance, "seed": self.seed, "device": str(device),
                "hardware": devices.hardware(device), "versions": devices.versions(),
            }  # fmt: skip
            found = f"{bound.mean:.4f} ± {bound.standard_error:.4f} bits/dim"
            how = f"an upper bound ({variance} variance, {schedule.T} steps)"
            what = f"{sides[0]} x {sides[1]} pixels of the first {len(images)} {self.split} images"
            cost = f"{each:.0f} network evaluations an image, {kept.seconds:.0f} s"
            try:
                cards.write_card(self.out, card)
            finally:  # a disk may be too full for the card
                print(f"{found}, {how}, on {what}")
                print(f"{cost}, seed {self.seed}, {device}")
        kept.discard()
        tell_written(self.out)

    def chain(
        self, network: Network, schedule: Schedule, recipe: Recipe, learned: bool
    ) -> tuple[Denoiser | LearnedDenoiser, Schedule]:
        """The clipped denoiser and its schedule, of fewer steps where --steps asks for them."""
        if self.steps is not None:
            times = catalogue.sampling_times(schedule, self.steps, self.spacing)
            network = schedules.respaced_network(network, times)
            schedule = schedules.respaced_schedule(schedule, times)
        elif self.spacing != MeasureLikelihood.spacing:
            raise ValueError("--spacing is that of --steps: name them too, or leave it out")
        if recipe.conditional:
            problem = f"{self.checkpoint} needs a condition ({recipe.condition})"
            raise ValueError(f"{problem}: likelihood is for networks without")
        if always_told(recipe):
            problem = f"{self.checkpoint} was always told its label (label_dropout 0)"
            raise ValueError(f"{problem}: likelihood needs one that was not")
        return catalogue.bound_denoiser(network, schedule, recipe, learned), schedule

    def images(self, recipe: Recipe) -> Tensor:
        """Those to measure. Raises ValueError for fewer than two."""
        images = sets.load_images(recipe, self.data, self.split)
        images = images[: min(len(images), max(0, self.n))]
        if len(images) < 2:
            problem = f"a standard error needs at least 2 images, and there are {len(images)}"
            raise ValueError(f"{problem}: see --n and --split")
        return images


def bound_figures(bound: likelihood.Bound) -> dict:
    """For a card."""
    terms = [None if math.isnan(term) else term for term in bound.terms.tolist()]
    return {
        "bits_per_dim": bound.mean,
        "standard_error": bound.standard_error,
        "L_T": bound.prior,
        "L_0_to_T_minus_1": terms,
    }
