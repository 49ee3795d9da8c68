"""How many steps a training has: those of its epochs, or as many as it gets done in a time."""

import time
from collections.abc import Callable

import torch

from mnist_ddpm.ddpm import total_steps
from mnist_ddpm.machine.processes import World
from mnist_ddpm.training.recipe import Recipe

# Steps in all, as foreseen after so many. Who asks twice after the same is told the same.
Length = Callable[[int], float]
TRUST = 0.01  # the plan counts as much as what was seen in this share of the time


def of_epochs(settings: Recipe, n: int) -> Length:
    """The steps that the settings say, on n images, in whole batches."""
    total = total_steps(settings, n)
    return lambda step: total


def until(length: Length, deadline: float, world: World) -> Length:
    """The same, or the steps that are done when the time is up, after one at least."""
    looks: dict[int, bool] = {}

    def steps(step: int) -> float:
        if step not in looks:  # one look a step, and none before the first
            late = bool(looks) and world.any(time.monotonic() > deadline)
            looks.clear()
            looks[step] = late
        return step if looks[step] else length(step)

    return steps


class Clock:
    """Estimates, in each step, how many steps there will be in all when the time is up.

    The learning rate is that of a training of so many steps: it falls with the clock, to 0 at the
    end, though the machine's pace changes.
    """

    def __init__(self, end: float, planned: int, ending: float, world: World, step: int = 0):
        """end: when all is to be done, by time.monotonic(). planned: steps, while little is seen.

        ending: steps in whose time the last preview is drawn, until one was. world: the processes
        that keep one time. step: of the run, which begins now.
        """
        self.end, self.ending, self.world = end, ending, world
        self.took: float | None = None  # seconds of the latest save and preview
        self.planned, self.looked, self.total = max(step + 1, planned), step, max(step + 1, planned)
        # The first step is not counted, since compiling and other beginnings come with it.
        self.first, self.began = step + 1, time.monotonic()

    def __call__(self, step: int) -> float:
        """The number in all, as foreseen after so many: the same number once the time is up."""
        if step != self.looked:  # one look a step, so that all who ask are told the same
            self.looked, total = step, self.foreseen(step)
            if self.world.size > 1:
                told = torch.tensor([total], dtype=torch.float64, device=self.world.device)
                total = self.world.gather(told).max().item()
            self.total = total
        return self.total

    def foreseen(self, step: int) -> float:
        """As this process's clock has it."""
        now = time.monotonic()
        if step <= self.first:
            self.began = now
        done, seconds = step - self.first, now - self.began
        expected = TRUST * (self.planned - self.first + 1), TRUST * max(self.end - self.began, 1e-9)
        pace = (done + expected[0]) / (seconds + expected[1])
        ending = self.ending / pace if self.took is None else self.took
        left = (self.end - ending - now) * pace  # steps
        return step if left < 0.5 else step + max(1.0, left)

    def epochs(self, steps: int) -> float:
        """Epochs of so many steps that make the number foreseen last, after rounding."""
        return float(f"{round(self.total) / steps:.9g}")
