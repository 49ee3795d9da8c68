"""Formulas of samplers with one bug each, as beginners write them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion_doctor.sampler_formulas import RIGHT, Formula, Steps, ddpm_step, posterior


class WrongFormula(NamedTuple):
    """A formula with one bug: a name in bugs.BUGS, and what is wrong in words."""

    bug: str
    description: str
    formula: Formula


@dataclass(frozen=True)
class Pieces:
    """alpha_bar at t and s, alpha and beta of the step (K, 1, 1): the names in every tutorial."""

    alpha_bar: Tensor
    alpha_bar_s: Tensor
    alpha: Tensor
    beta: Tensor

    @property
    def posterior(self) -> Tensor:
        """The posterior variance of these pieces."""
        return (self.beta * (1 - self.alpha_bar_s) / (1 - self.alpha_bar)).clamp(min=0)


Change = Callable[[Steps, Pieces], Pieces]
Mean = Callable[[Steps, Pieces], Tensor]
Deviation = Callable[[Steps, Pieces], Tensor]


def right_pieces(steps: Steps) -> Pieces:
    """The pieces on a path with a² + b² = 1."""
    (a_t, _), (a_s, _) = steps.now, steps.next
    alpha = (a_t / a_s) ** 2
    return Pieces(a_t**2, a_s**2, alpha, 1 - alpha)


def with_neighbour(entry: Callable[[Steps], Tensor]) -> Change:
    """alpha_bar of another entry where that of s belongs."""

    def change(steps: Steps, pieces: Pieces) -> Pieces:
        a, _ = steps.levels(entry(steps))
        return replace(pieces, alpha_bar_s=a**2)

    return change


def entry_after(steps: Steps) -> Tensor:
    """t + 1; 0, whose alpha_bar is 1, after the last, as a padding on the wrong side has it."""
    return torch.where(steps.t < steps.schedule.T, steps.t + 1, 0)


def identity(values: Tensor) -> Tensor:
    """The values, where a root belongs."""
    return values


def image_mean(steps: Steps, p: Pieces, x0_root=torch.sqrt, x_root=torch.sqrt) -> Tensor:
    """Eq. 7 of DDPM in x0_hat and x_t."""
    x0_weight = p.beta * x0_root(p.alpha_bar_s) / (1 - p.alpha_bar)
    x_weight = x_root(p.alpha) * (1 - p.alpha_bar_s) / (1 - p.alpha_bar)
    return x0_weight * steps.x0 + x_weight * steps.x


def noise_mean(weight: Callable, divisor: Callable = lambda p: p.alpha.sqrt()) -> Mean:
    """Algorithm 2 of DDPM, (x_t - weight eps_hat) / divisor; both are functions of the pieces."""
    return lambda steps, p: (steps.x - weight(p) * steps.eps) / divisor(p)


def right_weight(p: Pieces) -> Tensor:
    """beta / sqrt(1 - alpha_bar), of eps_hat in Algorithm 2."""
    return p.beta / (1 - p.alpha_bar).sqrt()


CHANGES: list[tuple[str, str, Change]] = [
    ("neighbour-padding", "alpha_bar of t + 1 as the neighbour", with_neighbour(entry_after)),
    ("neighbour-padding", "alpha_bar of t as its own neighbour", with_neighbour(lambda s: s.t)),
    ("neighbour-padding", "alpha_bar of s - 1 as the neighbour", with_neighbour(lambda s: s.s - 1)),
    ("respacing", "alpha_bar of t - 1 as the neighbour", with_neighbour(lambda s: s.t - 1)),
    (
        "alpha-for-alpha-bar",
        "alpha in the place of alpha_bar",
        lambda steps, p: replace(p, alpha_bar=p.alpha),
    ),
    (
        "alpha-for-alpha-bar",
        "alpha in the place of the neighbour's alpha_bar",
        lambda steps, p: replace(p, alpha_bar_s=p.alpha),
    ),
]
MEANS: list[tuple[str, str, Mean]] = [
    ("missing-sqrt", "alpha_bar of x0_hat without its root", partial(image_mean, x0_root=identity)),
    ("missing-sqrt", "alpha of x_t without its root", partial(image_mean, x_root=identity)),
    (
        "missing-sqrt",
        "1 - alpha_bar of eps_hat without its root",
        noise_mean(lambda p: p.beta / (1 - p.alpha_bar)),
    ),
    (
        "alpha-for-alpha-bar",
        "sqrt(1 - alpha) for eps_hat",
        noise_mean(lambda p: p.beta / (1 - p.alpha).sqrt()),
    ),
    ("missing-sqrt", "beta of eps_hat without a divisor", noise_mean(lambda p: p.beta)),
    (
        "alpha-for-alpha-bar",
        "1 - alpha_bar for beta",
        noise_mean(lambda p: (1 - p.alpha_bar) ** 0.5),
    ),
    (
        "missing-sqrt",
        "division by alpha without its root",
        noise_mean(right_weight, lambda p: p.alpha),
    ),
    (
        "alpha-for-alpha-bar",
        "division by the root of alpha_bar",
        noise_mean(right_weight, lambda p: p.alpha_bar.sqrt()),
    ),
]
NOISES: dict[str, Callable[[Pieces], Tensor]] = {
    "posterior variance": lambda p: p.posterior.sqrt(),
    "variance beta": lambda p: p.beta.clamp(min=0).sqrt(),
}


def posterior_of(times: Callable) -> Deviation:
    """The posterior's deviation of another step; times: of (t, s, t - s) to its t and s."""

    def deviation(steps: Steps, p: Pieces) -> Tensor:
        t, s = times(steps.t, steps.s, steps.t - steps.s)
        return posterior(replace(steps, t=t, s=s.clamp(min=0))).sqrt()

    return deviation


def posterior_after(change: Change) -> Deviation:
    """The posterior's deviation of changed pieces."""
    return lambda steps, p: change(steps, p).posterior.sqrt()


DEVIATIONS: list[tuple[str, str, Deviation]] = [
    *(
        (bug, f"posterior variance with {text}", posterior_after(each))
        for bug, text, each in CHANGES
    ),
    ("posterior-variance", "that of t - 1", posterior_of(lambda t, s, n: (t - 1, s - 1))),
    ("posterior-variance", "that of t + 1", posterior_of(lambda t, s, n: (t + 1, s + 1))),
    ("posterior-variance", "that of the step before", posterior_of(lambda t, s, n: (t + n, t))),
    ("posterior-variance", "that of the step after", posterior_of(lambda t, s, n: (s, s - n))),
    ("missing-sqrt", "beta, without the root", lambda s, p: p.beta),
    ("missing-sqrt", "the posterior variance, without the root", lambda s, p: p.posterior),
    ("alpha-for-alpha-bar", "sqrt(1 - alpha_bar)", lambda s, p: (1 - p.alpha_bar).sqrt()),
    (
        "posterior-variance",
        "its two alpha_bar swapped",
        lambda s, p: (p.beta * (1 - p.alpha_bar) / (1 - p.alpha_bar_s).clamp(min=1e-20)).sqrt(),
    ),
    ("no-noise", "none in any step", lambda s, p: 0 * p.beta),
]


def alpha_of_next(steps: Steps) -> Tensor:
    """alpha, not alpha_bar, of the time s."""
    a_s, _ = steps.next
    a_before, _ = steps.levels((steps.s - 1).clamp(min=0))
    return (a_s / a_before) ** 2


# Functions of (a_s, b_s, steps) to the factors of x0_hat and eps_hat
DDIM_CHANGES: list[tuple[str, str, Callable]] = [
    ("ddim-alpha", "alpha_bar of t in eps_hat's factor", lambda a, b, s: (a, s.now[1])),
    ("ddim-alpha", "alpha_bar of t in x0_hat's factor", lambda a, b, s: (s.now[0], b)),
    ("ddim-alpha", "alpha_bar of t + 1 for that of s", lambda a, b, s: s.levels(entry_after(s))),
    ("ddim-alpha", "alpha_bar of s - 1 for that of s", lambda a, b, s: s.levels(s.s - 1)),
    ("ddim-alpha", "alpha_bar of s + 1 for that of s", lambda a, b, s: s.levels(s.s + 1)),
    ("missing-sqrt", "alpha_bar without its root before x0_hat", lambda a, b, s: (a**2, b)),
    ("missing-sqrt", "1 - alpha_bar without its root before eps_hat", lambda a, b, s: (a, b**2)),
    ("missing-sqrt", "alpha_bar and 1 - alpha_bar without roots", lambda a, b, s: (a**2, b**2)),
    (
        "alpha-for-alpha-bar",
        "alpha in the place of alpha_bar",
        lambda a, b, s: (alpha_of_next(s).sqrt(), (1 - alpha_of_next(s)).sqrt()),
    ),
]
SIGMAS: list[tuple[str, str, dict]] = [
    ("ddim-alpha", "sigma² is not subtracted", {"is_subtracted": False}),
    ("missing-sqrt", "sigma without its root", {"root": identity}),
]


def changed_step(steps: Steps, mean: Mean, noise: Callable, change: Change = lambda steps, p: p):
    """DDPM's step with another mean, or with changed pieces in the mean and in its noise."""
    pieces = change(steps, right_pieces(steps))
    return mean(steps, pieces), noise(pieces)


def noisy_by(steps: Steps, deviation: Deviation):
    """DDPM's step with noise of another deviation."""
    return ddpm_step(steps)[0], deviation(steps, right_pieces(steps))


def changed_ddim(
    steps: Steps,
    change: Callable = lambda a_s, b_s, steps: (a_s, b_s),
    eta: float = 0.0,
    root: Callable = torch.sqrt,
    is_subtracted: bool = True,
):
    """DDIM's step with other factors of x0_hat and eps_hat, or another sigma."""
    signal, noise = change(*steps.next, steps)
    sigma = eta * root(posterior(steps))
    square = noise**2 - sigma**2 if is_subtracted else noise**2
    return signal * steps.x0 + square.clamp(min=0).sqrt() * steps.eps, sigma


def with_uniform_noise(steps: Steps, formula: Formula, low: float):
    """A right step whose noise is uniform between a number and 1 instead of normal."""
    mean, deviation = formula(steps)
    return mean + (low + 1) / 2 * deviation, (1 - low) / 12**0.5 * deviation


def ancestral_bugs() -> Iterator[WrongFormula]:
    """DDPM's step with one bug."""
    for name, noise in NOISES.items():
        for bug, text, change in CHANGES:
            formula = partial(changed_step, mean=image_mean, noise=noise, change=change)
            yield WrongFormula(bug, f"DDPM, {name}: {text}", formula)
        for bug, text, mean in MEANS:
            formula = partial(changed_step, mean=mean, noise=noise)
            yield WrongFormula(bug, f"DDPM, {name}: {text}", formula)
    for bug, text, deviation in DEVIATIONS:
        yield WrongFormula(bug, f"DDPM, its noise: {text}", partial(noisy_by, deviation=deviation))


def ddim_bugs() -> Iterator[WrongFormula]:
    """DDIM's step with one bug."""
    for bug, text, change in DDIM_CHANGES:
        for eta in (0.0, 1.0):
            yield WrongFormula(bug, f"DDIM: {text}", partial(changed_ddim, change=change, eta=eta))
    for bug, text, options in SIGMAS:
        for eta in (0.5, 1.0):
            yield WrongFormula(bug, f"DDIM: {text}", partial(changed_ddim, eta=eta, **options))


def noise_bugs() -> Iterator[WrongFormula]:
    """Right steps with torch.rand for torch.randn."""
    for name, formula in RIGHT.items():
        for low in (-1, 0):
            uniform = partial(with_uniform_noise, formula=formula, low=low)
            yield WrongFormula("uniform-noise", f"{name}: noise uniform in [{low}, 1]", uniform)


WRONG: list[WrongFormula] = [*ancestral_bugs(), *ddim_bugs(), *noise_bugs()]

# Wrong functions of (x, eps_hat, a_t, b_t, root of alpha) to x0_hat, where the network predicts eps
WRONG_X0: list[tuple[str, str, Callable]] = [
    ("missing-sqrt", "alpha_bar without its root", lambda x, eps, a, b, r: (x - b * eps) / a**2),
    (
        "missing-sqrt",
        "1 - alpha_bar without its root",
        lambda x, eps, a, b, r: (x - b**2 * eps) / a,
    ),
    ("missing-sqrt", "no roots", lambda x, eps, a, b, r: (x - b**2 * eps) / a**2),
    (
        "alpha-for-alpha-bar",
        "alpha in the place of alpha_bar",
        lambda x, eps, a, b, r: (x - (1 - r**2).clamp(min=0).sqrt() * eps) / r,
    ),
    ("alpha-for-alpha-bar", "alpha in the divisor", lambda x, eps, a, b, r: (x - b * eps) / r),
]
