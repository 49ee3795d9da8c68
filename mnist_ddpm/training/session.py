"""What surrounds the steps of a training: its length, logs, checkpoints, previews and errors."""

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import torch
from torch import Tensor

from mnist_ddpm import catalogue, ddpm
from mnist_ddpm.ddpm import Schedule, total_steps
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.machine.files import replacing
from mnist_ddpm.machine.process import Stopped
from mnist_ddpm.machine.processes import ProcessGroup
from mnist_ddpm.machine.text import first_line, is_out_of_memory
from mnist_ddpm.methods.guidance import with_labels
from mnist_ddpm.recipe import Recipe
from mnist_ddpm.training import saving
from mnist_ddpm.training.run import SINGLE_PROCESS, Run

# From the steps that are done to the total that is expected then; equal calls return the same.
Length = Callable[[int], float]
PLAN_WEIGHT = 0.01  # the plan counts as much as what was measured in this share of the time
IMAGES = 36
STEPS = 20
COLUMNS = 6
PREVIEW_EVERY = 50  # steps: shorter epochs have no preview each
SAVE_EVERY = 300  # seconds, at most, from one checkpoint to the next
# of a run, its schedule and its first training images: a picture (height, width, 3)
Preview = Callable[[Run, Schedule, Tensor], np.ndarray]
Log = Callable[[Run, np.ndarray | None], None]  # called after each step, and with each preview


def epochs_length(recipe: Recipe, n: int) -> Length:
    """The steps of the recipe's epochs on n images, in whole batches."""
    total = total_steps(recipe, n)
    return lambda step: total


class TimedLength:
    """Estimates, after each step, how many steps there will be in all at the deadline.

    The learning rate follows this estimate, so it falls to 0 at the deadline even if the machine
    becomes slower or faster.
    """

    def __init__(
        self,
        end: float,
        planned: int,
        final_preview_steps: float,
        world: ProcessGroup = SINGLE_PROCESS,
        step: int = 0,
    ):
        """end: the time.monotonic() by which training and its last preview are done.

        planned: the first estimate of the total. final_preview_steps: how many steps take as long
        as a preview, used until one is drawn. world: the processes, which take the same estimate.
        step: of the run, which starts now.
        """
        self.end = end
        self.final_preview_steps = final_preview_steps
        self.world = world
        self.end_seconds: float | None = None  # of the latest save and preview
        self.planned = self.total = max(step + 1, planned)
        self.last_step = step  # of the latest estimate
        # The first step is not counted, since it takes longer: it compiles, for one.
        self.first_step = step + 1
        self.start = time.monotonic()

    def __call__(self, step: int) -> float:
        """The total expected after this many steps; once the time is up, this many."""
        if step != self.last_step:  # one estimate a step, the same for all calls
            self.last_step = step
            self.total = self.estimate(step)
            if self.world.size > 1:
                total = torch.tensor([self.total], dtype=torch.float64, device=self.world.device)
                self.total = self.world.gather(total).max().item()
        return self.total

    def estimate(self, step: int) -> float:
        """The total as this process alone estimates it."""
        now = time.monotonic()
        if step <= self.first_step:
            self.start = now
        planned_steps = PLAN_WEIGHT * (self.planned - self.first_step + 1)
        planned_seconds = PLAN_WEIGHT * max(self.end - self.start, 1e-9)
        steps = step - self.first_step + planned_steps
        pace = steps / (now - self.start + planned_seconds)  # steps a second
        end_seconds = self.end_seconds
        if end_seconds is None:
            end_seconds = self.final_preview_steps / pace
        remaining = (self.end - end_seconds - now) * pace  # steps
        return step if remaining < 0.5 else step + max(1.0, remaining)

    def epochs(self, steps: int) -> float:
        """The latest total in epochs of this many steps, such that rounding gives it back."""
        return float(f"{round(self.total) / steps:.9g}")


def draw_preview(run: Run, schedule: Schedule, images: Tensor) -> np.ndarray:
    """36 images of the averaged network in 20 DDIM steps, always from the same noise: a picture.

    Labels come in turn. images: uint8 (36, C, H, W), of which conditions are computed; the picture
    then shows these on the left. Raises FloatingPointError for images that are NaN.
    """
    recipe = run.settings
    most = math.ceil(recipe.batch_size / recipe.accumulation / run.world.size)  # as in training
    batches = [range(k, min(IMAGES, k + most)) for k in range(0, IMAGES, most)]
    panels = [torch.cat([draw_batch(run, schedule, images, batch) for batch in batches])]
    condition = catalogue.condition_batch(recipe, images, range(IMAGES))
    if condition is not None:
        panels.insert(0, ddpm.to_uint8(condition).cpu())
    return np.concatenate([ddpm.tile(panel, COLUMNS, scale=2) for panel in panels], axis=1)


def draw_batch(run: Run, schedule: Schedule, images: Tensor, batch: range) -> Tensor:
    """A batch of those images, uint8 (len(batch), C, H, W)."""
    recipe = run.settings
    network = run.ema
    dtype = getattr(torch, recipe.precision)
    if recipe.classes:
        labels = torch.tensor(batch, device=run.device) % recipe.classes
        network = with_labels(network, labels)
    condition = catalogue.condition_batch(recipe, images.to(run.device), batch)
    denoise = catalogue.make_denoiser(network, schedule, recipe, condition)
    denoise = ddpm.clipped(denoise, schedule)
    times = ddpm.timesteps(schedule.T, min(STEPS, schedule.T))
    draw_noise = ddpm.noise_source(recipe.seed, batch, recipe.shape, str(run.device))
    with torch.no_grad(), torch.autocast(run.device.type, dtype, enabled=dtype != torch.float32):
        *_, (_, x0, _) = ddpm.ddim_sampler(denoise, schedule, times, draw_noise(), draw_noise)
    if x0.isnan().any():
        raise FloatingPointError("the images are NaN")
    return ddpm.to_uint8(x0).cpu()


class Session:
    """What surrounds the steps of a training in a folder: logs, checkpoints, previews, errors."""

    def __init__(
        self,
        run: Run,
        folder: Path,
        length: Length,
        draw_preview: Callable[[], np.ndarray] | None,
        log: Log | None = None,
    ):
        """length: from the steps that are done to their total. draw_preview: makes a picture."""
        saving.check_not_overwriting(folder, run)
        self.run = run
        self.folder = folder
        self.length = length
        self.draw_preview = draw_preview
        self.log = log
        self.is_main_process = run.world.rank == 0  # the one that saves, draws and prints
        self.epoch_steps = run.n_images // run.settings.batch_size
        self.preview_steps = self.epoch_steps * max(1, PREVIEW_EVERY // self.epoch_steps)
        self.saved_step = run.step if saving.is_saved(folder, run) else None
        self.start_time = self.last_save_time = time.monotonic()
        self.overhead_seconds = 0.0  # of all saves and previews
        self.save_seconds = 0.0  # of the last save

    def begin(self) -> None:
        """Saves the checkpoint of a resumed run again, where it is damaged."""
        run = self.run
        if run.step and run.is_at(self.folder) and not checkpoints.is_intact(self.folder):
            self.save()  # at once: a save was cut short, or what it wrote is damaged
            if self.is_main_process:
                print(f"the checkpoint in {self.folder} was damaged, and is saved again")

    def end_step(self, is_stopped: bool) -> bool:
        """Logs a step, saves and draws what is due. Returns whether it is the last.

        is_stopped: whether a process was interrupted.
        """
        run = self.run
        self.report()
        step_end = time.monotonic()
        is_last = run.step >= self.length(run.step)
        is_due = is_last or (run.step % self.preview_steps == 0 and self.has_time(step_end))
        is_first = is_due and self.saved_step is None
        is_late = step_end - self.last_save_time > SAVE_EVERY
        if is_last or is_stopped or is_first or is_late:
            self.save()
            self.last_save_time = step_end
            self.save_seconds = time.monotonic() - step_end
        if is_due:
            start = time.monotonic()
            self.save_preview(math.ceil(run.step / self.epoch_steps))
            if isinstance(self.length, TimedLength):
                self.length.end_seconds = self.save_seconds + time.monotonic() - start
        self.overhead_seconds += time.monotonic() - step_end
        return is_last or is_stopped

    def has_time(self, now: float) -> bool:
        """Whether saves and previews have taken less than 3 s and a twentieth of the time."""
        return self.overhead_seconds < 3 + (now - self.start_time) / 20

    def save(self) -> None:
        """A checkpoint, by the first process for all; where its folder is gone, that is made again.

        Of a training that ends at a given time it has as many epochs as are foreseen.
        """
        run = self.run
        if isinstance(self.length, TimedLength):
            epochs = self.length.epochs(self.epoch_steps)
            run.settings = replace(run.settings, epochs=epochs)
        if self.is_main_process:
            if not self.folder.exists():
                print(f"{self.folder} was moved or removed: training makes it again")
            saving.check_not_overwriting(self.folder, run)  # another may have begun there meanwhile
            saving.save_run(self.folder, run)
        else:
            run.folder = self.folder.resolve()
            run.last_saved_step = run.step
        self.saved_step = run.step

    def save_preview(self, epoch: int) -> None:
        """A preview. A failure is no reason to stop: the loss and the next save show it."""
        if self.draw_preview is None or not self.is_main_process:
            return
        path = self.folder / "previews" / f"epoch_{epoch:03d}.png"
        with suppress(FloatingPointError, OSError):
            picture = self.draw_preview()
            self.report(picture)
            encoded = imageio.imwrite("<bytes>", picture, extension=path.suffix)
            with replacing(path) as temporary:
                temporary.write_bytes(encoded)

    def report(self, picture: np.ndarray | None = None) -> None:
        """Logs a step or a preview, in the first process."""
        if self.log is not None and self.is_main_process:
            self.log(self.run, picture)

    def stopped(self, signals: list[int]) -> Stopped:
        """What to raise after the signals, with all saved."""
        is_done = self.run.step >= total_steps(self.run.settings, self.run.n_images)
        ending = ", its last" if is_done else ": resume to go on"
        message = f"stopped after step {self.run.step} and saved in {self.folder}{ending}"
        folder = None if is_done else self.folder
        return Stopped(message, signals[0] if signals else signal.SIGINT, folder)

    @contextmanager
    def explained_errors(self) -> Iterator[None]:
        """Errors of the block also say what is saved."""
        try:
            yield
        except (FloatingPointError, OSError, RuntimeError, MemoryError) as error:
            explained = self.with_what_is_saved(error)
            if explained is error:
                raise
            raise explained from error

    def with_what_is_saved(self, error: Exception) -> Exception:
        """An error like this one, whose message also says what is saved; or the error itself."""
        world = self.run.world
        if isinstance(error, RuntimeError) and world.size > 1:
            failed = f"one of {world.size} processes failed, this or another"
            return ConnectionError(f"{failed} ({first_line(error)}); {self.save_after_failure()}")
        is_memory_error = isinstance(error, RuntimeError | MemoryError)
        if is_memory_error and not (world.size == 1 and is_out_of_memory(error)):
            return error
        if not self.is_main_process:
            saved = f"what the first process has saved in {self.folder} is good"
        elif self.saved_step and not isinstance(error, FileExistsError):
            saved = f"the checkpoint of step {self.saved_step} in {self.folder} is good"
        else:
            saved = self.remains()
        diverged = isinstance(error, FloatingPointError)
        hint = "; try a lower learning_rate, or float32" if diverged else ""
        return type(error)(f"{first_line(error)}; {saved}{hint}")

    def remains(self) -> str:
        """What a save that was cut short, or never came, has left in the folder."""
        is_there = self.run.is_at(self.folder)
        return f"the run in {self.folder} can be resumed" if is_there else "nothing was saved"

    def save_after_failure(self) -> str:
        """Saves what the first of several processes has, if it can. Returns what is saved then."""
        if not self.is_main_process:
            return f"what the first of them has saved is in {self.folder}"
        with suppress(OSError, RuntimeError):  # the first error is the one to report
            if self.run.step:
                self.save()
        step = checkpoints.saved_step(self.folder)
        if step is not None and self.run.is_at(self.folder):
            return f"step {step} is saved in {self.folder}: resume to go on"
        return self.remains()
