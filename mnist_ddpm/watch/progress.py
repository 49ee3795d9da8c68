"""The record of a validated training in progress.json, and its picture, progress.png."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mnist_ddpm.ddpm import check
from mnist_ddpm.evaluation.distances import Estimate
from mnist_ddpm.evaluation.losses import LINEAR, NOTHING
from mnist_ddpm.machine.files import replacing
from mnist_ddpm.machine.text import describe_error, read_json

PROGRESS = "progress.json"
LARGEST = 1e15  # of any number in it
ESTIMATES = "distance", "label_accuracy"  # fields of a record that are None or an Estimate


@dataclass(frozen=True)
class Record:
    """One validation of a run; a field is None where it is not measured."""

    step: int
    total_steps: int  # of the training, as foreseen
    seconds: float  # of training until then
    cost: float  # seconds of this validation
    is_finite: bool = True  # False: the loss or the images were not
    losses: list[float] | None = None  # of each unseen image, at a time of its own: loss_by_t
    distance: Estimate | None = None  # Fréchet, of the images drawn
    influences: list[float] | None = None  # of each of them on it: frechet_slopes
    copies: bool = False  # the verdict of the audit of copies
    near: float | None = None  # the share of images that the audit finds near a training image
    variety: float | None = None  # the images' deviation from each other, over that of real ones
    label_accuracy: Estimate | None = None  # share of images that a classifier finds as asked for
    label_chance: float | None = None  # what that share would be without regard to labels


@dataclass
class Progress:
    """The records of a run, and what they are compared with."""

    T: int
    about: dict  # facts for readers: numbers of images, sampler, extractor
    references: dict[str, list[float]]  # losses of the same images, by the name of what made them
    real_distance: Estimate | None = None  # of as many unseen real images
    linear_distance: Estimate | None = None  # of images drawn by the best linear prediction
    records: list[Record] = field(default_factory=list)

    def measured(self) -> list[Record]:
        """The records that are finite."""
        return [record for record in self.records if record.is_finite]


def write_progress(folder: Path, progress: Progress) -> None:
    """Writes progress.json, completely or not at all. Raises OSError."""
    with replacing(folder / PROGRESS) as temporary:
        temporary.write_text(json.dumps(asdict(progress)), encoding="utf-8")


def read_progress(folder: str | Path) -> Progress:
    """The progress in a folder.

    Raises FileNotFoundError where there is none, ValueError for a damaged file.
    """
    path = Path(folder, PROGRESS)
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}")
    try:
        content = read_json(path)
        content["records"] = [parse_record(each) for each in content["records"]]
        for name in ("real_distance", "linear_distance"):
            value = content[name]
            content[name] = None if value is None else parse_estimate(value)
        progress = Progress(**content)
        check_progress(progress)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = describe_error(error)
        raise ValueError(f"{path} is damaged ({reason}): delete it to validate anew") from error
    return progress


def parse_record(content: dict) -> Record:
    """A record of JSON. Raises ValueError or TypeError for what is none."""
    estimates = {name: content[name] for name in ESTIMATES if content[name] is not None}
    content = content | {name: parse_estimate(each) for name, each in estimates.items()}
    record = Record(**content)
    times = record.step, record.total_steps, record.seconds, record.cost
    check(are_numbers(times) and min(times) >= 0, "a record's times")
    shares = record.near, record.variety, record.label_chance
    optional = (each for each in shares if each is not None)
    check(are_numbers([*optional, *(record.influences or ())]), "a figure is no number")
    has_chance = record.label_accuracy is None or record.label_chance is not None
    check(has_chance, "label_chance is missing")
    return record


def are_numbers(values: Iterable) -> bool:
    """Whether all are numbers, finite and of a size that figures have."""
    return all(type(each) in (int, float) and abs(each) < LARGEST for each in values)


def parse_estimate(content: list) -> Estimate:
    """An estimate of JSON. Raises ValueError or TypeError for what is none."""
    estimate = Estimate(*content)
    check(are_numbers(estimate), "an estimate is no number")
    return estimate


def check_progress(progress: Progress) -> None:
    """Raises ValueError for records out of order, or figures that are not of the same images."""
    records = progress.records
    measured = progress.measured()
    for name in ("losses", "distance"):
        kinds = {getattr(record, name) is None for record in measured}
        check(len(kinds) <= 1, f"some of its records lack a {name}")
    steps = [record.step for record in records]
    check(steps == sorted({*steps}), "its records are out of order")
    losses = [record.losses for record in records if record.losses is not None]
    check(not losses or progress.references.keys() >= {NOTHING, LINEAR}, "it lacks a reference")
    losses += progress.references.values()
    influences = [record.influences for record in records if record.distance is not None]
    for lists in (losses, influences):
        check(len({len(each) for each in lists}) <= 1, "its figures are of different images")
    numbers = [progress.T, progress.about["drawn"], *(loss for each in losses for loss in each)]
    check(are_numbers(numbers) and min(numbers) > 0, "a number is not positive")
