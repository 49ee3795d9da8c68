"""Partial results of long work, saved so that it can be stopped and resumed."""

import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mnist_ddpm.ddpm import Network, check
from mnist_ddpm.machine.files import replacing
from mnist_ddpm.machine.process import Stopped, deferred_interrupt
from mnist_ddpm.machine.processes import adapt_threads

SAVE_INTERVAL = 60.0  # seconds of work from one save to the next
Part = dict[str, Tensor]


class CountedNetwork:
    """A network that counts the images it evaluates: the cost of sampling."""

    def __init__(self, network: Network):
        self.network = network
        self.evaluations = 0

    def __call__(self, xt: Tensor, *args, **kwargs) -> Tensor:
        self.evaluations += len(xt)
        return self.network(xt, *args, **kwargs)

    def counting(self, other: Network) -> Network:
        """Another network, whose evaluations count here too."""

        def counted(xt: Tensor, *args, **kwargs) -> Tensor:
            self.evaluations += len(xt)
            return other(xt, *args, **kwargs)

        return counted


class PartialResults:
    """The parts of a long work, in a folder of their own, which resumes the work if stopped.

    The folder is created after a minute, or when the work is stopped. counted: the network that
    the work evaluates.
    """

    def __init__(self, folder: Path, counted: CountedNetwork):
        self.folder = folder
        self.counted = counted
        self.seconds = 0.0  # of all parts, including those of earlier processes
        self.evaluations = 0  # likewise
        self.unsaved: dict[Path, Part] = {}
        self.saved_at = time.monotonic()

    def compute(self, name: str, work: Callable[[], Part]) -> Part:
        """The part that work() returns, or returned earlier under that name.

        Raises OSError if it cannot be saved.
        """
        path = self.folder / f"{name}.npz"
        try:
            check(path.is_file(), "")  # reading a pipe might never end
            with path.open("rb") as file, np.load(file) as arrays:
                part = {key: torch.from_numpy(arrays[key]) for key in arrays}
            part["cost"].view(2)
        except Exception:  # it is missing or damaged: NumPy's errors are of many kinds
            part = self.unsaved[path] = self.measured(work)
            if time.monotonic() - self.saved_at > SAVE_INTERVAL:
                self.save()
        seconds, evaluations = part["cost"].tolist()
        self.seconds += seconds
        self.evaluations += round(evaluations)
        return part

    def measured(self, work: Callable[[], Part]) -> Part:
        """The part that work() returns, with "cost": its seconds and evaluations."""
        adapt_threads()
        start = time.monotonic()
        evaluations = self.counted.evaluations
        part = work()
        cost = time.monotonic() - start, self.counted.evaluations - evaluations
        return part | {"cost": torch.tensor(cost, dtype=torch.float64)}

    def save(self) -> None:
        """Writes the parts that are only in memory. Raises OSError if it cannot."""
        for path, part in [*self.unsaved.items()]:
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.savez_compressed(file, **{key: tensor.numpy() for key, tensor in part.items()})
            del self.unsaved[path]
        self.saved_at = time.monotonic()

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """Saves the parts when anything stops the work, and prints where.

        KeyboardInterrupt becomes a Stopped with that message.
        """
        self.saved_at = time.monotonic()
        try:
            yield
        except BaseException as error:
            with suppress(OSError), deferred_interrupt():  # the first error is the one to report
                self.save()
            if not self.folder.is_dir():
                raise
            message = f"what is done is kept in {self.folder}; the same command resumes from it"
            if isinstance(error, KeyboardInterrupt):
                signum = getattr(error, "signum", signal.SIGINT)
                raise Stopped(f"stopped: {message}", signum) from error
            print(message, file=sys.stderr)
            raise

    def discard(self) -> None:
        """Removes the folder: the work is done, and its result saved."""
        shutil.rmtree(self.folder, ignore_errors=True)
