"""Training that saves as it goes, can be stopped, and goes on bit for bit."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mnist_ddpm.ddpm import Schedule, check, learning_rate_at, random_generator, to_float
from mnist_ddpm.machine import folder_lock
from mnist_ddpm.machine.files import writable_folder
from mnist_ddpm.machine.interrupts import deferred_interrupt
from mnist_ddpm.machine.prefetch import to_device
from mnist_ddpm.machine.processes import World
from mnist_ddpm.training import saving
from mnist_ddpm.training.run import ALONE, Run, join_world, training_step
from mnist_ddpm.training.run_length import Length, TimedLength, epochs_length, until_deadline
from mnist_ddpm.training.session import Log, Preview, Session

Augment = Callable[[Tensor, torch.Generator], Tensor]  # as ddpm.mirrored
# errors whose message is to say what is saved
EXPLAINED = FloatingPointError, OSError, RuntimeError, MemoryError


def check_labels(labels: Tensor | None, n: int, classes: int) -> None:
    """Raises ValueError unless labels are int32 or int64 (n,), each 0 … classes - 1.

    Where classes is 0, they must be None.
    """
    if labels is None:
        check(not classes, f"the network takes one of {classes} labels an image: pass labels")
        return
    check(classes > 0, "the network takes no labels (classes is 0): leave them out")
    is_integer = labels.dtype in (torch.int32, torch.int64)
    check(is_integer, f"labels are {labels.dtype}: labels.long() makes them int64")
    shape = tuple(labels.shape)
    check(shape == (n,), f"labels are {shape}: there must be one for each of {n} images")
    is_known = bool(((labels >= 0) & (labels < classes)).all())
    extremes = f"{labels.min()} to {labels.max()}"
    check(is_known, f"labels are {extremes}: they must be from 0 to {classes - 1}")


def check_images(run: Run, images: Tensor) -> None:
    """Raises ValueError unless there are as many as before, of the recipe's shape."""
    shape = tuple(images.shape[1:])
    shapes = f"the images are {shape}, and the run's settings say {run.settings.shape}"
    check(shape == run.settings.shape, f"{shapes}: channels, height, width")
    n = len(images)
    counts = f"the run is one of {run.n} images, and here are {n}"
    check(run.n in (0, n), f"{counts}: init_from goes on with others")


def read_batches(
    images: Tensor, batches: Sequence[Tensor], world: World, device: torch.device
) -> Iterator[Tensor]:
    """The images of each batch of indices (N,), as uint8 (N, C, H, W) on the device.

    Of several processes each reads only its share: other images are black there.
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
    world: World = ALONE,
    length: Length | None = None,
) -> Iterator[float]:
    """Trains run on uint8 images (N, C, H, W), and their labels (N,), to its last epoch.

    Or to another length, in steps. Yields each loss; raises FloatingPointError as training_step.
    """
    s = run.settings
    n = len(images)
    length = length or epochs_length(s, n)
    epoch_steps = n // s.batch_size
    while run.step < length(run.step):
        epoch, position = divmod(run.step, epoch_steps)
        order = torch.randperm(n, generator=random_generator(s.seed, 0, epoch))
        batches = order.split(s.batch_size)[position:epoch_steps]
        pixels = read_batches(images, batches, world, run.device)
        for batch in batches:
            run.total = length(run.step)
            if run.step >= run.total:
                return
            start = time.monotonic()
            run.set_learning_rate(learning_rate_at(run.step + 1, run.total, s))
            generator = random_generator(s.seed, 1, run.step)
            x0 = to_float(next(pixels))
            x0 = x0 if augment is None else augment(x0, generator)
            batch_labels = None if labels is None else labels[batch.to(labels.device)]
            run.called.train()  # each time: the caller may have sampled from it
            loss = training_step(run, x0, schedule, generator, batch_labels, world)
            run.seconds += time.monotonic() - start
            yield loss


def fit(
    run: Run,
    images: Tensor,
    schedule: Schedule,
    folder: str | Path,
    *,
    save_checkpoint: saving.SaveCheckpoint,
    labels: Tensor | None = None,
    augment: Augment | None = None,
    preview: Preview | None = None,
    deadline: float = math.inf,
    ending: float | None = None,
    world: World = ALONE,
    log: Log | None = None,
) -> Run:
    """Trains run to its last epoch on uint8 images (N, C, H, W), and saves to folder.

    A preview comes after each epoch. Where epochs are short, it comes after as many as have
    PREVIEW_EVERY steps, and as keep saves and previews within 3 s and a twentieth of the time. A
    checkpoint comes with the first preview, every five minutes, and at the end. deadline:
    time.monotonic() at which to save and stop. With ending, the steps in whose time a preview is
    drawn, all is done by then, and the learning rate follows the clock, however many epochs that
    makes: the recipe's are a first guess.

    Raises ValueError for labels, images or processes that do not fit, FileExistsError where it
    would overwrite another run, FloatingPointError for a loss that is not finite, ConnectionError
    where one of several processes fails, Stopped (a KeyboardInterrupt) after a signal. The message
    says what is saved and how to go on. Raises BlockingIOError where another trains in folder.
    """
    check_labels(labels, len(images), run.settings.classes)
    check_images(run, images)
    join_world(run, world)
    length = epochs_length(run.settings, len(images))  # raises for too few images
    folder = writable_folder(folder)
    run.n = len(images)
    if world.rank == 0:
        warn_of_signal(schedule)
    images = on_device_if_it_fits(images, run.device)
    with deferred_interrupt() as interrupted, folder_lock.locked_folder(folder, world) as where:
        saving.check_not_overwriting(folder, run)
        session = Session(run, where, schedule, save_checkpoint, preview, world, log=log)
        if deadline < math.inf and ending is None:
            length = until_deadline(length, deadline, world)
        elif deadline < math.inf:
            length = TimedLength(deadline, length(run.step), ending, world, step=run.step)
            session.timed_length = length
        steps = training_loop(run, images, schedule, labels, augment, world=world, length=length)
        try:
            is_stopped = session.train(steps, length, interrupted)
        except EXPLAINED as error:
            explained = session.with_what_is_saved(error)
            if explained is error:
                raise
            raise explained from error
    if is_stopped or interrupted:  # also after the last signal that all processes share
        raise session.stopped(len(images), interrupted)
    return run


def warn_of_signal(schedule: Schedule) -> None:
    """Prints a line where x_T, from which sampling starts as from noise, still has signal."""
    power = schedule.a[-1].item() ** 2
    if power > 0.01:
        remains = f"At t = T {power:.0%} of the signal's power is left"
        print(f"{remains}, but sampling starts from noise: raise T or beta_T")


def on_device_if_it_fits(images: Tensor, device: torch.device) -> Tensor:
    """The images on the device, unless they take more than a quarter of its free memory."""
    most = torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else 2**31
    return images.to(device) if images.numel() < min(2**31, most) else images
