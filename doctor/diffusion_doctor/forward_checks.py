"""Checks of a forward process: the factors of x_0 and of the noise at every time."""

import math

import torch
from torch import Tensor

from diffusion_doctor import mathematics
from diffusion_doctor.report import Check
from diffusion_doctor.subject import CheckEntry, Subject, levels_at

PROBED = 25  # times at which it is called
TOLERANCE = 2e-3


def forward_checks(subject: Subject, seed: int) -> list[Check]:
    """All checks of the forward process."""
    checks = [check_factors(subject)]
    return [*checks, check_own_noise(subject, seed)] if noise_is_ignored(subject) else checks


FORWARD_ENTRY = CheckEntry("forward", ("forward", "schedule"), forward_checks)


def probed_times(T: int) -> Tensor:
    """Times 1 … T (K,) at which a function is called: both ends, and more of the first."""
    fractions = torch.linspace(0, 1, PROBED, dtype=torch.float64) ** 2
    return (1 + fractions * (T - 1)).round().long().unique()


def call_forward(subject: Subject, x0: Tensor, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """x_t (N, …), float64, at our times (N,), and the noise in it: the code's, if it returns it."""
    with torch.no_grad():
        result = subject.forward(x0, subject.forward_times(t), noise)
    xt, *others = result if isinstance(result, (tuple, list)) else (result,)
    if others and isinstance(others[0], Tensor) and others[0].shape == noise.shape:
        noise = others[0]
    return xt.detach().double(), noise.detach().double()


def factors(subject: Subject, t: Tensor) -> tuple[Tensor, Tensor]:
    """The factors of x_0 and of the noise (K,) at our times (K,), by least squares."""
    generator = mathematics.random_generator(0, 1)
    x0, noise = torch.randn(2, len(t), *subject.shape, generator=generator)
    xt, noise = call_forward(subject, x0, t, noise)
    basis = torch.stack([x0.double().flatten(1), noise.flatten(1)], dim=2)
    solution = torch.linalg.lstsq(basis, xt.flatten(1)[:, :, None]).solution
    return solution[:, 0, 0], solution[:, 1, 0]


def error_of(measured: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> float:
    """The largest difference of two pairs of factors."""
    return max((one - other).abs().max().item() for one, other in zip(measured, right))


def check_factors(subject: Subject) -> Check:
    """Whether the factors are those of the schedule at the same times."""
    name = "forward: factors of x_0 and noise"
    t = probed_times(subject.T)
    measured = factors(subject, t)
    right = levels_at(subject.path, t)
    error = error_of(measured, right) / max(1.0, right[1].max().item())
    if error <= TOLERANCE:
        return Check(name, "ok", "they are those of the schedule", error, TOLERANCE)
    for bug, description, values in wrong_factors(subject, t):
        if error_of(measured, values) <= TOLERANCE:
            return Check(name, "wrong", description, error, TOLERANCE, {bug: 1.0})
    if noise_is_ignored(subject):
        meaning = "it takes no notice of the noise that it is given, or of x_0"
        return Check(name, "undecided", meaning, error, TOLERANCE)
    k = (measured[0] - right[0]).abs().argmax().item()
    shown = f"{measured[0][k]:.4f} x_0 + {measured[1][k]:.4f} eps"
    wanted = f"{right[0][k]:.4f} x_0 + {right[1][k]:.4f} eps"
    meaning = f"at t = {subject.forward_times(t)[k]:g} it gives {shown}, the schedule {wanted}"
    return Check(name, "wrong", meaning, error, TOLERANCE)


def wrong_factors(subject: Subject, t: Tensor) -> list[tuple[str, str, tuple[Tensor, Tensor]]]:
    """Factors with one bug: key, description, and the two factors (K,)."""
    a, b = levels_at(subject.schedule, t)
    a_before, _ = levels_at(subject.schedule, t - 1)
    alpha = (a / a_before) ** 2
    return [
        ("missing-sqrt", "alpha_bar and 1 - alpha_bar stand without their roots", (a**2, b**2)),
        ("missing-sqrt", "alpha_bar stands without its root", (a**2, b)),
        ("missing-sqrt", "1 - alpha_bar stands without its root", (a, b**2)),
        ("missing-sqrt", "1 - sqrt(alpha_bar) stands for sqrt(1 - alpha_bar)", (a, 1 - a)),
        ("alpha-for-alpha-bar", "alpha stands for alpha_bar", (alpha.sqrt(), (1 - alpha).sqrt())),
        ("alpha-for-alpha-bar", "alpha stands for alpha_bar of x_0", (alpha.sqrt(), b)),
        ("alpha-for-alpha-bar", "alpha stands for alpha_bar of eps", (a, (1 - alpha).sqrt())),
        ("swapped-factors", "the factors of x_0 and noise are swapped", (b, a)),
        ("one-time", "all images of a batch get the level of the first", (a[:1], b[:1])),
    ]


def noise_is_ignored(subject: Subject) -> bool:
    """Whether two calls with the same noise differ, or other noise changes nothing."""
    t = torch.full((2,), subject.T)
    zeros = torch.zeros(2, *subject.shape)
    first, _ = call_forward(subject, zeros, t, zeros)
    second, _ = call_forward(subject, zeros, t, zeros)
    other, _ = call_forward(subject, zeros, t, zeros + 1)
    return not torch.equal(first, second) or torch.equal(first, other)


def check_own_noise(subject: Subject, seed: int) -> Check:
    """Where the code draws its noise itself: whether that is normal."""
    name = "forward: the noise it draws"
    torch.manual_seed(seed)
    zeros = torch.zeros(256, *subject.shape)
    t = torch.full((256,), subject.T)
    noise = call_forward(subject, zeros, t, zeros)[0].flatten()
    scale = noise.std()
    kurtosis = ((noise - noise.mean()) / scale).pow(4).mean().item()
    tolerance = 5 * math.sqrt(24 / len(noise)) + 0.05
    if abs(kurtosis - 3) <= tolerance:
        return Check(name, "ok", "it is normal", kurtosis - 3, tolerance)
    meaning = f"it is not normal: mean {noise.mean():.2f}, kurtosis {kurtosis:.2f} instead of 3"
    evidence = {"uniform-noise": 1.0} if kurtosis < 2.4 else {}
    return Check(name, "wrong", meaning, kurtosis - 3, tolerance, evidence)
