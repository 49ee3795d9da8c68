"""What users do: the notebook alone, resuming, the same image everywhere, digits, a training."""

import os
import subprocess
import sys
import time
from functools import partial
from itertools import islice, takewhile
from statistics import fmean

import torch
from torch import Tensor

from claims.base import ROOT, Bench
from mnist_ddpm import catalogue, ddpm, trainer
from mnist_ddpm.evaluation import generation
from mnist_ddpm.methods.solvers import dpmpp_2m_sampler
from mnist_ddpm.training import loop, saving
from mnist_ddpm.training.run import Run

EPOCHS = 48  # of checkpoints/mnist


def notebook(b: Bench) -> None:
    """The notebook with nothing beside it: it trains for an epoch, saves, loads and draws."""
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if b.device.type == "cpu" else {}
    epochs = 0.05 if b.quick else 1
    command = [sys.executable, ROOT / "tools" / "alone.py", "train=True", f"epochs={epochs}"]
    options = {"env": os.environ | hidden, "capture_output": True, "text": True, "cwd": b.folder}
    began = time.monotonic()
    try:
        done = subprocess.run(command, timeout=max(1, b.left), **options)
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"it took more than {error.timeout:.0f} s") from error
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    files = [line for line in done.stdout.splitlines() if "checkpoints" in line]
    b.tell("MNIST_DDPM.ipynb alone", seconds=time.monotonic() - began, epochs=epochs, saved=files)


def resume(b: Bench) -> None:
    """A run that was saved and went on, against one that did not stop, bit for bit."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else it cannot be deterministic
    images = b.digits()[:2048]
    for precision in dict.fromkeys(("float32", b.own)):
        for fixed in (False, True):
            # cuDNN may add in another order each time, unless told
            torch.use_deterministic_algorithms(fixed, warn_only=True)
            recipe = b.recipe(precision=precision, epochs=1000)
            folder = b.folder / f"{precision}-{fixed}"
            try:
                whole, again = (trained(b, recipe, images, b.size(40, 4)) for _ in range(2))
                half = trained(b, recipe, images, b.size(20, 2))
                saving.save_run(folder, half, trainer.save_checkpoint)
                start = partial(trainer.start_run, device=b.device)
                resumed = saving.resume_run(folder, start)
                trained(b, recipe, images, b.size(20, 2), resumed)
            finally:
                torch.use_deterministic_algorithms(False)
            b.tell(
                f"{precision}, {'deterministic algorithms' if fixed else 'as it is'}",
                resumed_is_the_same=farthest(whole, resumed) == 0,
                twice_is_the_same=farthest(whole, again) == 0,
                farthest=farthest(whole, resumed), steps=whole.step,
            )  # fmt: skip


def trained(b: Bench, recipe, images: Tensor, steps: int, run: Run | None = None) -> Run:
    """A run, new unless given, after so many steps more."""
    run = trainer.start_run(recipe, b.device) if run is None else run
    given = catalogue.make_schedule(recipe), catalogue.make_objective(recipe)
    list(islice(loop.training_loop(run, images, *given), steps))
    return run


def farthest(a: Run, b: Run) -> float:
    """The largest difference of two runs' averaged weights."""
    pairs = zip(a.ema.parameters(), b.ema.parameters(), strict=True)
    return max((x - y).abs().max().item() for x, y in pairs)


def draw(b: Bench, precision: str, n: int, batch_size: int, network=None, recipe=None) -> Tensor:
    """Digits of DPM-Solver++ with noise in 20 steps, seed 0: uint8 (n, C, H, W)."""
    if network is None:
        network, recipe = b.drawn_from()
    device = next(network.parameters()).device
    asked, path = generation.autocast(network, precision, device), catalogue.make_schedule(recipe)
    times = ddpm.timesteps(recipe.T, b.size(20, 3))
    return generation.generate(
        generation.denoisers(asked, path, recipe), path, n, recipe.shape, times=times,
        sampler=partial(dpmpp_2m_sampler, eta=1.0), batch_size=batch_size, device=device,
        progress=False,
    )[0]  # fmt: skip


def images(b: Bench) -> None:
    """Image k from batches of every size, and from the processor."""
    n = b.size(64, 4)
    network, recipe = b.drawn_from()
    for precision in dict.fromkeys(("float32", b.own)):
        whole = draw(b, precision, n, n, network, recipe).int()
        for size in (1, 7, 16):
            apart = (draw(b, precision, n, size, network, recipe).int() - whole).abs()
            b.tell(f"{precision}, batches of {size} against {n}", **differences(apart))
    few = b.size(16, 2)
    there = draw(b, "float32", few, few, network, recipe).int()
    here = draw(b, "float32", few, few, network.cpu(), recipe).int()
    b.tell(f"float32, {b.device.type} against the processor", **differences((there - here).abs()))


def differences(apart: Tensor) -> dict:
    """Of images, in grey levels."""
    same = (apart == 0).float().mean().item()
    return {"grey_levels_at_most": apart.max().item(), "share_of_equal_pixels": same}


def digits(b: Bench) -> None:
    """10,000 digits in 20 steps; where time is short, fewer, and what all would take."""
    n, few = b.size(10_000, 8), b.size(1000, 4)
    network, recipe = b.drawn_from()
    for precision in dict.fromkeys(("float32", b.own)):
        run = partial(draw, b, precision, network=network, recipe=recipe)
        run(4, 4)  # to warm up
        batch_size = min(few, 500)
        seconds, count = b.timed(partial(run, few, batch_size)), few
        if seconds * n / few < b.left / 2:
            seconds, count = b.timed(partial(run, n, batch_size)), n
        told = {"seconds": seconds, "n": count}
        if count < n:
            told[f"seconds_for_{n}_extrapolated"] = seconds * n / count
        b.tell(f"digits in 20 steps, {precision}", **told, images_a_second=count / seconds)


def epochs(b: Bench) -> None:
    """The steps of 48 epochs of preset mnist, or as many as there is time for, and what all take.

    Without saves and previews.
    """
    recipe = b.recipe(precision=b.own, epochs=b.size(EPOCHS, 1))
    run, images = trainer.start_run(recipe, b.device), loop.at_hand(b.digits(), b.device)
    given = catalogue.make_schedule(recipe), catalogue.make_objective(recipe)
    steps, ends = loop.training_loop(run, images, *given), time.monotonic() + b.left - 5
    seconds = b.timed(lambda: [*takewhile(lambda _: time.monotonic() < ends, steps)])
    total = ddpm.total_steps(recipe, len(images))
    told = {"epochs": run.step * recipe.epochs / total, "seconds": seconds}
    if run.step < total:
        told[f"seconds_for_{recipe.epochs:g}_epochs_extrapolated"] = seconds * total / run.step
    pace = run.step * recipe.batch_size / seconds
    last = fmean(run.losses[-100:])
    b.tell(f"mnist in {recipe.precision}", **told, images_a_second=pace, last_loss=last)
