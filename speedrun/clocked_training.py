"""Trains a recipe until only the time to draw is left, for entries that need no more.

An entry's own code is its recipe then.
"""

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from mnist_ddpm import catalogue, trainer
from mnist_ddpm.evaluation import generation
from mnist_ddpm.machine.processes import ProcessGroup
from mnist_ddpm.methods.solvers import dpmpp_2m_sampler
from mnist_ddpm.training import planning
from mnist_ddpm.training.loop import training_loop
from mnist_ddpm.training.recipe import Recipe
from mnist_ddpm.training.run_length import TimedLength

N = 2000  # images that each track asks for
STEPS = 20
DRAWING = 0.4  # of the time, at most


def train_by_clock(recipe: Recipe, images: Tensor, seconds: float) -> Callable[[int, int], Tensor]:
    """The function draw(n, seed) of a training on images, uint8 (N, C, H, W).

    The learning rate reaches 0 when only the time to draw is left.
    """
    end = time.monotonic() + 0.95 * seconds
    meter = trainer.throughput_meter(torch.device("cpu"))
    meter.allow(planning.measuring_seconds(seconds))
    recipe, pace = planning.in_fastest_precision(recipe, meter)
    drawing = min(DRAWING * seconds, 1.2 * N * STEPS * meter.seconds_per_evaluation(recipe))
    planned = pace * (end - drawing - time.monotonic()) / recipe.batch_size
    epoch_steps = len(images) // recipe.batch_size
    recipe = planning.with_epochs(recipe, planned / epoch_steps, epoch_steps)
    run = trainer.start_run(recipe)
    schedule = catalogue.make_schedule(recipe)
    length = TimedLength(end - drawing, round(planned), 0.0, ProcessGroup())
    for _ in training_loop(run, images, schedule, length=length):
        pass

    def draw(n: int, seed: int) -> Tensor:
        """DPM-Solver++ with fresh noise: n images, uint8 (n, C, H, W)."""
        network = generation.autocast(run.ema, recipe.precision, "cpu")
        denoiser_for_batch = generation.make_denoiser_for_batch(network, schedule, recipe)
        times = catalogue.sampling_times(schedule, STEPS, "trailing")
        options = {"times": times, "sampler": partial(dpmpp_2m_sampler, eta=1.0), "seed": seed}
        return generation.generate(denoiser_for_batch, schedule, n, recipe.shape, **options)[0]

    return draw
