"""Logging a training for TensorBoard, into the folder log of the run's."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path

import numpy as np

from mnist_ddpm.ddpm import check
from mnist_ddpm.machine.text import first_line
from mnist_ddpm.recipe import Recipe
from mnist_ddpm.training.run import Run

FOLDER = "log"
WRITERS = "torch.utils.tensorboard", "tensorboardX"  # either has a SummaryWriter


def summary_writer() -> type:
    """What writes files for TensorBoard. Raises ValueError where no package has it."""
    for module in WRITERS:
        with suppress(ImportError):
            return import_module(module).SummaryWriter
    raise ValueError("--log needs a package that is not installed: pip install tensorboard")


class TrackerLog:
    """Logs a run and its previews. It is a session.Log."""

    every = 10  # steps

    def __init__(self, writer):
        self.writer = writer  # a SummaryWriter; None after a failure
        self.step = None  # of the last point
        self.seconds = None  # of training, at the last point

    def __call__(self, run: Run, picture: np.ndarray | None = None) -> None:
        """Logs a picture, or every few steps a point; a failure ends the log, not the training."""
        if picture is not None:
            self.write(run.step, lambda writer: writer.add_image(
                "previews", picture, run.step, dataformats="HWC"
            ))  # fmt: skip
        elif self.step is None or run.step % self.every == 0:
            self.log_values(self.point(run), run.step)

    def log_values(self, values: dict[str, float], step: int) -> None:
        """Logs figures of a step, by name; a failure ends the log."""

        def add(writer) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)

        self.write(step, add)

    def write(self, step: int, add) -> None:
        """Calls add(writer), and writes what it holds back: else a kill would lose two minutes."""
        if self.writer is None:
            return
        try:
            add(self.writer)
            self.writer.flush()
        except Exception as error:  # of the package or the disk
            self.writer = None
            print(f"the log ends at step {step} ({first_line(error)})", file=sys.stderr)

    def point(self, run: Run) -> dict[str, float]:
        """The mean loss since the last point, the learning rate, and images/s."""
        steps = run.step - (self.step or run.step - 1)
        values = {
            "loss": float(np.mean(run.losses[-steps:])),
            "learning_rate": run.optimizer.param_groups[0]["lr"],
        }
        if self.step is not None:
            seconds = max(run.training_seconds - self.seconds, 1e-9)
            values["images_per_second"] = steps * run.settings.batch_size / seconds
        self.step = run.step
        self.seconds = run.training_seconds
        return values


@contextmanager
def tracker_log(
    name: str, folder: Path, recipe: Recipe, step: int = 0
) -> Iterator[TrackerLog | None]:
    """The log of a run that continues after step; it is closed in the end. "none" gives None.

    Points of later steps, from before a kill, are dropped. Raises OSError if it cannot be written,
    and ValueError for another name.
    """
    check(name in ("none", "tensorboard"), f'log "{name}" is unknown: take tensorboard')
    if name == "none":
        yield None
        return
    make_writer = summary_writer()
    try:
        # files of one second would have one name
        suffix = f".{step}"
        writer = make_writer(str(folder / FOLDER), purge_step=step + 1, filename_suffix=suffix)
        writer.add_text("recipe", f"`{recipe}`", step)
    except Exception as error:
        message = f"TensorBoard's files cannot be written ({first_line(error)}): leave out --log"
        raise OSError(message) from error
    try:
        yield TrackerLog(writer)
    finally:
        with suppress(Exception):  # all is saved by then
            writer.close()
