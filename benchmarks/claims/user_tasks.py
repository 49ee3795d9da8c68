"""What users do: the notebook alone, resuming, the same image everywhere, digits, a training."""

import os
import subprocess
import sys
import time
from functools import partial
from itertools import islice, takewhile
from statistics import fmean

import torch
from harness import ROOT
from torch import Tensor, nn

from claims.bench import Bench
from mnist_ddpm import catalogue, ddpm, generation
from mnist_ddpm.methods.solvers import dpmpp_2m_sampler
from mnist_ddpm.recipe import Recipe
from mnist_ddpm.training import loop, saving
from mnist_ddpm.training.run import Run

EPOCHS = 48  # of checkpoints/mnist


def notebook(b: Bench) -> None:
    """The notebook with nothing beside it: it trains for an epoch, saves, loads and draws."""
    hidden = {} if b.is_gpu else {"CUDA_VISIBLE_DEVICES": ""}
    epochs = 0.05 if b.quick else 1
    command = [sys.executable, ROOT / "tools" / "alone.py", "train=True", f"epochs={epochs}"]
    options = {"env": os.environ | hidden, "capture_output": True, "text": True, "cwd": b.folder}
    began = time.monotonic()
    done = subprocess.run(command, timeout=max(1, b.seconds_left), **options)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    files = [line for line in done.stdout.splitlines() if "checkpoints" in line]
    b.add("MNIST_DDPM.ipynb alone", seconds=time.monotonic() - began, epochs=epochs, saved=files)


def resume(b: Bench) -> None:
    """A run that was saved and resumed, against one that did not stop, bit for bit."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else it cannot be deterministic
    images, half = b.digits()[:2048], b.size(20, 2)

    def train(recipe: Recipe, steps: int, run: Run | None = None) -> Run:
        run, training = b.start(recipe, images, run)
        list(islice(training, steps))
        return run

    for precision in b.two_precisions:
        for fixed in (False, True):
            # by default cuDNN may add in another order each time
            torch.use_deterministic_algorithms(fixed, warn_only=True)
            recipe = b.recipe(precision=precision, epochs=1000)
            folder = b.folder / f"{precision}-{fixed}"
            try:
                first, second = (train(recipe, 2 * half) for _ in range(2))
                saving.save_run(folder, train(recipe, half))
                start = partial(loop.start_run, device=b.device)
                resumed = train(recipe, half, saving.resume_run(folder, start))
            finally:
                torch.use_deterministic_algorithms(False)
            farthest = largest_difference(first, resumed)
            figures = {"resumed_is_the_same": farthest == 0, "farthest": farthest}
            figures["twice_is_the_same"] = largest_difference(first, second) == 0
            how = "deterministic algorithms" if fixed else "as it is"
            b.add(f"{precision}, {how}", steps=first.step, **figures)


def largest_difference(a: Run, b: Run) -> float:
    """Of two runs' averaged weights."""
    pairs = zip(a.ema.parameters(), b.ema.parameters(), strict=True)
    return max((x - y).abs().max().item() for x, y in pairs)


def draw(
    network: nn.Module, recipe: Recipe, precision: str, n: int, batch_size: int, steps: int
) -> Tensor:
    """Images of DPM-Solver++ with noise, seed 0, on the network's device: uint8 (n, C, H, W)."""
    device = next(network.parameters()).device
    lowered = generation.autocast(network, precision, device)
    schedule = catalogue.make_schedule(recipe)
    denoiser_for_batch = generation.make_denoiser_for_batch(lowered, schedule, recipe)
    options = {"times": ddpm.timesteps(recipe.T, steps), "batch_size": batch_size}
    options |= {"sampler": partial(dpmpp_2m_sampler, eta=1.0), "device": device, "progress": False}
    return generation.generate(denoiser_for_batch, schedule, n, recipe.shape, **options)[0]


def images(b: Bench) -> None:
    """Image k from batches of every size, and from the processor."""
    n, steps = b.size(64, 4), b.size(20, 3)
    network, recipe = b.load_mnist_network()
    for precision in b.two_precisions:
        drawn = partial(draw, network, recipe, precision, n, steps=steps)
        for size in (1, 7, 16):
            add_difference(b, f"{precision}, batches of {size} against {n}", drawn(size), drawn(n))
    n = b.size(16, 2)
    there = draw(network, recipe, "float32", n, n, steps)
    here = draw(network.cpu(), recipe, "float32", n, n, steps)
    add_difference(b, f"float32, {b.device.type} against the processor", there, here)


def add_difference(b: Bench, what: str, first: Tensor, second: Tensor) -> None:
    """Adds a row on how far two sets of images differ, in grey levels."""
    difference = (first.int() - second.int()).abs()
    same = (difference == 0).float().mean().item()
    b.add(what, grey_levels_at_most=difference.max().item(), share_of_equal_pixels=same)


def digits(b: Bench) -> None:
    """10,000 digits in 20 steps; where time is short, fewer, and what all would take."""
    n, count, steps = b.size(10_000, 8), b.size(1000, 4), b.size(20, 3)
    network, recipe = b.load_mnist_network()
    for precision in b.two_precisions:
        draw_some = partial(draw, network, recipe, precision, batch_size=500, steps=steps)
        draw_some(4)  # to warm up
        drawn = count
        seconds = b.timed(partial(draw_some, drawn))
        if seconds * n / drawn < b.seconds_left / 2:
            drawn = n
            seconds = b.timed(partial(draw_some, drawn))
        figures = {"seconds": seconds, "n": drawn, "images_a_second": drawn / seconds}
        if drawn < n:
            figures[f"seconds_for_{n}_extrapolated"] = seconds * n / drawn
        b.add(f"digits in 20 steps, {precision}", **figures)


def epochs(b: Bench) -> None:
    """The steps of 48 epochs of preset mnist, or as many as there is time for, and what all take.

    Without saves and previews.
    """
    recipe = b.recipe(precision=b.default_precision, epochs=b.size(EPOCHS, 1))
    dataset = loop.on_device_if_it_fits(b.digits(), b.device)
    run, steps = b.start(recipe, dataset)
    seconds = b.timed(lambda: [*takewhile(lambda _: b.seconds_left > 5, steps)])
    total = ddpm.total_steps(recipe, len(dataset))
    figures = {"epochs": run.step * recipe.epochs / total, "seconds": seconds}
    figures["images_a_second"] = run.step * recipe.batch_size / seconds
    if run.step < total:
        figures[f"seconds_for_{recipe.epochs:g}_epochs_extrapolated"] = seconds * total / run.step
    b.add(f"mnist in {recipe.precision}", last_loss=fmean(run.losses[-100:]), **figures)
