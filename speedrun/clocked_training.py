"""Trains a recipe until only the time to draw is left, for entries that need no more.

An entry's own code is its recipe then, and whether a second network guides it.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from mnist_ddpm import catalogue, generation
from mnist_ddpm.ddpm import mirrored
from mnist_ddpm.machine.processes import ProcessGroup
from mnist_ddpm.methods.solvers import dpmpp_2m_sampler
from mnist_ddpm.recipe import Recipe
from mnist_ddpm.training import loop, planning, throughput
from mnist_ddpm.training.loop import training_loop
from mnist_ddpm.training.session import TimedLength

N = 2000  # images that each track asks for
STEPS = 20
DRAWING = 0.4  # of the time, at most
SCALE = 1.5  # of a guide


def train_by_clock(
    recipe: Recipe, images: Tensor, seconds: float, guide_share: float = 0.0
) -> Callable[[int, int], Tensor]:
    """The function draw(n, seed) of a training on images, uint8 (N, C, H, W).

    The learning rate reaches 0 when only the time to draw is left. The recipe gets the images'
    channels; those in colour are mirrored half of the time. guide_share: steps of a second
    network of this recipe for each of the first, which it guides (autoguidance, arXiv 2406.02507);
    0 for none.
    """
    end = time.monotonic() + 0.95 * seconds
    channels = images.shape[1]
    recipe = replace(recipe, channels=channels)
    augment = mirrored if channels == 3 else None
    meter = throughput.ThroughputMeter(torch.device("cpu"))
    meter.allow(planning.measuring_seconds(seconds))
    recipe, pace = planning.in_fastest_precision(recipe, meter)
    evaluations = 1.2 * N * STEPS * (2 if guide_share else 1)
    drawing = min(DRAWING * seconds, evaluations * meter.seconds_per_evaluation(recipe))
    planned = pace * (end - drawing - time.monotonic()) / recipe.batch_size / (1 + guide_share)
    epoch_steps = len(images) // recipe.batch_size
    recipe = planning.with_epochs(recipe, planned / epoch_steps, epoch_steps)
    run, guide = (loop.start_run(replace(recipe, seed=recipe.seed + k)) for k in (0, 1))
    schedule = catalogue.make_schedule(recipe)
    length = TimedLength(end - drawing, round(planned), 0.0, ProcessGroup())
    options = {"augment": augment, "length": lambda step: guide_share * length.total}
    guide_losses = training_loop(guide, images, schedule, **options)
    for _ in training_loop(run, images, schedule, augment=augment, length=length):
        if guide.step < guide_share * run.step:
            next(guide_losses, None)

    def draw(n: int, seed: int) -> Tensor:
        """DPM-Solver++ with fresh noise: n images, uint8 (n, C, H, W)."""
        networks = [generation.autocast(r.ema, recipe.precision, "cpu") for r in (run, guide)]
        guidance = {"guide": (networks[1], recipe), "scale": SCALE} if guide_share else {}
        denoiser_for_batch = generation.make_denoiser_for_batch(
            networks[0], schedule, recipe, **guidance
        )
        times = catalogue.sampling_times(schedule, STEPS, "trailing")
        options = {"times": times, "sampler": partial(dpmpp_2m_sampler, eta=1.0), "seed": seed}
        return generation.generate(denoiser_for_batch, schedule, n, recipe.shape, **options)[0]

    return draw
