"""Checks of what a sampler returns: its last step, its clipping, and exact results."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffusion_doctor import mathematics
from diffusion_doctor.foreign_code import users_lines
from diffusion_doctor.mathematics import Schedule
from diffusion_doctor.measured_steps import measure_steps
from diffusion_doctor.oracles import SamplerRun, gaussian_oracle, normal_x0_hat, run_sampler
from diffusion_doctor.report import Check
from diffusion_doctor.sampler_analysis import (
    CLIPPINGS,
    Candidate,
    examined_steps,
    judge,
    steps_seen,
    views,
)
from diffusion_doctor.sampler_formulas import Steps, ddpm_step
from diffusion_doctor.subject import Subject, levels_at
from diffusion_doctor.training_record import recorded_loss

Z = 5.0  # deviations that a mean of random numbers may have: one false alarm in two million
MEAN = 0.2  # of the normal data with which the result is judged
DEVIATION = 0.25
SEEN = 0.05  # deviation of a factor of the result
FAINT = 0.02  # deviation of noise that is left, in images from -1 to 1: 2.5 of 255 grey levels
DRAWN_TIMES = 10_000
# Of each range that a sampler may return, the factor and the shift to [-1, 1]
RANGES = {(-1.0, 1.0): (1.0, 0.0), (0.0, 1.0): (2.0, -1.0), (0.0, 255.0): (1 / 127.5, -1.0)}


@dataclass(frozen=True)
class End:
    """A way in which a sampler may end, how far the result is from it, and what is allowed."""

    meaning: str
    error: float  # root of the mean square
    allowed: float
    noise: float = 0.0  # deviation of the noise that is left


def in_range(subject: Subject, values: Tensor) -> Tensor:
    """What the sampler returned, in [-1, 1]."""
    factor, shift = RANGES[subject.conventions.output_range]
    return values * factor + shift


def last_step(subject: Subject, run: SamplerRun, best: Candidate | None, s: float) -> Steps:
    """The last step of a run, as one to the entry s."""
    view = best.view if best else views(subject, run)[0]
    view = replace(view, s=torch.cat([view.s[:-1], torch.tensor([s], dtype=torch.float64)]))
    last = torch.tensor([len(run.code_times) - 1])
    return steps_seen(subject, run, view, last, best.clipping if best else "none")


def possible_ends(subject: Subject, run: SamplerRun, best: Candidate | None) -> list[End]:
    """The right ends of a run, then those that stop short of the image."""
    formula = best.formula if best else ddpm_step
    result = in_range(subject, run.end)
    to_image = last_step(subject, run, best, 0.0)
    to_first = last_step(subject, run, best, 1.0)
    mean, _ = formula(to_image)
    early_mean, noise = formula(to_first)
    rounded = 0.01 if subject.conventions.output_range[1] > 1 else 0.0  # to 8 bits
    allowed = 3 * to_image.allowed.max().item() + rounded
    early = math.hypot(allowed, 1.2 * noise.max().item())
    (_, b_first), (_, b_last) = to_first.next, to_first.now
    ends = [
        ("it goes to the image, without noise", mean, allowed, 0.0),
        ("it returns the last x0_hat", to_image.x0, allowed, 0.0),
        ("it goes to the first time, not to the image", early_mean, early, b_first),
        ("its last call of the network changes nothing", to_image.x, allowed, b_last),
    ]
    return [
        End(meaning, (result - image[0]).square().mean().sqrt().item(), limit, float(noise))
        for meaning, image, limit, noise in ends
    ]


def ends_well(subject: Subject, run: SamplerRun, candidate: Candidate) -> bool:
    """Whether the last step goes to the image exactly, as this candidate explains the others."""
    ends = possible_ends(subject, run, candidate)[:2] if run.images is not None else ()
    return any(end.error <= end.allowed for end in ends)


def is_end_of_training(subject: Subject, code_time: float, seed: int) -> bool:
    """Whether this is the least t that training draws, as far as that is known."""
    try:
        if subject.times is not None:
            times = torch.as_tensor(subject.times(DRAWN_TIMES)).double()
        else:
            times = recorded_loss(subject, seed).times
    except Exception:  # of any kind, in code that others wrote: it is not known then
        return False
    return math.isclose(times.min().item(), code_time, abs_tol=1e-6)


def check_end(subject: Subject, run: SamplerRun, candidates: list[Candidate], seed: int) -> Check:
    """Whether the last step goes to the image itself, without noise."""
    name = "sampler: its last step"
    if run.images is None:
        return Check(name, "not checked", "it returns no images")
    best = candidates[0] if candidates and candidates[0].fits else None
    ends = possible_ends(subject, run, best)
    for end in ends[:2]:
        if end.error <= end.allowed:
            return Check(name, "ok", end.meaning, end.error, end.allowed)
    distance = ends[0].error
    allowed = ends[0].allowed
    for end in ends[2:]:
        if end.error <= end.allowed:
            meaning = f"{end.meaning}: noise of deviation {end.noise:.3f} is left"
            if best is None:
                return Check(name, "undecided", meaning, end.noise, 0.0)
            last_time = run.code_times[-1].item()
            if end.noise < FAINT and is_end_of_training(subject, last_time, seed):
                meaning = f"it ends at t = {last_time:g}, where training ends: {meaning}"
                return Check(name, "ok", meaning, end.noise, FAINT)
            if subject.conventions.time == "sigma" and end.noise < 0.1:
                return Check(name, "ok", meaning, end.noise, 0.1)
            evidence = {"early-end": 1.0}
            has_more = distance > 3 * end.noise  # than is left at the first time
            if has_more and is_noise_added(subject, run, best):
                meaning = f"noise of deviation {distance:.3f} is added to the image"
                evidence = {"last-noise": 1.0, "early-end": 0.5}
            return Check(name, "wrong", meaning, distance, allowed, evidence)
    if is_noise_added(subject, run, best):
        meaning = f"noise of deviation {distance:.3f} is added to the image"
        return Check(name, "wrong", meaning, distance, allowed, {"last-noise": 1.0})
    remaining = noise_left(subject, run, best, allowed) if best else None
    if remaining is not None:
        meaning = f"it stops before the image: noise of deviation {remaining:.3f} is left"
        return Check(name, "wrong", meaning, distance, allowed, {"early-end": 1.0})
    meaning = "the result is neither the last x0_hat nor what the formula of the steps gives"
    for step in measure_steps(last_step(subject, run, best, 0.0)) if best else ():
        is_sum = step.noise < allowed + SEEN
        if is_sum and max(abs(step.x0_factor - 1), abs(step.eps_factor)) > SEEN:
            meaning = f"its result is {step.x0_factor:.3f} x0_hat + {step.eps_factor:.3f} eps_hat"
            return Check(name, "wrong", f"{meaning}, not x0_hat", distance, allowed)
    return Check(name, "undecided", meaning, distance, allowed)


def noise_left(subject: Subject, run: SamplerRun, best: Candidate, allowed: float) -> float | None:
    """The noise that is left where the last step goes to an entry above 1, else None."""
    last = int(best.view.t[-1].ceil().item())
    for s in range(2, min(last, 200)):
        steps = last_step(subject, run, best, float(s))
        mean, deviation = best.formula(steps)
        error = (in_range(subject, run.end) - mean[0]).square().mean().sqrt().item()
        noise = math.hypot(deviation.max().item(), allowed / 3)
        chance = 0.02 + Z / math.sqrt(2 * mean.numel())
        is_exact = deviation.max() < 1e-6 and error <= allowed
        if is_exact or (deviation.max() > allowed and abs(error / noise - 1) < chance):
            return steps.next[1].item()
    return None


def is_noise_added(subject: Subject, run: SamplerRun, best: Candidate | None) -> bool:
    """Whether what the result has beside the last mean depends on nothing in the step."""
    steps = last_step(subject, run, best, 0.0)
    mean, _ = (best.formula if best else ddpm_step)(steps)
    error = in_range(subject, run.end) - mean[0]
    size = error.square().mean().sqrt()
    limit = Z / math.sqrt(error.numel()) + 0.05
    parts = (steps.x[0], steps.x0[0], steps.eps[0])
    shares = [(error * part).mean() / (size * part.square().mean().sqrt()) for part in parts]
    return bool(size < 1) and all(abs(share.item()) < limit for share in shares)


def check_clipping(subject: Subject, run: SamplerRun, candidates: list[Candidate]) -> Check:
    """What the sampler does with x0_hat outside [-1, 1]. run: with such a probe."""
    name = "sampler: clipping of x0_hat"
    if not candidates or not candidates[0].fits:
        meaning = "the formula of the steps is not known"
        return Check(name, "undecided", meaning)
    best = candidates[0]
    chosen = examined_steps(run)
    misfits = {}
    for clipping in CLIPPINGS:
        steps = steps_seen(subject, run, best.view, chosen, clipping)
        misfits[clipping] = judge(steps, best.formula)[1]
    clipping = min(misfits, key=misfits.get)
    if misfits[clipping] > 1:
        meaning = "x0_hat is changed outside [-1, 1], in no way that this program knows"
        return Check(name, "undecided", meaning, misfits[clipping], 1.0)
    if clipping == "with eps_hat to match":
        return Check(name, "ok", "x0_hat is clipped to [-1, 1]", misfits[clipping], 1.0)
    bug, meaning = {
        "none": ("no-clipping", "x0_hat is not clipped; pixels usually need it"),
        "with eps_hat as it was": ("stale-eps", "x0_hat is clipped, and eps_hat is not corrected"),
        "to [0, 1]": ("data-range", "x0_hat is clipped to [0, 1], where the noise has mean 0"),
    }[clipping]
    verdict = "wrong" if subject.clips else "undecided"
    if not subject.clips and clipping == "none":
        return Check(name, "ok", meaning, misfits[clipping], 1.0)
    value = misfits["with eps_hat to match"]
    return Check(name, verdict, meaning, value, 1.0, {bug: 0.8})


def normal_denoiser(schedule: Schedule) -> mathematics.Denoiser:
    """The exact denoiser of independent normal pixels with MEAN and DEVIATION."""

    def denoise(x: Tensor, t: int) -> tuple[Tensor, Tensor]:
        a_t, b_t = schedule.at(t)
        x0 = normal_x0_hat(x, a_t, b_t, MEAN, DEVIATION)
        return x0, mathematics.predict_eps(schedule, x, t, x0)

    return denoise


def reference_deviations(subject: Subject, code_times: Tensor, draw: Tensor) -> list[float]:
    """The deviation of normal data that our samplers draw at the same times, from this noise."""
    entries = subject.entries(code_times).unique(sorted=True).clamp(0, subject.T)
    entries = entries[entries > 0]
    a, b = levels_at(subject.path, entries)
    schedule = Schedule(torch.cat([torch.ones(1), a]), torch.cat([torch.zeros(1), b]))
    generator = torch.Generator().manual_seed(1)

    def noise() -> Tensor:
        return torch.randn(draw.shape, generator=generator, dtype=torch.float64)

    times = list(range(schedule.T, 0, -1))
    results = []
    for sampler in (mathematics.ddim_sampler, mathematics.ddpm_sampler):
        *_, (_, x, _) = sampler(normal_denoiser(schedule), schedule, times, draw, noise)
        results.append(x.std().item())
    return results


def check_result(subject: Subject, seed: int) -> Check:
    """Whether normal data come out with their mean and deviation, by an exact network.

    Allowed: chance, and twice the errors that DDIM and DDPM have at the same times.
    """
    name = "sampler: the distribution it draws"
    network = gaussian_oracle(subject, MEAN, DEVIATION)
    run = run_sampler(subject, network, subject.batch, seed + 1)
    if run.failure is not None:
        lines = users_lines(run.failure)
        return Check(name, "undecided", "\n".join(["it fails after its last step:", *lines]))
    if run.images is None:
        return Check(name, "not checked", "it returns no images")
    drawn = in_range(subject, run.end)
    n = drawn.numel()
    start = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(2)).double()
    start = start * run.x[0].std()
    error = max(
        abs(each - DEVIATION) for each in reference_deviations(subject, run.code_times, start)
    )
    deviation = drawn.std().item()
    mean = drawn.mean().item()
    tolerance = 2 * error + Z * DEVIATION / math.sqrt(2 * n) + 0.005
    off = max(abs(deviation - DEVIATION), abs(mean - MEAN) * 0.5)
    shown = f"data with mean {MEAN} and deviation {DEVIATION} come out with"
    meaning = f"{shown} {mean:.3f} and {deviation:.3f}"
    if not math.isfinite(off):
        return Check(name, "wrong", "images come out that are not finite", None, tolerance)
    if tolerance > DEVIATION:
        meaning += "; at these times right samplers are as far off"
        return Check(name, "undecided", meaning, off, tolerance)
    if off <= tolerance:
        return Check(name, "ok", meaning, off, tolerance)
    return Check(name, "wrong", meaning, off, tolerance)
