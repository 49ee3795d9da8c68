"""Formulas of samplers with one bug each, as beginners write them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from mnist_ddpm.doctor.sampler_formulas import (
    RIGHT,
    Formula,
    Steps,
    ddim_step,
    ddpm_step,
    posterior,
)


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
NOISES: dict[str, Callable[[Pieces], Tensor]] = {
    "posterior variance": lambda p: p.posterior.sqrt(),
    "variance beta": lambda p: p.beta.clamp(min=0).sqrt(),
}


def image_form(steps: Steps, mean: Pieces, noise: Tensor, x0_root=torch.sqrt, x_root=torch.sqrt):
    """Eq. 7 of DDPM in x0_hat and x_t."""
    x0_weight = mean.beta * x0_root(mean.alpha_bar_s) / (1 - mean.alpha_bar)
    x_weight = x_root(mean.alpha) * (1 - mean.alpha_bar_s) / (1 - mean.alpha_bar)
    return x0_weight * steps.x0 + x_weight * steps.x, noise


def noise_form(steps: Steps, coefficient: Callable, noise: Callable, root=torch.sqrt):
    """Algorithm 2 of DDPM, (x_t - coefficient eps_hat) / root(alpha)."""
    pieces = right_pieces(steps)
    mean = (steps.x - coefficient(pieces) * steps.eps) / root(pieces.alpha)
    return mean, noise(pieces)


def divided_by_alpha_bar(steps: Steps, noise: Callable):
    """Algorithm 2 of DDPM with alpha_bar in the place of alpha before the bracket."""
    pieces = right_pieces(steps)
    eps_weight = pieces.beta / (1 - pieces.alpha_bar).sqrt()
    return (steps.x - eps_weight * steps.eps) / pieces.alpha_bar.sqrt(), noise(pieces)


def changed_mean(steps: Steps, change: Change, noise: Callable):
    """DDPM's step with changed pieces in the mean, and in the posterior variance where used."""
    pieces = change(steps, right_pieces(steps))
    return image_form(steps, pieces, noise(pieces))


def without_root(steps: Steps, noise: Callable, name: str):
    """DDPM's step where one root of the mean is missing: "x0_root" or "x_root"."""
    pieces = right_pieces(steps)
    return image_form(steps, pieces, noise(pieces), **{name: identity})


def changed_variance(steps: Steps, change: Change):
    """DDPM's step with changed pieces in the posterior variance alone."""
    pieces = right_pieces(steps)
    return image_form(steps, pieces, change(steps, pieces).posterior.sqrt())


def shifted_variance(steps: Steps, shift: int):
    """DDPM's step with the posterior variance of another time."""
    entries = {"t": steps.t + shift, "s": (steps.s + shift).clamp(min=0)}
    return ddpm_step(steps, lambda _: posterior(replace(steps, **entries)))


def variance_of_other_step(steps: Steps, is_later: bool):
    """DDPM's step with the posterior variance of the step before, or of the one that follows."""
    length = steps.t - steps.s
    if is_later:
        entries = {"t": steps.s, "s": (steps.s - length).clamp(min=0)}
    else:
        entries = {"t": steps.t + length, "s": steps.t}
    return ddpm_step(steps, lambda _: posterior(replace(steps, **entries)))


def noisy_by(steps: Steps, deviation: Callable[[Pieces], Tensor]):
    """DDPM's step with noise of another deviation."""
    mean, _ = ddpm_step(steps)
    return mean, deviation(right_pieces(steps))


def changed_ddim(steps: Steps, change: Callable[[Tensor, Tensor, Steps], tuple], eta: float = 0.0):
    """DDIM's step with other factors of x0_hat and eps_hat; change: of (a_s, b_s, steps)."""
    a_s, b_s = steps.next
    sigma = eta * posterior(steps).sqrt()
    signal, noise = change(a_s, b_s, steps)
    return signal * steps.x0 + (noise**2 - sigma**2).clamp(min=0).sqrt() * steps.eps, sigma


def without_subtraction(steps: Steps, eta: float):
    """DDIM's step with all of b_s eps_hat, and noise of sigma besides."""
    mean, _ = ddim_step(steps)
    return mean, eta * posterior(steps).sqrt()


def squared_sigma(steps: Steps, eta: float):
    """DDIM's step with the posterior variance as sigma."""
    a_s, b_s = steps.next
    sigma = eta * posterior(steps)
    return a_s * steps.x0 + (b_s**2 - sigma**2).clamp(min=0).sqrt() * steps.eps, sigma


def alpha_of_next(steps: Steps) -> Tensor:
    """alpha, not alpha_bar, of the time s."""
    a_s, _ = steps.next
    a_before, _ = steps.levels((steps.s - 1).clamp(min=0))
    return (a_s / a_before) ** 2


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
COEFFICIENTS: list[tuple[str, str, Callable[[Pieces], Tensor]]] = [
    ("missing-sqrt", "1 - alpha_bar without its root", lambda p: p.beta / (1 - p.alpha_bar)),
    ("alpha-for-alpha-bar", "sqrt(1 - alpha)", lambda p: p.beta / (1 - p.alpha).sqrt()),
    ("missing-sqrt", "beta without a divisor", lambda p: p.beta),
    ("alpha-for-alpha-bar", "1 - alpha_bar for beta", lambda p: (1 - p.alpha_bar).sqrt()),
]
DEVIATIONS: list[tuple[str, str, Callable[[Pieces], Tensor]]] = [
    ("missing-sqrt", "noise times beta, without the root", lambda p: p.beta),
    ("missing-sqrt", "noise times the posterior variance, without the root", lambda p: p.posterior),
    ("alpha-for-alpha-bar", "noise times sqrt(1 - alpha_bar)", lambda p: (1 - p.alpha_bar).sqrt()),
    (
        "posterior-variance",
        "a posterior variance with its two alpha_bar swapped",
        lambda p: (p.beta * (1 - p.alpha_bar) / (1 - p.alpha_bar_s).clamp(min=1e-20)).sqrt(),
    ),
    ("no-noise", "no noise in any step", lambda p: 0 * p.beta),
]


def identity(values: Tensor) -> Tensor:
    """The values, where a root belongs."""
    return values


def ancestral_bugs() -> list[WrongFormula]:
    """DDPM's step with one bug."""
    wrong = []
    for bug, description, change in CHANGES:
        for name, noise in NOISES.items():
            formula = partial(changed_mean, change=change, noise=noise)
            wrong.append(WrongFormula(bug, f"DDPM, {name}: {description}", formula))
        formula = partial(changed_variance, change=change)
        wrong.append(WrongFormula(bug, f"DDPM's posterior variance: {description}", formula))
    for name, noise in NOISES.items():
        for root, factor in (("x0_root", "alpha_bar of x0_hat"), ("x_root", "alpha of x_t")):
            formula = partial(without_root, noise=noise, name=root)
            description = f"DDPM, {name}: {factor} without its root"
            wrong.append(WrongFormula("missing-sqrt", description, formula))
    for shift in (-1, 1):
        formula = partial(shifted_variance, shift=shift)
        description = f"DDPM's posterior variance of t {shift:+}"
        wrong.append(WrongFormula("posterior-variance", description, formula))
    for is_later, side in ((False, "before"), (True, "after")):
        formula = partial(variance_of_other_step, is_later=is_later)
        description = f"DDPM's posterior variance of the step {side}"
        wrong.append(WrongFormula("posterior-variance", description, formula))
    for bug, description, deviation in DEVIATIONS:
        formula = partial(noisy_by, deviation=deviation)
        wrong.append(WrongFormula(bug, f"DDPM: {description}", formula))
    return wrong


def noise_form_bugs() -> list[WrongFormula]:
    """Algorithm 2 with one bug in the mean."""
    wrong = []
    for name, noise in NOISES.items():
        for bug, description, coefficient in COEFFICIENTS:
            formula = partial(noise_form, coefficient=coefficient, noise=noise)
            wrong.append(WrongFormula(bug, f"Algorithm 2, {name}: {description}", formula))
        right = lambda p: p.beta / (1 - p.alpha_bar).sqrt()  # noqa: E731
        formula = partial(noise_form, coefficient=right, noise=noise, root=identity)
        description = f"Algorithm 2, {name}: division by alpha without its root"
        wrong.append(WrongFormula("missing-sqrt", description, formula))
        formula = partial(divided_by_alpha_bar, noise=noise)
        description = f"Algorithm 2, {name}: division by the root of alpha_bar"
        wrong.append(WrongFormula("alpha-for-alpha-bar", description, formula))
    return wrong


def ddim_bugs() -> list[WrongFormula]:
    """DDIM's step with one bug."""
    wrong = []
    for bug, description, change in DDIM_CHANGES:
        for eta in (0.0, 1.0):
            formula = partial(changed_ddim, change=change, eta=eta)
            wrong.append(WrongFormula(bug, f"DDIM: {description}", formula))
    for eta in (0.5, 1.0):
        formula = partial(without_subtraction, eta=eta)
        wrong.append(WrongFormula("ddim-alpha", "DDIM: sigma² is not subtracted", formula))
        formula = partial(squared_sigma, eta=eta)
        wrong.append(WrongFormula("missing-sqrt", "DDIM: sigma without its root", formula))
    return wrong


def with_uniform_noise(steps: Steps, formula: Formula, low: float, high: float):
    """A right step whose noise is uniform between two numbers instead of normal."""
    mean, deviation = formula(steps)
    return mean + (low + high) / 2 * deviation, (high - low) / 12**0.5 * deviation


def noise_bugs() -> list[WrongFormula]:
    """Right steps with torch.rand for torch.randn."""
    wrong = []
    for name, formula in RIGHT.items():
        for low in (-1, 0):
            uniform = partial(with_uniform_noise, formula=formula, low=low, high=1)
            description = f"{name}: noise uniform in [{low}, 1]"
            wrong.append(WrongFormula("uniform-noise", description, uniform))
    return wrong


WRONG: list[WrongFormula] = [*ancestral_bugs(), *noise_form_bugs(), *ddim_bugs(), *noise_bugs()]

# Wrong functions of (x, eps_hat, a_t, b_t, alpha) to x0_hat, in codes whose network predicts eps
WRONG_X0: list[tuple[str, str, Callable]] = [
    (
        "missing-sqrt",
        "alpha_bar without its root",
        lambda x, eps, a, b, alpha: (x - b * eps) / a**2,
    ),
    (
        "missing-sqrt",
        "1 - alpha_bar without its root",
        lambda x, eps, a, b, alpha: (x - b**2 * eps) / a,
    ),
    ("missing-sqrt", "no roots", lambda x, eps, a, b, alpha: (x - b**2 * eps) / a**2),
    (
        "alpha-for-alpha-bar",
        "alpha in the place of alpha_bar",
        lambda x, eps, a, b, alpha: (x - (1 - alpha).clamp(min=0).sqrt() * eps) / alpha.sqrt(),
    ),
    (
        "alpha-for-alpha-bar",
        "alpha in the divisor",
        lambda x, eps, a, b, alpha: (x - b * eps) / alpha.sqrt(),
    ),
]
