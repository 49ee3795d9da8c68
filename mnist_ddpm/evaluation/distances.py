"""Distances between sets of features, each as an estimate with its 95 % interval.

An interval is about other images of the same model; the real ones are taken as given. Beside the
distances stands what real images score.
"""

import math
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from mnist_ddpm.ddpm import check

KNOWN = 20_000  # real features that the kernel distance compares with, at most
RESAMPLES = 50  # bootstrap samples behind the Fréchet distance's interval
NEIGHBOURS = 3  # k of precision and recall


class Estimate(NamedTuple):
    """A figure and the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, standard_error: float) -> "Estimate":
        """The estimate with a normal interval."""
        return cls(value, value - 1.96 * standard_error, value + 1.96 * standard_error)

    @property
    def half(self) -> float:
        """Half the interval."""
        return (self.high - self.low) / 2

    def __str__(self) -> str:
        known = 0 < self.half < math.inf
        digits = max(0, 1 - math.floor(math.log10(self.half))) if known else 4  # two of half's
        return f"{self.value:.{digits}f} ± {self.half:.{digits}f}"


def limits(measured: float, bias: float, linear: float, quadratic: float) -> tuple[float, float]:
    """95 % limits of what a squared distance is on average, less its bias, where one is measured.

    linear, quadratic: the variances of its first- and second-order terms in the sample, the first
    as it seems at the measured distance. Near 0 the second is all there is, and the first seems to
    be as large again as twice that. So each distance d has a separate variance, quadratic +
    linear d / measured, and a gamma distribution of mean bias + d, whose cube root is about normal
    (Wilson and Hilferty). The limits are those d that leave 2.5 % on either side.
    """
    if not (bias > 0 and quadratic > 0):  # all that was drawn is alike
        half = 1.96 * math.sqrt(linear)
        return measured - bias - half, measured - bias + half

    def deviation(d: float) -> float:
        """How many standard deviations the measured distance is above its expectation."""
        mean = bias + d
        v = (quadratic + linear * d / measured) / (3 * mean) ** 2
        return ((measured / mean) ** (1 / 3) - 1 + v) / math.sqrt(v)

    def limit(z: float) -> float:
        v = quadratic / (3 * bias) ** 2
        below = measured - bias * max(1 - v + z * math.sqrt(v), 0) ** 3
        if below <= 0:  # as if all were shifted, since no distance is less than 0
            return below
        low = 0.0
        high = measured
        while deviation(high) > z:
            low = high
            high = 2 * high
        for _ in range(60):
            middle = (low + high) / 2
            if deviation(middle) > z:
                low = middle
            else:
                high = middle
        return high

    return limit(1.96), limit(-1.96)


def shuffled(rows: Tensor, seed: int, n: int | None = None) -> Tensor:
    """The same rows (N, …), or n of them, in an order that the seed decides."""
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:n]]


def sorted_rows(features: Tensor) -> Tensor:
    """The same features (N, D), sorted by their sums: their first order has no effect then."""
    return features[features.sum(dim=1).argsort()]


def covariance_of(features: Tensor) -> Tensor:
    """The covariance (D, D) of features (N, D)."""
    return torch.atleast_2d(features.T.cov())


def frechet_distances(real: Tensor, sets: Iterable[Tensor]) -> Iterator[float]:
    """frechet_distance to each of several sets; what depends on the real features is done once."""
    real = real.double()
    mean = real.mean(dim=0)
    covariance = covariance_of(real)
    root = symmetric_root(covariance)
    for generated in sets:
        check(min(len(real), len(generated)) > 1, "a covariance needs at least 2 images")
        generated = generated.double()
        other = covariance_of(generated)
        shift = (generated.mean(dim=0) - mean).square().sum()
        overlap = roots(root @ other @ root)[0].sum()
        yield (shift + covariance.trace() + other.trace() - 2 * overlap).item()


def frechet_distance(real: Tensor, generated: Tensor) -> float:
    """Between Gaussians with the means m and covariances C of features (N, D) and (M, D).

    |m - m_r|² + tr C + tr C_r - 2 tr (A C A)^½ with A² = C_r (arXiv 1706.08500).
    Raises ValueError for fewer than 2 of either.
    """
    return next(frechet_distances(real, [generated]))


def roots(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Roots (D,) of the eigenvalues of a covariance, and its axes (D, D), in columns."""
    values, axes = torch.linalg.eigh(matrix)
    return values.clamp(min=0).sqrt(), axes


def symmetric_root(matrix: Tensor) -> Tensor:
    """The symmetric matrix (D, D) whose square is this covariance."""
    scales, axes = roots(matrix)
    return axes * scales @ axes.T


def frechet_slopes(real: Tensor, generated: Tensor) -> tuple[Tensor, Tensor]:
    """How the Fréchet distance changes with the weight of each generated feature: (N,) both.

    First its slope, 0 on average: the gradient is 2 (m - m_r) in the mean and 1 - T in the
    covariance C, where T = A S^-½ A with A² = C_r and S = A C A is the optimal transport. Then the
    slope's own change, by the second derivative, up to a constant.
    """
    real = real.double()
    generated = generated.double()
    mean = generated.mean(dim=0)
    A = symmetric_root(covariance_of(real))
    scales, axes = roots(A @ covariance_of(generated) @ A)
    inverse = torch.where(scales > 1e-6 * scales.max(), 1 / scales, 0)
    centred = generated - mean
    squares = (centred @ A @ axes).square()
    transported = squares @ inverse
    curvature = inverse * inverse[:, None] / (scales + scales[:, None])
    bends = transported + ((squares @ curvature.nan_to_num()) * squares).sum(dim=1)
    slopes = 2 * centred @ (mean - real.mean(dim=0)) + centred.square().sum(dim=1) - transported
    return slopes - slopes.mean(), bends


def frechet_estimate(real: Tensor, generated: Tensor, seed: int = 0) -> Estimate:
    """The Fréchet distance, and the limits of what sets of n images get on average.

    Their bias is included (frechet_bias). Resampling the generated features gives that bias, and
    the spread of all that is not linear in them.
    """
    generator = torch.Generator().manual_seed(seed)
    n = len(generated)
    draws = [torch.randint(n, (n,), generator=generator) for _ in range(RESAMPLES)]
    value, *others = frechet_distances(real, chain([generated], (generated[d] for d in draws)))
    slopes, bends = frechet_slopes(real, generated)
    linear = torch.stack([slopes[d].mean() for d in draws])
    nonlinear = torch.tensor(others, dtype=torch.float64) - value - linear
    bias = nonlinear.mean().item()
    slopes_without = slopes - bends / n  # each feature's slope where it is not among them
    low, high = limits(value, bias, (slopes_without.var() / n).item(), nonlinear.var().item())
    return Estimate(value, bias + low, bias + high)


def frechet_bias(real: Tensor, generated: Tensor, seed: int = 0) -> float:
    """How much too large the Fréchet distance of n generated features is: c/n (arXiv 1911.07023).

    With n/2 it is too large by as much again: here, the mean over ten halvings. What the number
    of real features adds is not included. Raises ValueError for fewer than 4.
    """
    size = len(generated) // 2
    ordered = sorted_rows(generated)
    halves = (half for k in range(10) for half in shuffled(ordered, 10 * seed + k).split(size)[:2])
    value, *others = frechet_distances(real, chain([generated], halves))
    return sum(others) / len(others) - value


def kernel_means(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over y (M, D) of k = (x·y / D + 1)³, and of k², for each x (N, D): (N,) both."""
    means = []
    squares = []
    for part in x.split(250):  # so few that they stay in the processor's cache
        k = torch.addmm(x.new_ones(1), part, y.T, alpha=1 / y.shape[1]).pow_(3)
        means.append(k.mean(dim=1))
        squares.append(torch.linalg.vecdot(k, k) / len(y))
    return torch.cat(means), torch.cat(squares)


def kernel_mean(x: Tensor) -> Tensor:
    """Mean of k = (x·y / D + 1)³ over all pairs of x (N, D).

    The mean of (x·y)^p is the squared norm of the mean p-th tensor power of x. Of many points with
    few features that takes less work than their pairs.
    """
    n, D = x.shape
    if D**2 > n:
        return kernel_means(x, x)[0].mean()
    second = x.T @ x / n
    third = (((x * column[:, None]).T @ x / n).square().sum() for column in x.T)
    mean = x.mean(dim=0).square().sum() / D
    return 1 + 3 * mean + 3 * second.square().sum() / D**2 + sum(third) / D**3


def kernel_distances(real: Tensor, sets: Iterable[Tensor]) -> Iterator[Estimate]:
    """kernel_distance to each of several sets; real features are compared with each other once."""

    def bias_of(x: Tensor, mean: Tensor) -> Tensor:
        """How much the pairs of each with itself add to the mean over all."""
        return ((x.square().mean(dim=1) + 1) ** 3 - mean).mean() / (len(x) - 1)

    check(len(real) >= 4, "a kernel distance needs at least 4 images")
    real = shuffled(real, 0, KNOWN).double()  # the same ones, whatever is compared
    among_real = kernel_mean(real)
    real_bias = bias_of(real, among_real).item()
    for generated in sets:
        n = len(generated)
        generated = generated.double()
        check(n >= 4, "a kernel distance needs at least 4 images")
        rows, squares = kernel_means(generated, generated)
        to_real, _ = kernel_means(generated, real)
        mean = rows.mean()
        bias = bias_of(generated, mean)
        distance = mean - 2 * to_real.mean() + among_real
        # k less what either of a pair adds to it, squared, and without the pairs of the same
        itself = (generated.square().mean(dim=1) + 1) ** 3
        centred = n * (squares.sum() - 2 * rows.square().sum() + n * mean**2)
        centred -= (itself - 2 * rows + mean).square().sum()
        quadratic = 2 * centred / (n * (n - 1)) / n**2
        to_others = (n * rows - itself) / (n - 1)
        linear = 4 * (to_others - to_real).var() / n
        low, high = limits(distance.item(), bias.item(), linear.item(), quadratic.item())
        value = (distance - bias).item()
        yield Estimate(value - real_bias, low - real_bias, high - real_bias)


def kernel_distance(real: Tensor, generated: Tensor) -> Estimate:
    """The squared maximum mean discrepancy with a cubic kernel (arXiv 1801.01401), unbiased.

    It may be below 0. The limits are those of its mean over sets of n images. Of more than KNOWN
    real features it takes some, always the same. Raises ValueError for fewer than 4 of either.
    """
    return next(kernel_distances(real, [generated]))


def share(hits: Tensor) -> Estimate:
    """Share of True in bool (N,), with Wilson's binomial interval."""
    p = hits.double().mean().item()
    r = 1.96**2 / len(hits)
    centre = (p + r / 2) / (1 + r)
    half = math.sqrt(p * (1 - p) * r + r**2 / 4) / (1 + r)
    return Estimate(p, centre - half, centre + half)


def within(queries: Tensor, centres: Tensor, radii: Tensor) -> Tensor:
    """Which queries (N, D) lie within the radius (M,) of any centre (M, D): bool (N,)."""
    near = [(torch.cdist(part, centres) <= radii).any(dim=1) for part in queries.split(1000)]
    return torch.cat(near)


def neighbour_radii(points: Tensor, k: int = NEIGHBOURS) -> Tensor:
    """Distance of each point (N, D) to the k-th nearest of the others: (N,)."""
    distances = (torch.cdist(part, points) for part in points.split(1000))
    return torch.cat([part.kthvalue(k + 1, dim=1).values for part in distances])


def precision_recall(real: Tensor, generated: Tensor) -> tuple[Estimate, Estimate]:
    """Share of generated features on the real ones' manifold, and the reverse (arXiv 1904.06991).

    Both sets are cut to the size of the smaller one. Each interval takes the other set as given,
    and so is up to a third too narrow. Raises ValueError for NEIGHBOURS features or fewer.
    """
    n = min(len(real), len(generated))
    check(n > NEIGHBOURS, f"precision and recall need more than {NEIGHBOURS} images, not {n}")
    real = real[:n].double()
    generated = generated[:n].double()
    precision = within(generated, real, neighbour_radii(real))
    return share(precision), share(within(real, generated, neighbour_radii(generated)))


def distances(real: Tensor, generated: Tensor, seed: int = 0) -> dict[str, Estimate]:
    """All of the above; the order of generated features (N, D) is irrelevant.

    Both sets are shuffled, since precision and recall use a part of the larger one.
    """
    generated = shuffled(sorted_rows(generated), seed)
    precision, recall = precision_recall(shuffled(real, seed), generated)
    return {
        "frechet_distance": frechet_estimate(real, generated, seed),
        "kernel_distance": kernel_distance(real, generated),
        "precision": precision,
        "recall": recall,
    }


def floors(training: Tensor, held_out: Tensor | None, n: int, seed: int = 0) -> dict[str, dict]:
    """What real images score in the place of n generated ones: about the best there is to hope for.

    A half is compared with the other half only. So the bias that the number of reference images
    brings is twice as large.
    """

    def row(known: Tensor, others: Tensor) -> dict:
        some = others[:n]
        return {"n": len(some), **distances(known, some, seed)}

    first, second = shuffled(training, seed).chunk(2)
    rows = {"training half against half": row(second, first)}
    if held_out is not None:
        rows["held out against training"] = row(training, held_out)
    return rows


def class_balance(logits: Tensor) -> dict:
    """What a classifier makes of images, from its logits (N, K): shares, and how sure it is."""
    probabilities = torch.softmax(logits.double(), dim=1)
    confidence, label = probabilities.max(dim=1)
    error = confidence.std().item() / math.sqrt(len(label))
    return {
        "shares": [share(label == kind) for kind in range(logits.shape[1])],
        "mean_confidence": Estimate.of(confidence.mean().item(), error),
        "share_above_0.9": share(confidence > 0.9),
    }
