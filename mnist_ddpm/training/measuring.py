"""How fast this machine trains and draws, measured for a few seconds."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from mnist_ddpm import ddpm
from mnist_ddpm.ddpm import Objective, Schedule
from mnist_ddpm.training import cost, machine
from mnist_ddpm.training.files import first_line
from mnist_ddpm.training.recipe import Recipe
from mnist_ddpm.training.run import Run, training_step

DRAWN = 36  # images, as in a preview


@dataclass(frozen=True)
class Measuring:
    """A device, how a recipe is trained on it, and a clock in seconds."""

    device: torch.device
    start_run: Callable[[Recipe], Run]
    make_schedule: Callable[[Recipe], Schedule]
    make_objective: Callable[[Recipe], Objective]
    make_network: Callable[[Recipe], nn.Module]
    clock: Callable[[], float] = time.perf_counter

    def pace(self, recipe: Recipe, seconds: float = 2.0) -> float:
        """Images trained a second."""
        run, size = self.start_run(recipe), recipe.batch_size
        schedule, objective = self.make_schedule(recipe), self.make_objective(recipe)
        x0 = torch.zeros(size, *recipe.shape, device=self.device)
        labels = torch.zeros(size, dtype=torch.long) if recipe.classes else None
        for group in run.optimizer.param_groups:
            group["lr"] = 0.0

        def step() -> None:
            generator = ddpm.random_generator(recipe.seed, 1, run.step)
            training_step(run, x0, schedule, objective, generator, labels)  # waits for its loss

        return size * self.per_second(step, seconds)

    def compiled_pace(self, recipe: Recipe) -> float:
        """The same, of the compiled network; 0 where compiling fails, which it prints."""
        try:
            machine.try_compiler(self.device, recipe.precision)
            return self.pace(recipe)
        except Exception as error:  # of many kinds: none is a reason not to train
            print(f"not compiled, since that failed: {first_line(error)}")
            return 0.0

    def evaluation(self, recipe: Recipe) -> float:
        """Seconds an image of one evaluation of the network, in a batch of 36."""
        network = self.make_network(recipe).to(self.device).eval()
        x = torch.zeros(DRAWN, *recipe.shape, device=self.device)
        t = torch.ones(DRAWN, dtype=torch.long, device=self.device)
        with torch.no_grad():
            return 1 / (DRAWN * self.per_second(lambda: network(x, t).sum().item(), 0.0))

    def flops(self, recipe: Recipe) -> int:
        """Operations of one evaluation of one image."""
        return cost.cost(recipe, self.make_network).flops

    def precisions(self) -> list[str]:
        """The ones worth measuring."""
        return machine.precisions(self.device)

    def per_second(self, work: Callable[[], object], seconds: float) -> float:
        """How often work can be done, after twice to warm up; it is timed twice at least."""
        for _ in range(2):
            work()
        times, began = 0, self.clock()
        while times < 2 or self.clock() - began < seconds:
            work()
            times += 1
        return times / (self.clock() - began)
