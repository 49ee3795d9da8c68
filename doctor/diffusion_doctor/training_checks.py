"""Checks of a training loss, by what it shows to its network: times, noise, range."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from diffusion_doctor.mathematics import Schedule
from diffusion_doctor.report import Check
from diffusion_doctor.training_record import Recording, around_means

Entries = Callable[[Tensor], Tensor]  # the code's times (N,) as entries of the schedule, float64
CERTAIN = 16  # draws that are expected where none came: exp(-16) is 1e-7
PARTS = 50  # of the range of a continuous t
UNIFORM_KURTOSIS = 1.8
LEVEL_TOLERANCE = 0.05  # of the log of noise over signal
RANGE_TOLERANCE = 0.1
SHARED = 0.9
EXPLAINED = 0.2  # of a gradient's squares that may stay unexplained
STANDARD_ERRORS = 6  # a normal variable is beyond them once in 5e8


def check_times_of_batch(recording: Recording) -> Check:
    """Whether the images of a batch have a t each.

    The value is the number of different times among all that were seen. With 8 images a batch or
    more, one time for all of them happens by accident in no batch.
    """
    name = "training: times of a batch"
    different = len(recording.times.unique())
    if recording.batch_size < 8:
        return Check(name, "not checked", "needs: batches of 8 images or more")
    if not recording.has_one_time:
        return Check(name, "ok", "each image of a batch has its own t", different, 1)
    if different == 1:
        return Check(name, "undecided", "the loss always has the same t", different, 1)
    meaning = "all images of a batch have the same t, so gradients are noisy"
    return Check(name, "wrong", meaning, different, 1, {"one-time": 1.0})


def check_ends(
    recording: Recording, entries: Entries, T: int, asked: tuple[float, float] | None = None
) -> Check:
    """Whether training sees the first and the last t.

    The value is the number of draws that were expected where none came, up to the end; tolerance:
    16, which happens to correct code once in 10 million. It follows from how often the times next
    to them were drawn (for a continuous t: of 50 parts of its range), if that is an even share. So
    t that are drawn seldom near an end stay undecided. asked: the least and the greatest entry at
    which the sampler asks the network; None: 1 and T.
    """
    name = "training: first and last t"
    step = recording.batch_size if recording.has_one_time else 1
    drawn = entries(recording.times[::step])
    bins = T if bool((drawn == drawn.round()).all()) else PARTS
    place = (drawn * bins / T).ceil().long().clamp(0, bins + 1)
    counts = torch.bincount(place, minlength=bins + 2)[1 : bins + 1].double()
    if T < 12 or len(drawn) < 2 * CERTAIN or len(drawn.unique()) == 1:
        return Check(name, "undecided", f"too few t were drawn: {len(drawn)}")
    low, high = (1.0, float(T)) if asked is None else asked
    expected = {
        "first": expected_in_gap(counts) if low <= drawn.min() - 0.5 else 0.0,
        "last": expected_in_gap(counts.flip(0)) if high >= drawn.max() + 0.5 else 0.0,
    }
    end = max(expected, key=expected.get)
    value = expected[end]
    if value > CERTAIN:
        meaning = f"training never sees the {end} t, at which the sampler asks the network"
        return Check(name, "wrong", meaning, value, CERTAIN, {"unseen-end": 1.0})
    if asked is not None or min(counts[0], counts[-1]) > 0:
        return Check(name, "ok", "training sees the first and the last t", value, CERTAIN)
    meaning = f"the first t came {counts[0]:.0f} times, the last {counts[-1]:.0f} times"
    return Check(name, "undecided", meaning, value, CERTAIN)


def expected_in_gap(counts: Tensor) -> float:
    """Draws to expect in the empty bins at the start, from as many behind them, 10 or more.

    0 where those behind them rise by more than a third, or are too few to say.
    """
    gap = int((counts > 0).nonzero()[0])
    width = max(5, gap)
    near = counts[gap : gap + width]
    far = counts[gap + width : gap + 2 * width]
    is_even = len(far) == width and near.sum() > 0.75 * far.sum() and near.sum() >= CERTAIN
    return gap * near.mean().item() if is_even else 0.0


def check_noise(recording: Recording) -> Check:
    """Whether the noise is normal, by its kurtosis: 3, or 1.8 for uniform noise, as of rand.

    The tolerance is six standard errors of the mean kurtosis over all images, sqrt(24 / pixels),
    and at least 0.02. Noise that is neither normal nor uniform is undecided.
    """
    name = "training: distribution of the noise"
    n = recording.pixels
    has_noise = recording.variance > 1e-6
    if n < 64 or not has_noise.any():
        return Check(name, "not checked", "needs: images of 64 pixels or more, with noise")
    kurtosis = recording.kurtosis[has_noise]
    normal = 3 * (n - 2) / n  # the expectation, with two means taken from the same pixels
    tolerance = max(0.02, STANDARD_ERRORS * math.sqrt(24 / (n * len(kurtosis))))
    value = kurtosis.mean().item()
    if abs(value - normal) <= tolerance:
        return Check(name, "ok", "the noise is normal", value - normal, tolerance)
    if abs(value - UNIFORM_KURTOSIS) > 0.1 + tolerance:
        meaning = "the noise is not normal, and not uniform: a mixture?"
        return Check(name, "undecided", meaning, value - normal, tolerance)
    meaning = "the noise is uniform (rand), not normal (randn)"
    return Check(name, "wrong", meaning, value - normal, tolerance, {"uniform-noise": 1.0})


def check_shared_noise(recording: Recording) -> Check:
    """Whether each image has its own noise: the value is the correlation of two images' noise.

    Independent noise correlates by 0; noise that all images share, by 1.
    """
    name = "training: noise of a batch"
    value = recording.correlation
    if recording.pixels < 64 or recording.batch_size < 2:
        return Check(name, "not checked", "needs: batches of images of 64 pixels or more")
    if value > SHARED:
        meaning = "all images of a batch have the same noise"
        return Check(name, "wrong", meaning, value, SHARED, {"shared-noise": 1.0})
    return Check(name, "ok", "each image has its own noise", value, SHARED)


class Halves:
    """Signal and noise of the images whose level is known and neither is too small."""

    def __init__(self, recording: Recording, entries: Entries, schedule: Schedule):
        t = entries(recording.times).round().long().clamp(0, schedule.T)
        a_t, b_t = schedule.at(t)
        signal = (recording.upper - recording.lower).abs() / 2
        is_uniform = recording.kurtosis.mean() < 2.2
        noise = recording.variance.sqrt() * (math.sqrt(12) if is_uniform else 1)
        ratio = b_t / a_t.clamp(min=1e-9)
        use = (ratio > 0.1) & (ratio < 3) & (noise > 1e-4) & (signal > 1e-4)
        # where the error of the signal's mean is below a tenth of it
        size = (signal / noise * ratio)[use].median() if use.any() else torch.ones(())
        use &= ratio < 0.1 * size * math.sqrt(recording.pixels)
        self.t = t[use]
        self.ratio = ratio[use]
        self.signal = signal[use]
        self.noise = noise[use]
        self.middle = ((recording.upper + recording.lower) / 2)[use]

    def range(self) -> tuple[float, float]:
        """What the network sees as the least and the greatest value of the known images.

        The middle of both halves, over the signal, is a line in b_t / a_t whose slope is the mean
        of the noise. What multiplies all of x_t, as EDM's c_in, cancels.
        """
        size = (self.signal / self.noise * self.ratio).median()
        line = torch.stack([torch.ones_like(self.ratio), self.ratio], dim=1) / self.ratio[:, None]
        value = self.middle / self.signal * size / self.ratio
        middle = torch.linalg.lstsq(line, value[:, None]).solution[0]
        return (middle - size).item(), (middle + size).item()

    def mismatch(self, a: Tensor, b: Tensor) -> tuple[float, float]:
        """How far noise over signal is from a factor of b / a (T+1,), and the error of that.

        It is the largest difference between medians of the log ratio in six ranges of t.
        """
        expected = (b / a.clamp(min=1e-12))[self.t].clamp(min=1e-12)
        difference = (self.noise / self.signal / expected).log()
        parts = difference[self.ratio.argsort()].chunk(6)
        medians = [part.median().item() for part in parts]
        errors = [1.25 * part.std().item() / math.sqrt(len(part)) for part in parts]
        return max(medians) - min(medians), math.sqrt(2) * max(errors)


def check_noising(halves: Halves, schedule: Schedule) -> Check:
    """Whether x_t in training has the schedule's ratio of noise to signal at each t.

    The value is the largest difference of the log ratio between six ranges of t, so that a factor
    of the data or of x_t does not matter. The tolerance is 0.05 and six standard errors.
    """
    name = "training: noise levels"
    if len(halves.t) < 300:
        return Check(name, "undecided", "too few images with both signal and noise")
    a = schedule.a
    b = schedule.b
    alpha = torch.cat([a[:1], a[1:] / a[:-1]])
    rivals = {
        "missing-sqrt": [(a**2, b**2), (a**2, b), (a, b**2)],
        "alpha-for-alpha-bar": [(alpha, (1 - alpha**2).clamp(min=0).sqrt())],
    }
    value, error = halves.mismatch(a, b)
    tolerance = LEVEL_TOLERANCE + STANDARD_ERRORS * error
    if value <= tolerance:
        return Check(name, "ok", "x_t has the schedule's noise", value, tolerance)
    evidence = {
        bug: 1.0
        for bug, levels in rivals.items()
        if min(halves.mismatch(*each)[0] for each in levels) <= tolerance
    }
    meaning = "x_t in training does not have the schedule's noise"
    return Check(name, "wrong", meaning, value, tolerance, evidence)


def check_data_range(low: float, high: float) -> Check:
    """Whether the network is trained on [-1, 1], to which samplers clip. The value is the least.

    low, high: as the network sees the least and the greatest value of the data.
    """
    name = "training: range of the data"
    meaning = f"the network is trained on values from {low:.2f} to {high:.2f}"
    is_right = max(abs(low + 1), abs(high - 1)) <= RANGE_TOLERANCE
    is_half = max(abs(low), abs(high - 1)) <= RANGE_TOLERANCE
    if is_right or not (is_half or high - low > 20):
        verdict = "ok" if is_right else "undecided"
        return Check(name, verdict, meaning, low, RANGE_TOLERANCE)
    meaning += ": it should be -1 to 1"
    return Check(name, "wrong", meaning, low, RANGE_TOLERANCE, {"data-range": 1.0})


def check_target(x: Tensor, gradient: Tensor) -> Check:
    """Whether what a loss wants of the network is in x_t, by its gradient for an output of zeros.

    x, gradient: (N, C, H, W), of known images. The value is the share of the gradient's squares
    that neither the halves of the image nor the noise of x_t, or its sign, explain. It is 0 for a
    mean square of noise, image, velocity or mean, 0.1 for Huber's loss, and 1 where the target is
    other noise. Between 0.2 and 0.7 it is undecided.
    """
    name = "training: target of the loss"
    around = around_means(gradient)
    noise = around_means(x)
    total = gradient.double().square().sum().item()
    if not total > 0 or not math.isfinite(total):
        return Check(name, "undecided", "the loss has no gradient for an output of zeros")
    unexplained = min(left_over(around, noise), left_over(around, noise.sign())) / total
    if unexplained <= EXPLAINED:
        meaning = "the loss wants what is in x_t"
        return Check(name, "ok", meaning, unexplained, EXPLAINED)
    if unexplained < 0.7:
        meaning = "the loss wants more than what is in x_t: an additional term, or another target"
        return Check(name, "undecided", meaning, unexplained, EXPLAINED)
    meaning = "the loss wants something that is not in x_t, such as other noise"
    return Check(name, "wrong", meaning, unexplained, EXPLAINED, {"other-target": 1.0})


def left_over(values: Tensor, explanation: Tensor) -> float:
    """The squares of values (N, D) that multiples of an explanation, one an image, leave."""
    product = (values * explanation).sum(dim=1)
    explained = product.square() / explanation.square().sum(dim=1).clamp(min=1e-30)
    return (values.square().sum(dim=1) - explained).clamp(min=0).sum().item()


def check_likelihood_times(calls: list[Tensor]) -> Check:
    """Whether a bound takes its sum over t: the times (N,) of the calls of a network, in order.

    The value is the number of different times. A bound that calls the network four times or more,
    always with the same times, takes the sum over one term.
    """
    name = "likelihood: times"
    if not calls:
        return Check(name, "not checked", "the likelihood never called the network")
    times = torch.cat(calls).unique()
    first = calls[0]
    same = all(call.shape == first.shape and torch.equal(call, first) for call in calls)
    if len(calls) < 4:
        return Check(name, "undecided", "the network is called too seldom", len(times))
    if not same:
        return Check(name, "ok", "t changes from call to call", len(times), 1)
    meaning = f"the network is called {len(calls)} times with the same t: the sum has one term"
    return Check(name, "wrong", meaning, len(times), 1, {"frozen-likelihood": 1.0})
