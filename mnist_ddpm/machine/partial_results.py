"""The finished parts of a long work, kept so that it can be stopped and goes on."""

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

from mnist_ddpm.ddpm import Network
from mnist_ddpm.machine.files import replacing
from mnist_ddpm.machine.process import Stopped
from mnist_ddpm.machine.processes import adapt_threads

Part = dict[str, Tensor]


class CountedNetwork:
    """A network that counts the images it evaluates: the cost of sampling."""

    def __init__(self, network: Network):
        self.network = network
        self.evaluations = 0

    def __call__(self, xt: Tensor, *args, **kwargs) -> Tensor:
        self.evaluations += len(xt)
        return self.network(xt, *args, **kwargs)


class PartialResults:
    """The parts of a work, each a file in a folder of their own, which is removed in the end.

    networks: those that the work evaluates.
    """

    def __init__(self, folder: Path, *networks: CountedNetwork):
        self.folder = folder
        self.networks = networks
        self.seconds = 0.0  # that all parts took, including those of earlier processes
        self.evaluations = 0  # likewise

    def compute(self, name: str, work: Callable[[], Part]) -> Part:
        """The part that work() returns, or returned earlier under that name. Raises OSError."""
        path = self.folder / f"{name}.npz"
        part = None
        with suppress(Exception):  # it is missing or damaged: NumPy's errors are of many kinds
            if path.is_file():  # reading a pipe might never end
                with path.open("rb") as file, np.load(file) as arrays:
                    kept = {key: torch.from_numpy(arrays[key]) for key in arrays}
                kept["cost"].view(2)
                part = kept
        if part is None:
            adapt_threads()
            start = time.monotonic()
            before = sum(network.evaluations for network in self.networks)
            part = work()
            evaluations = sum(network.evaluations for network in self.networks) - before
            cost = [time.monotonic() - start, evaluations]
            part["cost"] = torch.tensor(cost, dtype=torch.float64)
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.savez_compressed(file, **{key: value.numpy() for key, value in part.items()})
        seconds, evaluations = part["cost"].tolist()
        self.seconds += seconds
        self.evaluations += round(evaluations)
        return part

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """Says where parts are kept when anything stops the work, and removes them after it.

        KeyboardInterrupt becomes a Stopped with that message.
        """
        try:
            yield
        except BaseException as error:
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
