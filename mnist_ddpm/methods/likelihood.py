"""The variational bound on the negative log-likelihood, in bits per dimension (DDPM, Eq. 5, 13)."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from mnist_ddpm import ddpm
from mnist_ddpm.ddpm import Denoiser, Schedule, check, per_image, posterior_mean, q_sample
from mnist_ddpm.methods.schedules import quadratic_times


def gaussian_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor):
    """KL(N(mean1, variance1) || N(mean2, variance2)) of each element, in nats."""
    log_ratio = log_variance2 - log_variance1
    distance = (mean1 - mean2).square() * torch.exp(-log_variance2)
    return 0.5 * (log_ratio + torch.exp(-log_ratio) - 1 + distance)


def log_ndtr(x: Tensor) -> Tensor:
    """log of the normal distribution function."""
    if x.device.type == "mps":  # where PyTorch does not have it
        return torch.special.log_ndtr(x.cpu()).to(x.device)
    return torch.special.log_ndtr(x)


def discretised_log_likelihood(x0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """log P of each 8-bit value, in nats: a Gaussian's mass between its neighbours (Eq. 13).

    x0 is on the 256 levels of [-1, 1], each 2/255 wide; the first and last reach to infinity.
    """
    deviation = torch.exp(0.5 * log_variance)
    upper = ((x0 + 1 / 255 - mean) / deviation).masked_fill(x0 > 0.999, math.inf)
    lower = ((x0 - 1 / 255 - mean) / deviation).masked_fill(x0 < -0.999, -math.inf)
    flip = x0 > mean  # the smaller tail is the exact one
    upper, lower = torch.where(flip, -lower, upper), torch.where(flip, -upper, lower)
    top = log_ndtr(upper)
    return top + torch.log(-torch.expm1((log_ndtr(lower) - top).clamp(max=-1e-30)))


def step_log_variance(schedule: Schedule, t: Tensor, exponent: Tensor) -> Tensor:
    """e log beta_t + (1 - e) log beta-tilde_t (Improved DDPM, Eq. 15), with t (N,), e (N, …).

    In the place of beta-tilde_1 = 0 stands the larger of beta-tilde_2 and beta_1 / 2, which matters
    where beta_2 is far below beta_1, as along log_snr; beta_1 where T is 1.
    """
    t = t.cpu()
    high = low = ddpm.step_variance(schedule, t, t - 1)
    if schedule.T > 1:
        later = t.clamp(min=2)
        low = ddpm.posterior_variance(schedule, later, later - 1)
        low = torch.where(t == 1, torch.maximum(low, high / 2), low)
    low, high = (per_image(variance.log(), exponent) for variance in (low, high))
    return low + exponent * (high - low)


def bound_term(
    schedule: Schedule, x0: Tensor, xt: Tensor, t: Tensor, x0_hat: Tensor, exponent: Tensor | float
) -> Tensor:
    """L_{t-1} of each pixel in bits (N, C, H, W) at times (N,): a step's KL, or the decoder's L_0.

    exponent: of the step's variance, a tensor where it is learned. With a fixed variance the
    decoder has that of e = 0, as in DDPM's code.
    """
    first = per_image(t == 1, xt).bool()
    if not isinstance(exponent, Tensor):
        exponent = torch.full_like(xt[:, :1, :1, :1], exponent).masked_fill(first, 0)
    log_variance = step_log_variance(schedule, t, exponent)
    true_mean = posterior_mean(schedule, x0, xt, t, t - 1)
    true_log_variance = step_log_variance(schedule, t, torch.zeros_like(exponent))
    mean = posterior_mean(schedule, x0_hat, xt, t, t - 1)
    kl = gaussian_kl(true_mean, true_log_variance, mean, log_variance)
    decoder = -discretised_log_likelihood(x0, mean, log_variance)
    return torch.where(first, decoder, kl) / math.log(2)


def prior_term(schedule: Schedule, x0: Tensor) -> Tensor:
    """L_T of each pixel in bits (N, C, H, W): KL(q(x_T | x_0) || N(0, I))."""
    a_T, b_T = schedule.at(schedule.T)
    zero = torch.zeros((), dtype=x0.dtype, device=x0.device)
    log_variance = per_image(2 * b_T.log(), x0)
    return gaussian_kl(per_image(a_T, x0) * x0, log_variance, zero, zero) / math.log(2)


class Bound(NamedTuple):
    """Bounds in bits/dim."""

    bits: Tensor  # of each image (N,)
    terms: Tensor  # L_0 … L_{T-1}, mean over the images (T,); nan for a t that was never drawn
    prior: float  # L_T, mean over the images

    @property
    def mean(self) -> float:
        """The mean over the images."""
        return self.bits.mean().item()

    @property
    def standard_error(self) -> float:
        """The standard error of the mean."""
        return self.bits.std().item() / math.sqrt(len(self.bits))


def strata(T: int, count: int) -> Iterator[tuple[int, int]]:
    """1 … T in `count` ranges (first, last), short where t is small and terms fall quickly."""
    last = quadratic_times(T, count)[::-1]
    return zip([1, *(t + 1 for t in last)], last)


def batch_bound(
    denoise, schedule, images: Tensor, *, exponent, margin, fractions: Tensor, draw_noise, advance
) -> dict[str, Tensor]:
    """The bound of one batch: bits and prior of each image (B,), sums and visits of each t (T,).

    fractions (B, count) in [0, 1) choose each image's time in each of `count` ranges; advance() is
    called after each. The other options are those of bits_per_dim, margin as a pair.
    """
    x0 = ddpm.to_float(images)
    rows, columns = (slice(m, side - m) for m, side in zip(margin, images.shape[2:]))

    def mean(term: Tensor) -> Tensor:
        return term[..., rows, columns].mean(dim=(1, 2, 3)).cpu().double()

    prior = mean(prior_term(schedule, x0))
    bits = prior.clone()
    sums, visits = torch.zeros(2, schedule.T, dtype=torch.float64)
    for fraction, (first, last) in zip(fractions.T, strata(schedule.T, fractions.shape[1])):
        size = last - first + 1
        t = first + (fraction * size).long().clamp(max=size - 1)
        xt = q_sample(schedule, x0, t, draw_noise())
        x0_hat, _, *learned = denoise(xt, t)
        check(exponent is not None or bool(learned), "this denoiser has learned no variance")
        e = learned[0] if exponent is None else exponent
        term = mean(bound_term(schedule, x0, xt, t, x0_hat, e))
        bits += size * term
        sums.index_add_(0, t - 1, term)
        visits.index_add_(0, t - 1, torch.ones_like(term))
        advance()
    if not bits.isfinite().all():  # after the first batch, not after hours
        causes = "the network diverged, or the betas are too small"
        raise FloatingPointError(f"the bound of an image is not finite: {causes}")
    return {"bits": bits, "prior": prior, "sums": sums, "visits": visits}


@torch.no_grad()
def bits_per_dim(
    denoise: Denoiser,
    schedule: Schedule,
    images: Tensor,
    *,
    exponent: float | None = 0.0,
    times_per_image: int | None = None,
    margin: int | tuple[int, int] = 0,
    batch_size: int = 250,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable = ddpm.progress_bar,
    part: Callable = lambda name, work: work(),
) -> Bound:
    """The bound of uint8 images (N, C, H, W), by one draw of x_t at every t.

    exponent: a step's variance is beta^e · beta-tilde^(1 - e): 0 is the posterior's, 1 is beta,
    None the denoiser's, its third output. times_per_image: only so many t, one drawn from each of
    as many ranges: the same in expectation, with more noise. margin: pixels to leave out at each
    edge, or (above and below, left and right). The bound is then that of the inner pixels given
    the margin, noised by q at every t: for a known margin, such as MNIST's padding. part: called
    for each batch with a name and the work; returns the work's result, which it may have stored.
    Raises ValueError for a variance that the denoiser has not learned and options out of range,
    FloatingPointError for a bound that is not finite.
    """
    T = schedule.T
    n = len(images)
    margin = margin if isinstance(margin, tuple) else (margin, margin)
    count = T if times_per_image is None else times_per_image
    check(1 <= count <= T, f"times_per_image is {count}: take a number from 1 to T = {T}")
    has_pixels = all(0 <= 2 * m < side for m, side in zip(margin, images.shape[2:]))
    check(has_pixels, f"margin is {margin}: it leaves nothing of {tuple(images.shape[2:])} pixels")
    check(batch_size > 0, f"batch_size is {batch_size}: take a number from 1")
    check(0 <= seed < 2**32, f"seed is {seed}: take a number from 0 to 2^32 - 1")
    fractions = torch.zeros(n, 1).expand(-1, count)  # without effect where every t is taken
    if count < T:
        fractions = torch.rand(n, count, generator=torch.Generator().manual_seed(seed))
    batches = [range(first, min(n, first + batch_size)) for first in range(0, n, batch_size)]
    results = []
    total = len(batches) * count
    with progress(total=total, desc=f"bound of {n} images", unit="step") as bar:
        for batch in batches:
            bar_before = bar.n
            work = partial(
                batch_bound,
                denoise,
                schedule,
                images[batch.start : batch.stop].to(device),
                exponent=exponent,
                margin=margin,
                fractions=fractions[batch],
                draw_noise=ddpm.noise_source(seed, batch, tuple(images.shape[1:]), device),
                advance=bar.update,
            )
            results.append(part(f"bound-{batch.start}-{batch.stop}-of-{n}", work))
            if bar.n == bar_before:  # the result was stored
                bar.total -= count
    joined = {name: [result[name] for result in results] for name in results[0]}
    terms = sum(joined["sums"]) / sum(joined["visits"])
    return Bound(torch.cat(joined["bits"]), terms, torch.cat(joined["prior"]).mean().item())
