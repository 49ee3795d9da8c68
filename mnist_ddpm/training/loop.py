"""Training that saves as it goes, can be stopped, and goes on bit for bit."""

import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import torch
from torch import Tensor

from mnist_ddpm.ddpm import (
    Schedule,
    check,
    learning_rate_at,
    random_generator,
    to_float,
    total_steps,
)
from mnist_ddpm.machine import folder_lock
from mnist_ddpm.machine.files import first_line, is_out_of_memory, replacing, writable_folder
from mnist_ddpm.machine.interrupts import Stopped, deferred_interrupt
from mnist_ddpm.machine.prefetch import to_device
from mnist_ddpm.machine.processes import World
from mnist_ddpm.machine.progress import progress_bar
from mnist_ddpm.machine.threads import adapt_threads
from mnist_ddpm.training import saving
from mnist_ddpm.training.run import ALONE, Run, join, training_step
from mnist_ddpm.training.run_length import Clock, Length, of_epochs, until

PREVIEW_EVERY = 50  # steps: shorter epochs have no preview each
SAVE_EVERY = 300  # seconds, at most, from one checkpoint to the next
Augment = Callable[[Tensor, torch.Generator], Tensor]  # as ddpm.mirrored
Preview = Callable[[Run, Schedule], np.ndarray]  # a picture (height, width, 3)
Log = Callable[[Run, np.ndarray | None], None]  # told of each step, and of each preview
STOPPING = FloatingPointError, OSError, RuntimeError, MemoryError  # whose message says what is left


def check_labels(labels: Tensor | None, n: int, classes: int) -> None:
    """Raises ValueError unless labels are int32 or int64 (n,), each 0 … classes - 1.

    Where classes is 0, they must be None.
    """
    if labels is None:
        problem = f"the network takes one of {classes} labels with each image, and there are none"
        check(not classes, f"{problem}: pass labels")
        return
    check(classes > 0, "labels are of no use to this network (classes = 0): leave them out")
    whole = labels.dtype in (torch.int32, torch.int64)
    problem = f"labels must be int32 or int64, not {labels.dtype}"
    check(whole, f"{problem}: labels.long() makes them so")
    problem = f"there must be one label for each of {n} images, not labels {tuple(labels.shape)}"
    check(labels.shape == (n,), problem)
    problem = f"labels must be from 0 to {classes - 1}: found {labels.min()} to {labels.max()}"
    check(bool(((labels >= 0) & (labels < classes)).all()), problem)


def check_images(run: Run, images: Tensor) -> None:
    """Raises ValueError unless there are as many as before, of the recipe's shape."""
    given, wanted = tuple(images.shape[1:]), run.settings.shape
    problem = f"the images are {given}, and the run's settings say {wanted}"
    check(given == wanted, f"{problem}: channels, height, width")
    problem = f"the run is one of {run.n} images, and here are {len(images)}"
    check(run.n in (0, len(images)), f"{problem}: init_from goes on with others")


def read(
    images: Tensor, batches: Sequence[Tensor], world: World, device: torch.device
) -> Iterator[Tensor]:
    """Images by their numbers, each batch (N,) as uint8 (N, C, H, W) on the device.

    Of several processes each reads only its share; the others' images are black to it.
    """

    def share_of(batch: Tensor) -> Tensor:
        own = world.share(len(batch))
        return images[batch[own.start : own.stop].to(images.device)]

    shares = map(share_of, batches)
    shares = to_device(shares, device) if images.device.type == "cpu" else shares
    for batch, share in zip(batches, shares):
        if world.size > 1:
            own, whole = world.share(len(batch)), share.new_zeros(len(batch), *share.shape[1:])
            whole[own.start : own.stop] = share
            share = whole
        yield share


def training_loop(
    run: Run, images: Tensor, schedule: Schedule,
    labels: Tensor | None = None, augment: Augment | None = None, world: World = ALONE,
    length: Length | None = None,
) -> Iterator[float]:  # fmt: skip
    """Trains run on uint8 images (N, C, H, W), and their labels (N,), to its last epoch.

    Or to another length, in steps. Yields each loss; raises FloatingPointError as training_step.
    """
    s, n, device = run.settings, len(images), run.device
    length, epoch_steps = length or of_epochs(s, n), n // s.batch_size
    while run.step < length(run.step):
        epoch, position = divmod(run.step, epoch_steps)
        order = torch.randperm(n, generator=random_generator(s.seed, 0, epoch))
        batches = order.split(s.batch_size)[position:epoch_steps]
        reading = read(images, batches, world, device)
        for batch in batches:
            if run.step >= (total := length(run.step)):
                return
            began, generator = time.monotonic(), random_generator(s.seed, 1, run.step)
            run.total = total
            rate = learning_rate_at(run.step + 1, total, s)
            for _, optimizer in run.trained:
                for group in optimizer.param_groups:
                    group["lr"] = rate * group.get("rate_factor", 1.0)
            x0 = to_float(next(reading))
            x0 = x0 if augment is None else augment(x0, generator)
            told = None if labels is None else labels[batch.to(labels.device)]
            run.called.train()  # each time: the caller may have sampled from it
            loss = training_step(run, x0, schedule, generator, told, world)
            run.seconds += time.monotonic() - began
            yield loss


@dataclass
class Session:
    """One training of a run in a folder: what it has saved, and when."""

    run: Run
    where: Callable[[], Path]  # tells the folder's name, which may be another later
    schedule: Schedule
    save_checkpoint: saving.SaveCheckpoint
    preview: Preview | None
    world: World
    log: Log | None = None
    clock: Clock | None = None  # of a training that keeps a time

    def __post_init__(self):
        run, self.began, self.known = self.run, self.run.step, self.folder
        self.saved_at = run.step if saving.is_saved(self.folder, run) else None
        self.start = self.last_save = time.monotonic()
        self.beside = self.saving = 0.0  # seconds of saving and drawing, and of the last save

    @property
    def folder(self) -> Path:
        return self.where()

    def save(self) -> None:
        """A checkpoint, by the first process for all; again if its folder moves meanwhile.

        Of a training that keeps a time it has as many epochs as are foreseen, at last those done.
        """
        run, folder = self.run, None
        if self.clock is not None:
            epochs = self.clock.epochs(run.n // run.settings.batch_size)
            run.settings = replace(run.settings, epochs=epochs)
        while self.world.rank == 0 and folder != self.folder:
            folder = self.told(self.folder)
            saving.check_not_overwriting(folder, run)  # another may have begun there meanwhile
            try:
                saving.save_run(folder, run, self.save_checkpoint)
            except FileNotFoundError:
                if folder == self.folder:
                    raise
        if self.world.rank > 0:
            self.known = self.folder
            run.home, run.saved = folder_lock.FolderIdentity.of(self.known), run.step
        self.saved_at = run.step

    def told(self, folder: Path) -> Path:
        """The folder to save in. Prints where it is another than before."""
        if folder != self.known:
            print(f"{self.known} has moved: training goes on in {folder}")
        elif not folder.exists():
            print(f"{folder} was removed: training makes it anew")
        self.known = folder
        return folder

    def draw(self, epoch: int) -> None:
        """A preview. A failure is no reason to stop: the loss and the next save show it."""
        if self.preview is None or self.world.rank > 0:
            return
        path = self.folder / "previews" / f"epoch_{epoch:03d}.png"
        with suppress(FloatingPointError, OSError):
            picture = self.preview(self.run, self.schedule)
            self.report(picture)
            encoded = imageio.imwrite("<bytes>", picture, extension=path.suffix)
            with replacing(path) as temporary:
                temporary.write_bytes(encoded)

    def report(self, picture: np.ndarray | None = None) -> None:
        """Tells the log, of one process, of a step or a preview."""
        if self.log is not None and self.world.rank == 0:
            self.log(self.run, picture)

    def train(self, steps: Iterator[float], length: Length, interrupted: list) -> bool:
        """Takes the steps, and saves. Returns whether a process was interrupted."""
        run, world, epoch_steps = self.run, self.world, self.run.n // self.run.settings.batch_size
        rhythm = epoch_steps * max(1, PREVIEW_EVERY // epoch_steps)
        if run.step and run.is_at(self.folder) and not saving.is_intact(self.folder):
            self.save()  # at once: a save was cut short, or what it wrote is damaged
            if world.rank == 0:
                print(f"the checkpoint in {self.folder} was not whole, and is saved anew")
        total = round(length(run.step))
        bar = progress_bar(total=total, initial=run.step, desc="training", unit="step")
        with bar:
            for _ in steps:
                if world.size == 1:
                    adapt_threads()
                self.report()
                now = time.monotonic()
                bar.total = round(length(run.step))
                show(bar, run.losses)
                stopped = world.any(bool(interrupted))
                run.seconds += time.monotonic() - now  # where processes wait for each other
                ends = run.step >= length(run.step)
                shown = ends or (run.step % rhythm == 0 and self.has_time(now))
                first = shown and self.saved_at is None
                if ends or stopped or first or now - self.last_save > SAVE_EVERY:
                    self.save()
                    self.last_save, self.saving = now, time.monotonic() - now
                if shown:
                    since = time.monotonic()
                    self.draw(math.ceil(run.step / epoch_steps))
                    if self.clock is not None:
                        self.clock.took = self.saving + time.monotonic() - since
                self.beside += time.monotonic() - now
                if ends or stopped:
                    break
            if run.step != self.saved_at:  # the steps ended early, or a save was cut short
                self.save()
        if run.step == self.began and world.rank == 0:
            print(f"{self.folder} was trained to its end before: set more epochs to go on")
        return world.any(bool(interrupted))  # all wait until the last checkpoint is written

    def stopped(self, n: int, signals: list[int]) -> Stopped:
        """What to raise after the signals, with all saved, in a training on n images."""
        run, more, resumed = self.run, ", its last", None
        if run.step < total_steps(run.settings, n):
            more, resumed = ": resume to go on", self.known
        told = f"stopped after step {run.step} and saved in {self.known}{more}"
        return Stopped(told, signals[0] if signals else signal.SIGINT, resumed)

    def has_time(self, now: float) -> bool:
        """Whether saves and previews have taken less than 3 s and a twentieth of the time."""
        return self.beside < 3 + (now - self.start) / 20

    def explained(self, error: Exception) -> Exception:
        """The error, and what is saved."""
        alone, of_memory = self.world.size == 1, isinstance(error, RuntimeError | MemoryError)
        if isinstance(error, RuntimeError) and not alone:
            problem = f"one of {self.world.size} processes failed, this or another"
            return ConnectionError(f"{problem} ({first_line(error)}); {self.rescued()}")
        if of_memory and not (alone and is_out_of_memory(error)):
            return error
        left = f"what the first process has saved in {self.folder} is good"
        if self.world.rank == 0:
            good = self.saved_at and not isinstance(error, FileExistsError)
            whole = f"the checkpoint of step {self.saved_at} in {self.folder} is good"
            left = whole if good else self.left_there()
        diverged = isinstance(error, FloatingPointError)
        advice = "; try a lower learning_rate, or float32" if diverged else ""
        return type(error)(f"{first_line(error)}; {left}{advice}")

    def left_there(self) -> str:
        """What a save that was cut short, or never came, has left in the folder."""
        there = self.run.is_at(self.folder)
        return f"the run in {self.folder} can be resumed" if there else "nothing was saved"

    def rescued(self) -> str:
        """Saves what the first of several processes has, if it can. Returns what is saved then."""
        if self.world.rank > 0:
            return f"what the first of them has saved is in {self.folder}"
        with suppress(OSError, RuntimeError):  # the first error is the one to tell
            if self.run.step:
                self.save()
        step = saving.saved_step(self.folder)
        if step is not None and self.run.is_at(self.folder):
            return f"step {step} is saved in {self.folder}: resume to go on"
        return self.left_there()


def show(bar, losses: list[float]) -> None:
    """Moves the progress bar."""
    try:
        bar.update()
    except OSError:  # of what it is piped to, which Ctrl-C ends as well
        bar.disable = True
        bar.get_lock().release()  # tqdm's other threads would wait for it
    bar.set_postfix(loss=f"{np.mean(losses[-100:]):.4f}", refresh=False)


def fit(
    run: Run, images: Tensor, schedule: Schedule, folder: str | Path, *,
    save_checkpoint: saving.SaveCheckpoint, labels: Tensor | None = None,
    augment: Augment | None = None, preview: Preview | None = None, deadline: float = math.inf,
    ending: float | None = None, world: World = ALONE, log: Log | None = None,
) -> Run:  # fmt: skip
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
    join(run, world)
    length = of_epochs(run.settings, len(images))  # which says whether there are enough images
    folder = writable_folder(folder)
    run.n = len(images)
    signal_power = schedule.a[-1].item() ** 2
    if signal_power > 0.01 and world.rank == 0:
        told = f"At t = T {signal_power:.0%} of the signal's power is left"
        print(f"{told}, but sampling starts from noise: raise T or beta_T")
    images = at_hand(images, run.device)
    with deferred_interrupt() as interrupted, folder_lock.locked_folder(folder, world) as where:
        saving.check_not_overwriting(folder, run)
        session = Session(run, where, schedule, save_checkpoint, preview, world, log)
        if deadline < math.inf and ending is None:
            length = until(length, deadline, world)
        elif deadline < math.inf:
            planned = length(run.step)
            session.clock = length = Clock(deadline, planned, ending, world, run.step)
        try:
            steps = training_loop(run, images, schedule, labels, augment, world, length)
            stopped = session.train(steps, length, interrupted)
        except STOPPING as error:
            told = session.explained(error)
            if told is error:
                raise
            raise told from error
    if stopped or interrupted:  # also after the last that all have heard of
        raise session.stopped(len(images), interrupted)
    return run


def at_hand(images: Tensor, device: torch.device) -> Tensor:
    """The images on the device, if they leave room there; else they come batch by batch."""
    room = torch.cuda.mem_get_info(device)[0] // 4 if device.type == "cuda" else 2**31
    return images.to(device) if images.numel() < min(2**31, room) else images
