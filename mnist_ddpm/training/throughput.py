"""How fast this machine trains and draws, measured for a few seconds."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from mnist_ddpm import ddpm
from mnist_ddpm.ddpm import Objective, Schedule
from mnist_ddpm.machine import devices
from mnist_ddpm.machine.files import first_line
from mnist_ddpm.machine.threads import recount_cores
from mnist_ddpm.training import cost
from mnist_ddpm.training.recipe import Recipe
from mnist_ddpm.training.run import Run, training_step

DRAWN = 36  # images, as in a preview
LEAST, MOST = 0.3, 2.0  # seconds of one measurement, about


@dataclass
class ThroughputMeter:
    """A device, how a recipe is trained on it, and a clock in seconds."""

    device: torch.device
    start_run: Callable[[Recipe], Run]
    make_schedule: Callable[[Recipe], Schedule]
    make_objective: Callable[[Recipe], Objective]
    make_network: Callable[[Recipe], nn.Module]
    clock: Callable[[], float] = time.perf_counter
    until: float = math.inf  # by that clock

    def allow(self, seconds: float) -> None:
        """Lets all measurements from now on take about so long, on a slow machine too."""
        self.until = self.clock() + seconds

    def warm_up(self, recipe: Recipe) -> None:
        """A few steps, with what PyTorch loads when it first needs it; training would wait too."""
        self.pace(recipe, 0.0)

    def share(self) -> float:
        """Seconds of the next measurement: a third of what is left."""
        return min(MOST, max(LEAST, (self.until - self.clock()) / 3))

    def pace(self, recipe: Recipe, seconds: float | None = None) -> float:
        """Images trained a second."""
        seconds = self.share() if seconds is None else seconds
        run, size = self.start_run(recipe), recipe.batch_size
        schedule, objective = self.make_schedule(recipe), self.make_objective(recipe)
        x0 = torch.zeros(size, *recipe.shape, device=self.device)
        labels = torch.zeros(size, dtype=torch.long) if recipe.classes else None
        for group in run.optimizer.param_groups:
            group["lr"] = 0.0

        def step(n: int) -> None:
            generator = ddpm.random_generator(recipe.seed, 1, run.step)
            told = None if labels is None else labels[:n]
            training_step(run, x0[:n], schedule, objective, generator, told)  # waits for its loss

        least = size if recipe.compile else 1  # another size would be compiled anew
        return self.per_second(step, least, size, seconds)

    def compiled_pace(self, recipe: Recipe) -> float:
        """The same, of the compiled network; 0 where compiling fails, which it prints.

        Compiling takes a minute or two, beside what allow says.
        """
        began = self.clock()
        try:
            devices.try_compiler(self.device, recipe.precision)
            return self.pace(recipe, MOST)
        except Exception as error:  # of many kinds: none is a reason not to train
            print(f"not compiled, since that failed: {first_line(error)}")
            return 0.0
        finally:
            self.until += self.clock() - began

    def evaluation(self, recipe: Recipe) -> float:
        """Seconds an image of one evaluation of the network, in a batch of 36."""
        seconds, network = self.share(), self.make_network(recipe).to(self.device).eval()
        x = torch.zeros(DRAWN, *recipe.shape, device=self.device)
        t = torch.ones(DRAWN, dtype=torch.long, device=self.device)

        def evaluate(n: int) -> None:
            network(x[:n], t[:n]).sum().item()

        with torch.no_grad():
            return 1 / self.per_second(evaluate, 1, DRAWN, seconds / 2)

    def flops(self, recipe: Recipe) -> int:
        """Operations of one evaluation of one image."""
        return cost.network_cost(recipe, self.make_network).flops

    def precisions(self) -> list[str]:
        """The ones worth measuring."""
        return devices.candidate_precisions(self.device)

    def per_second(
        self, work: Callable[[int], object], least: int, most: int, seconds: float
    ) -> float:
        """Of how many things in batches of `most` work is done a second, measured for so many.

        It begins with batches of the least size, and goes on to larger ones while there is time.
        Where that ends before, what more of them take is added, as the two sizes let expect.
        """
        recount_cores()  # threads that wait for another program would be many times slower
        work(least)  # to warm up
        began, size = self.clock(), least
        first = took = self.duration(work, least)
        each = took / least
        while size < most:
            larger = min(4 * size, most)
            needed = 2 * (took + (larger - size) * each)  # once more, to time it
            if size > least and self.clock() - began + needed > seconds:
                break
            size, took = larger, self.duration(work, larger)
            each = max(0.0, took - first) / (size - least)
        times, since = 0, self.clock()
        while self.clock() - began < seconds:
            work(size)
            times += 1
        took = (self.clock() - since) / times if times else took
        return most / (took + (most - size) * each)

    def duration(self, work: Callable[[int], object], size: int) -> float:
        """Seconds that it takes once."""
        began = self.clock()
        work(size)
        return self.clock() - began
