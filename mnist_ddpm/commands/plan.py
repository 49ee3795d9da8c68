"""`python -m mnist_ddpm plan`."""

import time
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from mnist_ddpm import trainer
from mnist_ddpm.commands import training_flags
from mnist_ddpm.commands.common import apart
from mnist_ddpm.commands.train import opened_log, places, tell_checkpoint, tell_fitted
from mnist_ddpm.data import sets
from mnist_ddpm.machine import devices, files
from mnist_ddpm.training import planning, presets, saving, tracking
from mnist_ddpm.training.recipe import Recipe

GUIDE = "guide"  # folder in that of the network


class PlanTraining(training_flags.PlanTraining):
    """A training that fits a time."""

    def run(self) -> None:
        """Plans, and unless it is a dry run trains. What cannot be done is told before."""
        if self.log != "none":
            tracking.check_tracker(self.log)
        device = devices.pick_device(self.device)
        folders = self.check_places()
        asked = Recipe(**{name: getattr(self, name) for name in planning.KEPT})
        sets.look_up_data_set(self.dataset)
        apart(self.out, self.dataset)
        sets.check_labelled(asked, self.data)
        plans, images = self.plans(asked, device)
        folders = folders[: len(plans)]
        recipe = plans[0].recipe
        labels = sets.load_labels(recipe, self.data) if recipe.classes else None
        for self.out, each in zip(folders, plans):
            print("\n".join(each.lines(self.out)), flush=True)
            if self.dry_run:
                print(each.without(each.recipe, places(self)), flush=True)
        if self.dry_run:
            return
        # self.out is the one to resume, where it is stopped
        done = [self.train(each, images, labels, device) for self.out, each in zip(folders, plans)]
        for self.out, each, trained in zip(folders, plans, done):
            print(each.without(trained, places(self)))
        for folder in folders:
            tell_checkpoint(folder)

    def plans(self, asked: Recipe, device: torch.device) -> tuple[list[planning.Plan], Tensor]:
        """What to train, after measuring, and on which images. Says what it does."""
        seconds, measuring = 60 * self.minutes, trainer.measure(device)
        compiling = seconds >= planning.COMPILING and device.type != "mps"
        more = ", then compiling the network, a minute or two" if compiling else ""
        about = f"about {planning.measuring_seconds(seconds):.0f} s, which count"
        print(f"measuring this machine: {about}{more}", flush=True)
        load = partial(sets.load_images, root=self.data)
        options = {"began": self.began, "size": self.image_size}
        made, images = planning.make_plan(asked, load, seconds, measuring, **options)
        tell_fitted(presets.preset(made.preset), made.recipe, len(images))
        if not self.guide:
            return [made], images
        plans, told = planning.with_guide(made, len(images), GUIDE, measuring)
        if told:
            print(told)
        return plans, images

    def check_places(self) -> list[Path]:
        """The folders for the checkpoints. Raises ValueError or OSError where they cannot be."""
        if self.guide:
            planning.check_guide_dataset(self.dataset)
        folders = [self.out, self.out / GUIDE] if self.guide else [self.out]
        if not self.dry_run:
            for folder in folders:
                saving.must_be_free(folder)
            files.writable_folder(self.out)
        return folders

    def train(
        self, planned: planning.Plan, images: Tensor, labels: Tensor | None, device: torch.device
    ) -> Recipe:
        """Trains one network, and says how long that took. Returns its recipe, as it was done."""
        began = time.monotonic()
        options = {"deadline": planned.deadline, "ending": planned.ending, "draw": planned.draw}
        with opened_log(self, planned.recipe) as log:
            run = trainer.train(
                planned.recipe, images, self.out, labels, device=device, log=log, **options
            )
        took, expected = (time.monotonic() - began) / 60, planned.seconds / 60
        print(f"{self.out}: {run.step} steps in {took:.1f} min ({expected:.1f} expected)")
        return run.settings
