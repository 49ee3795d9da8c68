"""What a training logs to a tracker of experiments, through Hugging Face Accelerate."""

import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from mnist_ddpm.ddpm import check
from mnist_ddpm.machine.extras import import_extra
from mnist_ddpm.machine.files import first_line, replacing
from mnist_ddpm.training.recipe import Recipe
from mnist_ddpm.training.run import Run

PROJECT, NAME, LOG = "mnist-ddpm", "log.txt", "log"
# By what --log says, the packages of which one must be there
PACKAGES = {
    "tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",), "trackio": ("trackio",),
}  # fmt: skip


def check_tracker(name: str) -> None:
    """Raises ValueError for a tracker that is unknown, or whose package is missing."""
    check(name in PACKAGES, f'log "{name}" is unknown: take one of {", ".join(PACKAGES)}')
    package = PACKAGES[name][0]
    problem = f"log {name} needs the package {package}, which is not installed"
    check(any(map(find_spec, PACKAGES[name])), f"{problem}: pip install {package}")
    import_extra("accelerate", "accelerate")


def log_name(folder: Path, anew: bool) -> str:
    """The name of the log of the run in a folder, kept there, so that a resumed run goes on in it.

    anew: one that was not used before.
    """
    path = folder / NAME
    if anew or not path.is_file():
        with replacing(path) as temporary:
            named = f"{folder.resolve().name}-{secrets.token_hex(4)}"
            temporary.write_text(named, encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()


def start_tracker(name: str, folder: Path, recipe: Recipe, step: int):
    """Accelerate's tracker of a run that goes on after step.

    TensorBoard's files lie in folder/log. Points of later steps, of a run that was killed, are
    dropped. Raises OSError where it does not start.
    """
    from accelerate import PartialState  # two seconds
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    if name == "tensorboard":
        given = {"run_name": LOG, "logging_dir": folder, "purge_step": step + 1}
        given["filename_suffix"] = f".{step}"  # files of one second would have one name
    else:
        given = {"run_name": PROJECT, "name": log_name(folder, step == 0), "resume": "allow"}
        if name == "wandb":
            given |= {"id": given["name"], "dir": folder}
    try:
        PartialState()  # without which its trackers do nothing
        tracker = LOGGER_TYPE_TO_CLASS[name](**given)
        tracker.start()
        if name == "tensorboard":  # its form of settings takes no lists, and is a run of its own
            tracker.log({"recipe": f"`{recipe}`"}, step)
        else:
            tracker.store_init_configuration(asdict(recipe))
    except Exception as error:  # of the package, its server or the disk
        raise OSError(f"{name} does not start ({first_line(error)}): leave out the log") from error
    return tracker


class TrackerLog:
    """Tells a tracker of a run, and of pictures of it. As loop.Log."""

    every = 10  # steps

    def __init__(self, tracker):
        self.tracker = tracker
        self.step = self.seconds = None  # when it was told last

    def __call__(self, run: Run, picture: np.ndarray | None = None) -> None:
        """Loss, rate and images/s every few steps; a failure ends the log, not the training."""
        try:
            if self.tracker is not None:
                self.tell(run, picture)
        except Exception as error:  # of the package, its server or the disk
            self.tracker = None
            print(f"the log ends at step {run.step} ({first_line(error)})", file=sys.stderr)

    def tell(self, run: Run, picture: np.ndarray | None) -> None:
        if picture is not None:
            log_picture(self.tracker, picture, run.step)
        elif self.step is None or run.step % self.every == 0:
            new = run.step - (self.step or run.step - 1)
            values = {
                "loss": float(np.mean(run.losses[-new:])),
                "learning_rate": run.optimizer.param_groups[0]["lr"],
            }
            if self.step is not None:
                passed = max(run.seconds - self.seconds, 1e-9)
                values["images_per_second"] = new * run.settings.batch_size / passed
            self.tracker.log(values, step=run.step)
            self.step, self.seconds = run.step, run.seconds


def log_picture(tracker, picture: np.ndarray, step: int) -> None:
    """Tells a tracker of a picture, uint8 (height, width, 3)."""
    if tracker.name == "tensorboard":
        tracker.log_images({"previews": picture[None]}, step, dataformats="NHWC")
    elif tracker.name == "trackio":  # Accelerate has no images for it
        import trackio

        tracker.tracker.log({"previews": trackio.Image(picture)}, step=step)
    else:
        tracker.log_images({"previews": [picture]}, step)


@contextmanager
def tracker_log(name: str, folder: Path, recipe: Recipe, step: int = 0) -> Iterator[Callable]:
    """The log of a run that goes on in folder after step, closed in the end. Raises as start."""
    tracker = start_tracker(name, folder, recipe, step)
    try:
        yield TrackerLog(tracker)
    finally:
        with suppress(Exception):  # all is saved by then
            tracker.finish()
