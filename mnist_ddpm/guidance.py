"""Class labels, and guidance: by them, or by a worse network."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from mnist_ddpm.ddpm import Model, PathLike, Prediction, Schedule, Settings, predict, read_mnist
from mnist_ddpm.image_folder import CELEBA_NAMES, celeba_attributes, search


def load_labels(settings: Settings, root: PathLike = "data", split: str = "train") -> Tensor:
    """The labels of load_images(settings, root, split), int64 (N,), each 0 … settings.classes - 1.

    Raises ValueError where the data set has none, not these or not so many, and as read_mnist or celeba_attributes.
    """
    if settings.dataset not in LABELS:
        raise ValueError(f"{settings.dataset} has no labels: set classes to 0, and name no attributes")
    return LABELS[settings.dataset](settings, root, split)


def check_labelled(settings: Settings, root: PathLike = "data") -> None:
    """Raises as load_labels, before images are decoded; not where CelebA is still to be downloaded."""
    if settings.classes and (settings.dataset != "celeba" or search(root, "celeba", CELEBA_NAMES)):
        load_labels(settings, root)


def digit_labels(settings: Settings, root: PathLike, split: str) -> Tensor:
    """load_labels for MNIST."""
    if settings.attributes or settings.classes != 10:
        raise ValueError(
            f"mnist has labels 0 to 9, no attributes: set classes to 10, not {settings.classes}, and name none"
        )
    return read_mnist(root, split)[1]


def attribute_labels(settings: Settings, root: PathLike, split: str) -> Tensor:
    """load_labels for CelebA: of k attributes, the i-th that settings.attributes names counts 2^i."""
    asked, classes = settings.attributes, settings.classes
    if not asked or classes != 2 ** len(asked):
        raise ValueError(
            f"{len(asked)} attribute(s) of CelebA make {2 ** len(asked)} label(s), not {classes}: name some in "
            "attributes, such as Smiling and Male, and leave classes at 0"
        )
    names, present = celeba_attributes(settings, root, split)
    unknown = [name for name in asked if name not in names]
    if unknown or len(set(asked)) < len(asked):
        raise ValueError(f"attributes {asked} must be different ones of CelebA's: {', '.join(names)}")
    return (present[:, [names.index(name) for name in asked]] * 2 ** torch.arange(len(asked))).sum(dim=1)


LABELS: dict[str, Callable[[Settings, PathLike, str], Tensor]] = {"mnist": digit_labels, "celeba": attribute_labels}


def typical_labels(labels: Tensor, n: int, seed: int = 0) -> Tensor:
    """n of the labels (N,), drawn at random: their counts vary as those of other real images do."""
    return labels[torch.randint(len(labels), (n,), generator=torch.Generator().manual_seed(seed))]


def always_told(settings: Settings) -> bool:
    """Whether a network with labels has never trained without, and so knows nothing without them."""
    return settings.classes > 0 and settings.label_dropout == 0


def label_names(settings: Settings) -> list[str]:
    """What each label of a network with attributes stands for: those that are present."""
    names = settings.attributes
    present = [[name for i, name in enumerate(names) if label >> i & 1] for label in range(2 ** len(names))]
    return [" + ".join(some) or "none of them" for some in present]


def beyond(first: Prediction, second: Prediction, scale: float) -> Prediction:
    """first + scale (second - first); a learned variance is the second's."""
    x0_hat, eps_hat = (torch.lerp(first[i], second[i], scale) for i in range(2))
    return Prediction(x0_hat, eps_hat, second.exponent)


def guided(model: Model, scale: float) -> Model:
    """A model (xt, t, labels) with uncond + scale (cond - uncond) for its prediction.

    Classifier-free guidance (Ho, Salimans, arXiv 2207.12598, Eq. 6), with scale = 1 + w. 0 ignores the label, 1 is the
    conditional model; both cost one evaluation an image, all others two. A learned variance is the conditional model's.
    """

    def guided_model(xt: Tensor, t: Tensor, labels: Tensor) -> Tensor | Prediction:
        if scale == 0:
            return model(xt, t)
        told = model(xt, t, labels)
        if scale == 1:
            return told
        untold = model(xt, t)
        if isinstance(told, Tensor):
            channels = xt.shape[1]
            mixed = torch.lerp(untold[:, :channels], told[:, :channels], scale)
            return torch.cat([mixed, told[:, channels:]], dim=1)
        return beyond(untold, told, scale)

    return guided_model


def within(interval: tuple[int, int], guided: Model, plain: Model) -> Model:
    """guided at the times of an interval, low < t <= high, else plain, which costs less (arXiv 2404.07724).

    Raises ValueError, when called, for images of which only some are at such times.
    """
    low, high = interval

    def model(xt: Tensor, t: Tensor, **labels: Tensor) -> Tensor | Prediction:
        inside = set(((t > low) & (t <= high)).tolist())
        if len(inside) > 1:
            raise ValueError(f"of these images, only some are at times above {low}, up to {high}: split the batch")
        return (guided if inside == {True} else plain)(xt, t, **labels)

    return model


def autoguided(model: Model, weak: Model, schedule: Schedule, scale: float) -> Model:
    """A model (xt, t, labels or None) with weak + scale (model - weak) for its prediction.

    Autoguidance (Karras et al., arXiv 2406.02507). weak: trained on the same images, but smaller or for less time, so
    that it errs where model does, only more; it is told the labels too. A learned variance is model's.
    """

    def guided_model(xt: Tensor, t: Tensor, labels: Tensor | None = None) -> Prediction:
        told = [each if labels is None else partial(each, labels=labels) for each in (weak, model)]
        tables = schedule.to(xt.device)
        bad, good = (predict(each, tables, xt, t) for each in told)
        return beyond(bad, good, scale)

    return guided_model
