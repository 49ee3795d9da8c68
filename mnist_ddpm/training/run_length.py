"""How many steps a training has: those of its epochs, or as many as it takes until a deadline."""

import math
import time
from collections.abc import Callable

import torch

from mnist_ddpm.ddpm import total_steps
from mnist_ddpm.machine.processes import ProcessGroup
from mnist_ddpm.training.recipe import Recipe

# From the steps that are done to the total that is expected then; equal calls return the same.
Length = Callable[[int], float]
PLAN_WEIGHT = 0.01  # the plan counts as much as what was measured in this share of the time


def epochs_length(recipe: Recipe, n: int) -> Length:
    """The steps of the recipe's epochs on n images, in whole batches."""
    total = total_steps(recipe, n)
    return lambda step: total


def until_deadline(length: Length, deadline: float, world: ProcessGroup) -> Length:
    """The same length, cut off at the deadline, but at least one step."""
    is_late: dict[int, bool] = {}  # at most one item, that of the latest step

    def total_steps_after(step: int) -> float:
        if step not in is_late:  # read the clock once a step, but not before the first
            late = bool(is_late) and world.any(time.monotonic() > deadline)
            is_late.clear()
            is_late[step] = late
        return step if is_late[step] else length(step)

    return total_steps_after


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
        world: ProcessGroup,
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


def with_deadline(
    length: Length,
    deadline: float,
    final_preview_steps: float | None,
    world: ProcessGroup,
    step: int,
) -> Length:
    """A length that ends at the deadline; math.inf means none. Arguments: as of loop.fit.

    step: of the run, which starts now.
    """
    if deadline == math.inf:
        return length
    if final_preview_steps is None:
        return until_deadline(length, deadline, world)
    return TimedLength(deadline, length(step), final_preview_steps, world, step=step)
