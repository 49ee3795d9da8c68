"""Distances between sets of features, each as an estimate with its 95 % interval.

Beside them stands what real images score. Fréchet and kernel distance are torchmetrics'.
"""

import math
import warnings
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mnist_ddpm.ddpm import check

SUBSET = 1000  # features in each of the subsets that the kernel distance is averaged over
SUBSETS = 100
RESAMPLES = 50  # bootstrap samples behind an interval
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


def shuffled(rows: Tensor, seed: int, n: int | None = None) -> Tensor:
    """The same rows (N, …), or n of them, in an order that the seed decides."""
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:n]]


def in_order(features: Tensor) -> Tensor:
    """The same features (N, D), in an order that depends on nothing else."""
    return features[features.sum(dim=1).argsort()]


def as_metric(metric: type, width: int, **options) -> nn.Module:
    """A torchmetrics metric that takes features in place of images, of this process alone."""
    identity = nn.Identity()
    identity.num_features = width
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save")
        return metric(feature=identity, sync_on_compute=False, **options)


def frechet_distances(real: Tensor, sets: Iterable[Tensor]) -> Iterator[float]:
    """frechet_distance to each of several sets; the real features are summed up once."""
    from torchmetrics.image.fid import FrechetInceptionDistance  # here, since it takes long

    metric = as_metric(FrechetInceptionDistance, real.shape[1], reset_real_features=False)
    metric.update(real.double(), real=True)
    for generated in sets:
        check(min(len(real), len(generated)) > 1, "a covariance needs at least 2 images")
        metric.reset()
        metric.update(generated.double(), real=False)
        yield metric.compute().item()


def frechet_distance(real: Tensor, generated: Tensor) -> float:
    """Between Gaussians with the means and covariances of features (N, D) and (M, D).

    Raises ValueError for fewer than 2 of either.
    """
    return next(frechet_distances(real, [generated]))


def frechet_estimate(real: Tensor, generated: Tensor, seed: int = 0) -> Estimate:
    """The Fréchet distance, with the spread that resampling the generated features gives.

    That is the spread of what n images get, bias included (frechet_bias). Near 0 it is up to
    1.7 times too wide.
    """
    generator, n = torch.Generator().manual_seed(seed), len(generated)
    draws = (torch.randint(n, (n,), generator=generator) for _ in range(RESAMPLES))
    value, *others = frechet_distances(real, chain([generated], (generated[d] for d in draws)))
    return Estimate.of(value, torch.tensor(others, dtype=torch.float64).std().item())


def frechet_bias(real: Tensor, generated: Tensor, seed: int = 0) -> float:
    """How much too large the Fréchet distance of n generated features is: c/n (arXiv 1911.07023).

    With n/2 it is too large by as much again: here, the mean over ten halvings. What the number
    of real features adds is not included. Raises ValueError for fewer than 4.
    """
    size, ordered = len(generated) // 2, in_order(generated)
    halves = (half for k in range(10) for half in shuffled(ordered, 10 * seed + k).split(size)[:2])
    value, *others = frechet_distances(real, chain([generated], halves))
    return sum(others) / len(others) - value


def kernel_distance(real: Tensor, generated: Tensor, seed: int = 0) -> Estimate:
    """The squared maximum mean discrepancy with a cubic kernel (arXiv 1801.01401), unbiased.

    It may be below 0. The interval comes from subsets of at most half of either set, since
    larger ones would all be alike. It is wide, because real images vary in it too.
    Raises ValueError for fewer than 4 of either.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    def over_subsets(size: int) -> tuple[float, float]:
        options = {"subsets": SUBSETS, "subset_size": size}
        metric = as_metric(KernelInceptionDistance, real.shape[1], **options)
        metric.update(real.double(), real=True)
        metric.update(generated.double(), real=False)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # the processor's alone
            mean, deviation = metric.compute()
        return mean.item(), deviation.item()

    n = min(len(real), len(generated))
    check(n >= 4, "a kernel distance needs at least 4 images")
    whole, size = min(SUBSET, n), min(SUBSET, n // 2)
    mean, deviation = over_subsets(whole)
    if size < whole:
        _, deviation = over_subsets(size)
    jackknife = math.sqrt(size / (len(generated) - size))  # the delete-d jackknife's factor
    return Estimate.of(mean, deviation * jackknife)


def share(hits: Tensor) -> Estimate:
    """Share of True in bool (N,), with Wilson's binomial interval."""
    p, spare = hits.double().mean().item(), 1.96**2 / len(hits)
    centre = (p + spare / 2) / (1 + spare)
    half = math.sqrt(p * (1 - p) * spare + spare**2 / 4) / (1 + spare)
    return Estimate(p, centre - half, centre + half)


def within(queries: Tensor, centres: Tensor, radii: Tensor) -> Tensor:
    """Which queries (N, D) lie within the radius (M,) of any centre (M, D): bool (N,)."""
    near = [(torch.cdist(part, centres) <= radii).any(dim=1) for part in queries.split(1000)]
    return torch.cat(near)


def neighbour_radii(points: Tensor, k: int = NEIGHBOURS) -> Tensor:
    """Distance of each point (N, D) to the k-th nearest of the others: (N,)."""
    apart = (torch.cdist(part, points) for part in points.split(1000))
    return torch.cat([part.kthvalue(k + 1, dim=1).values for part in apart])


def precision_recall(real: Tensor, generated: Tensor) -> tuple[Estimate, Estimate]:
    """Share of generated features on the real ones' manifold, and the reverse (arXiv 1904.06991).

    Both sets are cut to the size of the smaller one. Each interval takes the other set as given,
    and so is up to a third too narrow. Raises ValueError for NEIGHBOURS features or fewer.
    """
    n = min(len(real), len(generated))
    check(n > NEIGHBOURS, f"precision and recall need more than {NEIGHBOURS} images, not {n}")
    real, generated = real[:n].double(), generated[:n].double()
    precision = within(generated, real, neighbour_radii(real))
    return share(precision), share(within(real, generated, neighbour_radii(generated)))


def distances(real: Tensor, generated: Tensor, seed: int = 0) -> dict[str, Estimate]:
    """All of the above, whatever the order of generated features (N, D).

    Both sets are shuffled, since precision and recall use a part of the larger one.
    """
    generated = shuffled(in_order(generated), seed)
    precision, recall = precision_recall(shuffled(real, seed), generated)
    return {
        "frechet_distance": frechet_estimate(real, generated, seed),
        "kernel_distance": kernel_distance(real, generated, seed),
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
    found = {"training half against half": row(second, first)}
    if held_out is not None:
        found["held out against training"] = row(training, held_out)
    return found


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
