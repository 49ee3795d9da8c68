"""Training that saves checkpoints, can be stopped, and resumes with the same result bit for bit."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mnist_ddpm import catalogue, ddpm
from mnist_ddpm.datasets import dataset_named
from mnist_ddpm.ddpm import Schedule, check, learning_rate_at, random_generator, to_float
from mnist_ddpm.machine import devices, folder_lock
from mnist_ddpm.machine.devices import to_device
from mnist_ddpm.machine.files import writable_folder
from mnist_ddpm.machine.process import deferred_interrupt, progress_bar
from mnist_ddpm.machine.processes import ProcessGroup, adapt_threads
from mnist_ddpm.method import Method
from mnist_ddpm.recipe import Recipe
from mnist_ddpm.training.first_weights import Sources, load_first_weights, load_teacher
from mnist_ddpm.training.run import SINGLE_PROCESS, Run, attach_processes, new_run, training_step
from mnist_ddpm.training.session import (
    IMAGES,
    Length,
    Log,
    Preview,
    Session,
    TimedLength,
    draw_preview,
    epochs_length,
)

Augment = Callable[[Tensor, torch.Generator], Tensor]  # as ddpm.mirrored
Device = torch.device | str


def measured_defaults(recipe: Recipe) -> dict:
    """Flags of sample and their values; {} where nothing was measured."""
    dataset = dataset_named(recipe.dataset)
    defaults = dict(dataset.draw.get((recipe.schedule, recipe.T), {}))
    if defaults and recipe.classes and recipe.label_dropout and dataset.guidance:
        defaults["guidance"] = dataset.guidance
    return defaults


def check_labels(labels: Tensor | None, n: int, classes: int) -> None:
    """Raises ValueError unless labels are int32 or int64 (n,), each 0 … classes - 1.

    Where classes is 0, they must be None.
    """
    if labels is None:
        check(not classes, f"the network takes labels of {classes} classes: pass labels")
        return
    check(classes > 0, "the network takes no labels (classes is 0): pass none")
    is_integer = labels.dtype in (torch.int32, torch.int64)
    check(is_integer, f"labels are {labels.dtype}, not integers: labels.long() makes them int64")
    shape = tuple(labels.shape)
    check(shape == (n,), f"labels have shape {shape}: there must be one for each of {n} images")
    is_known = bool(((labels >= 0) & (labels < classes)).all())
    message = f"labels are {labels.min()} to {labels.max()}: they must be from 0 to {classes - 1}"
    check(is_known, message)


def check_images(run: Run, images: Tensor) -> None:
    """Raises ValueError unless images have the recipe's shape, and a resumed run's number."""
    shape = tuple(images.shape[1:])
    expected = run.settings.shape
    message = f"images are (channels, height, width) {shape}, and the run's settings {expected}"
    check(shape == expected, message)
    n = len(images)
    refusal = f"this run was trained on {run.n_images} images, not {n}"
    advice = "to continue on other images, start a new run with --init-from"
    check(run.n_images in (0, n), f"{refusal}: {advice}")


def read_batches(run: Run, images: Tensor, batches: Sequence[Tensor]) -> Iterator[Tensor]:
    """The images of each batch of indices (N,), as uint8 (N, C, H, W) on the run's device.

    With several processes, each reads its own share only, and other images are black there.
    """
    world = run.world

    def read_share(batch: Tensor) -> Tensor:
        share = world.share(len(batch))
        return images[batch[share.start : share.stop].to(images.device)]

    shares = map(read_share, batches)
    shares = to_device(shares, run.device) if images.device.type == "cpu" else shares
    for batch, pixels in zip(batches, shares):
        if world.size == 1:
            yield pixels
            continue
        share = world.share(len(batch))
        padded = pixels.new_zeros(len(batch), *pixels.shape[1:])
        padded[share.start : share.stop] = pixels
        yield padded


def training_loop(
    run: Run,
    images: Tensor,
    schedule: Schedule,
    labels: Tensor | None = None,
    augment: Augment | None = None,
    length: Length | None = None,
) -> Iterator[float]:
    """As ddpm.training_loop, but by the run's method, and on several processes.

    Trains run on uint8 images (N, C, H, W) to its last epoch. length: how many steps to train, if
    not the recipe's epochs. Yields each loss. Raises FloatingPointError as training_step.
    """
    recipe = run.settings
    n = len(images)
    length = length or epochs_length(recipe, n)
    epoch_steps = n // recipe.batch_size
    while run.step < length(run.step):
        epoch, position = divmod(run.step, epoch_steps)
        order = torch.randperm(n, generator=random_generator(recipe.seed, 0, epoch))
        batches = order.split(recipe.batch_size)[position:epoch_steps]
        pixels = read_batches(run, images, batches)
        for batch in batches:
            run.total_steps = length(run.step)
            if run.step >= run.total_steps:
                return
            start = time.monotonic()
            run.set_learning_rate(learning_rate_at(run.step + 1, run.total_steps, recipe))
            generator = random_generator(recipe.seed, 1, run.step)
            x0 = to_float(next(pixels))
            x0 = x0 if augment is None else augment(x0, generator)
            batch_labels = None if labels is None else labels[batch.to(labels.device)]
            run.callable_network.train()  # in each step: the caller may have sampled from it
            loss = training_step(run, x0, schedule, generator, batch_labels)
            run.training_seconds += time.monotonic() - start
            yield loss


def fit(
    run: Run,
    images: Tensor,
    folder: str | Path,
    *,
    labels: Tensor | None = None,
    preview: Preview | None = draw_preview,
    deadline: float = math.inf,
    final_preview_steps: float = 0.0,
    world: ProcessGroup = SINGLE_PROCESS,
    log: Log | None = None,
) -> Run:
    """Trains run to its last epoch on uint8 images (N, C, H, W), and saves it in folder.

    It draws a preview after each epoch, but at least PREVIEW_EVERY steps apart, and only while
    saves and previews take less than 3 s plus a twentieth of the time. It saves with the first
    preview, every five minutes, and at the end.

    deadline: the time.monotonic() at which to end; the learning rate then falls to 0 at the
    deadline instead of after the recipe's epochs, which only serve as a first estimate.
    final_preview_steps: how many steps take as long as the last preview.

    Raises ValueError for labels, images or processes that do not fit; FileExistsError where it
    would overwrite another run; BlockingIOError where another process trains in folder;
    FloatingPointError for a loss that is not finite; ConnectionError where one of several processes
    fails; Stopped (a KeyboardInterrupt) after a signal. Messages say what is saved and how to
    resume.
    """
    recipe = run.settings
    check_labels(labels, len(images), recipe.classes)
    check_images(run, images)
    attach_processes(run, world)
    length = epochs_length(recipe, len(images))  # raises for too few images
    if deadline < math.inf:
        length = TimedLength(deadline, length(run.step), final_preview_steps, world, run.step)
    schedule = catalogue.make_schedule(recipe)
    if world.rank == 0:
        warn_of_signal(schedule)
    folder = writable_folder(folder)
    run.n_images = len(images)
    images = on_device_if_it_fits(images, run.device)
    augment = ddpm.mirrored if recipe.is_mirrored else None
    draw = preview and partial(preview, run, schedule, images[:IMAGES])
    with deferred_interrupt() as signals, folder_lock.locked_folder(folder, world):
        session = Session(run, folder, length, draw, log)
        first_step = run.step
        is_stopped = False
        bar = progress_bar(
            total=round(length(run.step)), initial=run.step, desc="training", unit="step"
        )
        with session.explained_errors(), bar:
            session.begin()
            for _ in training_loop(run, images, schedule, labels, augment, length):
                step_end = time.monotonic()
                if world.size == 1:
                    adapt_threads()
                bar.total = round(length(run.step))
                advance(bar, run.losses)
                is_stopped = world.any(bool(signals))
                run.training_seconds += time.monotonic() - step_end  # processes wait for each other
                if session.end_step(is_stopped):
                    break
            if run.step != session.saved_step:  # the steps ended early, or a save was cut short
                session.save()
            is_stopped = world.any(bool(signals))  # all wait until the last checkpoint is written
    if is_stopped or signals:  # also after the last signal that all processes share
        raise session.stopped(signals)
    if run.step == first_step and world.rank == 0:
        print(f"{folder} was trained to its end before: set more epochs to go on")
    return run


def advance(bar: tqdm, losses: list[float]) -> None:
    """Moves the progress bar by a step, and shows the mean of the last 100 losses."""
    try:
        bar.update()
    except OSError:  # of what it is piped to, which Ctrl-C ends as well
        bar.disable = True
        bar.get_lock().release()  # tqdm's other threads would wait for it
    bar.set_postfix(loss=f"{np.mean(losses[-100:]):.4f}", refresh=False)


def warn_of_signal(schedule: Schedule) -> None:
    """Prints a warning if x_T still has signal, since sampling starts from pure noise."""
    power = schedule.a[-1].item() ** 2
    if power > 0.01:
        left_over = f"At t = T {power:.0%} of the signal's power is left"
        print(f"{left_over}, but sampling starts from noise: raise T or beta_T")


def on_device_if_it_fits(images: Tensor, device: torch.device) -> Tensor:
    """The images on the device, unless they take more than a quarter of its free memory."""
    limit = torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else 2**31
    return images.to(device) if images.numel() < min(2**31, limit) else images


def start_run(
    recipe: Recipe,
    device: Device = "cpu",
    sources: Sources | None = None,
    method: Method | None = None,
    is_resumed: bool = False,
) -> Run:
    """As ddpm.start_run, for any recipe: a run at step 0, with the weights and teacher it names.

    sources: where these are read, or were already. method: in place of the recipe's. is_resumed:
    saved weights will replace those that it begins with. Raises ValueError for an unknown name,
    weights of another network, or a recipe that does not fit, and as Sources.load.
    """
    devices.check_precision(recipe.precision, device)
    recipe = replace(recipe, compile=recipe.compile and devices.compiles(device, recipe.precision))
    sources = sources or Sources()
    network = catalogue.make_network(recipe).to(device)
    if method is None:
        teacher = load_teacher(recipe, device, sources) if recipe.teacher else None
        method = catalogue.make_method(recipe, teacher)
    method.networks.to(device)
    if recipe.init_from and not is_resumed:
        load_first_weights(recipe, network, method, sources)
    optimizer_factory = partial(catalogue.make_optimizer, recipe=recipe)
    run = new_run(recipe, network, optimizer_factory, method, catalogue.make_times(recipe))
    run.sampling_defaults = method.sampling_defaults or measured_defaults(recipe)
    return run
