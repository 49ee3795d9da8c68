"""`python -m mnist_ddpm plan`."""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from mnist_ddpm import catalogue
from mnist_ddpm.commands.common import apart
from mnist_ddpm.commands.train import places
from mnist_ddpm.training import files, machine, plan, saving
from mnist_ddpm.training.recipe import Recipe


@dataclass
class PlanTraining:
    """Train as well as this machine can in the time you have, after measuring it for a few seconds.

    Preset, precision, batch size and epochs are chosen and printed, with the time they should take.
    Digits are trained with P2's loss weights. With --guide a worse network is trained, too, in the
    same time: to keep away from it when sampling about halves the distance to real digits.

    Example: python -m mnist_ddpm plan --minutes 10 --dataset celeba --out checkpoints/faces
    """

    # for measuring and training; decoding a data set, the first time, is not counted
    minutes: float = 10.0
    dataset: str = "mnist"  # mnist, celeba, ffhq, or a folder of images
    channels: int | None = None  # 1 grey, 3 colour; None: 1 for mnist, 3 for all else
    classes: int = 0  # 10 trains with MNIST's labels
    attributes: tuple[str, ...] = ()  # of celeba, as labels, such as Smiling Male
    seed: int = 0  # of weights, data order, times and noise
    guide: bool = False  # of digits: also train a guide for sample, in the folder guide of --out
    dry_run: bool = False  # only say what would be done
    out: Path = Path("checkpoints/mine")  # folder for the checkpoint and its preview grids
    data: Path = Path("data")  # folder that holds the data sets known by name
    device: str = "auto"  # cpu, cuda, cuda:1, mps; auto picks the best available

    def run(self) -> None:
        """Plans, and unless it is a dry run trains. What cannot be done is told before."""
        device = machine.pick_device(self.device)
        folders = self.check_places()
        asked = Recipe(**{name: getattr(self, name) for name in plan.KEPT})
        catalogue.look_up_data_set(self.dataset)
        apart(self.out, self.dataset)
        catalogue.check_labelled(asked, self.data)
        load = partial(catalogue.load_images, root=self.data)
        measuring = catalogue.measure(device)
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
        run = catalogue.train(planned.recipe, images, self.out, labels, **options)
        took, expected = (time.monotonic() - began) / 60, planned.seconds / 60
        print(f"{self.out}: {run.step} steps in {took:.1f} min ({expected:.1f} expected)")
