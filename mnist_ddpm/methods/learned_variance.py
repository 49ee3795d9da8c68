"""Learned variances of the reverse steps (Improved DDPM, arXiv 2102.09672, Sections 3.1, 3.3).

The network has a second output v, of the shape of the first, from which comes the exponent
e = (v + 1) / 2 of each step's variance (LearnedDenoiser). L_simple does not depend on it, but the
bound does.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mnist_ddpm import ddpm
from mnist_ddpm.ddpm import Denoiser, Network, Objective, Schedule, Time, check, q_sample
from mnist_ddpm.methods.likelihood import bound_term
from mnist_ddpm.methods.predictions import EPS, Conversion, network_output, target, x0_and_eps

# A denoiser that also returns the exponent e of Improved DDPM, Eq. 15, from the network's output v:
# (x_t, t) to (x0_hat, eps_hat, e). The variance of a step is beta^e · beta-tilde^(1 - e).
LearnedDenoiser = Callable[[Tensor, Time], tuple[Tensor, Tensor, Tensor]]
Clip = Callable[[Denoiser, Schedule], Denoiser]  # as ddpm.clipped


def split_output(output: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    """An output (N, 2C, H, W) as the predicted value and the exponent, each (N, C, H, W)."""
    has_variance = output.shape[1] == 2 * channels
    check(has_variance, f"the network has {output.shape[1]} channels: it has learned no variance")
    value, v = output.chunk(2, dim=1)
    return value, (v + 1) / 2


def learned_denoiser(
    network: Network, schedule: Schedule, conversion: Conversion
) -> LearnedDenoiser:
    """The LearnedDenoiser of a network that has both outputs."""

    def denoise(xt: Tensor, t: Time) -> tuple[Tensor, Tensor, Tensor]:
        output = network_output(network, conversion, schedule, xt, t)
        value, exponent = split_output(output, xt.shape[1])
        return *x0_and_eps(conversion, schedule, xt, t, value), exponent

    return denoise


def without_exponent(denoise: LearnedDenoiser) -> Denoiser:
    """The denoiser without the exponent, for samplers that do not use the learned variance."""
    return lambda xt, t: denoise(xt, t)[:2]


def keeping_exponent(clip: Clip) -> Callable[[LearnedDenoiser, Schedule], LearnedDenoiser]:
    """Makes a clip such as ddpm.clipped work on LearnedDenoisers; the exponent stays as it is."""

    def clip_x0_and_eps(denoise: LearnedDenoiser, schedule: Schedule) -> LearnedDenoiser:
        def denoise_and_clip(xt: Tensor, t: Time) -> tuple[Tensor, Tensor, Tensor]:
            *x0_and_eps_hat, exponent = denoise(xt, t)
            clipped = clip(lambda xt, t: x0_and_eps_hat, schedule)
            return *clipped(xt, t), exponent

        return denoise_and_clip

    return clip_x0_and_eps


@torch.no_grad()
def ancestral_sampler(
    denoise, schedule, times, x, draw_noise, variance=ddpm.posterior_variance
) -> ddpm.States:
    """ddpm.ddpm_sampler, also for variances of (schedule, t, s, exponent of a LearnedDenoiser)."""
    for t, s in ddpm.transitions(times, schedule.T):
        x0_hat, _, *exponent = denoise(x, t)
        yield t, x, x0_hat
        x = ddpm.posterior_mean(schedule, x0_hat, x, t, s)
        if s > 0:
            x = x + variance(schedule, t, s, *exponent).sqrt().to(x) * draw_noise()
    yield 0, x, x


def learned_step_variance(
    schedule: Schedule, t: Time, s: Time, exponent: Tensor | None = None
) -> Tensor:
    """The variance (N, C, H, W) of a step from t to s with an exponent, for ancestral_sampler."""
    check(exponent is not None, "the denoiser has no variance: take posterior_variance")
    tiny = torch.finfo(torch.float64).tiny  # at s = 0 the posterior's variance is 0
    low, high = (
        ddpm.per_image(variance(schedule, t, s).clamp(min=tiny).log(), exponent)
        for variance in (ddpm.posterior_variance, ddpm.step_variance)
    )
    return (low + exponent * (high - low)).exp()


learned_step_variance.needs_exponent = True


def l_vlb(conversion: Conversion = EPS) -> Objective:
    """T L_{t-1} in bits/dim. Its mean over uniform t, plus the constant L_T, is the bound."""

    def objective(network: Network, schedule: Schedule, x0: Tensor, t: Tensor, eps: Tensor):
        xt = q_sample(schedule, x0, t, eps)
        x0_hat, _, exponent = learned_denoiser(network, schedule, conversion)(xt, t)
        return schedule.T * bound_term(schedule, x0, xt, t, x0_hat, exponent).mean(dim=(1, 2, 3))

    return objective


def l_hybrid(conversion: Conversion = EPS, weight: float = 0.001) -> Objective:
    """L_simple + weight · L_vlb (Eq. 16). L_vlb trains the variance alone: x0_hat is detached.

    There x0_hat is clipped, as in sampling. The authors' code does not clip it, so that early in
    training the errors at large t dominate.
    """

    def objective(network: Network, schedule: Schedule, x0: Tensor, t: Tensor, eps: Tensor):
        xt = q_sample(schedule, x0, t, eps)
        output = network_output(network, conversion, schedule, xt, t)
        value, exponent = split_output(output, xt.shape[1])
        wanted = target(conversion, schedule, x0, xt, t, eps)
        simple = (value - wanted).square().mean(dim=(1, 2, 3))
        x0_hat = conversion.to_x0(schedule, xt, t, value.detach()).clamp(-1, 1)
        term = bound_term(schedule, x0, xt, t, x0_hat, exponent).mean(dim=(1, 2, 3))
        return simple + weight * schedule.T * term

    return objective


class ImportanceTimes(nn.Module):
    """Draws t by the root mean square of its last 10 losses (Eq. 18), uniformly until it has 10."""

    def __init__(self, T: int, history: int = 10):
        super().__init__()
        self.register_buffer("losses", torch.zeros(T, history))
        self.register_buffer("seen", torch.zeros(T, dtype=torch.long))  # losses so far

    def probability(self) -> Tensor:
        """The probabilities of t = 1 … T, (T,)."""
        T, history = self.losses.shape
        if (self.seen < history).any():
            return torch.full((T,), 1 / T, device=self.losses.device)
        size = self.losses.square().mean(dim=1).sqrt()
        return 0.999 * size / size.sum() + 0.001 / T  # no t is forgotten

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Times (n,) and the weights of their losses, 1 / (T p_t)."""
        p = self.probability()
        index = torch.multinomial(p, n, replacement=True, generator=generator)
        return index + 1, 1 / (len(p) * p[index])

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Remembers the losses (N,) at times t (N,) in place of the oldest ones."""
        seen = self.seen.tolist()  # read and written once, since each access waits for the GPU
        for index, loss in zip((t - 1).tolist(), losses):
            self.losses[index, seen[index] % self.losses.shape[1]] = loss
            seen[index] += 1
        self.seen.copy_(torch.tensor(seen))
