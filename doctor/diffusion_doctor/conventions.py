"""Finds out how a code counts and scales: by trying, in its forward process and its sampler."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch

from diffusion_doctor.forward_checks import TOLERANCE, error_of, factors, probed_times
from diffusion_doctor.mathematics import CONVERSIONS
from diffusion_doctor.modules import find_module, in_mode
from diffusion_doctor.oracles import SamplerRun, probe_run
from diffusion_doctor.plain_functions import CALL_ERRORS
from diffusion_doctor.sampler_analysis import explain
from diffusion_doctor.sampler_results import RANGES, possible_ends
from diffusion_doctor.subject import Subject, levels_at

PREDICTIONS = tuple(CONVERSIONS)


def with_convention(subject: Subject, **changes: Any) -> Subject:
    """The subject with conventions that are known from now on."""
    conventions = replace(subject.conventions, **changes)
    return replace(subject, conventions=conventions, known=subject.known | changes.keys())


def find_conventions(subject: Subject, seed: int = 0) -> Subject:
    """The subject with all conventions that can be found out. Fixed ones stay."""
    if subject.network is not None and "is_flat" not in subject.known:
        subject = layout_of_network(subject)
    if subject.schedule is None or not subject.schedule.a.isfinite().all():
        return subject
    if subject.forward is not None and not {"first_time", "time"} <= subject.known:
        subject = time_of_forward(subject)
    if subject.sampler is not None and subject.conventions.prediction != "other":
        subject = conventions_of_sampler(subject, seed)
    return subject


def layout_of_network(subject: Subject) -> Subject:
    """Whether the network takes images or vectors, which it is tried on."""
    x = torch.zeros(2, *subject.shape)
    t = torch.ones(2, dtype=torch.long)
    module = find_module(subject.network)
    for is_flat in (False, True):
        shown = x.flatten(1) if is_flat else x
        try:
            with torch.no_grad(), nullcontext() if module is None else in_mode(module, False):
                output = subject.network(shown, t)
        except Exception:  # of any kind, in code that others wrote: the checks will show it
            continue
        if output.shape[2:] == shown.shape[2:]:
            return with_convention(subject, is_flat=is_flat)
    return subject


def time_of_forward(subject: Subject) -> Subject:
    """Whether the forward process counts from 0 or 1, or takes fractions or sigma.

    The sampler's first time is the same where both take an index. Without a sampler the network's
    time is that of the forward process.
    """
    best = None
    known = subject.known
    units = [subject.conventions.time] if "time" in known else ["index", "fraction", "sigma"]
    first_times = [subject.conventions.first_time] if "first_time" in known else [0, 1]
    for time in units:
        for first_time in first_times:
            changes = {"forward_first_time": first_time, "forward_time": time}
            tried = with_convention(subject, **changes)
            t = probed_times(subject.T)
            t = t[t < subject.T] if first_time else t  # an index may end at T - 1
            try:
                error = error_of(factors(tried, t), levels_at(subject.path, t))
            except CALL_ERRORS:
                continue
            if error <= TOLERANCE and (best is None or error < best[0]):
                best = error, tried
    if best is None:
        return subject
    subject = best[1]
    first_time, time = subject.conventions.forward_first_time, subject.conventions.forward_time
    if "first_time" not in subject.known and (time == "index" or subject.sampler is None):
        subject = with_convention(subject, first_time=first_time)
    if "time" not in subject.known and subject.sampler is None:
        subject = with_convention(subject, time=time)
    return subject


def natural_first_time(subject: Subject, run: SamplerRun) -> int:
    """0 or 1, from the times of a sampler's calls: 0 if 0 is among them, 1 if T is."""
    is_fraction = subject.conventions.time == "fraction"
    code_times = run.code_times * (subject.divisor if is_fraction else 1)
    if code_times.min() < 0.5:
        return 0
    return 1 if code_times.max() > subject.T - 0.5 else subject.conventions.first_time


def likely_divisors(subject: Subject, run: SamplerRun) -> list[int | None]:
    """T (None) and T - 1, first that which makes whole numbers of the calls' fractions."""

    def error(divisor: int | None) -> float:
        index = run.code_times * (divisor or subject.T)
        return (index - index.round()).abs().max().item()

    return sorted([None, subject.T - 1], key=error) if subject.T > 2 else [None]


def time_unit(subject: Subject, run: SamplerRun) -> str:
    """Whether the times of a sampler's calls are indices, fractions or sigmas."""
    code_times = run.code_times
    is_whole = bool((code_times == code_times.round()).all())
    if code_times.max() <= 1 and not is_whole and len(code_times) > 1:
        return "fraction"
    sigma = subject.schedule.b / subject.schedule.a
    if not is_whole and code_times.max() < subject.T / 2 and code_times.max() <= 1.01 * sigma[-1]:
        return "sigma"
    return "index"


def tried_conventions(subject: Subject, run: SamplerRun) -> Iterator[Subject]:
    """Subjects to try on a sampler, the likeliest first. run: of a first try."""
    likely = time_unit(subject, run)
    units = [subject.conventions.time] if "time" in subject.known else [likely]
    if "time" not in subject.known and likely != "index":
        units.append("sigma" if likely == "fraction" else "fraction")
    known = subject.known
    for unit in units:
        subject = replace(with_convention(subject, time=unit), known=known | {"time"})
        is_known = "prediction" in known
        predictions = [subject.conventions.prediction] if is_known else PREDICTIONS
        divisors = likely_divisors(subject, run) if unit == "fraction" else [None]
        for divisor in divisors:
            subject = with_convention(subject, divisor=divisor)
            is_likely = unit == units[0] and divisor == divisors[0]
            for first_time in likely_first_times(subject, run, known):
                for prediction in predictions if is_likely else ["eps"]:
                    yield with_convention(subject, first_time=first_time, prediction=prediction)


def likely_first_times(subject: Subject, run: SamplerRun, known: frozenset[str]) -> list[int]:
    """0 and 1, the likelier first; the one that is known."""
    conventions = subject.conventions
    is_of_forward = conventions.forward_time in (None, conventions.time)
    if "first_time" in known and is_of_forward:
        return [conventions.first_time]
    natural = natural_first_time(subject, run)
    return [natural] if conventions.time == "sigma" else [natural, 1 - natural]


def conventions_of_sampler(subject: Subject, seed: int) -> Subject:
    """Prediction, first time and range that explain a sampler by right formulas, or by wrong ones.

    Where nothing explains it, what is usual: eps, times from the sampler's own.
    """
    tries = list(tried_conventions(subject, probe_run(subject, seed)))
    for with_bugs in (False, True):
        for tried in tries:
            run = probe_run(tried, seed)
            candidates = explain(tried, run, with_bugs)
            if candidates and candidates[0].fits:
                return with_range(tried, run, candidates[0])
    tried = replace(tries[0], known=subject.known)
    return with_range(tried, probe_run(tried, seed), None)


def with_range(subject: Subject, run: SamplerRun, best) -> Subject:
    """The subject with the range in which the sampler returns images."""
    if "output_range" in subject.known or run.images is None:
        return subject
    errors = {}
    for output_range in RANGES:
        tried = with_convention(subject, output_range=output_range)
        errors[output_range] = min(end.error for end in possible_ends(tried, run, best))
    chosen = min(errors, key=errors.get)
    return with_convention(subject, output_range=chosen)
