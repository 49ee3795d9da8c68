"""Checks of a trained network on data: what it has learned, and from what kind of images.

A network is judged by the error of its noise, where knowing each pixel's mean and variance is worth
least: at times at which E|eps - eps_hat|² of that knowledge, a² v / (a² v + b²), is 0.05 to 0.9.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor, nn

from diffusion_doctor import mathematics
from diffusion_doctor.mathematics import Denoiser, Schedule, seeded
from diffusion_doctor.modules import find_module, in_mode, restored_weights
from diffusion_doctor.report import Check

IMAGES = 64  # that the network denoises, each at another t
LEAST_ERROR = 0.05
MOST_ERROR = 0.9
SURE = 3  # standard errors by which a network must beat the baseline
YOUNG = 1.5  # times the raw weights' error: an average in a well-kept run is at most 1.1
TINT = 0.5  # of the 2 from black to white, beside six standard errors
SLIGHT_TINT = 0.2


@dataclass(frozen=True)
class Fit:
    """The errors of one network for one kind of data, at each image's t: float64 (N,)."""

    errors: Tensor  # of eps_hat
    baseline: Tensor  # what the mean and variance of each pixel are worth

    @property
    def ratio(self) -> float:
        """All errors over those of the baseline."""
        return (self.errors.sum() / self.baseline.sum()).item()

    @property
    def has_learned(self) -> bool:
        """Whether the network is better than the baseline, beyond the error of the mean."""
        difference = self.errors - self.baseline
        error = difference.std() / math.sqrt(len(difference))
        return bool(difference.mean() < -SURE * error)


def baseline_errors(schedule: Schedule, variance: Tensor) -> Tensor:
    """At t = 1 … T, the error of the noise for pixels of known mean and variance: float64 (T,)."""
    a = schedule.a[1:, None]
    b = schedule.b[1:, None]
    signal = a**2 * variance.double().flatten()[None]
    return (signal / (signal + b**2)).mean(dim=1)


@torch.no_grad()
def fit_of(
    denoise: Denoiser, schedule: Schedule, images: Tensor, *, seed: int = 0, batch_size: int = 16
) -> Fit | None:
    """How well a denoiser fits images (N, C, H, W), 16 or more.

    None if there are too few times at which it could show.
    """
    errors = baseline_errors(schedule, images.var(dim=0))
    times = 1 + ((errors > LEAST_ERROR) & (errors < MOST_ERROR)).nonzero().flatten()
    if len(times) < 5:
        return None
    generator = torch.Generator().manual_seed(seed)
    chosen = images[torch.randperm(len(images), generator=generator)[:IMAGES]]
    t = times[torch.arange(len(chosen)) * len(times) // len(chosen)]
    eps = torch.randn(chosen.shape, generator=generator)
    losses = []
    for x0, time, noise in zip(*(each.split(batch_size) for each in (chosen, t, eps))):
        eps_hat = denoise(mathematics.q_sample(schedule, x0, time, noise), time)[1]
        losses.append((eps_hat.double() - noise).square().flatten(1).mean(dim=1))
    return Fit(torch.cat(losses), errors[t - 1])


def unit_range(images: Tensor) -> Tensor:
    """The images as floats, scaled so that they fill [-1, 1]."""
    images = images.float()
    low = images.min()
    return 2 * (images - low) / (images.max() - low).clamp(min=1e-12) - 1


def check_fit(denoise: Denoiser, schedule: Schedule, data: Tensor, seed: int = 0) -> Check:
    """What a network has learned: more than a pixel's mean and variance, and from which data.

    The value is its error over that of the baseline, at 64 images and times. It has learned if
    that is below 1 by three standard errors. If it has not, but has for images in [0, 1] or
    0 … 255, it was trained on those: that is wrong. Otherwise a network that has learned nothing
    may be untrained, which is undecided.
    """
    name = "network: fit to the data"
    if len(data) < 16:
        return Check(name, "not checked", "needs: 16 images or more")
    images = unit_range(data)
    kinds = {  # images, whether they are wrong, the share of other errors to stay below
        "images in [-1, 1]": (images, False, math.inf),
        "the data as they are": (data.float(), is_zero_to_one(data), math.inf),
        "images in [0, 1]": ((images + 1) / 2, True, 0.5),
        "images in 0 … 255": ((images + 1) * 127.5, True, 0.5),
    }
    ratios = []
    for kind, (x0, is_wrong, share) in kinds.items():
        fit = fit_of(denoise, schedule, x0, seed=seed)
        if fit is None:
            continue
        if fit.has_learned and fit.ratio < share * min(ratios, default=1.0):
            meaning = f"the network has learned from {kind}"
            evidence = {"data-range": 1.0} if is_wrong else {}
            return Check(name, "wrong" if is_wrong else "ok", meaning, fit.ratio, 1.0, evidence)
        ratios.append(fit.ratio)
    if not ratios:
        return Check(name, "undecided", "no t shows what a network has learned")
    meaning = "it knows no more than each pixel's mean: untrained, or given other t or data"
    return Check(name, "undecided", meaning, ratios[0], 1.0)


def is_zero_to_one(data: Tensor) -> bool:
    """Whether values fill [0, 1]."""
    return abs(data.min().item()) < 0.05 and abs(data.max().item() - 1) < 0.05


def check_average(
    denoise: Denoiser, averaged: Denoiser, schedule: Schedule, data: Tensor, seed: int = 0
) -> Check:
    """Whether the averaged weights are as good as the raw ones, on the same images and noise.

    The value is the ratio of their errors. It is wrong above 1.5, where the difference is more
    than three standard errors as well, and undecided above 1.1.
    """
    name = "network: average of its weights"
    fits = []
    for images in (unit_range(data), data.float()):
        raw = fit_of(denoise, schedule, images, seed=seed) if len(data) >= 16 else None
        fits += [] if raw is None else [(raw, images)]
    if not fits:
        return Check(name, "not checked", "needs: 16 images or more, and times that show it")
    raw, images = min(fits, key=lambda pair: pair[0].ratio)
    fit = fit_of(averaged, schedule, images, seed=seed)
    value = (fit.errors.sum() / raw.errors.sum()).item()
    is_worse = Fit(raw.errors, fit.errors).has_learned
    if value > YOUNG and is_worse:
        meaning = "the averaged weights predict far worse than the raw ones"
        evidence = {"young-average": 1.0, "averaged-buffers": 0.5}
        return Check(name, "wrong", meaning, value, YOUNG, evidence)
    if value > 1.1 and is_worse:
        return Check(name, "undecided", "the averaged weights are behind", value, YOUNG)
    return Check(name, "ok", "the averaged weights are as good as the raw ones", value, YOUNG)


def check_tint(samples: Tensor, data: Tensor) -> Check:
    """Whether the samples' channels have the data's means; both (N, C, H, W), scaled as they are.

    The value is the largest difference, as a share of 2 for the data's whole range. It is ok up to
    0.2 and six standard errors of both means, and wrong from 0.5 and as many, since a network that
    was trained for a short time may differ by more than the first.
    """
    name = "samples: means of the channels"
    size = (data.max() - data.min()).item() / 2
    means = [images.double().flatten(2).mean(dim=2) / size for images in (samples, data.float())]
    difference = (means[0].mean(dim=0) - means[1].mean(dim=0)).abs()
    error = sum(mean.var(dim=0) / len(mean) for mean in means).sqrt()
    value, channel = difference.max(dim=0)
    tolerance = TINT + 6 * error[channel].item()
    if value <= tolerance - TINT + SLIGHT_TINT:
        return Check(name, "ok", "samples are as bright as the data", value.item(), tolerance)
    if value <= tolerance:
        meaning = f"channel {channel.item()} of the samples is slightly too bright or too dark"
        return Check(name, "undecided", meaning, value.item(), tolerance)
    meaning = f"channel {channel.item()} of the samples is too bright or too dark"
    bugs = "data-range", "channel-groups", "unseen-end", "uniform-noise"
    evidence = dict.fromkeys(bugs, 0.3)
    return Check(name, "wrong", meaning, value.item(), tolerance, evidence)


def check_learning(
    loss: Callable[[Callable, Tensor], Tensor],
    network: Callable,
    images: Tensor,
    ignorant: float,
    seconds: float = 10.0,
) -> Check:
    """Whether sixteen images can be learned: a trial with Adam, after which the weights are back.

    ignorant: the loss of an output of zeros. The value is the mean of the last ten losses over it.
    It is ok below 0.2, and undecided if time is up before that. It is wrong only if no gradient
    ever reaches a weight, or the loss is not a number.
    """
    name = f"training: {len(images)} images by heart"
    module = find_module(network)
    if module is None or not ignorant > 0:
        return Check(name, "not checked", "needs: a torch.nn.Module, and a loss above 0")
    values = trial_losses(loss, network, module, images, seconds, enough=0.2 * ignorant)
    value = sum(values[-10:]) / len(values[-10:]) / ignorant
    steps = f"after {len(values)} steps"
    if math.isnan(value):
        return Check(name, "wrong", f"{steps} no gradient, or a loss that is not a number")
    if value < 0.2:
        return Check(name, "ok", f"the images are learned {steps}", value, 0.2)
    return Check(name, "undecided", f"not yet learned {steps}, in {seconds:g} s", value, 0.2)


def trial_losses(
    loss: Callable, network: Callable, module: nn.Module, images: Tensor, seconds: float, enough
) -> list[float]:
    """The loss of each step of a trial; the last is nan where no step can be taken."""
    trainable = {weight: weight.requires_grad for weight in module.parameters()}
    module.requires_grad_(True)
    optimizer = torch.optim.Adam(module.parameters(), 1e-3)
    values: list[float] = []
    began = perf_counter()
    try:
        with restored_weights(module), in_mode(module, True), seeded(0), torch.enable_grad():
            while not values or perf_counter() - began < seconds:
                optimizer.zero_grad()
                value = torch.as_tensor(loss(network, images)).mean()
                values.append(value.item())
                if value.requires_grad:
                    value.backward()
                moves = [w.grad is not None and bool(w.grad.any()) for w in module.parameters()]
                if not any(moves) or not math.isfinite(values[-1]):
                    return [*values, math.nan]
                optimizer.step()
                if len(values) >= 10 and sum(values[-10:]) < 10 * enough:
                    break
    finally:
        for weight, was_trainable in trainable.items():
            weight.requires_grad_(was_trainable)
            weight.grad = None
    return values
