"""Is a training still improving, done, copying or diverged? Decided from its validations alone.

Every comparison is one of 95 % intervals; docs/validate.md has the rule in words.
"""

import math
from typing import NamedTuple

import numpy as np

from mnist_ddpm.evaluation.distances import Estimate
from mnist_ddpm.evaluation.losses import LINEAR, NOTHING
from mnist_ddpm.watch.progress import Progress, Record

IMPROVING = "still improving"
DONE = "done within the noise"
COPYING = "copying"
DIVERGED = "diverged"
IGNORANT = "no better than knowing nothing"
ALIKE = "images all alike"
UNCLEAR = "too little to say"
LEAST = 5  # validations in the last doubling of the steps, for a trend
IGNORANT_SHARE = 0.95  # of the loss of a network that knows nothing: more is no knowledge
LOST_SHARE = 1.1  # of the same: more is worse than no knowledge
LEAST_VARIETY = 0.1  # of real images' deviation from each other: less is one image
EARLIEST = 200  # steps in which each network that learns has come below that
SURE = 3.0  # standard errors: against the best of many records, which is best by luck too

DISTANCES = {"real": "of unseen real images", "linear": "of the best linear"}  # in their place


class Verdict(NamedTuple):
    """What to make of a run: one of the kinds above, the reason, and what else can be seen."""

    kind: str
    reason: str
    notes: list[str]


class Trend(NamedTuple):
    """How a figure changed over the last doubling of the steps."""

    fall: Estimate
    resolution: float  # half the 95 % interval of one measurement

    @property
    def is_flat(self) -> bool:
        """Whether the fall is surely smaller than one measurement can show."""
        return self.fall.high < self.resolution

    @property
    def is_falling(self) -> bool:
        """Whether there is surely a fall, and not surely a smaller one than that."""
        return self.fall.low > 0 and not self.is_flat


def mean_difference(losses: list[float], others: list[float]) -> tuple[float, float]:
    """The mean of losses (M,) less others of the same images, and its standard error."""
    differences = np.array(losses) - np.array(others)
    return differences.mean(), differences.std(ddof=1) / math.sqrt(len(differences))


def is_above(losses: list[float], others: list[float]) -> bool:
    """Whether losses are surely larger than others, on average over the same images."""
    mean, error = mean_difference(losses, others)
    return mean > SURE * error


def doubling_weights(steps: list[int]) -> np.ndarray:
    """Weights (K,): times values (K,), the least-squares slope in log2(step)."""
    x = np.log2(steps)
    x = x - x.mean()
    return x / (x @ x)


def fit_trend(steps: list[int], values: np.ndarray, images: np.ndarray, half: float) -> Trend:
    """The trend of values (K,), to each of which an image contributes images (K, M).

    Images, times and noise are the same in all records, so the spread of the slopes of single
    images gives the error of their mean. Where the values scatter more than that around the line,
    since the weights wander, the scatter counts. half: as of Trend.resolution.
    """
    weights = doubling_weights(steps)
    slope = weights @ values
    x = np.log2(steps)
    residuals = values - values.mean() - slope * (x - x.mean())
    scatter = math.sqrt(residuals @ residuals / (len(values) - 2) * (weights @ weights))
    spread = (weights @ images).std(ddof=1) / math.sqrt(images.shape[1])
    return Trend(Estimate.of(-slope, max(spread, scatter)), half)


def distance_trend(records: list[Record]) -> Trend:
    """The trend of the distance, on which each image has a known influence (frechet_slopes)."""
    values = np.array([record.distance.value for record in records])
    influences = np.array([record.influences for record in records])
    half = np.mean([record.distance.half for record in records])
    return fit_trend([record.step for record in records], values, influences, half)


def loss_trend(records: list[Record], reference: list[float]) -> Trend:
    """The trend of the mean loss, as a share of the last one: a fall of 0.01 is one of 1 %.

    The resolution is that of its difference from the reference's loss.
    """
    losses = np.array([record.losses for record in records])
    mean = losses[-1].mean()
    _, error = mean_difference(records[-1].losses, reference)
    steps = [record.step for record in records]
    return fit_trend(steps, losses.mean(axis=1) / mean, losses / mean, 1.96 * error / mean)


def is_lost(progress: Progress, record: Record) -> bool:
    """Whether the loss is surely worse than that of an output of 0, with which each run begins."""
    nothing = progress.references.get(NOTHING)
    if record.losses is None or not is_above(record.losses, nothing):
        return False
    return np.mean(record.losses) > LOST_SHARE * np.mean(nothing)


def is_ignorant(progress: Progress, record: Record) -> bool:
    """Whether the loss is nearly that of an output of 0."""
    if record.losses is None:
        return False
    return np.mean(record.losses) > IGNORANT_SHARE * np.mean(progress.references[NOTHING])


def is_behind(progress: Progress, record: Record) -> bool:
    """Whether the images are surely further from real ones than those of the linear prediction.

    Without a distance, whether the loss is surely larger than its loss.
    """
    if record.distance is None:
        return record.losses is not None and is_above(record.losses, progress.references[LINEAR])
    linear = progress.linear_distance
    return linear is not None and record.distance.low > linear.high


def find_verdict(progress: Progress) -> Verdict:
    """The verdict on a run from its records, of which there is at least one."""
    records = progress.measured()
    if not progress.records[-1].is_finite:
        return Verdict(DIVERGED, "the loss, a gradient or the images are not finite", [])
    last = records[-1]
    if is_lost(progress, last):
        reason = "the loss is worse than that of a network whose output is 0"
        is_again = len(records) > 1 and is_lost(progress, records[-2])
        return Verdict(DIVERGED if is_again else UNCLEAR, reason, [])
    notes = [*label_notes(last), *overfitting_notes(records)]
    if last.copies:
        reason = "far more images than by chance are nearly a training image"
        return Verdict(COPYING, reason, notes)
    recent = [record for record in records if 2 * record.step >= last.step]
    if is_ignorant(progress, last) and (last.step >= EARLIEST or len(recent) >= LEAST):
        reason = f"after {last.step:,} steps the loss is that of a network whose output is 0"
        return Verdict(IGNORANT, f"{reason}: try another learning rate", notes)
    if last.variety is not None and last.variety < LEAST_VARIETY and last.step >= EARLIEST:
        reason = f"they differ from each other {last.variety:.0%} as much as real ones"
        return Verdict(ALIKE, f"{reason}: try a smaller learning rate", notes)
    if len(recent) < LEAST:
        reason = f"{len(recent)} validations in the last doubling of the steps, of {LEAST} needed"
        return Verdict(UNCLEAR, reason, notes)
    trends = {}
    if last.distance is not None:
        trends["distance"] = distance_trend(recent)
    if last.losses is not None:
        trends["loss"] = loss_trend(recent, progress.references[LINEAR])
    reason, *others = (describe_trend(*each) for each in trends.items())
    kind = decide([*trends.values()], is_behind(progress, last))
    if kind == DIVERGED:
        reason = "stuck where the best linear prediction is better"
    return Verdict(kind, reason, [*others, *notes])


def decide(trends: list[Trend], behind: bool) -> str:
    """The kind of verdict. The first trend decides: that of the distance, where there is one.

    But a network that is behind the best linear prediction is not done: it is still improving if
    any figure falls, and else stuck.
    """
    if behind and not any(trend.is_falling for trend in trends):
        return DIVERGED if all(trend.is_flat for trend in trends) else UNCLEAR
    if behind or trends[0].is_falling:
        return IMPROVING
    return DONE if trends[0].is_flat else UNCLEAR


def describe_trend(name: str, trend: Trend) -> str:
    """A trend in words."""
    fall, resolution = trend
    change = fall if fall.value >= 0 else Estimate(-fall.value, -fall.high, -fall.low)
    percent = Estimate(*(100 * x for x in change))
    amount = f"{percent} %" if name == "loss" else str(change)
    shown = f"{100 * resolution:.2g} %" if name == "loss" else f"{resolution:.2g}"
    verb = "fell" if fall.value >= 0 else "rose"
    text = f"over the last doubling of the steps the {name} {verb} by {amount}"
    if trend.is_flat:
        return f"{text}: less than one measurement can show (± {shown})"
    return text if trend.is_falling else f"{text}: neither surely falling nor surely flat"


def overfitting_notes(records: list[Record]) -> list[str]:
    """A note where the loss on unseen images has risen since its best."""
    if records[-1].losses is None:
        return []
    best = min(records, key=lambda record: np.mean(record.losses))
    if not is_above(records[-1].losses, best.losses):
        return []
    rise = mean_difference(records[-1].losses, best.losses)
    percent = Estimate.of(*(100 * each / np.mean(best.losses) for each in rise))
    return [f"the loss has risen by {percent} % since step {best.step:,}: it learns by heart"]


def label_notes(record: Record) -> list[str]:
    """A note on how many images a classifier finds to be of the label asked for."""
    if record.label_accuracy is None:
        return []
    share = f"{record.label_accuracy.value:.0%} (± {record.label_accuracy.half:.0%})"
    text = f"a classifier finds the label asked for in {share} of the images"
    if record.label_accuracy.low > record.label_chance:
        return [text]
    return [f"{text}, which is chance: it ignores its labels, or they are wrong"]


def tenths(losses: list[float], T: int) -> list[float]:
    """The mean of losses by loss_by_t over each tenth of 1 … T; NaN where no time is in it."""
    index = np.arange(len(losses)) * T // len(losses) * 10 // T
    values = np.array(losses)
    return [values[index == k].mean() if (index == k).any() else math.nan for k in range(10)]


def status_lines(progress: Progress, folder: object) -> list[str]:
    """The verdict, and the figures behind it, in lines."""
    if not progress.records:
        return [f"{folder}: no validation yet, {UNCLEAR}"]
    verdict = find_verdict(progress)
    last = progress.records[-1]
    cost = sum(record.cost for record in progress.records)
    time = f"{cost / max(last.seconds, 1e-9):.1%} of the time of training"
    lines = [
        f"{folder}, step {last.step:,} of {last.total_steps:,}: {verdict.kind}",
        *(f"  {each}" for each in (verdict.reason, *verdict.notes)),
    ]
    measured = progress.measured()
    if measured and measured[-1].losses is not None:
        lines.append("loss by tenths of T, from little noise to much")
        for name, losses in (progress.references | {"this network": measured[-1].losses}).items():
            row = (f"{loss:8.2g}" for loss in tenths(losses, progress.T))
            lines.append(f"  {name:<15}{''.join(row)}")
    if measured and measured[-1].distance is not None:
        n = progress.about["drawn"]
        lines.append(f"Fréchet distance of {n} images {measured[-1].distance}")
        for name in ("real", "linear"):
            distance = getattr(progress, f"{name}_distance")
            if distance is not None:
                lines.append(f"  {DISTANCES[name]} {distance}")
    return [*lines, f"{len(progress.records)} validations took {time}"]
