"""Long work outside training, which can be stopped and goes on: drawing many images, or measuring their bound."""

import shutil
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mnist_ddpm import ddpm

KEEP_EVERY = 60.0  # seconds of work from one saving to the next
Part = dict[str, Tensor]


class Kept:
    """The parts of a long work, kept in a folder of this work alone, from where it goes on if it is stopped.

    The folder is made after a minute, or when the work is stopped. counted: the model of the work.
    """

    def __init__(self, folder: Path, counted: ddpm.Counted):
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
            with ddpm.replacing(path) as temporary, temporary.open("wb") as file:
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
            with suppress(OSError), ddpm.deferred_interrupt():  # the first error is the one to tell
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
    init: Tensor | None = None, film: int = 0, progress: bool = True, **options,
) -> tuple[Tensor, ddpm.Film]:  # fmt: skip
    """As ddpm.generate, batch by batch, each a part of the work. Raises as Kept.part, too."""
    batches, images, reel = [range(i, min(n, i + batch_size)) for i in range(0, n, batch_size)], [], []
    total, title = len(batches) * len(steps), f"drawing {n} images"

    def drawn(batch: range) -> Part:
        images, moments = ddpm.generate(
            model, schedule, len(batch), shape, sampler=watched, steps=steps, batch_size=batch_size,
            start=start + batch.start, labels=ddpm.entries("labels", labels, n, batch),
            init=ddpm.entries("init", init, n, batch), film=0 if batch.start else film, progress=False, **options,
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
