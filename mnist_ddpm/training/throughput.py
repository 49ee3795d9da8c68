"""How fast this machine trains and samples, measured for a few seconds."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from mnist_ddpm import catalogue, ddpm
from mnist_ddpm.machine import devices
from mnist_ddpm.machine.processes import recount_cores
from mnist_ddpm.machine.text import first_line
from mnist_ddpm.recipe import Recipe
from mnist_ddpm.training import cost, session
from mnist_ddpm.training.loop import start_run
from mnist_ddpm.training.run import training_step

MIN_SECONDS = 0.3  # of one measurement, about
MAX_SECONDS = 2.0


@dataclass
class ThroughputMeter:
    """Measures training and sampling of recipes on a device."""

    device: torch.device
    clock: Callable[[], float] = time.perf_counter  # in seconds
    until: float = math.inf  # by that clock: when measuring should end

    def allow(self, seconds: float) -> None:
        """Limits all measurements from now on to some seconds together, on slow machines too."""
        self.until = self.clock() + seconds

    def warm_up(self, recipe: Recipe) -> None:
        """Trains a few steps, so that PyTorch loads what training would load first."""
        self.pace(recipe, 0.0)

    def next_seconds(self) -> float:
        """Seconds for the next measurement: a third of those that remain."""
        return min(MAX_SECONDS, max(MIN_SECONDS, (self.until - self.clock()) / 3))

    def pace(self, recipe: Recipe, seconds: float | None = None) -> float:
        """Images trained a second."""
        seconds = self.next_seconds() if seconds is None else seconds
        run = start_run(recipe, self.device)
        schedule = catalogue.make_schedule(recipe)
        size = recipe.batch_size
        x0 = torch.zeros(size, *recipe.shape, device=self.device)
        labels = torch.zeros(size, dtype=torch.long) if recipe.classes else None
        for _, optimizer in run.networks_and_optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 0.0

        def step(n: int) -> None:
            generator = ddpm.random_generator(recipe.seed, 1, run.step)
            batch_labels = None if labels is None else labels[:n]
            training_step(run, x0[:n], schedule, generator, batch_labels)

        smallest = size if recipe.compile else 1  # each size would be compiled
        return self.items_per_second(step, smallest, size, seconds)

    def compiled_pace(self, recipe: Recipe) -> float:
        """Images a second that the compiled network trains; 0, and a message, if that fails.

        Compiling takes a minute or two, on top of what `allow` limits.
        """
        start = self.clock()
        try:
            devices.try_compiler(self.device, recipe.precision)
            return self.pace(recipe, MAX_SECONDS)
        except Exception as error:  # of many kinds: none is a reason not to train
            print(f"not compiled, since that failed: {first_line(error)}")
            return 0.0
        finally:
            self.until += self.clock() - start

    def seconds_per_evaluation(self, recipe: Recipe) -> float:
        """Seconds to evaluate the network on one image, in a batch as large as a preview's."""
        seconds = self.next_seconds()
        network = catalogue.make_network(recipe).to(self.device).eval()
        x = torch.zeros(session.IMAGES, *recipe.shape, device=self.device)
        t = torch.ones(session.IMAGES, dtype=torch.long, device=self.device)

        def evaluate(n: int) -> None:
            network(x[:n], t[:n]).sum().item()

        with torch.no_grad():
            return 1 / self.items_per_second(evaluate, 1, session.IMAGES, seconds / 2)

    def flops(self, recipe: Recipe) -> int:
        """Floating-point operations to evaluate the network on one image."""
        return cost.network_cost(recipe, catalogue.make_network).flops

    def precisions(self) -> list[str]:
        """The precisions that are worth measuring."""
        return devices.candidate_precisions(self.device)

    def items_per_second(
        self, work: Callable[[int], object], smallest: int, largest: int, seconds: float
    ) -> float:
        """How many items a second work(size) does in batches of the largest size.

        It times batches of growing size, from the smallest, while there is time. If that ends
        before the largest, the time of a larger batch is extrapolated from two sizes.
        """
        recount_cores()  # threads that wait for another program would be many times slower
        work(smallest)  # to warm up
        start = self.clock()
        size = smallest
        duration = first_duration = self.duration(work, smallest)
        per_item = duration / smallest
        while size < largest:
            larger = min(4 * size, largest)
            needed = 2 * (duration + (larger - size) * per_item)  # to warm up, and to time it
            if size > smallest and self.clock() - start + needed > seconds:
                break
            size = larger
            duration = self.duration(work, size)
            per_item = max(0.0, duration - first_duration) / (size - smallest)
        repeats = 0
        repeats_start = self.clock()
        while self.clock() - start < seconds:
            work(size)
            repeats += 1
        if repeats:
            duration = (self.clock() - repeats_start) / repeats
        return largest / (duration + (largest - size) * per_item)

    def duration(self, work: Callable[[int], object], size: int) -> float:
        """Seconds that work(size) takes."""
        start = self.clock()
        work(size)
        return self.clock() - start
