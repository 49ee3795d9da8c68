"""Checks of a sampler: what it asks the network, each step's formula, its noise, and its result."""

import math

from torch import Tensor

from diffusion_doctor.measured_steps import measure_steps, uses_predictions_before
from diffusion_doctor.oracles import SamplerRun, probe_run
from diffusion_doctor.report import Check
from diffusion_doctor.sampler_analysis import (
    Candidate,
    clippings,
    examined_steps,
    explain,
    judge,
    steps_seen,
    views,
    with_mixed_times,
)
from diffusion_doctor.sampler_formulas import RIGHT, ddpm_step
from diffusion_doctor.sampler_results import Z, check_clipping, check_end, check_result, ends_well
from diffusion_doctor.subject import CheckEntry, Subject

UNKNOWN = "no formula that this program knows"
CLAMPED = 0.02  # share of pixels of x_t at its bounds from which it counts as clamped
SHARED = 0.5  # correlation of two images' noise from which it counts as the same


def sampler_checks(subject: Subject, seed: int) -> list[Check]:
    """All checks of the sampler with probes and an exact network."""
    if subject.conventions.prediction == "other":
        meaning = "the network predicts what no exact network here can"
        return [Check("sampler", "not checked", meaning)]
    run = probe_run(subject, seed)
    best = explain_run(subject, run)
    clipped_run = probe_run(subject, seed, size=1.6)
    result = check_result(subject, seed)
    return [
        check_times_of_calls(subject, run),
        check_start(subject, run),
        check_formula(subject, run, best, result),
        check_noise_of_batch(subject, run, best),
        check_end(subject, run, best, seed),
        check_clipping(subject, clipped_run, best),
        result,
    ]


SAMPLER_ENTRY = CheckEntry("sampler", ("sampler", "schedule"), sampler_checks)


def explain_run(subject: Subject, run: SamplerRun) -> list[Candidate]:
    """The candidates for a run, the best first."""
    candidates = explain(subject, run)
    has_end = run.images is not None
    if has_end and candidates and candidates[0].fits and not ends_well(subject, run, candidates[0]):
        mixed = with_mixed_times(subject, run)
        return [each for each in mixed if ends_well(subject, run, each)] or candidates
    return candidates


def check_times_of_calls(subject: Subject, run: SamplerRun) -> Check:
    """Whether the network gets falling times of the schedule, from noise to image."""
    name = "sampler: times of the network's calls"
    entries = subject.entries(run.code_times)
    T = subject.T
    shown = f"{run.code_times[0]:g} … {run.code_times[-1]:g} in {len(run.code_times)} calls"
    if not run.has_one_time or not entries.isfinite().all():
        return Check(name, "undecided", f"images of one batch have different times ({shown})")
    if (entries.max() > T + 1e-6 or entries.min() < 1 - 1e-6) and len(entries) > 1:
        first = subject.conventions.first_time
        meaning = f"{shown}, but times run from {first} to {T - 1 + first}"
        is_close = entries.max() < T + 2 and entries.min() >= -1
        evidence = {"network-time": 0.9} if is_close else {"unit-time": 0.5, "respacing": 0.3}
        far = max(entries.max().item() - T, 1 - entries.min().item())
        return Check(name, "wrong", meaning, far, 0.0, evidence)
    rises = (entries[1:] - entries[:-1]).max().item() if len(entries) > 1 else -1.0
    if rises > 0 and entries[-1] > entries[0] and subject.conventions.time != "fraction":
        meaning = f"times rise while the noise falls ({shown}): is it the number of the step?"
        return Check(name, "wrong", meaning, rises, 0.0, {"network-time": 1.0})
    if rises > 0:
        meaning = f"times rise on the way ({shown}): right only for samplers that go back"
        return Check(name, "undecided", meaning, rises, 0.0)
    if len(entries) > 2 and entries[0] == entries[-1]:
        meaning = f"every call has the same time, {run.code_times[0]:g}"
        return Check(name, "wrong", meaning, 0.0, 1.0, {"one-time": 0.9})
    a_first, _ = subject.levels(run.code_times[:1])
    signal = a_first.item()
    limit = max(0.5, 1.5 * subject.schedule.a[-1].item())
    if signal > limit and subject.conventions.time != "sigma":
        meaning = f"noise is shown as if it were an image at t = {run.code_times[0]:g} ({shown})"
        return Check(name, "wrong", meaning, signal, limit, {"network-time": 0.6, "respacing": 0.4})
    meaning = f"they fall: {shown}"
    return Check(name, "ok", meaning, signal, limit)


def check_start(subject: Subject, run: SamplerRun) -> Check:
    """Whether sampling starts from normal noise of the right size."""
    name = "sampler: the noise it starts from"
    x = run.x[0].flatten()
    n = len(x)
    _, b_first = subject.levels(run.code_times[:1])
    expected = b_first.item()
    deviation = x.std().item() / expected
    mean = x.mean().item() / expected
    kurtosis = ((x - x.mean()) / x.std()).pow(4).mean().item()
    tolerance = Z * math.sqrt(2 / n) / 2 + 0.02
    is_normal = abs(kurtosis - 3) < Z * math.sqrt(24 / n) + 0.05
    if abs(mean) < Z / math.sqrt(n) + 0.01 and is_normal:
        larger = math.sqrt(1 + expected**2) / expected  # image and noise, where b is not 1
        sizes = {1.0, larger, 1 / expected} if expected < 1 else {1.0, larger}
        error = min(abs(deviation / size - 1) for size in sizes)
        if error < tolerance:
            return Check(name, "ok", "it is normal", deviation - 1, tolerance)
        meaning = f"its deviation is {deviation * expected:.3g} where {expected:.3g} is right"
        return Check(name, "wrong", meaning, deviation, 1 + tolerance, {"start-noise": 1.0})
    if not is_normal and kurtosis < 2.4:
        meaning = f"it is uniform, with mean {mean:.2f} and deviation {deviation:.2f}, not normal"
        return Check(name, "wrong", meaning, kurtosis, 3.0, {"uniform-noise": 1.0})
    meaning = (
        f"it is not normal: mean {mean:.2f}, deviation {deviation:.2f}, kurtosis {kurtosis:.1f}"
    )
    return Check(name, "undecided", meaning, kurtosis, 3.0)


def check_formula(
    subject: Subject, run: SamplerRun, candidates: list[Candidate], result: Check
) -> Check:
    """Which formula carries each x_t to the next."""
    name = "sampler: the formula of its steps"
    if not candidates:
        return Check(name, "not checked", "there is one step alone")
    best = candidates[0]
    if best.fits and best.bug is None:
        meaning = f"that of {best.description}"
        return Check(name, "ok", meaning, best.misfit, 1.0)
    if best.fits:
        fitting = [each for each in candidates if each.fits and each.bug]
        weights = likelihood_weights(fitting)
        meaning = f"each step is that of {best.description}"
        misfit = min((each.misfit for each in candidates if each.bug is None), default=None)
        return Check(name, "wrong", meaning, misfit, 1.0, weights)
    at_bounds = share_at_bounds(run)
    if at_bounds > CLAMPED:
        meaning = (
            f"x_t itself is clamped: {at_bounds:.0%} of its pixels are the least or the greatest"
        )
        return Check(name, "wrong", meaning, at_bounds, CLAMPED, {"clamped-state": 1.0})
    if is_noise_repeated(subject, run):
        meaning = "each step is DDPM's, with the same noise in all"
        return Check(name, "wrong", meaning, best.misfit, 1.0, {"repeated-noise": 1.0})
    noise = own_noise(subject, run)
    if noise is not None:
        return check_spread_of_noise(name, subject, *noise)
    meaning = first_departure(subject, run)
    if result.verdict == "ok" and meaning == UNKNOWN:
        return Check(name, "not checked", f"{UNKNOWN}, but the result is right")
    verdict = "wrong" if result.verdict == "wrong" else "undecided"
    return Check(name, verdict, meaning, best.misfit, 1.0)


def first_departure(subject: Subject, run: SamplerRun) -> str:
    """In words the first step that does not lead to an image at the next time, else UNKNOWN.

    UNKNOWN, too, where the steps use what was predicted before.
    """
    view = views(subject, run)[0]
    chosen = examined_steps(run)
    steps = steps_seen(subject, run, view, chosen, "none")
    wrong = [each for each in measure_steps(steps) if not each.is_right]
    if not wrong or uses_predictions_before(steps):
        return UNKNOWN
    code_time = run.code_times[chosen[wrong[0].number]].item()
    return f"at t = {code_time:g} the steps leave every formula: {wrong[0]}"


def share_at_bounds(run: SamplerRun) -> float:
    """How many pixels of the noisiest half of x_t, without the first, have its extreme values."""
    x = run.x[1 : max(2, len(run.x) // 2)]
    return ((x == x.min()) | (x == x.max())).double().mean().item()


def check_noise_of_batch(subject: Subject, run: SamplerRun, candidates: list[Candidate]) -> Check:
    """Whether each image of a batch starts from its own noise, and gets its own in each step."""
    name = "sampler: noise of a batch"
    n = run.x.shape[1]
    if n < 2:
        return Check(name, "not checked", "it draws one image")
    noises = {"it starts from": run.x[:1]}
    for best in candidates[:1]:
        steps = steps_seen(subject, run, best.view, examined_steps(run), best.clipping)
        mean, deviation = best.formula(steps)
        is_noisy = (deviation > 10 * steps.allowed).flatten().expand(len(steps.y))
        noises["its steps add"] = (steps.y - mean)[is_noisy]
    shared = 0.0
    for which, noise in noises.items():
        noise = noise / noise.norm(dim=2, keepdim=True).clamp(min=1e-30)
        correlation = (noise[:, :-1] * noise[:, 1:]).sum(2).mean().item() if len(noise) else 0.0
        shared = max(shared, correlation)
        if correlation > SHARED:
            meaning = f"the noise that {which} is the same for all images of a batch"
            return Check(name, "wrong", meaning, correlation, SHARED, {"shared-noise": 1.0})
    return Check(name, "ok", "each image has its own noise", shared, SHARED)


def is_noise_repeated(subject: Subject, run: SamplerRun) -> bool:
    """Whether what the steps have beside DDPM's means is the same from the first to the last."""
    view = views(subject, run)[0]
    for steps, _ in clippings(subject, run, view, examined_steps(run)):
        noise = (steps.y - ddpm_step(steps)[0]).flatten(1)
        noise = noise / noise.norm(dim=1, keepdim=True)
        if len(noise) > 2 and (noise @ noise[0]).min() > 0.99:
            return True
    return False


def own_noise(subject: Subject, run: SamplerRun) -> tuple[Tensor, Tensor, Tensor] | None:
    """The noise of steps whose means are DDPM's: each one's deviation, and the two right ones (K,).

    None where the means are others.
    """
    view = views(subject, run)[0]
    for steps, _ in clippings(subject, run, view, examined_steps(run)):
        mean, low = ddpm_step(steps)
        deviation = (steps.y - mean).square().mean((1, 2), True).sqrt()
        if judge(steps, lambda steps: (ddpm_step(steps)[0], deviation))[1] <= 1:  # noqa: B023
            high = RIGHT["DDPM, variance beta"](steps)[1]
            return deviation.flatten(), low.flatten(), high.flatten()
    return None


def check_spread_of_noise(
    name: str, subject: Subject, own: Tensor, low: Tensor, high: Tensor
) -> Check:
    """Whether the noise of DDPM's steps is between that of the posterior and that of beta (K,)."""
    share = ((own < 0.85 * low) | (own > 1.15 * high)).double().mean().item()
    if share <= 0.1:
        meaning = "each step is DDPM's, with a variance between the posterior's and beta"
        return Check(name, "ok", meaning, share, 0.1)
    meaning = "the means are DDPM's, but the noise is neither the posterior's nor beta's"
    return Check(
        name, "wrong", meaning, share, 0.1, {"posterior-variance": 1.0, "missing-sqrt": 0.3}
    )


def likelihood_weights(candidates: list[Candidate]) -> dict[str, float]:
    """For each bug its share of the likelihood, at least a tenth: all of them fit."""
    best = max(each.likelihood for each in candidates)
    weights: dict[str, float] = {}
    for each in candidates:
        weight = max(0.1, math.exp(max(-50.0, each.likelihood - best)))
        weights[each.bug] = max(weights.get(each.bug, 0.0), weight)
    return weights
