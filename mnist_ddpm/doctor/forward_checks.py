"""Checks of a forward process: the factors of x_0 and of the noise at every time."""

import math

import torch
from torch import Tensor

from mnist_ddpm import ddpm
from mnist_ddpm.doctor.report import Check
from mnist_ddpm.doctor.subject import CheckEntry, Subject, levels_at

PROBED = 25  # times at which it is called
TOLERANCE = 2e-3
IMAGES = 16


def forward_checks(subject: Subject, seed: int) -> list[Check]:
    """All checks of the forward process."""
    checks = [check_factors(subject), check_linear(subject, seed), check_own_time(subject)]
    if noise_is_ignored(subject):
        checks.append(check_own_noise(subject, seed))
    return checks


FORWARD_ENTRY = CheckEntry("forward", ("forward", "schedule"), forward_checks)


def probed_times(T: int) -> Tensor:
    """Times 1 … T (K,) at which a function is called: both ends, and more of the first."""
    fractions = torch.linspace(0, 1, PROBED, dtype=torch.float64) ** 2
    return (1 + fractions * (T - 1)).round().long().unique()


def call_forward(subject: Subject, x0: Tensor, t: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """x_t (N, …), float64, at our times (N,), and the noise in it: the code's, if it returns it."""
    with torch.no_grad():
        result = subject.forward(x0, subject.code_times(t), noise)
    xt, *others = result if isinstance(result, (tuple, list)) else (result,)
    if others and isinstance(others[0], Tensor) and others[0].shape == noise.shape:
        noise = others[0]
    return xt.detach().double(), noise.detach().double()


def factors(subject: Subject, t: Tensor) -> tuple[Tensor, Tensor]:
    """The factors of x_0 and of the noise (K,) at our times (K,), by least squares."""
    generator = ddpm.random_generator(0, 1)
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
    place = subject.place("forward")
    error = error_of(measured, right) / max(1.0, right[1].max().item())
    if error <= TOLERANCE:
        meaning = "they are those of the schedule"
        return Check(name, "ok", meaning, error, TOLERANCE, place)
    for bug, description, values in wrong_factors(subject, t):
        if error_of(measured, values) <= TOLERANCE:
            return Check(name, "wrong", description, error, TOLERANCE, place, evidence={bug: 1.0})
    if noise_is_ignored(subject):
        meaning = "it takes no notice of the noise that it is given, or of x_0"
        return Check(name, "undecided", meaning, error, TOLERANCE, place)
    k = (measured[0] - right[0]).abs().argmax().item()
    shown = f"{measured[0][k]:.4f} x_0 + {measured[1][k]:.4f} eps"
    wanted = f"{right[0][k]:.4f} x_0 + {right[1][k]:.4f} eps"
    meaning = f"at t = {subject.code_times(t)[k]:g} it gives {shown}, the schedule {wanted}"
    return Check(name, "wrong", meaning, error, TOLERANCE, place)


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
    ]


def noise_is_ignored(subject: Subject) -> bool:
    """Whether two calls with the same noise differ, or other noise changes nothing."""
    t = torch.full((2,), subject.T)
    zeros = torch.zeros(2, *subject.shape)
    first, _ = call_forward(subject, zeros, t, zeros)
    second, _ = call_forward(subject, zeros, t, zeros)
    other, _ = call_forward(subject, zeros, t, zeros + 1)
    return not torch.equal(first, second) or torch.equal(first, other)


def check_linear(subject: Subject, seed: int) -> Check:
    """Whether x_t is a sum of x_0 and noise, each pixel by itself, without other noise in it."""
    name = "forward: x_t is a sum of x_0 and noise"
    generator = ddpm.random_generator(seed, 1)
    x0, noise = torch.randn(2, IMAGES, *subject.shape, generator=generator)
    t = torch.randint(1, subject.T + 1, (IMAGES,), generator=generator)
    xt, noise = call_forward(subject, x0, t, noise)
    signal_factor, noise_factor = factors(subject, t)
    spread = (-1, *[1] * len(subject.shape))
    expected = signal_factor.view(spread) * x0 + noise_factor.view(spread) * noise
    place = subject.place("forward")
    if xt.shape != expected.shape:
        meaning = f"of images {tuple(x0.shape)} it makes {tuple(xt.shape)}"
        return Check(name, "wrong", meaning, where=place)
    size = max(1.0, expected.abs().max().item())
    error = (xt - expected).abs().max().item() / size
    if error <= TOLERANCE:
        return Check(name, "ok", "it is", error, TOLERANCE, place)
    remainder = (xt - expected).flatten()
    if noise_is_ignored(subject):
        return Check(name, "undecided", "it draws its noise itself", where=place)
    meaning = f"it is not: {remainder.std():.3g} of x_t is neither"
    return Check(name, "wrong", meaning, error, TOLERANCE, place)


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
    place = subject.place("forward")
    if abs(kurtosis - 3) <= tolerance:
        return Check(name, "ok", "it is normal", kurtosis - 3, tolerance, place)
    meaning = f"it is not normal: mean {noise.mean():.2f}, kurtosis {kurtosis:.2f} instead of 3"
    evidence = {"uniform-noise": 1.0} if kurtosis < 2.4 else {}
    return Check(name, "wrong", meaning, kurtosis - 3, tolerance, place, evidence=evidence)


def check_own_time(subject: Subject) -> Check:
    """Whether each image of a batch gets the noise level of its time."""
    name = "forward: each image has its own time"
    t = torch.tensor([1, subject.T // 2, subject.T])
    zeros = torch.zeros(3, *subject.shape)
    together, _ = call_forward(subject, zeros + 1, t, zeros)
    alone = torch.cat(
        [call_forward(subject, zeros[:1] + 1, t[k : k + 1], zeros[:1])[0] for k in range(3)]
    )
    error = (together - alone).abs().max().item()
    place = subject.place("forward")
    if noise_is_ignored(subject):
        return Check(name, "undecided", "it draws its noise itself", where=place)
    if error <= TOLERANCE:
        return Check(name, "ok", "it has", error, TOLERANCE, place)
    meaning = "an image alone and in a batch get another noise level"
    return Check(name, "wrong", meaning, error, TOLERANCE, place, evidence={"one-time": 1.0})
