"""Checks of a training loss, by what it shows to its network: times, noise, range, labels."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mnist_ddpm.ddpm import Schedule
from mnist_ddpm.doctor.report import Check
from mnist_ddpm.doctor.training_record import Recording, around_means

Entries = Callable[[Tensor], Tensor]  # the code's times (N,) as entries of the schedule, float64
CERTAIN = 16  # draws that are expected where none came: exp(-16) is 1e-7
PARTS = 50  # of the range of a continuous t
UNIFORM_KURTOSIS = 1.8
LEVEL_TOLERANCE = 0.05  # of the log of noise over signal
RANGE_TOLERANCE = 0.1
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
    return Check(name, "wrong", meaning, different, 1, evidence={"one-time": 1.0})


def check_ends(recording: Recording, entries: Entries, T: int) -> Check:
    """Whether training sees the first and the last t.

    The value is the number of draws that were expected where none came, up to the end; tolerance:
    16, which happens to correct code once in 10 million. It follows from how often the times next
    to them were drawn (for a continuous t: of 50 parts of its range), if that is an even share. So
    t that are drawn seldom near an end stay undecided.
    """
    name = "training: first and last t"
    step = recording.batch_size if recording.has_one_time else 1
    drawn = entries(recording.times[::step])
    bins = T if bool((drawn == drawn.round()).all()) else PARTS
    place = (drawn * bins / T).ceil().long().clamp(0, bins + 1)
    counts = torch.bincount(place, minlength=bins + 2)[1 : bins + 1].double()
    if T < 12 or len(drawn) < 2 * CERTAIN or len(drawn.unique()) == 1:
        return Check(name, "undecided", f"too few t were drawn: {len(drawn)}")
    expected = {"first": expected_in_gap(counts), "last": expected_in_gap(counts.flip(0))}
    end = max(expected, key=expected.get)
    value = expected[end]
    if value > CERTAIN:
        meaning = f"training never sees the {end} t, at which the sampler asks the network"
        evidence = {"unseen-end": 1.0}
        return Check(name, "wrong", meaning, value, CERTAIN, evidence=evidence)
    if min(counts[0], counts[-1]) > 0:
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
    evidence = {"uniform-noise": 1.0}
    return Check(name, "wrong", meaning, value - normal, tolerance, evidence=evidence)


def check_shared_noise(recording: Recording) -> Check:
    """Whether each image has its own noise.

    The value is the mean correlation of the noise of two images in a batch. Independent noise
    correlates by 0 ± 6 / sqrt(pixels · pairs); noise that all images share, by 1.
    """
    name = "training: noise of a batch"
    n = recording.batch_size
    noise = recording.noise
    if noise.shape[1] < 32 or n < 2 or len(noise) < 2 * n:
        return Check(name, "not checked", "needs: images of 64 pixels or more")
    pairs = (noise[: n - 1] * noise[1:n]).sum(dim=1)
    steps = (noise[:n] * noise[n:]).sum(dim=1).mean().item()
    value = pairs.mean().item()
    tolerance = STANDARD_ERRORS / math.sqrt(noise.shape[1] * len(pairs))
    if value > 0.9:
        meaning = "all images of a batch have the same noise"
        evidence = {"shared-noise": 1.0}
        return Check(name, "wrong", meaning, value, tolerance, evidence=evidence)
    if steps > 0.9:
        return Check(name, "undecided", "every call has the same noise: it was fixed", value)
    if abs(value) > tolerance + 0.1:
        return Check(name, "undecided", "the images' noise is correlated", value, tolerance)
    return Check(name, "ok", "each image has its own noise", value, tolerance)


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
    return Check(name, "wrong", meaning, value, tolerance, evidence=evidence)


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
    evidence = {"data-range": 1.0}
    return Check(name, "wrong", meaning, low, RANGE_TOLERANCE, evidence=evidence)


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
    evidence = {"other-target": 1.0}
    return Check(name, "wrong", meaning, unexplained, EXPLAINED, evidence=evidence)


def left_over(values: Tensor, explanation: Tensor) -> float:
    """The squares of values (N, D) that multiples of an explanation, one an image, leave."""
    product = (values * explanation).sum(dim=1)
    explained = product.square() / explanation.square().sum(dim=1).clamp(min=1e-30)
    return (values.square().sum(dim=1) - explained).clamp(min=0).sum().item()


def check_label_dropout(recording: Recording, classes: int) -> Check:
    """Whether training hides some labels, without which guidance has nothing to start from.

    classes: how many there are; the label `classes` stands for "unknown". The value is the share
    of it. Of 2000 labels, at least one would be hidden even at a share of 1 % (1 - 2e-9).
    """
    name = "training: hidden labels"
    labels = all_labels(recording)
    if len(labels) < 2000:
        return Check(name, "not checked", "needs: 2000 labels in training")
    share = (labels >= classes).double().mean().item()
    if share > 0:
        return Check(name, "ok", f"{share:.0%} of the labels are hidden", share, 0)
    meaning = "no label is ever hidden in training: guidance has no network without labels"
    return Check(name, "wrong", meaning, 0, 0, evidence={"no-null-label": 1.0})


def all_labels(recording: Recording) -> Tensor:
    """All whole numbers that the network was given beside x_t and t."""
    labels = [each.flatten() for each in recording.labels if not each.is_floating_point()]
    return torch.cat(labels) if labels else torch.zeros(0, dtype=torch.long)


def classes_of(network: nn.Module | None, recording: Recording) -> int | None:
    """The number of classes of a network with a row for "unknown", as far as it shows. Or None.

    It is the network's `classes`; or one less than the rows of an embedding, if all labels that
    training showed are rows, and at most the last is not among them.
    """
    labels = all_labels(recording)
    if network is None or not len(labels):
        return None
    if getattr(network, "classes", None):
        return network.classes
    embeddings = [layer for layer in network.modules() if isinstance(layer, nn.Embedding)]
    rows = {layer.num_embeddings for layer in embeddings}
    largest = int(labels.max())
    return next((count - 1 for count in rows if count - 2 <= largest < count), None)


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
    return Check(name, "wrong", meaning, len(times), 1, evidence={"frozen-likelihood": 1.0})
