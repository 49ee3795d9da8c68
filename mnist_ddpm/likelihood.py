"""The variational bound on the negative log-likelihood, in bits per dimension (DDPM, Eq. 5 and 13)."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from mnist_ddpm.ddpm import (
    Device,
    Model,
    Prediction,
    Schedule,
    at,
    noise_source,
    predict,
    progress_bar,
    q_posterior,
    q_sample,
    timesteps,
    to_float,
    with_variance,
)


def gaussian_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL(N(mean1, variance1) || N(mean2, variance2)) of each element, in nats."""
    difference = log_variance2 - log_variance1
    return 0.5 * (difference + torch.exp(-difference) - 1 + (mean1 - mean2).square() * torch.exp(-log_variance2))


def log_ndtr(x: Tensor) -> Tensor:
    """log of the normal distribution function, by way of the processor where PyTorch has none (Apple's GPUs)."""
    return torch.special.log_ndtr(x.cpu()).to(x.device) if x.device.type == "mps" else torch.special.log_ndtr(x)


def discretised_log_likelihood(x0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """log P of each 8-bit value, in nats: a Gaussian's mass between the value's neighbours (DDPM, Eq. 13).

    x0 is on the 256 levels of [-1, 1], each 2/255 wide; the first and the last reach to infinity.
    """
    deviation = torch.exp(0.5 * log_variance)
    upper, lower = (x0 + 1 / 255 - mean) / deviation, (x0 - 1 / 255 - mean) / deviation
    upper, lower = upper.masked_fill(x0 > 0.999, math.inf), lower.masked_fill(x0 < -0.999, -math.inf)
    flip = x0 > mean  # the smaller tail is the exact one
    upper, lower = torch.where(flip, -lower, upper), torch.where(flip, -upper, lower)
    top = log_ndtr(upper)
    return top + torch.log(-torch.expm1((log_ndtr(lower) - top).clamp(max=-1e-30)))


def step_log_variance(schedule: Schedule, t: Tensor, exponent: Tensor | float) -> Tensor:
    """(1 - e) log beta-tilde_t + e log beta_t, with beta-tilde_2 for beta-tilde_1 = 0 (Improved DDPM, Eq. 15)."""
    posterior = (1 - schedule.alpha_bar[:-1]) / (1 - schedule.alpha_bar[1:]) * schedule.beta[1:]
    posterior[0] = posterior[1] if schedule.T > 1 else schedule.beta[1]
    low, high = at(posterior.log(), t - 1), at(schedule.beta.log(), t)
    return low + exponent * (high - low)


def bound_term(schedule: Schedule, x0: Tensor, xt: Tensor, t: Tensor, prediction: Prediction) -> Tensor:
    """L_{t-1} of each pixel in bits (N, C, H, W) at times (N,): the KL of a step, or where t = 1 the decoder's L_0."""
    exponent = prediction.exponent
    if not isinstance(exponent, Tensor):  # a fixed variance; as in DDPM's code, beta-tilde_2 is the decoder's
        exponent = torch.full_like(t, exponent or 0, dtype=x0.dtype).masked_fill(t == 1, 0)[:, None, None, None]
    log_variance = step_log_variance(schedule, t, exponent).to(x0.dtype)
    true_mean, _ = q_posterior(schedule, x0, xt, t, t - 1)
    mean, _ = q_posterior(schedule, prediction.x0_hat, xt, t, t - 1)
    kl = gaussian_kl(true_mean, step_log_variance(schedule, t, 0.0).to(x0.dtype), mean, log_variance)
    decoder = -discretised_log_likelihood(x0, mean, log_variance)
    return torch.where((t == 1)[:, None, None, None], decoder, kl) / math.log(2)


def prior_term(schedule: Schedule, x0: Tensor) -> Tensor:
    """L_T of each pixel in bits (N, C, H, W): KL(q(x_T | x_0) || N(0, I))."""
    alpha_bar = schedule.alpha_bar[-1]
    zero = torch.zeros((), dtype=x0.dtype, device=x0.device)
    return gaussian_kl(alpha_bar.sqrt() * x0, (1 - alpha_bar).log(), zero, zero) / math.log(2)


class Likelihood(NamedTuple):
    """Bounds in bits/dim."""

    bits: Tensor  # of each image (N,)
    terms: Tensor  # L_0 … L_{T-1}, mean over the images (T,); with times_per_image, nan where none was drawn
    prior: float  # L_T, mean over the images

    @property
    def mean(self) -> float:
        return self.bits.mean().item()

    @property
    def standard_error(self) -> float:
        return self.bits.std().item() / math.sqrt(len(self.bits))


def strata(T: int, count: int) -> Iterator[tuple[int, int]]:
    """1 … T in `count` ranges (first, last), short ones where t is small, since the bound's terms fall quickly."""
    last = timesteps(T, count, "quadratic")[::-1]
    return zip([1, *(t + 1 for t in last)], last)


@torch.no_grad()
def bits_per_dim(
    model: Model, schedule: Schedule, images: Tensor, *,
    variance: Literal["posterior", "beta", "learned"] = "posterior", clip: bool = True,
    times_per_image: int | None = None, margin: int = 0, batch_size: int = 250, seed: int = 0,
    device: Device = "cpu", progress: bool = True, part: Callable = lambda name, work: work(),
) -> Likelihood:  # fmt: skip
    """The bound of uint8 images (N, C, H, W), by one draw of x_t at every t.

    variance: of the reverse steps; "learned" needs a model that says it.
    times_per_image: evaluate so many t, one drawn from each of as many ranges, and weigh it by the range's length:
    the same in expectation, with more noise, and T / times_per_image times faster.
    margin: leave out so many pixels at each edge. The bound is then that of the inner pixels under a model which is
    given the margin, noised as q says, at every t: right where the margin is known, like the padding of MNIST.
    part: called for each batch with a name and the work, whose result it may know already (resumable.Kept.part).
    Raises ValueError for a variance that the model has not learned, a number of times outside 1 … T, a margin too wide,
    a batch without images, a seed out of range.
    """
    count = schedule.T if times_per_image is None else times_per_image
    if not 1 <= count <= schedule.T:
        raise ValueError(f"times_per_image is {count}: it must be from 1 to T = {schedule.T}")
    schedule = schedule.to(device)
    ranges = list(strata(schedule.T, count))
    if not 0 <= 2 * margin < images.shape[-1]:
        raise ValueError(f"margin is {margin}: nothing would be left of images of {images.shape[-1]} pixels")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: it must be at least 1")
    if isinstance(model, nn.Module):
        model.eval()
    inner = slice(margin, images.shape[-1] - margin)
    chance = torch.zeros(len(images), 1).expand(-1, count)  # of no use where every t is taken
    if count < schedule.T:
        chance = torch.rand(len(images), count, generator=torch.Generator().manual_seed(seed))
    batches = [range(i, min(len(images), i + batch_size)) for i in range(0, len(images), batch_size)]
    title = f"bound of {len(images)} images"

    def measured(batch: range) -> dict[str, Tensor]:
        """Bits and prior of each image (B,), and the sums of terms and their numbers for each t (T,)."""
        x0 = to_float(images[batch.start : batch.stop].to(device))
        noise = noise_source(seed, batch, tuple(x0.shape[1:]), device)
        prior = prior_term(schedule, x0)[..., inner, inner].mean(dim=(1, 2, 3)).cpu().double()
        bits, (sums, visits) = prior.clone(), torch.zeros(2, schedule.T, dtype=torch.float64)
        for k, (first, last) in enumerate(ranges):
            size = last - first + 1
            t = first + (chance[batch, k] * size).long().clamp(max=size - 1)
            times = t.to(device)
            xt = q_sample(schedule, x0, times, noise())
            prediction = with_variance(variance, predict(model, schedule, xt, times, clip))
            term = bound_term(schedule, x0, xt, times, prediction)[..., inner, inner].mean(dim=(1, 2, 3)).cpu().double()
            bits += size * term
            sums.index_add_(0, t - 1, term)
            visits.index_add_(0, t - 1, torch.ones_like(term))
            bar.update()
        return {"bits": bits, "prior": prior, "sums": sums, "visits": visits}

    with progress_bar(total=len(batches) * count, desc=title, unit="step", disable=not progress) as bar:
        parts = []
        for batch in batches:
            before = bar.n
            name = f"bound-{batch.start}-{batch.stop}-of-{len(images)}"
            parts.append(part(name, partial(measured, batch)))
            if bar.n == before:  # it was known
                bar.total -= count
    bits, prior = (torch.cat([each[name] for each in parts]) for name in ("bits", "prior"))
    sums, visits = (sum(each[name] for each in parts) for name in ("sums", "visits"))
    return Likelihood(bits, sums / visits, prior.mean().item())
