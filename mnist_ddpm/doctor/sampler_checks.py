"""Checks of a sampler: what it asks the network, each step's formula, its noise, and its result."""

import math

from torch import Tensor

from mnist_ddpm.doctor.oracles import SamplerRun, probe_run
from mnist_ddpm.doctor.report import Check
from mnist_ddpm.doctor.sampler_analysis import (
    Candidate,
    clippings,
    examined_steps,
    explain,
    judge,
    steps_seen,
    views,
    with_mixed_times,
)
from mnist_ddpm.doctor.sampler_formulas import RIGHT, ddpm_step
from mnist_ddpm.doctor.sampler_results import check_clipping, check_end, check_result, possible_ends
from mnist_ddpm.doctor.subject import CheckEntry, Subject

Z = 5.0  # deviations that a mean of random numbers may have: one false alarm in two million


def sampler_checks(subject: Subject, seed: int) -> list[Check]:
    """All checks of the sampler with probes and an exact network."""
    if subject.conventions.prediction == "other":
        meaning = "the network predicts what no exact network here can"
        return [Check("sampler", "not checked", meaning)]
    run = probe_run(subject, seed)
    best = explain_run(subject, run)
    clipped_run = probe_run(subject, seed, size=1.6)
    result = check_result(subject, seed)
    checks = [
        check_times_of_calls(subject, run),
        check_start(subject, run),
        check_formula(subject, run, best, result),
        check_step_noise(subject, run, best),
        check_end(subject, run, best),
        check_clipping(subject, clipped_run, best),
        result,
    ]
    return [check for check in checks if check is not None]


SAMPLER_ENTRY = CheckEntry("sampler", ("schedule", "sampler"), sampler_checks)


def explain_run(subject: Subject, run: SamplerRun) -> list[Candidate]:
    """The candidates for a run, the best first. Noise shared by images is allowed for."""
    key = "explained", id(run), subject.conventions
    if key not in subject.cache:
        predictions = [subject.conventions.prediction]
        candidates = explain(subject, run, predictions)
        if candidates and not candidates[0].fits:
            pixels = run.x.shape[2]
            tolerant = explain(subject, run, predictions, False, independent=pixels)[0]
            if tolerant.fits and noise_statistics(subject, run, tolerant)["shared"] > 0.5:
                candidates = [tolerant]
        if candidates and candidates[0].fits and not ends_well(subject, run, candidates[0]):
            mixed = with_mixed_times(subject, run)
            better = [each for each in mixed if ends_well(subject, run, each)]
            candidates = better or candidates
        subject.cache[key] = candidates
    return subject.cache[key]


def ends_well(subject: Subject, run: SamplerRun, candidate: Candidate) -> bool:
    """Whether the last step goes to the image exactly, as this candidate explains the others."""
    ends = possible_ends(subject, run, candidate)[:2]
    return any(end.error <= end.allowed for end in ends)


def check_times_of_calls(subject: Subject, run: SamplerRun) -> Check:
    """Whether the network gets falling times of the schedule, from noise to image."""
    name = "sampler: times of the network's calls"
    place = subject.place("sampler")
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
        return Check(name, "wrong", meaning, far, 0.0, place, evidence=evidence)
    rises = (entries[1:] - entries[:-1]).max().item() if len(entries) > 1 else -1.0
    if rises > 0 and entries[-1] > entries[0] and subject.conventions.time != "fraction":
        meaning = f"times rise while the noise falls ({shown}): is it the number of the step?"
        place = subject.place("sampler")
        return Check(
            name, "wrong", meaning, rises, 0.0, where=place, evidence={"network-time": 1.0}
        )
    if rises > 0:
        meaning = f"times rise on the way ({shown}): right only for samplers that go back"
        return Check(name, "undecided", meaning, rises, 0.0, place)
    if len(entries) > 2 and entries[0] == entries[-1]:
        meaning = f"every call has the same time, {run.code_times[0]:g}"
        return Check(name, "wrong", meaning, 0.0, 1.0, place, evidence={"one-time": 0.9})
    a_first, _ = subject.levels(run.code_times[:1])
    signal = a_first.item()
    limit = max(0.5, 1.5 * subject.schedule.a[-1].item())
    if signal > limit and subject.conventions.time != "sigma":
        meaning = f"noise is shown as if it were an image at t = {run.code_times[0]:g} ({shown})"
        evidence = {"network-time": 0.6, "respacing": 0.4}
        return Check(name, "wrong", meaning, signal, limit, place, evidence=evidence)
    meaning = f"they fall: {shown}"
    return Check(name, "ok", meaning, signal, limit, place)


def check_start(subject: Subject, run: SamplerRun) -> Check:
    """Whether sampling starts from normal noise of the right size."""
    name = "sampler: the noise it starts from"
    place = subject.place("sampler")
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
            return Check(name, "ok", "it is normal", deviation - 1, tolerance, place)
        meaning = f"its deviation is {deviation * expected:.3g} where {expected:.3g} is right"
        return Check(
            name, "wrong", meaning, deviation, 1 + tolerance, place, evidence={"start-noise": 1.0}
        )
    if not is_normal and kurtosis < 2.4:
        meaning = f"it is uniform, with mean {mean:.2f} and deviation {deviation:.2f}, not normal"
        evidence = {"uniform-noise": 1.0}
        return Check(name, "wrong", meaning, kurtosis, 3.0, place, evidence=evidence)
    meaning = (
        f"it is not normal: mean {mean:.2f}, deviation {deviation:.2f}, kurtosis {kurtosis:.1f}"
    )
    return Check(name, "undecided", meaning, kurtosis, 3.0, place)


def check_formula(
    subject: Subject, run: SamplerRun, candidates: list[Candidate], result: Check
) -> Check:
    """Which formula carries each x_t to the next."""
    name = "sampler: the formula of its steps"
    place = subject.place("sampler")
    if not candidates:
        return Check(name, "not checked", "there is one step alone", where=place)
    best = candidates[0]
    if best.fits and best.bug is None:
        meaning = f"that of {best.description}"
        return Check(name, "ok", meaning, best.misfit, 1.0, place)
    if best.fits:
        fitting = [each for each in candidates if each.fits and each.bug]
        weights = likelihood_weights(fitting)
        meaning = f"each step is that of {best.description}"
        return Check(
            name, "wrong", meaning, misfit_of_right(candidates), 1.0, place, evidence=weights
        )
    noise = own_noise(subject, run)
    if noise is not None:
        return check_spread_of_noise(name, subject, *noise)
    if result.verdict == "ok":
        meaning = "no formula that this program knows, but the result is right"
        return Check(name, "ok", meaning, result.value, result.tolerance, place)
    meaning = f"no formula that this program knows; the closest is {best.description}"
    verdict = "wrong" if result.verdict == "wrong" else "undecided"
    bugs = list(dict.fromkeys(each.bug for each in candidates[:12] if each.bug))
    near = {bug: 0.4 / (k + 1) for k, bug in enumerate(bugs[:3])}
    return Check(name, verdict, meaning, best.misfit, 1.0, place, evidence=near)


def own_noise(subject: Subject, run: SamplerRun) -> tuple[Tensor, Tensor, Tensor] | None:
    """The noise of steps whose means are DDPM's: each one's deviation, and the two right ones (K,).

    None where the means are others.
    """
    view = views(subject, run)[0]
    prediction = subject.conventions.prediction
    for steps, _ in clippings(subject, run, view, prediction, examined_steps(run)):
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
    place = subject.place("sampler")
    share = ((own < 0.85 * low) | (own > 1.15 * high)).double().mean().item()
    if share <= 0.1:
        meaning = "each step is DDPM's, with a variance between the posterior's and beta"
        return Check(name, "ok", meaning, share, 0.1, place)
    meaning = "the means are DDPM's, but the noise is neither the posterior's nor beta's"
    evidence = {"posterior-variance": 1.0, "missing-sqrt": 0.3}
    return Check(name, "wrong", meaning, share, 0.1, where=place, evidence=evidence)


def misfit_of_right(candidates: list[Candidate]) -> float | None:
    """The smallest misfit of a right formula, if any is among the candidates."""
    return min((each.misfit for each in candidates if each.bug is None), default=None)


def likelihood_weights(candidates: list[Candidate]) -> dict[str, float]:
    """For each bug its share of the likelihood, at least a tenth: all of them fit."""
    best = max(each.likelihood for each in candidates)
    weights: dict[str, float] = {}
    for each in candidates:
        weight = max(0.1, math.exp(max(-50.0, each.likelihood - best)))
        weights[each.bug] = max(weights.get(each.bug, 0.0), weight)
    return weights


def noise_statistics(subject: Subject, run: SamplerRun, best: Candidate) -> dict[str, float]:
    """Of the steps' noise, divided by its deviation: kurtosis, and how much images share."""
    chosen = examined_steps(run)
    steps = steps_seen(subject, run, best.view, best.prediction, chosen, best.clipping)
    mean, deviation = best.formula(steps)
    is_noisy = (deviation > 10 * steps.allowed).flatten()
    if not is_noisy.any():
        return {"steps": 0, "kurtosis": 3.0, "shared": 0.0, "repeated": 0.0, "pixels": 1}
    noise = ((steps.y - mean) / deviation)[is_noisy]
    scale = noise.square().mean()
    follows = (chosen[is_noisy][1:] - chosen[is_noisy][:-1]) == 1
    repeated = (noise[1:] * noise[:-1]).mean((1, 2))[follows]
    return {
        "steps": len(noise),
        "pixels": noise.numel(),
        "kurtosis": (noise.pow(4).mean() / scale**2).item(),
        "shared": (noise.mean(1).square().mean() / scale).item() if noise.shape[1] > 1 else 0.0,
        "repeated": (repeated.mean() / scale).item() if len(repeated) else 0.0,
    }


def check_step_noise(
    subject: Subject, run: SamplerRun, candidates: list[Candidate]
) -> Check | None:
    """Whether the noise of the steps is normal, and each image's and step's its own."""
    if not candidates or not candidates[0].fits or candidates[0].bug == "uniform-noise":
        return None
    name = "sampler: the noise of its steps"
    place = subject.place("sampler")
    statistics = noise_statistics(subject, run, candidates[0])
    if not statistics["steps"]:
        return Check(name, "ok", "there is none", where=place)
    if statistics["shared"] > 0.5:
        meaning = "all images of a batch get the same noise"
        evidence = {"shared-noise": 1.0}
        return Check(name, "wrong", meaning, statistics["shared"], 0.5, place, evidence=evidence)
    if statistics["repeated"] > 0.5:
        meaning = "every step gets the same noise"
        evidence = {"repeated-noise": 1.0}
        return Check(name, "wrong", meaning, statistics["repeated"], 0.5, place, evidence=evidence)
    tolerance = Z * math.sqrt(24 / statistics["pixels"]) + 0.05
    excess = statistics["kurtosis"] - 3
    if abs(excess) > tolerance:
        meaning = f"it is not normal: its kurtosis is {statistics['kurtosis']:.2f}, not 3"
        return Check(name, "undecided", meaning, excess, tolerance, place)
    return Check(name, "ok", "it is normal", excess, tolerance, place)
