"""The preset mnist-small with labels, and autoguidance by one with a tenth of its steps.

Without labels, such a pair is the best that is known after five minutes (docs/plan.md).
"""

import time
from dataclasses import replace
from functools import partial

import torch

from mnist_ddpm import catalogue, trainer
from mnist_ddpm.evaluation import generation
from mnist_ddpm.machine.processes import ProcessGroup
from mnist_ddpm.methods.solvers import dpmpp_2m_sampler
from mnist_ddpm.training import planning
from mnist_ddpm.training.loop import training_loop
from mnist_ddpm.training.presets import preset
from mnist_ddpm.training.run_length import TimedLength

N = 2000  # images that each track asks for
STEPS = 20
DRAWING = 0.4  # of the time, at most
RATIO = 10  # steps of the network for each of its guide
GUIDANCE = {"scale": 1.5, "interval": (0, 500), "labels": torch.arange(10)}


def train(images, labels, seconds, seed):
    """Trains as long as drawing leaves time; the learning rates reach 0 at that moment."""
    end = time.monotonic() + 0.95 * seconds
    recipe = preset("mnist-small", channels=images.shape[1], classes=10, batch_size=64, seed=seed)
    meter = trainer.throughput_meter(torch.device("cpu"))
    meter.allow(planning.measuring_seconds(seconds))
    recipe, pace = planning.in_fastest_precision(recipe, meter)
    evaluations = 1.2 * N * STEPS * 1.5  # half of the steps are guided
    drawing = min(DRAWING * seconds, evaluations * meter.seconds_per_evaluation(recipe))
    planned = pace * (end - drawing - time.monotonic()) / recipe.batch_size / (1 + 1 / RATIO)
    epoch_steps = len(images) // recipe.batch_size
    recipe = planning.with_epochs(recipe, planned / epoch_steps, epoch_steps)
    run, weak = (trainer.start_run(replace(recipe, seed=s)) for s in (seed, seed + 1))
    schedule = catalogue.make_schedule(recipe)
    length = TimedLength(end - drawing, round(planned), 0.0, ProcessGroup())
    options = {"length": lambda step: length.total / RATIO}
    weak_steps = training_loop(weak, images, schedule, labels, **options)
    for k, _ in enumerate(training_loop(run, images, schedule, labels, length=length)):
        if k % RATIO == 0:
            next(weak_steps, None)

    def draw(n, seed):
        """DPM-Solver++ with fresh noise, each label in turn."""
        networks = [generation.autocast(r.ema, recipe.precision, "cpu") for r in (run, weak)]
        denoiser_for_batch = generation.make_denoiser_for_batch(
            networks[0], schedule, recipe, guide=(networks[1], recipe), **GUIDANCE
        )
        times = catalogue.sampling_times(schedule, STEPS, "trailing")
        options = {"times": times, "sampler": partial(dpmpp_2m_sampler, eta=1.0), "seed": seed}
        return generation.generate(denoiser_for_batch, schedule, n, recipe.shape, **options)[0]

    return draw
