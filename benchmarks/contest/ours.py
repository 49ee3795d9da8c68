"""This project as a contestant. Its own process imports it."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import ClassVar

from torch import Tensor, nn

from contest.contestant import FEW, Contestant, Task


class Ours(Contestant):
    """The preset mnist-fast: patches of 4×4, predicts x_0, Muon, P2's weights. Its training_loop;
    DPM-Solver++ with η = 1."""

    package = "mnist_ddpm"
    names = "catalogue", "trainer", "evaluation.generation", "methods.solvers", "training.presets"
    NETWORK: ClassVar[dict] = {"preset": "mnist-fast"}

    def __init__(self, task: Task):
        super().__init__(task)
        modules = self.imported()
        self.catalogue, self.trainer, self.generation, self.solvers, self.presets = modules
        changes = dict(self.NETWORK)
        self.recipe = self.presets.preset(changes.pop("preset"), **changes)
        self.schedule = self.catalogue.make_schedule(self.recipe)
        self.network = self.catalogue.make_network(self.recipe).eval()

    @classmethod
    def imported(cls) -> list:
        return [import_module(f"{cls.package}.{name}") for name in cls.names]

    def training(self, images: Tensor) -> Iterator:
        run, steps = self.start_training(self.recipe, self.task, images)
        self.network = run.ema
        yield from steps

    def start_training(self, recipe, task: Task, images: Tensor) -> tuple:
        """A run by a recipe, changed as the task says, and its steps."""
        from mnist_ddpm.training.loop import training_loop

        epochs = task.steps / (len(images) // task.batch)
        changes = {"precision": task.precision, "batch_size": task.batch, "seed": task.seed}
        recipe = replace(recipe, warmup_steps=task.warmup, epochs=epochs, **changes)
        run = self.trainer.start_run(recipe)
        return run, training_loop(run, images, self.schedule)

    def sample(self, n: int, evaluations: int, seed: int) -> Tensor:
        return self.draw_images(n, evaluations, seed)

    def draw_images(self, n: int, steps: int, seed: int, **guidance) -> Tensor:
        network = self.generation.autocast(self.network, self.task.precision, "cpu")
        denoiser_for_batch = self.generation.make_denoiser_for_batch(
            network, self.schedule, self.recipe, **guidance
        )
        times = self.catalogue.sampling_times(self.schedule, steps, "trailing")
        sampler = partial(self.solvers.dpmpp_2m_sampler, eta=1.0)
        options = {"times": times, "sampler": sampler, "seed": seed, "progress": False}
        return self.generation.generate(
            denoiser_for_batch, self.schedule, n, (1, 32, 32), **options
        )[0]


class OursIn2x2(Ours):
    """The preset mnist at logit-normal times: patches of 2×2, predicts the noise, Muon. Its
    training_loop; DPM-Solver++ with η = 1."""

    NETWORK: ClassVar[dict] = {"preset": "mnist", "times": "logit-normal"}


class OursGuided(OursIn2x2):
    """The preset mnist at logit-normal times, and a guide, the preset mnist-small, which takes one
    step for ten of the other's (not counted as images trained). DPM-Solver++ with η = 1 and
    autoguidance, 1.5: half as many steps, since each evaluates both networks."""

    FEWER = "Without the guide."
    EVERY = 10  # steps of the network that is guided
    SCALE = 1.5  # of guidance

    def __init__(self, task: Task):
        super().__init__(task)
        # as it was when the races were run
        self.guide = self.presets.preset("mnist-small", objective="p2", times="uniform")
        self.guide_network = self.catalogue.make_network(self.guide).eval()

    def networks(self) -> list[nn.Module]:
        return [self.network, self.guide_network]

    def training(self, images: Tensor) -> Iterator:
        task = replace(self.task, steps=max(1, self.task.steps // self.EVERY))
        run, steps = self.start_training(self.guide, task, images)
        self.guide_network = run.ema
        for k, loss in enumerate(super().training(images), start=1):
            if k % self.EVERY == 0:
                next(steps, None)
            yield loss

    def sample(self, n: int, evaluations: int, seed: int) -> Tensor:
        if evaluations <= FEW:
            return super().sample(n, evaluations, seed)
        network = self.generation.autocast(self.guide_network, self.task.precision, "cpu")
        options = {"guide": (network, self.guide), "scale": self.SCALE}
        return self.draw_images(n, evaluations // 2, seed, **options)
