"""`python -m mnist_ddpm plan`."""

import time
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from mnist_ddpm import catalogue, trainer
from mnist_ddpm.commands import training_flags
from mnist_ddpm.commands.common import apart
from mnist_ddpm.commands.train import places, tell_checkpoint
from mnist_ddpm.training import files, machine, plan, saving
from mnist_ddpm.training.recipe import Recipe


class PlanTraining(training_flags.PlanTraining):
    """A training that fits a time."""

    def run(self) -> None:
        """Plans, and unless it is a dry run trains. What cannot be done is told before."""
        device = machine.pick_device(self.device)
        folders = self.check_places()
        asked = Recipe(**{name: getattr(self, name) for name in plan.KEPT})
        catalogue.look_up_data_set(self.dataset)
        apart(self.out, self.dataset)
        catalogue.check_labelled(asked, self.data)
        load = partial(catalogue.load_images, root=self.data)
        measuring = trainer.measure(device)
        made, images = plan.make_plan(asked, load, 60 * self.minutes, measuring)
        plans = [made]
        if self.guide:
            plans = plan.with_guide(made, len(images), folders[1], measuring)
        recipe = made.recipe
        labels = catalogue.load_labels(recipe, self.data) if recipe.classes else None
        for self.out, each in zip(folders, plans):
            print("\n".join(each.lines(places(self))), flush=True)
        if self.dry_run:
            return
        for self.out, each in zip(folders, plans):  # the one to resume, where it is stopped
            self.train(each, images, labels, device)
        for folder in folders:
            tell_checkpoint(folder)

    def check_places(self) -> list[Path]:
        """The folders for the checkpoints. Raises ValueError or OSError where they cannot be."""
        if self.guide:
            plan.check_guided(self.dataset)
        folders = [self.out, self.out / "guide"] if self.guide else [self.out]
        if not self.dry_run:
            for folder in folders:
                saving.must_be_free(folder)
            files.writable_folder(self.out)
        return folders

    def train(
        self, planned: plan.Plan, images: Tensor, labels: Tensor | None, device: torch.device
    ) -> None:
        """Trains one network, and says how long that took."""
        began = time.monotonic()
        options = {"deadline": planned.deadline, "device": device}
        run = trainer.train(planned.recipe, images, self.out, labels, **options)
        took, expected = (time.monotonic() - began) / 60, planned.seconds / 60
        print(f"{self.out}: {run.step} steps in {took:.1f} min ({expected:.1f} expected)")
