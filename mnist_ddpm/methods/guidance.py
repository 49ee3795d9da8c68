"""Networks that take labels, and guidance: by labels, or by a guide (autoguidance)."""

import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn

from mnist_ddpm.ddpm import Denoiser, Network, Time, check

Teacher = Callable[[Tensor | None], Denoiser]  # labels (N,) to what predicts such images
SCALE = 2.0  # of autoguidance, unless the checkpoint has its own


def labels_or_unknown(labels: Tensor | None, x: Tensor, classes: int) -> Tensor:
    """Labels (N,) on the device of x (N, …); None stands for `classes`, unknown, throughout."""
    unknown = torch.full((len(x),), classes)
    return (unknown if labels is None else labels).to(x.device)


def check_takes_labels(network: nn.Module, classes: int) -> None:
    """Raises ValueError where there are classes, and the network takes x_t and t alone."""
    if not classes:
        return
    try:
        inspect.signature(network.forward).bind("x_t", "t", "labels")
    except TypeError as error:
        raise ValueError(
            f"{type(network).__name__} takes no labels: "
            "set classes to 0, or give its forward labels as a third parameter"
        ) from error


def labels_at(labels: Tensor | None, part: Tensor) -> Tensor | None:
    """The labels (N,), if there are any, of those images that `part`, bool (N,), selects."""
    return None if labels is None else labels[part.to(labels.device)]


def with_labels(network: Network, labels: Tensor | None) -> Network:
    """A network of (xt, t, labels) as one of (xt, t) for images with labels (N,). None: itself."""
    if labels is None:
        return network

    def labelled_network(xt: Tensor, t: Tensor, **options: Tensor) -> Tensor:
        check(len(labels) == len(xt), f"there are {len(labels)} labels for {len(xt)} images")
        return network(xt, t, labels, **options)

    return labelled_network


def guided(weak: Denoiser, strong: Denoiser, scale: float) -> Denoiser:
    """weak + scale (strong - weak). Scales 0 and 1 call one of the two, all others both.

    Classifier-free guidance (arXiv 2207.12598, Eq. 6, scale = 1 + w): strong has labels, weak has
    none. Autoguidance (arXiv 2406.02507): weak is the guide, a network with the same errors, but
    larger. What strong returns beside x0_hat and eps_hat, such as a variance, is passed on.
    """
    if scale in (0, 1):
        return strong if scale else weak

    def denoise(xt: Tensor, t: Time) -> tuple[Tensor, ...]:
        weak_x0, weak_eps, *_ = weak(xt, t)
        x0_hat, eps_hat, *more = strong(xt, t)
        return torch.lerp(weak_x0, x0_hat, scale), torch.lerp(weak_eps, eps_hat, scale), *more

    return denoise


def within_interval(
    interval: tuple[int, int], guided: Denoiser, plain: Denoiser, own_times: Tensor | None = None
) -> Denoiser:
    """guided for images with low < t <= high, else plain, which costs less (arXiv 2404.07724).

    own_times: as of is_in_interval.
    """
    is_guided = is_in_interval(interval, own_times)
    return switched(is_guided, lambda labels: guided, lambda labels: plain)


def is_in_interval(
    interval: tuple[int, int], own_times: Tensor | None = None
) -> Callable[[Tensor], Tensor]:
    """A function of times (N,): whether low < t <= high, bool (N,).

    own_times (T + 1,): the time of the network's own schedule at each time of another path, as of
    paths.own_times; the interval is then of these.
    """
    low, high = interval
    if own_times is None:
        return lambda t: (low < t) & (t <= high)
    is_inside = (low < own_times) & (own_times <= high)
    return lambda t: is_inside[t]


def switched(uses_first, first: Teacher, second: Teacher, labels: Tensor | None = None) -> Denoiser:
    """The first's denoiser for images where uses_first(times (N,)), the second's for the others."""

    def denoise(xt: Tensor, t: Time) -> tuple[Tensor, ...]:
        times = torch.as_tensor(t).cpu().expand(len(xt))
        is_first = uses_first(times)
        if is_first.all() or not is_first.any():
            return (first if is_first.all() else second)(labels)(xt, t)
        outputs = [
            teacher(labels_at(labels, part))(xt[part], times[part])
            for teacher, part in ((first, is_first), (second, ~is_first))
        ]
        order = torch.cat([is_first.nonzero(), (~is_first).nonzero()]).flatten()
        inverse = order.argsort().to(xt.device)
        return tuple(torch.cat(both)[inverse] for both in zip(*outputs))

    return denoise
