"""A picture of how far a training is."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from mnist_ddpm import ddpm
from mnist_ddpm.ddpm import Denoiser, Schedule
from mnist_ddpm.training.run import Run

IMAGES = 36
STEPS = 20
COLUMNS = 6


def draw_preview(
    run: Run,
    schedule: Schedule,
    make_denoiser: Callable[..., Denoiser],
    processes: int = 1,
    condition: Tensor | None = None,
) -> np.ndarray:
    """36 images of the averaged network in 20 DDIM steps, always from the same noise: a picture.

    Labels come in turn. make_denoiser: called with network, schedule and, where
    there is one, the condition (36, 1 or 3, H, W) of a batch; the picture then shows the condition
    on the left.
    processes: how many share a batch, which is no larger than in training.
    Raises FloatingPointError for images that are NaN.
    """
    recipe = run.settings
    size = math.ceil(recipe.batch_size / recipe.accumulation / processes)
    batches = [range(k, min(IMAGES, k + size)) for k in range(0, IMAGES, size)]
    images = []
    for batch in batches:
        make = make_denoiser
        if condition is not None:
            make = partial(make_denoiser, condition=condition[batch.start : batch.stop])
        images.append(draw_batch(run, schedule, make, batch))
    panels = [torch.cat(images)]
    if condition is not None:
        panels.insert(0, ddpm.to_uint8(condition).cpu())
    return np.concatenate([ddpm.tile(panel, COLUMNS, scale=2) for panel in panels], axis=1)


def draw_batch(run: Run, schedule: Schedule, make_denoiser: Callable, batch: range) -> Tensor:
    """A batch of those images, uint8 (len(batch), C, H, W)."""
    recipe = run.settings
    network = run.ema
    dtype = getattr(torch, recipe.precision)
    if recipe.classes:
        network = partial(network, labels=torch.tensor(batch, device=run.device) % recipe.classes)
    denoise = ddpm.clipped(make_denoiser(network, schedule), schedule)
    times = ddpm.timesteps(schedule.T, min(STEPS, schedule.T))
    draw_noise = ddpm.noise_source(recipe.seed, batch, recipe.shape, str(run.device))
    with torch.no_grad(), torch.autocast(run.device.type, dtype, enabled=dtype != torch.float32):
        *_, (_, x0, _) = ddpm.ddim_sampler(denoise, schedule, times, draw_noise(), draw_noise)
    if x0.isnan().any():
        raise FloatingPointError("the images are NaN")
    return ddpm.to_uint8(x0).cpu()
