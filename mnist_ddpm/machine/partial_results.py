"""Long work whose parts are kept, so that it goes on where it was stopped."""

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
from mnist_ddpm.machine.interrupts import Stopped, deferred_interrupt
from mnist_ddpm.machine.threads import adapt_threads

KEEP_EVERY = 60.0  # seconds of work from one saving to the next
Part = dict[str, Tensor]


class Counted:
    """A network that counts the images it is asked about: what sampling costs."""

    def __init__(self, network: Network):
        self.network, self.evaluations = network, 0

    def __call__(self, xt: Tensor, *args, **kwargs) -> Tensor:
        self.evaluations += len(xt)
        return self.network(xt, *args, **kwargs)

    def also(self, other: Network) -> Network:
        """Another network, whose images count here too."""

        def counted(xt: Tensor, *args, **kwargs) -> Tensor:
            self.evaluations += len(xt)
            return other(xt, *args, **kwargs)

        return counted


class Kept:
    """The parts of a long work, kept in a separate folder, from where it goes on if stopped.

    The folder is made after a minute, or when the work is stopped. counted: the work's network.
    """

    def __init__(self, folder: Path, counted: Counted):
        self.folder, self.counted = folder, counted
        self.seconds, self.evaluations = 0.0, 0  # of all parts, whenever they were done
        self.fresh: dict[Path, Part] = {}  # parts not saved yet
        self.saved = time.monotonic()

    def part(self, name: str, work: Callable[[], Part]) -> Part:
        """What work returns, or has returned before under that name.

        Raises OSError where it cannot be saved.
        """
        path = self.folder / f"{name}.npz"
        try:
            check(path.is_file(), "")  # a pipe would keep us waiting
            with path.open("rb") as opened, np.load(opened) as file:
                part = {key: torch.from_numpy(file[key]) for key in file}
            part["cost"].view(2)
        except Exception:  # it is not there or damaged: NumPy's errors are of many kinds
            part = self.fresh[path] = self.done(work)
            if time.monotonic() - self.saved > KEEP_EVERY:
                self.save()
        seconds, evaluations = part["cost"].tolist()
        self.seconds += seconds
        self.evaluations += round(evaluations)
        return part

    def done(self, work: Callable[[], Part]) -> Part:
        """What work returns, and what it cost: seconds, evaluations."""
        adapt_threads()
        began, before = time.monotonic(), self.counted.evaluations
        part = work()
        cost = time.monotonic() - began, self.counted.evaluations - before
        return part | {"cost": torch.tensor(cost, dtype=torch.float64)}

    def save(self) -> None:
        """Writes the parts that are only in memory. Raises OSError where it cannot."""
        for path, part in [*self.fresh.items()]:
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.savez_compressed(file, **{key: tensor.numpy() for key, tensor in part.items()})
            del self.fresh[path]
        self.saved = time.monotonic()

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """Inside, the parts are saved when anything stops the work, and the place is printed.

        Of KeyboardInterrupt that is the message.
        """
        self.saved = time.monotonic()
        try:
            yield
        except BaseException as error:
            with suppress(OSError), deferred_interrupt():  # the first error is the one to tell
                self.save()
            if not self.folder.is_dir():
                raise
            kept = f"what is done is kept in {self.folder}"
            kept = f"{kept}, and the same command goes on from there"
            if isinstance(error, KeyboardInterrupt):
                signum = getattr(error, "signum", signal.SIGINT)
                raise Stopped(f"stopped: {kept}", signum) from error
            print(kept, file=sys.stderr)
            raise

    def discard(self) -> None:
        """Removes the folder: the work is done, and its result saved."""
        shutil.rmtree(self.folder, ignore_errors=True)
