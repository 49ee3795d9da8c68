"""Validation of a run while it trains: loss on unseen images, distance, copies, labels."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mnist_ddpm import catalogue, ddpm, generation
from mnist_ddpm.data.labels import needs_labels, typical_labels
from mnist_ddpm.ddpm import check
from mnist_ddpm.evaluation import copies
from mnist_ddpm.evaluation.distances import (
    Estimate,
    frechet_estimate,
    frechet_slopes,
    share,
    shuffled,
)
from mnist_ddpm.evaluation.extractors import Judge, RealImages
from mnist_ddpm.evaluation.losses import LossMeter, gaussian_denoiser, rounded
from mnist_ddpm.machine.text import first_line
from mnist_ddpm.recipe import Recipe
from mnist_ddpm.sampling import SamplerChoice, Sampling
from mnist_ddpm.training.loop import measured_defaults
from mnist_ddpm.training.run import Run
from mnist_ddpm.training.session import Log
from mnist_ddpm.watch.picture import write_progress_picture, write_strip
from mnist_ddpm.watch.progress import PROGRESS, Progress, Record, read_progress, write_progress

UNSEEN = 500  # unseen images whose loss is measured
DRAWN = 256  # images drawn for the distance, always from the same noise
IN_STRIP = 5  # of these, shown in the picture
DRAWING = {"steps": 20}  # by DDIM, where nothing else is known
MOST_COMPARED = 1000  # images whose deviation from each other is measured
DENSITY = 60  # the next validation waits for 1/60 of the time so far: the file stays small
LogValues = Callable[[dict[str, float], int], None]  # of names and values, and the step


@dataclass(frozen=True)
class RealSet:
    """What a run is compared with: images, uint8 (N, C, H, W), and what judges them."""

    training: Tensor
    held_out: Tensor | None = None  # None: the loss is that of training images
    labels: Tensor | None = None  # of the training images, (N,)
    judge: Judge | None = None  # None: there is no distance
    cache: Path | None = None  # folder of the real images' features


def variety(images: Tensor, real: Tensor) -> float | None:
    """How much images (N, C, H, W) differ from each other, over what real ones do.

    The deviation of a pixel from its mean over all images, as the mean of all pixels. None where
    the real ones are all the same.
    """
    drawn, known = (each[:MOST_COMPARED].float().std(dim=0).mean() for each in (images, real))
    return None if known == 0 else (drawn / known).item()


class Validator:
    """Validates a run in its folder, and writes progress.json and progress.png there.

    It is a session.Log, and calls another one first. It uses none of training's random numbers, so
    the weights are the same without it. It takes at most `share` of the time of training, but for
    its preparation and the validation at the end.
    """

    def __init__(
        self,
        folder: Path,
        recipe: Recipe,
        real: RealSet,
        *,
        few_steps: dict | None = None,
        device: torch.device | str = "cpu",
        share: float = 0.05,
        log: Log | None = None,
        log_values: LogValues | None = None,
    ):
        """few_steps: the sampling defaults of a method that has its own. log_values: logs figures.

        Raises ValueError where nothing can be measured, and for a damaged progress.json.
        """
        check_share(share)
        self.folder = folder
        self.recipe = recipe
        self.real = real
        self.device = device
        self.share = share
        self.log = log
        self.log_values = log_values
        self.schedule = catalogue.make_schedule(recipe)
        advice = DRAWING | (few_steps or measured_defaults(recipe))
        self.sampling = Sampling.chosen({}, advice, recipe.T)
        self.choice = self.sampling.choice(recipe)
        # Networks for few steps predict no mean; some predict nothing without their other input
        self.has_loss = not (few_steps or recipe.conditional or needs_labels(recipe))
        check(self.has_loss or real.judge is not None, "there is neither a loss nor an extractor")
        images = real.training if real.held_out is None else real.held_out
        self.unseen = shuffled(images, 1, UNSEEN)
        self.loss_meter = LossMeter(recipe, self.unseen, device)
        self.labels = None
        if recipe.classes:
            self.labels = typical_labels(real.labels, DRAWN)
        self.usual = None  # distances of real images from their nearest training images
        self.run = None  # as it was after its last step
        self.picture_seconds = 0.0
        self.pending = 0.0  # of these, not yet counted in a record
        self.real_features = None
        if real.judge is not None:
            known = RealImages(real.judge, real.training, real.held_out, folder=real.cache)
            if real.cache is not None:
                known.announce_missing()
            self.real_features = known.features()
        self.progress = self.begin_progress()

    def begin_progress(self) -> Progress:
        """The progress in the folder if it has the same measurements, else an empty one."""
        about = {
            "unseen": len(self.unseen),
            "of": "training" if self.real.held_out is None else "held-out images",
            "drawn": DRAWN,
            "drawing": self.sampling.describe(self.choice, self.recipe),
            "extractor": self.real.judge.name if self.real.judge else None,
        }
        if (self.folder / PROGRESS).is_file():
            progress = read_progress(self.folder)
            if progress.about == about:
                return progress
        linear = gaussian_denoiser(self.schedule, self.real.training)
        references = self.loss_meter.references(linear) if self.has_loss else {}
        progress = Progress(self.schedule.T, about, references)
        if self.real_features is not None:
            known = self.real_features.training
            plain = Sampling.chosen({}, DRAWING, self.recipe.T).choice(self.recipe)
            images = self.generate(lambda batch: ddpm.clipped(linear, self.schedule), plain)
            progress.linear_distance = frechet_estimate(known, self.real.judge.features(images))
            if self.real_features.held_out is not None:
                some = shuffled(self.real_features.held_out, 1, DRAWN)
                progress.real_distance = frechet_estimate(known, some)
        return progress

    def __call__(self, run: Run, picture: np.ndarray | None = None) -> None:
        """Calls the other log. After a step it validates, if there is time for that."""
        if self.log is not None:
            self.log(run, picture)
        if self.run is None:  # steps that were not saved before a kill are trained once more
            earlier = [record for record in self.progress.records if record.step < run.step]
            self.progress.records = earlier
        self.run = run
        if picture is None and self.is_due(run):
            self.validate(run)

    def is_due(self, run: Run) -> bool:
        """Whether another validation keeps to the share of time. A first one's cost is guessed."""
        records = self.progress.records
        if records:
            expected = records[-1].cost
        else:  # a training step is three evaluations of its batch
            evaluations = DRAWN * len(self.choice.times) + self.has_loss * len(self.unseen)
            seconds = run.training_seconds / run.step
            expected = evaluations / (3 * self.recipe.batch_size) * seconds
        spent = self.pending + sum(record.cost for record in records)
        waited = run.training_seconds - (records[-1].seconds if records else 0)
        has_waited = waited >= run.training_seconds / DENSITY
        return has_waited and spent + expected <= self.share * run.training_seconds

    def validate(self, run: Run) -> None:
        """Measures a run, prints what it finds, and writes it to its files and log."""
        start = time.monotonic()
        images = None
        try:
            images = self.draw(run)
            figures = self.figures(run, images)
        except FloatingPointError:
            figures = {"is_finite": False}
        self.add(run, time.monotonic() - start + self.pending, **figures)
        self.pending = 0.0
        if images is not None:
            strip = ddpm.tile(images[:IN_STRIP], columns=1)
            self.write(lambda folder: write_strip(folder, run.step, strip))
        spent = sum(record.cost for record in self.progress.records)
        if self.picture_seconds <= spent / 4:  # of small networks it is most of the work
            self.draw_picture()

    def draw_picture(self) -> None:
        """Draws progress.png."""
        start = time.monotonic()
        self.write(lambda folder: write_progress_picture(folder, self.progress))
        seconds = time.monotonic() - start
        self.picture_seconds += seconds
        self.pending += seconds

    def figures(self, run: Run, images: Tensor) -> dict:
        """The fields of a record. Raises FloatingPointError where the loss is not finite."""
        figures = {}
        if self.has_loss:
            figures["losses"] = self.loss_meter.losses_of(run.ema)
        real = self.real
        audit = copies.audit(
            images,
            real.training,
            None if real.held_out is None else self.unseen,
            self.recipe.is_mirrored,
            device=self.device,
            usual=self.usual,
        )
        self.usual = audit.real
        audited = audit.figures()
        figures |= {"copies": audited["copies"], "near": audited["closer"].value}
        figures["variety"] = variety(images, real.training)
        if real.judge is not None:
            features = real.judge.features(images)
            known = self.real_features.training
            figures["distance"] = frechet_estimate(known, features)
            figures["influences"] = rounded(frechet_slopes(known, features)[0])
            figures |= self.label_figures(features)
        return figures

    def label_figures(self, features: Tensor) -> dict:
        """How many images a classifier finds to be of their label, and by chance; or {}."""
        network = self.real.judge.network
        knows_classes = getattr(network, "dataset", None) == self.recipe.dataset
        if not knows_classes or network.outputs != self.recipe.classes or self.recipe.attributes:
            return {}
        classes = self.real.judge.logits(features).argmax(dim=1)
        counts = [
            torch.bincount(each, minlength=network.outputs) for each in (classes, self.labels)
        ]
        chance = (counts[0] / len(classes)) @ (counts[1] / len(classes))
        accuracy = share(classes == self.labels)
        return {"label_accuracy": accuracy, "label_chance": chance.item()}

    def draw(self, run: Run) -> Tensor:
        """Images of the averaged network: uint8 (DRAWN, C, H, W). Raises as generate."""
        recipe = self.recipe
        denoiser_for_batch = generation.make_denoiser_for_batch(
            generation.autocast(run.ema, recipe.precision, self.device),
            self.schedule,
            recipe,
            labels=self.labels,
            condition_images=self.unseen.to(self.device) if recipe.conditional else None,
            next_times=catalogue.next_times(self.sampling.sampler, self.choice.times, recipe),
        )
        return self.generate(denoiser_for_batch, self.choice)

    def generate(
        self, denoiser_for_batch: generation.DenoiserForBatch, choice: SamplerChoice
    ) -> Tensor:
        """Images, always from the same noise. Raises FloatingPointError for images that are NaN."""
        images, _ = generation.generate(
            denoiser_for_batch,
            self.schedule,
            DRAWN,
            self.recipe.shape,
            times=choice.times,
            sampler=choice.sampler,
            batch_size=math.ceil(self.recipe.batch_size / self.recipe.accumulation),
            device=self.device,
            progress=False,
        )
        return images

    def add(self, run: Run, cost: float, **figures) -> None:
        """Adds a record, writes it to file and log, and prints it."""
        total = round(run.total_steps) if math.isfinite(run.total_steps) else run.step
        record = Record(run.step, total, run.training_seconds, cost, **figures)
        self.progress.records.append(record)
        self.write(lambda folder: write_progress(folder, self.progress))
        values = headline(record)
        words = ", ".join(f"{name} {value}" for name, value in values.items())
        tqdm.write(f"step {run.step:,}: {words or 'not finite'}")  # above the progress bar
        if self.log_values is not None and values:
            plain = {name: getattr(each, "value", each) for name, each in values.items()}
            self.log_values({f"validation {name}": float(x) for name, x in plain.items()}, run.step)

    def write(self, function: Callable[[Path], object]) -> None:
        """Calls a function of the run's folder, which writes there. Training outlives a failure."""
        folder = self.folder
        try:
            if not folder.is_dir():  # the next save makes it again
                raise FileNotFoundError(f"there is no folder {folder}")
            function(folder)
        except OSError as error:
            tqdm.write(f"a validation could not be written ({first_line(error)})")

    def finish(self) -> None:
        """Validates the run at its end, unless its last step was, and draws the picture."""
        records = self.progress.records
        if self.run is not None:
            if not (records and records[-1].step == self.run.step):
                self.validate(self.run)
            self.draw_picture()

    def record_divergence(self) -> None:
        """Adds a record of a training that ended since its loss was not finite."""
        if self.run is not None:
            self.add(self.run, 0.0, is_finite=False)
            self.draw_picture()


def check_share(share: float) -> None:
    """Raises ValueError unless it is a share of the time of training."""
    check(0 < share <= 1, f"validate_share is {share}: take more than 0, and at most 1")


def headline(record: Record) -> dict[str, float | Estimate]:
    """The figures of a record for a line and a log, by name."""
    loss = None if record.losses is None else round(float(np.mean(record.losses)), 5)
    values = {"loss": loss, "distance": record.distance, "copies": record.near}
    values["label accuracy"] = record.label_accuracy
    return {name: value for name, value in values.items() if value is not None}
