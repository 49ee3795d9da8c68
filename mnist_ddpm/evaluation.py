"""How good generated images are, beside how good real ones would be; and whether they are copies.

Every image is judged by features of an extractor, after quantisation to uint8. Distances are torchmetrics'.
"""

import json
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mnist_ddpm.ddpm import Device, Model, PathLike, Schedule, loss_by_t, progress_bar
from mnist_ddpm.extractors import Judge
from mnist_ddpm.resumable import replacing

SUBSET = 1000  # features in each of the subsets that the kernel distance is averaged over
SUBSETS = 100
RESAMPLES = 50  # bootstrap samples behind an interval
NEIGHBOURS = 3  # k of precision and recall
AUDITED = 1000  # real images, at most, whose nearest training image is looked for too
EXACT = 0.01  # of the usual distance to the nearest image: what is nearer is the same image
CLOSEST = 8  # pairs of a generated and a training image that a card names, the nearest first
ABOUT = "checkpoint", "checkpoint_sha256", "images", "sampler", "seed"  # in which two cards that compare may differ
SMALL = 5000  # with fewer images, a good model's distance is mostly bias


class Estimate(NamedTuple):
    value: float
    low: float  # 95 % interval
    high: float

    @classmethod
    def of(cls, value: float, standard_error: float) -> "Estimate":
        return cls(value, value - 1.96 * standard_error, value + 1.96 * standard_error)

    @property
    def half(self) -> float:
        """Half the interval."""
        return (self.high - self.low) / 2

    def __str__(self) -> str:
        digits = max(0, 1 - math.floor(math.log10(self.half))) if 0 < self.half < math.inf else 4  # two of half's
        return f"{self.value:.{digits}f} ± {self.half:.{digits}f}"


def as_metric(metric: type, width: int, **options) -> nn.Module:
    """A torchmetrics metric that takes features where it would take images, and asks no other process for more."""
    identity = nn.Identity()
    identity.num_features = width
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save", UserWarning)
        return metric(feature=identity, sync_on_compute=False, **options)


def shuffled(rows: Tensor, seed: int, n: int | None = None) -> Tensor:
    """The same rows (N, …), or n of them, in an order of their own."""
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:n]]


def in_order(features: Tensor) -> Tensor:
    """The same features (N, D), in an order that depends on nothing but them."""
    return features[features.sum(dim=1).argsort()]


def frechet_distances(real: Tensor, sets: Iterable[Tensor]) -> Iterator[float]:
    """frechet_distance to each of several sets of features; those of real images are summed up once."""
    from torchmetrics.image.fid import FrechetInceptionDistance  # here, since it takes long

    metric = as_metric(FrechetInceptionDistance, real.shape[1], reset_real_features=False)
    metric.update(real.double(), real=True)
    for generated in sets:
        if min(len(real), len(generated)) < 2:
            raise ValueError("a covariance needs at least 2 images")
        metric.reset()
        metric.update(generated.double(), real=False)
        yield metric.compute().item()


def frechet_distance(real: Tensor, generated: Tensor) -> float:
    """Between the Gaussians with the means and covariances of two sets of features (N, D), (M, D).

    Raises ValueError for fewer than 2 of either.
    """
    return next(frechet_distances(real, [generated]))


def kernel_distance(real: Tensor, generated: Tensor, seed: int = 0) -> Estimate:
    """The squared maximum mean discrepancy with a cubic kernel (arXiv 1801.01401): unbiased, so it may be below 0.

    The interval comes from subsets, of half of either at most, lest they be all alike. It is wide, since real images
    vary in it too, and where the two hardly differ wider than need be. Raises ValueError for fewer than 4 of either.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    def over_subsets(size: int) -> tuple[float, float]:
        metric = as_metric(KernelInceptionDistance, real.shape[1], subsets=SUBSETS, subset_size=size)
        metric.update(real.double(), real=True)
        metric.update(generated.double(), real=False)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # the processor's alone
            mean, deviation = metric.compute()
        return mean.item(), deviation.item()

    if min(len(real), len(generated)) < 4:
        raise ValueError("a kernel distance needs at least 4 images")
    whole, size = (min(SUBSET, len(real) // part, len(generated) // part) for part in (1, 2))
    mean, deviation = over_subsets(whole)
    if size < whole:
        _, deviation = over_subsets(size)
    return Estimate.of(mean, deviation * math.sqrt(size / (len(generated) - size)))  # as of the delete-d jackknife


def frechet_estimate(real: Tensor, generated: Tensor, seed: int = 0) -> Estimate:
    """The Fréchet distance, with the spread that resampling the generated features gives.

    That is the spread of what n images get, bias included (frechet_bias); near 0 it is up to 1.7 times too wide.
    """
    generator, n = torch.Generator().manual_seed(seed), len(generated)
    resampled = (generated[torch.randint(n, (n,), generator=generator)] for _ in range(RESAMPLES))
    value, *others = frechet_distances(real, chain([generated], resampled))
    return Estimate.of(value, torch.tensor(others, dtype=torch.float64).std().item())


def frechet_bias(real: Tensor, generated: Tensor, seed: int = 0) -> float:
    """How much too large the Fréchet distance of n generated features is to be expected: c/n (arXiv 1911.07023).

    With n/2 it is too large by as much again: here, the mean over ten halvings. What the number of real features adds
    is not included. Raises ValueError for fewer than 4.
    """
    size, ordered = len(generated) // 2, in_order(generated)
    halves = (half for k in range(10) for half in shuffled(ordered, 10 * seed + k).split(size)[:2])
    value, *others = frechet_distances(real, chain([generated], halves))
    return sum(others) / len(others) - value


def share(hits: Tensor) -> Estimate:
    """Share of True in bool (N,), with Wilson's binomial interval."""
    p, spare = hits.double().mean().item(), 1.96**2 / len(hits)
    centre, half = (p + spare / 2) / (1 + spare), math.sqrt(p * (1 - p) * spare + spare**2 / 4) / (1 + spare)
    return Estimate(p, centre - half, centre + half)


def within(queries: Tensor, centres: Tensor, radii: Tensor) -> Tensor:
    """Which queries (N, D) lie within the radius (M,) of any centre (M, D): bool (N,)."""
    return torch.cat([(torch.cdist(part, centres) <= radii).any(dim=1) for part in queries.split(1000)])


def neighbour_radii(points: Tensor, k: int = NEIGHBOURS) -> Tensor:
    """Distance of each point (N, D) to the k-th nearest of the others, (N,)."""
    return torch.cat([torch.cdist(part, points).kthvalue(k + 1, dim=1).values for part in points.split(1000)])


def precision_recall(real: Tensor, generated: Tensor) -> tuple[Estimate, Estimate]:
    """Share of generated features on the manifold of real ones, and the reverse (arXiv 1904.06991), k = 3.

    Both sets are cut to the size of the smaller one. Each interval takes the other set as given, and so is up to a
    third too narrow. Raises ValueError for k or fewer.
    """
    n = min(len(real), len(generated))
    if n <= NEIGHBOURS:
        raise ValueError(f"precision and recall need more than {NEIGHBOURS} images of each kind, not {n}")
    real, generated = real[:n].double(), generated[:n].double()
    precision = within(generated, real, neighbour_radii(real))
    return share(precision), share(within(real, generated, neighbour_radii(generated)))


def distances(real: Tensor, generated: Tensor, seed: int = 0) -> dict[str, Estimate]:
    """All of the above, whatever the order of generated features (N, D).

    Both sets are shuffled first, since precision and recall use a part of the larger.
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
    """What real images score in the place of n generated ones: about the best that a model can hope for.

    A half is compared with the other half only: the bias that the number of reference images brings is twice as large.
    """
    first, second = shuffled(training, seed).chunk(2)
    found = {"training half against half": {"n": min(n, len(first)), **distances(second, first[:n], seed)}}
    if held_out is not None:
        found["held out against training"] = {"n": min(n, len(held_out)), **distances(training, held_out[:n], seed)}
    return found


def class_balance(logits: Tensor) -> dict:
    """What a classifier makes of digits, from its logits (N, 10): shares, and how sure it is."""
    probabilities = torch.softmax(logits.double(), dim=1)
    confidence, label = probabilities.max(dim=1)
    error = confidence.std().item() / math.sqrt(len(label))
    return {
        "shares": [share(label == kind) for kind in range(logits.shape[1])],
        "mean_confidence": Estimate.of(confidence.mean().item(), error),
        "share_above_0.9": share(confidence > 0.9),
    }


class Audit(NamedTuple):
    """Distances to the nearest training image in one space, of generated images and of real ones."""

    generated: Tensor  # (N,)
    real: Tensor  # (M,) of held-out images, or of training images to the nearest other one
    index: Tensor  # (N,) which training image is nearest to each generated one

    @property
    def twice(self) -> Tensor:
        """Which real images are there twice, in training too: bool (M,)."""
        return self.real <= EXACT * self.real.median()

    @property
    def once(self) -> Tensor:
        """The real distances of those not there twice."""
        return self.real[~self.twice]

    @property
    def near(self) -> Tensor:
        """The 1 % quantile of these."""
        return self.once.quantile(0.01) if len(self.once) else torch.zeros(())

    @property
    def closer(self) -> Estimate:
        """The share of generated images that are nearer."""
        return share(self.generated < self.near)

    @property
    def exact(self) -> float:
        """The share of generated images that are training images."""
        return (self.generated <= EXACT * self.real.median()).double().mean().item()

    @property
    def copies(self) -> bool:
        """Whether five times as many as by chance are that near, beyond both intervals; or too many exact."""
        chance = share(self.once < self.near).high if len(self.once) else 0.0  # of few real images little is known
        return self.closer.low > max(0.05, chance) or self.exact > 2 * self.twice.double().mean().item()

    def figures(self) -> dict:
        """For a card."""
        return {
            "n": len(self.generated), "median": self.generated.median().item(), "real": self.real.median().item(),
            "closer": self.closer, "exact": self.exact, "copies": self.copies,
            "closest": [[i, self.index[i].item()] for i in self.generated.argsort()[:CLOSEST].tolist()],
        }  # fmt: skip


def nearest_point(
    queries: Tensor, points: Iterable[Tensor], own: Tensor | None = None, n: int = 0
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Distance and index of the point nearest to each query (N, D), among points that come in parts (…, D).

    own (N,): query i is point own[i], and own[i] + n its mirror image if there is one; these do not count.
    """
    first, own = 0, None if own is None else own.to(queries.device)
    distance = queries.new_full((len(queries),), math.inf)
    index = torch.zeros(len(queries), dtype=torch.long, device=queries.device)
    for part in points:
        if not first:  # from here on all are seen from the first point: far away, rounding would hide what is near
            centre, queries = part[0], queries - part[0]
        part = part - centre
        apart = torch.cdist(queries, part)
        for column in () if own is None else (own - first, own + n - first):
            here = ((column >= 0) & (column < len(part))).nonzero().flatten()
            apart[here, column[here]] = math.inf
        found = apart.min(dim=1)
        exact = (queries - part[found.indices]).norm(dim=1)  # cdist's products round, on each processor in its way
        exact = exact.where(found.values.isfinite(), math.inf)
        nearer = exact < distance
        distance, index = exact.where(nearer, distance), (found.indices + first).where(nearer, index)
        first += len(part)
    return distance, index


def audit(
    generated: Tensor, training: Tensor, held_out: Tensor | None = None, mirrored: bool = False, device: Device = "cpu"
) -> Audit:
    """Is the model copying? uint8 images (N, C, H, W); held_out None: training images are compared with each other.

    By their pixels, in [0, 1]; features are for audit_points. mirrored: training saw each image from both sides, and
    so does this. Of the real images 1,000 are compared: the first held out, or training images drawn at random.
    device: where pixels are.
    """

    def points(images: Tensor) -> Tensor:
        return images.to(device).flatten(1).float() / 255

    size = training[0].numel()  # all of them as numbers would need many times their memory
    parts, queries = training.split(max(1, min(1000, 2**24 // size))), generated.split(max(1, 2**26 // size))

    def seen() -> Iterator[Tensor]:
        yield from map(points, parts)
        if mirrored:
            yield from (points(part.flip(-1)) for part in parts)

    own = some_of(training) if held_out is None else None
    real = points(held_out[:AUDITED] if own is None else training[own])
    bar = progress_bar(queries, desc="looking for copies", unit="part", leave=False, disable=len(queries) == 1)
    return audit_points(map(points, bar), seen, len(training), real, own)


def some_of(training: Tensor) -> Tensor:
    """Which training images an audit compares with the others: drawn at random, since a folder may be in order."""
    return shuffled(torch.arange(len(training)), 0, AUDITED)


def audit_points(
    generated: Iterable[Tensor], seen: Callable[[], Iterable[Tensor]], n: int, real: Tensor, own: Tensor | None
) -> Audit:  # fmt: skip
    """audit, of points in parts (…, D). seen: gives those of the n training images, then of their mirror images.

    own: which training images the real ones are, if they are.
    """
    near, index = zip(*(nearest_point(part, seen()) for part in generated))
    usual, _ = nearest_point(real, seen(), own, n)
    return Audit(torch.cat(near).float().cpu(), usual.float().cpu(), torch.cat(index).cpu() % n)


def audit_line(found: dict) -> str:
    """Audit.figures in words."""
    verdict = "it copies" if found["copies"] else "no sign of copying"
    exact = f", {round(found['exact'] * found['n'])} are training images" if found["exact"] else ""
    exact += "" if not exact or found["copies"] else ", as many as of real ones"
    return (
        f"nearest training image at a distance of {found['median']:.3g} in the median, of real images at "
        f"{found['real']:.3g}; {found['closer'].value:.1%} are nearer than the nearest 1 % of those{exact}: {verdict}"
    )


def loss_by_tenth(
    model: Model, schedule: Schedule, images: Tensor, *, batch_size: int = 250, seed: int = 0, device: Device = "cpu"
) -> dict:
    """L_simple of uint8 images, each at its own t: its mean, and those over ten stretches of 1 … T (None: of none)."""
    t, losses = loss_by_t(model, schedule, images, batch_size=batch_size, seed=seed, device=device)
    parts = [losses[(t - 1) * 10 // schedule.T == k] for k in range(10)]
    means = [round(part.mean().item(), 6) if len(part) else None for part in parts]
    return {"n": len(images), "mean": losses.mean().item(), "by_tenth_of_T": means}


def judged(
    images: Tensor, training: Tensor, held_out: Tensor | None, judge: Judge, *, seed: int = 0, mirrored: bool = False,
    dataset: str = "mnist",
) -> dict:  # fmt: skip
    """A card's figures, of uint8 images (N, C, H, W): distances, the same for real images, digits, nearest images.

    mirrored: training saw each image from both sides. dataset: only of "mnist" are there digits to be counted.
    """
    digits, unseen = dataset == "mnist" == getattr(judge.network, "dataset", None), None
    known, drawn = judge.features(training), judge.features(images)
    if held_out is not None:  # in no order, since the first part of a data set may be the easier one
        order = shuffled(torch.arange(len(held_out)), seed)
        unseen = judge.features(held_out)[order]
        held_out = held_out[order[: max(AUDITED, len(images) if digits else 0)]]  # all may be more than memory holds
    card = {"metrics": distances(known, drawn, seed), "frechet_bias": frechet_bias(known, drawn, seed)}
    card["floor"] = floors(known, unseen, len(images), seed)
    if digits:
        card["digits"] = class_balance(judge.logits(images))
        if held_out is not None:
            card["digits"]["held_out"] = class_balance(judge.logits(held_out[: len(images)]))
    in_pixels = audit(images, training, held_out, mirrored=mirrored, device=judge.device)
    seen = [*known.split(1000), *(judge.features(part.flip(-1)) for part in training.split(1000) if mirrored)]
    own = some_of(training) if unseen is None else None
    real = unseen[:AUDITED] if own is None else known[own]
    in_features = audit_points([drawn], lambda: seen, len(training), real, own)
    for space, found in (("pixels", in_pixels), ("features", in_features)):
        card[f"nearest_training_image_in_{space}"] = found.figures()
    return card


def closest_pairs(card: dict, images: Tensor, training: Tensor) -> Tensor:
    """The images nearest to training images, by features, as a card numbers them, then these: uint8 (2 K, C, H, W)."""
    mine, theirs = zip(*card["nearest_training_image_in_features"]["closest"])
    return torch.cat([images[list(mine)], training[list(theirs)]])


def comparison(a: dict, b: dict) -> list[str]:
    """A line for each figure that two cards share: both values, and whether 0 is outside their difference's interval.

    Before, in what else they differ. Raises ValueError where they cannot be compared, with the reason.
    """
    same = "reference_sha256"  # the same images, wherever they lie
    for name in ("n", "extractor", same if a.get(same) and b.get(same) else "reference"):
        if a[name] != b[name]:
            raise ValueError(f"these cards cannot be compared: {name} is {a[name]} in one and {b[name]} in the other")
    lines = []
    for name in [name for name in ABOUT if a.get(name) != b.get(name)]:
        pair = [card.get(name) for card in (a, b)]
        if all(isinstance(value, dict) for value in pair):
            differ = [key for key in pair[0] | pair[1] if pair[0].get(key) != pair[1].get(key)]
            pair = [{key: value.get(key, "not told") for key in differ} for value in pair]
        lines.append(f"{name}: {' against '.join(map(in_words, pair))}")
    for name in [name for name in a["metrics"] if name in b["metrics"]]:
        first, second = Estimate(**a["metrics"][name]), Estimate(**b["metrics"][name])
        more, less = (first, second) if first.value > second.value else (second, first)
        apart = more.value - less.value > math.hypot(more.value - more.low, less.high - less.value)
        lines.append(f"{name}: {first} against {second}, {'different' if apart else 'no difference to be seen'}")
    return lines


def in_words(value: object) -> str:
    """What a field of a card says."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {part}" for key, part in value.items())
    return "not told" if value is None else str(value)


def write_card(path: PathLike, card: dict) -> None:
    """As JSON; each estimate as its value and the ends of its 95 % interval."""

    def plain(value: object) -> object:
        value = value._asdict() if isinstance(value, Estimate) else value
        if isinstance(value, dict):
            return {name: plain(inner) for name, inner in value.items()}
        return [plain(inner) for inner in value] if isinstance(value, list) else value

    with replacing(Path(path)) as partial:
        partial.write_text(json.dumps(plain(card), indent=2) + "\n", encoding="utf-8")


def read_card(path: PathLike) -> dict:
    """Raises ValueError for a file that is no card."""
    try:
        card = json.loads(Path(path).read_text(encoding="utf-8"))
        [Estimate(**figure).half for figure in card["metrics"].values()]  # raises where one is damaged
        kept = {name: card[name] for name in ("n", "extractor", "reference", "metrics")}
        return kept | {name: card.get(name) for name in ("reference_sha256", *ABOUT)}  # which older cards may lack
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no card of the evaluate command ({error!r})") from error


def card_lines(card: dict) -> list[str]:
    """A card for people."""
    lines = [f"n = {card['n']}, seed {card['seed']}, {card['extractor']}, against {card['reference']}"]
    rows = {"these images": {"n": card["n"], **card["metrics"]}, **card["floor"]}
    for title, row in rows.items():
        figures = ", ".join(f"{name.replace('_', ' ')} {row[name]}" for name in card["metrics"])
        lines.append(f"{title} (n = {row['n']}): {figures}")
    if card["n"] < SMALL:
        lines.append(
            f"n = {card['n']} is small: the Fréchet distance comes out about {card['frechet_bias']:.2g} too large, and "
            "so does that of as many real images above; that falls as 1/n, so take n = 10,000 where you can"
        )
    digits = card.get("digits", {})
    for title, found in (("digits 0 to 9 in %", digits), ("the same of held-out ones", digits.get("held_out"))):
        if found:
            shares = " ".join(f"{100 * each.value:.1f}" for each in found["shares"])
            error = max(100 * each.half for each in found["shares"])
            average, often = found["mean_confidence"].value, found["share_above_0.9"]
            sure = f"{average:.1%} sure on average, above 90 % for {100 * often.value:.1f} ± {100 * often.half:.1f} %"
            lines.append(f"{title}: {shares} (each ± {error:.1f} at most); the classifier is {sure}")
    for space in ("pixels", "features"):
        lines.append(f"in {space}: {audit_line(card[f'nearest_training_image_in_{space}'])}")
    if "L_simple" in card:
        found = card["L_simple"]
        parts = " ".join("-" if part is None else f"{part:.3g}" for part in found["by_tenth_of_T"])
        lines.append(f"L_simple {found['mean']:.4f} of the first {found['n']} held-out images; by tenths of T: {parts}")
    if "bits_per_dim" in card:
        bound = card["bits_per_dim"]
        figure = f"{bound['value']:.4f} ± {bound['standard_error']:.4f} bits/dim of the first {bound['n']} held-out"
        lines.append(f"{figure} images ({bound['variance']} variance, {bound['times_per_image']} times an image)")
    if "seconds_per_image" in card:
        each, seconds, device = card["evaluations_per_image"], card["seconds_per_image"], card["device"]
        lines.append(f"{each:.0f} network evaluations and {seconds:.3g} s an image on {device}")
    return lines
