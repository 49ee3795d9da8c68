"""What a training loss shows to its network: the times and, for images that are known, the noise.

The images are constant in their upper and in their lower half, so that signal and noise can be
separated in each x_t, even if the code scales them first.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor, nn

from diffusion_doctor.mathematics import seeded
from diffusion_doctor.modules import restored_weights
from diffusion_doctor.oracles import StandIn
from diffusion_doctor.plain_functions import images_and_times
from diffusion_doctor.subject import Subject

BATCH = 256  # images for which a loss is recorded at once
LEAST = 4000  # images in all
SEEN = 20  # times that each t is to be drawn: one of 1000 is then missed in exp(-20)


class Recorder(StandIn):
    """A network that keeps each x_t and its times (N,), and returns zeros.

    outputs: the zeros of each call, whose gradients show what a loss wants. width: their channels
    over those of x_t, 2 for networks that learn a variance.
    """

    def __init__(self, shape: tuple[int, ...], width: int = 1):
        super().__init__(Subject(shape=tuple(shape)), lambda schedule, x, t: torch.zeros_like(x))
        self.width = width
        self.seen: list[tuple[Tensor, Tensor]] = []
        self.outputs: list[Tensor] = []

    def answer(self, x: Tensor, t: Tensor | float) -> Tensor:
        self.keep(x, t)
        output = torch.zeros_like(torch.cat([x.detach()] * self.width, dim=1))
        self.outputs.append(output.requires_grad_())
        return output

    def keep(self, x: Tensor, t: Tensor | float) -> None:
        """Adds a call."""
        self.seen.append((x.detach(), torch.as_tensor(t).detach().cpu().double().flatten()))


def recorded_call(train: Callable, images: Tensor) -> Recorder:
    """A recorder after a loss, with an output as wide as x_t, or twice where that fails.

    Raises what the loss raises with the first.
    """
    recorder = Recorder(images.shape[1:])
    try:
        train(recorder, images.clone())
    except (RuntimeError, ValueError, IndexError):
        wide = Recorder(images.shape[1:], width=2)
        try:
            train(wide, images.clone())
        except Exception:  # of many kinds: the first one is the one to report
            wide.seen.clear()
        if not wide.seen:
            raise
        return wide
    return recorder


@contextmanager
def recorded_step(step: Callable[[Tensor], object], module: nn.Module) -> Iterator[Callable]:
    """A step of training on x0 as a function of (recorder, x0). Afterwards the weights are back."""

    def train(recorder: Recorder, x0: Tensor) -> None:
        def keep(layer: nn.Module, inputs: tuple, options: dict) -> None:
            recorder.keep(*images_and_times(inputs, options))

        handle = module.register_forward_pre_hook(keep, with_kwargs=True)
        try:
            step(x0)
        finally:
            handle.remove()

    with restored_weights(module):
        yield train


@dataclass(frozen=True)
class Recording:
    """What N images' training showed, in K calls: one entry for each image, call after call."""

    times: Tensor  # (N,), the times as the code counts, float64
    upper: Tensor  # (N,), the mean of the upper half of x_t
    lower: Tensor  # (N,)
    variance: Tensor  # (N,), of the pixels around these means
    kurtosis: Tensor  # (N,), of the same: 3 for normal noise, 1.8 for uniform noise
    correlation: float  # of the noise of two images of a batch, the mean of all calls
    pixels: int  # of an image
    batch_size: int
    has_one_time: bool  # whether each batch had one t


def known_images(shape: tuple[int, ...], n: int, low: float, high: float) -> Tensor:
    """Images (n, *shape), high in the upper half of the rows and low in the lower."""
    images = torch.full((n, *shape), float(low))
    images[:, ..., : max(1, shape[-2] // 2), :] = high
    return images


def range_of_data(subject: Subject) -> tuple[float, float]:
    """The least and the greatest value of the data."""
    if subject.data is None:
        return subject.conventions.data_range
    return float(subject.data.min()), float(subject.data.max())


def in_layout(subject: Subject, train: Callable) -> Callable:
    """A loss or a step of (network, x0) that gets images as its network takes them."""

    def train_on(network: Callable, x0: Tensor) -> object:
        return train(network, x0.flatten(1) if subject.conventions.is_flat else x0)

    return train_on


def recorded_loss(subject: Subject, seed: int) -> "Recording | None":
    """The recording of the subject's loss; its cache keeps it for other checks."""
    key = "recorded loss", seed
    if key not in subject.cache:
        images = known_images(subject.shape, BATCH, *range_of_data(subject))
        loss = in_layout(subject, subject.loss)
        subject.cache[key] = record(loss, images, subject.T, seed)
    return subject.cache[key]


def record(
    train: Callable[[Recorder, Tensor], object],
    images: Tensor,
    T: int,
    seed: int = 0,
    seconds: float = 10.0,
) -> Recording | None:
    """Trains on the images again and again until each t should be drawn SEEN times, or time is up.

    train: a loss of (network, x0), whose result is not used. Returns None if the network is never
    called with one x_t for each image.
    """
    statistics = []
    singles = []
    correlations = []
    began = perf_counter()
    with seeded(seed):
        enough = max(LEAST, SEEN * T)
        while len(statistics) * len(images) < enough and perf_counter() - began < seconds:
            recorder = recorded_call(train, images)
            calls = [call for call in recorder.seen if call[0].numel() == images.numel()]
            if not calls:
                return None
            x, times = calls[0]
            x = x.reshape(images.shape)
            singles.append(bool((times == times[0]).all()))
            statistics.append((times.expand(len(x)), *half_statistics(x)))
            correlations.append(correlation(x))
    names = "times", "upper", "lower", "variance", "kurtosis"
    return Recording(
        **{name: torch.cat(values) for name, values in zip(names, zip(*statistics))},
        correlation=sum(correlations) / len(correlations),
        pixels=images[0].numel(),
        batch_size=len(images),
        has_one_time=all(singles),
    )


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """The pixels of the upper and of the lower half: (N, D) each, float64."""
    rows = max(1, x.shape[-2] // 2)
    x = x.double().cpu()
    return x[..., :rows, :].flatten(1), x[..., rows:, :].flatten(1)


def half_statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both halves' means, then variance and kurtosis around them, of each image: (N,) each."""
    upper, lower = halves(x)
    around = around_means(x)
    variance = around.square().mean(dim=1)
    kurtosis = around.pow(4).mean(dim=1) / variance.square().clamp(min=1e-30)
    return upper.mean(dim=1), lower.mean(dim=1), variance, kurtosis


def around_means(x: Tensor) -> Tensor:
    """Pixels less their half's mean: (N, D)."""
    return torch.cat([half - half.mean(dim=1, keepdim=True) for half in halves(x)], dim=1)


def correlation(x: Tensor) -> float:
    """The mean correlation of the noise of images that follow each other in a batch."""
    around = around_means(x)
    noise = around / around.norm(dim=1, keepdim=True).clamp(min=1e-30)
    return (noise[:-1] * noise[1:]).sum(dim=1).mean().item()
