"""Logging a training to an experiment tracker, through Hugging Face Accelerate."""

import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from mnist_ddpm.ddpm import check
from mnist_ddpm.machine.files import replacing
from mnist_ddpm.machine.process import import_extra
from mnist_ddpm.machine.text import first_line
from mnist_ddpm.recipe import Recipe
from mnist_ddpm.training.run import Run

PROJECT = "mnist-ddpm"
NAME_FILE = "log.txt"
TENSORBOARD_FOLDER = "log"
# For each value of --log, the packages of which one must be installed
PACKAGES = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "trackio": ("trackio",),
}


def check_tracker(name: str) -> None:
    """Raises ValueError for a tracker that is unknown, or whose package is missing."""
    if name == "none":
        return
    check(name in PACKAGES, f'log "{name}" is unknown: take one of {", ".join(PACKAGES)}')
    package = PACKAGES[name][0]
    message = f"log {name} needs the package {package}, not installed: pip install {package}"
    check(any(map(find_spec, PACKAGES[name])), message)
    import_extra("accelerate", "accelerate")


def log_name(folder: Path, is_new_run: bool) -> str:
    """The name of the log of a folder's run, kept in a file there. A new run gets a new name."""
    path = folder / NAME_FILE
    if is_new_run or not path.is_file():
        with replacing(path) as temporary:
            name = f"{folder.resolve().name}-{secrets.token_hex(4)}"
            temporary.write_text(name, encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()


class TrackerLog:
    """Logs a run and its previews to a tracker. It is a session.Log."""

    every = 10  # steps

    def __init__(self, tracker):
        self.tracker = tracker
        self.step = None  # of the last point
        self.seconds = None  # of training, at the last point

    def __call__(self, run: Run, picture: np.ndarray | None = None) -> None:
        """Logs a picture, or every few steps a point; a failure ends the log, not the training."""
        with self.ending_on_failure(run.step):
            if self.tracker is not None and picture is not None:
                log_picture(self.tracker, picture, run.step)
                self.flush()
            elif self.tracker is not None:
                self.log_step(run)

    def log_values(self, values: dict[str, float], step: int) -> None:
        """Logs other figures of a step, by name; a failure ends the log."""
        with self.ending_on_failure(step):
            if self.tracker is not None:
                self.tracker.log(values, step=step)
                self.flush()

    @contextmanager
    def ending_on_failure(self, step: int) -> Iterator[None]:
        """Where the package, its server or the disk fails, the log ends with a printed line."""
        try:
            yield
        except Exception as error:
            self.tracker = None
            print(f"the log ends at step {step} ({first_line(error)})", file=sys.stderr)

    def log_step(self, run: Run) -> None:
        """Logs the mean loss since the last point, the learning rate, and images/s."""
        if self.step is not None and run.step % self.every:
            return
        steps = run.step - (self.step or run.step - 1)
        values = {
            "loss": float(np.mean(run.losses[-steps:])),
            "learning_rate": run.optimizer.param_groups[0]["lr"],
        }
        if self.step is not None:
            seconds = max(run.training_seconds - self.seconds, 1e-9)
            values["images_per_second"] = steps * run.settings.batch_size / seconds
        self.tracker.log(values, step=run.step)
        self.flush()
        self.step = run.step
        self.seconds = run.training_seconds

    def flush(self) -> None:
        """Writes what TensorBoard holds back: else a kill would lose the last two minutes."""
        if getattr(self.tracker, "name", "") == "tensorboard":
            self.tracker.tracker.flush()


def log_picture(tracker, picture: np.ndarray, step: int) -> None:
    """Logs a picture, uint8 (height, width, 3)."""
    if tracker.name == "tensorboard":
        tracker.log_images({"previews": picture[None]}, step, dataformats="NHWC")
    elif tracker.name == "trackio":  # Accelerate logs no images to it
        import trackio

        tracker.tracker.log({"previews": trackio.Image(picture)}, step=step)
    else:
        tracker.log_images({"previews": [picture]}, step)


@contextmanager
def tracker_log(
    name: str, folder: Path, recipe: Recipe, step: int = 0
) -> Iterator[TrackerLog | None]:
    """The log of a run that continues after step; it is closed in the end. "none" gives None.

    TensorBoard's files are in folder/log. Points of later steps, from before a kill, are dropped.
    Raises OSError if the tracker does not start.
    """
    if name == "none":
        yield None
        return
    from accelerate import PartialState  # takes two seconds
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    if name == "tensorboard":
        options = {"run_name": TENSORBOARD_FOLDER, "logging_dir": folder, "purge_step": step + 1}
        options["filename_suffix"] = f".{step}"  # files of one second would have one name
    else:
        options = {"run_name": PROJECT, "name": log_name(folder, step == 0), "resume": "allow"}
        if name == "wandb":
            options |= {"id": options["name"], "dir": folder}
    try:
        PartialState()  # without it Accelerate's trackers do nothing
        tracker = LOGGER_TYPE_TO_CLASS[name](**options)
        tracker.start()
        if name == "tensorboard":  # its hyperparameters cannot be lists, and are a separate run
            tracker.log({"recipe": f"`{recipe}`"}, step)
        else:
            tracker.store_init_configuration(asdict(recipe))
    except Exception as error:  # of the package, its server or the disk
        raise OSError(f"{name} does not start ({first_line(error)}): leave out the log") from error
    try:
        yield TrackerLog(tracker)
    finally:
        with suppress(Exception):  # all is saved by then
            tracker.finish()
