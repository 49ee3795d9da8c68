"""Long work that can be stopped and goes on: here drawing and measuring, in `runs` training."""

import errno
import os
import shutil
import signal
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from mnist_ddpm import ddpm

KEEP_EVERY = 60.0  # seconds of work from one saving to the next
Part = dict[str, Tensor]


def writable_folder(folder: ddpm.PathLike) -> Path:
    """The folder, made where missing. Raises OSError now, not after hours, where it cannot be written to."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return Path(folder)
    except OSError as error:
        raise OSError(f"cannot write to the folder {folder} ({error.strerror}): choose another") from error


def writable_file(path: Path) -> None:
    """Makes the folder for a result. Raises OSError now, not after hours, where the file could not be written."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, and should be a file: name one in it")
    writable_folder(path.parent)


def first_line(error: BaseException) -> str:
    """An error's first line, or its repr if it says nothing."""
    return (str(error).strip() or repr(error)).splitlines()[0]


def out_of_memory(error: BaseException) -> bool:
    """Whether it says so: on Apple's GPUs and on processors PyTorch has no class of errors for it."""
    said = "out of memory", "not enough memory", "can't allocate memory"
    return isinstance(error, MemoryError) or any(words in str(error) for words in said)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, whose folder is made, that takes its place if the block ends without an error.

    Raises OSError where it cannot be written, a full disk among the reasons.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    try:
        yield temporary
        for wait in (0.1, 1, 5, 0):
            try:
                os.replace(temporary, path)
                break
            except PermissionError:
                if os.name != "nt" or not wait:
                    raise
                time.sleep(wait)  # on Windows somebody may be reading it
    except (torch.OutOfMemoryError, getattr(torch, "AcceleratorError", torch.OutOfMemoryError)):  # the device's own
        raise
    except (SafetensorError, RuntimeError, OSError) as error:  # the first two are how safetensors and PyTorch say it
        if isinstance(error, OSError) and error.errno != errno.ENOSPC:
            raise
        raise OSError(f"{path} could not be written ({first_line(error)}): is there room?") from error
    finally:
        with suppress(OSError):  # the first error is the one to tell
            temporary.unlink(missing_ok=True)


@contextmanager
def deferred_interrupt() -> Iterator[list]:
    """Inside, Ctrl-C, SIGTERM and a closed terminal only add to the list it yields; Ctrl-C a second later stops."""
    pressed, previous = getattr(signal.getsignal(signal.SIGINT), "pressed", []), {}  # that of an outer one, if any

    def handler(signum, frame):  # launchers pass a signal on that has come already, so one press may come twice
        pressed.append(time.monotonic())
        if signum == signal.SIGINT and pressed[-1] > pressed[0] + 1:
            raise KeyboardInterrupt("interrupted within a step: what was saved before, if anything, is good")
        if len(pressed) == 1 and ddpm.first_process():
            more = "; once more stops at once" if signum == signal.SIGINT else ""
            with suppress(RuntimeError, OSError, ValueError):  # of a stream in the midst of its work, broken, or closed
                print(f"\nstopping after this step, to save it{more}", flush=True)

    handler.pressed, signals = pressed, [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # nohup ignores it
        signals.append(signal.SIGHUP)
    try:
        with suppress(ValueError):  # not in the main thread, where Ctrl-C does not arrive
            for signum in signals:
                previous[signum] = signal.signal(signum, handler)
        yield pressed
    finally:
        for signum, handled in previous.items():
            if handled is not None:  # by a program that Python is a part of, which cannot be set again
                signal.signal(signum, handled)


class Counted:
    """A model that counts the images it is asked about: what sampling costs."""

    def __init__(self, model: ddpm.Model):
        self.model, self.evaluations = model, 0

    def __call__(self, xt: Tensor, *args, **kwargs) -> Tensor | ddpm.Prediction:
        self.evaluations += len(xt)
        return self.model(xt, *args, **kwargs)


class Kept:
    """The parts of a long work, kept in a folder of this work alone, from where it goes on if it is stopped.

    The folder is made after a minute, or when the work is stopped. counted: the model of the work.
    """

    def __init__(self, folder: Path, counted: Counted):
        self.folder, self.counted = folder, counted
        self.seconds, self.evaluations = 0.0, 0  # what the parts took, whenever they were done
        self.fresh: dict[Path, Part] = {}  # parts not saved yet
        self.saved = time.monotonic()

    def part(self, name: str, work: Callable[[], Part]) -> Part:
        """What work returns, or has returned before under that name. Raises OSError where it cannot be saved."""
        path = self.folder / f"{name}.npz"
        try:
            with np.load(path) as file:
                part = {key: torch.from_numpy(file[key]) for key in file}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):  # not there, or damaged
            began, before = time.monotonic(), self.counted.evaluations
            part = work()
            cost = time.monotonic() - began, self.counted.evaluations - before
            part = self.fresh[path] = part | {"cost": torch.tensor(cost, dtype=torch.float64)}
            if time.monotonic() - self.saved > KEEP_EVERY:
                self.save()
        seconds, evaluations = part["cost"].tolist()
        self.seconds, self.evaluations = self.seconds + seconds, self.evaluations + round(evaluations)
        return part

    def save(self) -> None:
        """Writes the parts that are only in memory. Raises OSError where it cannot."""
        for path, part in [*self.fresh.items()]:
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.savez_compressed(file, **{key: tensor.numpy() for key, tensor in part.items()})
            del self.fresh[path]
        self.saved = time.monotonic()

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """Inside, whatever stops the work, its parts are saved, and it is told where, by KeyboardInterrupt itself."""
        self.saved = time.monotonic()
        try:
            yield
        except BaseException as error:
            with suppress(OSError), deferred_interrupt():  # the first error is the one to tell
                self.save()
            if not self.folder.is_dir():
                raise
            kept = f"what is done is kept in {self.folder}, and the same command goes on from there"
            if isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt(f"stopped: {kept}") from error
            print(kept, file=sys.stderr)
            raise

    def discard(self) -> None:
        """Removes the folder: the work is done, and its result saved."""
        shutil.rmtree(self.folder, ignore_errors=True)


def generate(
    kept: Kept, model: ddpm.Model, schedule: ddpm.Schedule, n: int, shape: tuple[int, int, int], *, steps: list[int],
    sampler: Callable = ddpm.ddim_sampler, batch_size: int = 256, start: int = 0, labels: Tensor | None = None,
    film: int = 0, progress: bool = True, **options,
) -> tuple[Tensor, ddpm.Film]:  # fmt: skip
    """As ddpm.generate, batch by batch, each a part of the work. Raises as Kept.part, too."""
    batches, images, reel = [range(i, min(n, i + batch_size)) for i in range(0, n, batch_size)], [], []
    total, title = len(batches) * len(steps), f"drawing {n} images"

    def drawn(batch: range) -> Part:
        images, moments = ddpm.generate(
            model, schedule, len(batch), shape, sampler=watched, steps=steps, batch_size=batch_size,
            start=start + batch.start, labels=ddpm.labels_of(batch, labels, n), film=0 if batch.start else film,
            progress=False, **options,
        )  # fmt: skip
        if not moments:
            return {"images": images}
        t, xt, x0_hat = zip(*moments)
        return {"images": images, "t": torch.tensor(t), "xt": torch.stack(xt), "x0_hat": torch.stack(x0_hat)}

    def watched(*arguments, **own) -> ddpm.States:
        for state in sampler(*arguments, **own):
            bar.update(state[0] > 0)
            yield state

    with ddpm.progress_bar(total=total, desc=title, unit="step", leave=False, disable=not progress) as bar:
        for batch in batches:
            before = bar.n
            part = kept.part(f"images-{start + batch.start}-{start + batch.stop}", partial(drawn, batch))
            if bar.n == before:  # it was there
                bar.total -= len(steps)
            images.append(part["images"])
            if "t" in part and not batch.start:  # each of several processes has filmed its own first
                reel = [*zip(part["t"].tolist(), part["xt"], part["x0_hat"])]
    return torch.cat(images), reel
