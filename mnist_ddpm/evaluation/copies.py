"""Is the model copying? The distance of each image to the nearest training image."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mnist_ddpm.evaluation.distances import share, shuffled
from mnist_ddpm.machine.process import progress_bar

AUDITED = 1000  # real images, at most, whose nearest training image is looked for too
EXACT = 0.01  # of the usual distance to the nearest image: what is nearer is the same image
CLOSEST = 8  # pairs of a generated and a training image that a card names, the nearest first


class Audit(NamedTuple):
    """Distances to the nearest training image, of generated images and of real ones."""

    generated: Tensor  # (N,)
    real: Tensor  # (M,) of held-out images, or of training images to the nearest other one
    index: Tensor  # (N,) which training image is nearest to each generated one

    def figures(self) -> dict:
        """The figures of a card. Near: closer than the nearest 1 % of the real images are.

        It copies if far more images are near than by chance (five times as many, beyond both
        intervals), or far more are exact than real ones are (twice as many).
        """
        is_twice = self.real <= EXACT * self.real.median()  # real images that training has, too
        once = self.real[~is_twice]
        near = once.quantile(0.01) if len(once) else torch.zeros(())
        closer = share(self.generated < near)
        exact = (self.generated <= EXACT * self.real.median()).double().mean().item()
        known = share(once < near).high if len(once) else 0.0
        chance = max(0.05, known)  # of few real images little is known
        nearest = self.generated.argsort()[:CLOSEST].tolist()
        return {
            "n": len(self.generated),
            "median": self.generated.median().item(),
            "real": self.real.median().item(),
            "closer": closer,
            "exact": exact,
            "copies": closer.low > chance or exact > 2 * is_twice.double().mean().item(),
            "closest": [[i, self.index[i].item()] for i in nearest],
        }


def describe_audit(figures: dict) -> str:
    """Audit.figures as a sentence."""
    count = round(figures["exact"] * figures["n"])
    exact = f", {count} are training images" if count else ""
    if count and not figures["copies"]:
        exact += ", as many as of real ones"
    return (
        f"nearest training image at a distance of {figures['median']:.3g} in the median, "
        f"of real images at {figures['real']:.3g}; {figures['closer'].value:.1%} are nearer than "
        f"the nearest 1 % of those{exact}: "
        f"{'it copies' if figures['copies'] else 'no sign of copying'}"
    )


def nearest_point(
    queries: Tensor, points: Iterable[Tensor], own: Tensor | None = None, n: int = 0
) -> tuple[Tensor, Tensor]:
    """Distance and index of the point nearest to each query (N, D); points come in parts (…, D).

    own (N,): query i is point own[i], and own[i] + n its mirror image if there is one. These
    do not count.
    """
    first = 0
    own = None if own is None else own.to(queries.device)
    distance = queries.new_full((len(queries),), math.inf)
    index = torch.zeros(len(queries), dtype=torch.long, device=queries.device)
    for part in points:
        if not first:  # all are seen from the first point: far away, rounding hides what is near
            centre = part[0]
            queries = queries - centre
        part = part - centre
        distances = torch.cdist(queries, part)
        for column in () if own is None else (own - first, own + n - first):
            here = ((column >= 0) & (column < len(part))).nonzero().flatten()
            distances[here, column[here]] = math.inf
        nearest = distances.min(dim=1)
        exact = (queries - part[nearest.indices]).norm(dim=1)  # cdist rounds as its device does
        exact = exact.where(nearest.values.isfinite(), math.inf)
        nearer = exact < distance
        distance = exact.where(nearer, distance)
        index = (nearest.indices + first).where(nearer, index)
        first += len(part)
    return distance, index


def audited_indices(training: Tensor) -> Tensor:
    """Training images that are compared with the others: at random, since folders are in order."""
    return shuffled(torch.arange(len(training)), 0, AUDITED)


def audit_points(
    generated: Iterable[Tensor],
    seen: Callable[[], Iterable[Tensor]],
    n: int,
    real: Tensor,
    own: Tensor | None,
    usual: Tensor | None = None,
) -> Audit:
    """The audit of points that come in parts (…, D), in any space.

    seen: gives those of the n training images, then of their mirror images. own: the indices of the
    real ones among the training images, if they are of these. usual: the distances of the real ones
    from an earlier audit, if they are known already.
    """
    near, index = zip(*(nearest_point(part, seen()) for part in generated))
    if usual is None:
        usual, _ = nearest_point(real, seen(), own, n)
    return Audit(torch.cat(near).float().cpu(), usual.float().cpu(), torch.cat(index).cpu() % n)


def audit(
    generated: Tensor,
    training: Tensor,
    held_out: Tensor | None = None,
    mirrored: bool = False,
    device: torch.device | str = "cpu",
    usual: Tensor | None = None,
) -> Audit:
    """The audit of uint8 images (N, C, H, W) by their pixels in [0, 1], computed on a device.

    mirrored: training saw each image from both sides, and so does this. Of the real images AUDITED
    are compared: the first held out, or where held_out is None training images drawn at random.
    usual: their distances, as of audit_points.
    """

    def points(images: Tensor) -> Tensor:
        return images.to(device).flatten(1).float() / 255

    size = training[0].numel()  # as numbers, all at once would need many times their memory
    parts = training.split(max(1, min(1000, 2**24 // size)))
    queries = generated.split(max(1, 2**26 // size))

    own = audited_indices(training) if held_out is None else None
    real = points(held_out[:AUDITED] if own is None else training[own])
    searches = len(queries) + (usual is None)  # also of the real ones
    total = searches * (1 + mirrored) * len(parts)
    title = "looking for copies"
    with progress_bar(total=total, desc=title, unit="part", leave=False, delay=3) as bar:

        def seen() -> Iterator[Tensor]:
            for flipped in (False, True)[: 1 + mirrored]:
                for part in parts:
                    yield points(part.flip(-1) if flipped else part)
                    bar.update()

        return audit_points(map(points, queries), seen, len(training), real, own, usual)
