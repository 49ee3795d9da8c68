"""Training that saves checkpoints, can be stopped, and resumes with the same result bit for bit."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from mnist_ddpm import catalogue, ddpm
from mnist_ddpm.datasets import dataset_named
from mnist_ddpm.ddpm import Schedule, check, learning_rate_at, random_generator, to_float
from mnist_ddpm.formats.checkpoints import config_value, load_weights
from mnist_ddpm.machine import devices, folder_lock
from mnist_ddpm.machine.devices import to_device
from mnist_ddpm.machine.files import writable_folder
from mnist_ddpm.machine.process import deferred_interrupt
from mnist_ddpm.machine.processes import ProcessGroup
from mnist_ddpm.method import Method
from mnist_ddpm.methods.guidance import Teacher
from mnist_ddpm.recipe import Recipe
from mnist_ddpm.training import cost, run, saving, session
from mnist_ddpm.training.run import SINGLE_PROCESS, Run, attach_processes, training_step
from mnist_ddpm.training.session import (
    Length,
    Log,
    Preview,
    Session,
    TimedLength,
    epochs_length,
    with_deadline,
)

Augment = Callable[[Tensor, torch.Generator], Tensor]  # as ddpm.mirrored
# errors to whose message it adds what is saved
EXPLAINED_ERRORS = FloatingPointError, OSError, RuntimeError, MemoryError
Device = torch.device | str
Weights = dict[str, Tensor]  # by name


def measured_defaults(recipe: Recipe) -> dict:
    """Flags of sample and their values; {} where nothing was measured."""
    return dict(dataset_named(recipe.dataset).draw.get((recipe.schedule, recipe.T), {}))


def defaults_for_run(run: Run, folder: str | Path, resume: bool) -> dict:
    """What to write for a run: what a resumed one's checkpoint says, else what suits its method."""
    recorded = config_value(folder, "draw") if resume else None
    if recorded is not None:
        return recorded
    return run.method.sampling_defaults or measured_defaults(run.settings)


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


def read_batches(
    images: Tensor, batches: Sequence[Tensor], world: ProcessGroup, device: torch.device
) -> Iterator[Tensor]:
    """The images of each batch of indices (N,), as uint8 (N, C, H, W) on the device.

    With several processes, each reads its own share only, and other images are black there.
    """

    def read_share(batch: Tensor) -> Tensor:
        share = world.share(len(batch))
        return images[batch[share.start : share.stop].to(images.device)]

    shares = map(read_share, batches)
    shares = to_device(shares, device) if images.device.type == "cpu" else shares
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
    world: ProcessGroup = SINGLE_PROCESS,
    length: Length | None = None,
) -> Iterator[float]:
    """As ddpm.training_loop, but from any step, with labels (N,), and on several processes.

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
        pixels = read_batches(images, batches, world, run.device)
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
            loss = training_step(run, x0, schedule, generator, batch_labels, world)
            run.training_seconds += time.monotonic() - start
            yield loss


def fit(
    run: Run,
    images: Tensor,
    schedule: Schedule,
    folder: str | Path,
    *,
    labels: Tensor | None = None,
    augment: Augment | None = None,
    preview: Preview | None = None,
    deadline: float = math.inf,
    final_preview_steps: float | None = None,
    world: ProcessGroup = SINGLE_PROCESS,
    log: Log | None = None,
) -> Run:
    """Trains run to its last epoch on uint8 images (N, C, H, W), and saves it in folder.

    It draws a preview after each epoch, but at least PREVIEW_EVERY steps apart, and only while
    saves and previews take less than 3 s plus a twentieth of the time. It saves with the first
    preview, every five minutes, and at the end.

    deadline: the time.monotonic() at which to save and stop. final_preview_steps: how many steps
    take as long as one preview. If it is given, the last preview is also drawn before the deadline,
    and the learning rate falls to 0 at the deadline instead of after the recipe's epochs, which
    only serve as a first estimate.

    Raises ValueError for labels, images or processes that do not fit; FileExistsError where it
    would overwrite another run; BlockingIOError where another process trains in folder;
    FloatingPointError for a loss that is not finite; ConnectionError where one of several processes
    fails; Stopped (a KeyboardInterrupt) after a signal. Messages say what is saved and how to
    resume.
    """
    check_labels(labels, len(images), run.settings.classes)
    check_images(run, images)
    attach_processes(run, world)
    length = epochs_length(run.settings, len(images))  # raises for too few images
    folder = writable_folder(folder)
    run.n_images = len(images)
    if world.rank == 0:
        warn_of_signal(schedule)
    images = on_device_if_it_fits(images, run.device)
    with deferred_interrupt() as interrupted, folder_lock.locked_folder(folder, world):
        saving.check_not_overwriting(folder, run)
        session = Session(run, folder, schedule, preview, world, log=log)
        length = with_deadline(length, deadline, final_preview_steps, world, run.step)
        session.timed_length = length if isinstance(length, TimedLength) else None
        steps = training_loop(run, images, schedule, labels, augment, world=world, length=length)
        try:
            is_stopped = session.train(steps, length, interrupted)
        except EXPLAINED_ERRORS as error:
            explained = session.with_what_is_saved(error)
            if explained is error:
                raise
            raise explained from error
    if is_stopped or interrupted:  # also after the last signal that all processes share
        raise session.stopped(len(images), interrupted)
    return run


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
    weights: Weights | None = None,
    method_weights: dict[str, Weights] | None = None,
    teacher: Teacher | None = None,
    method: Method | None = None,
) -> Run:
    """As ddpm.start_run, for any recipe: a run at step 0, from random weights or those given.

    method_weights: of its method's networks, by name. teacher: as formats.teachers loads it.
    method: in place of the recipe's. Raises ValueError for an unknown name, weights of another
    network, or a recipe that does not fit.
    """
    network = catalogue.make_network(recipe).to(device)
    method = catalogue.make_method(recipe, teacher) if method is None else method
    method.networks.to(device)
    source = recipe.init_from or "what is given"
    if weights is not None:
        load_weights(network.state_dict(), weights, source)
    for name, own in (method_weights or {}).items():
        load_weights(method.networks[name].state_dict(), own, source)
    optimizer_factory = partial(catalogue.make_optimizer, recipe=recipe)
    return run.new_run(recipe, network, optimizer_factory, method, catalogue.make_times(recipe))


def train(
    recipe: Recipe,
    images: Tensor,
    folder: str | Path,
    labels: Tensor | None = None,
    resume: bool = False,
    weights: Weights | None = None,
    deadline: float = math.inf,
    device: Device = "cpu",
    world: ProcessGroup = run.SINGLE_PROCESS,
    log: session.Log | None = None,
    final_preview_steps: float | None = None,
    sampling_defaults: dict | None = None,
    teacher: Teacher | None = None,
    method_weights: dict[str, Weights] | None = None,
) -> Run:
    """Starts a run, or resumes that in folder, and trains it to its end, or until a deadline.

    weights, method_weights, teacher: as in start_run. deadline, final_preview_steps: as in
    fit. sampling_defaults: those to save; None: those of defaults_for_run. Raises ValueError
    where the recipe names weights to start from or a teacher, and none are passed, and as
    check_precision, resume_run and fit.
    """
    has_weights = resume or weights is not None or not recipe.init_from
    check(has_weights, f"init_from is {recipe.init_from}: pass the weights of initial_weights")
    has_teacher = teacher is not None or not recipe.teacher
    check(has_teacher, f"teacher is {recipe.teacher}: pass that of teachers.load_teacher")
    devices.check_precision(recipe.precision, device)
    recipe = replace(recipe, compile=recipe.compile and devices.compiles(device, recipe.precision))
    start = partial(start_run, device=device, teacher=teacher)
    if resume:
        new_or_resumed_run = saving.resume_run(folder, start, recipe)
    else:
        new_or_resumed_run = start(recipe, weights=weights, method_weights=method_weights)
    if world.rank == 0:
        device_text = f"{world.size} processes" if world.size > 1 else device
        print_start(new_or_resumed_run, images, device_text)
    preview = partial(
        session.draw_preview,
        make_denoiser=partial(catalogue.make_denoiser, recipe=recipe),
        processes=world.size,
        condition=catalogue.condition_batch(recipe, images, range(session.IMAGES)),
    )
    if sampling_defaults is None:
        sampling_defaults = defaults_for_run(new_or_resumed_run, folder, resume)
    new_or_resumed_run.sampling_defaults = sampling_defaults
    return fit(
        new_or_resumed_run,
        images,
        catalogue.make_schedule(recipe),
        folder,
        labels=labels,
        deadline=deadline,
        augment=ddpm.mirrored if recipe.is_mirrored else None,
        final_preview_steps=final_preview_steps,
        world=world,
        log=log,
        preview=preview,
    )


def print_start(new_or_resumed_run: Run, images: Tensor, device: Device) -> None:
    """Prints what is trained on how many images, and on which device."""
    count = f"{cost.count_parameters(new_or_resumed_run.network):,} parameters"
    shape = tuple(images.shape[1:])
    print(f"{len(images):,} images of {shape}, {count}, on {device}", flush=True)
