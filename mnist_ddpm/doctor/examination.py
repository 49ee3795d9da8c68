"""Examines diffusion code: all checks that have what they need, in one report."""

from dataclasses import replace
from typing import Any

import torch

from mnist_ddpm.doctor.foreign_code import users_lines
from mnist_ddpm.doctor.forward_checks import FORWARD_ENTRY
from mnist_ddpm.doctor.guidance_checks import GUIDANCE_ENTRY
from mnist_ddpm.doctor.learning_entries import LEARNING_ENTRIES
from mnist_ddpm.doctor.report import Check, Report
from mnist_ddpm.doctor.sampler_checks import SAMPLER_ENTRY
from mnist_ddpm.doctor.schedule_checks import SCHEDULE_ENTRY
from mnist_ddpm.doctor.subject import CheckEntry, Subject
from mnist_ddpm.doctor.subject_building import build_subject
from mnist_ddpm.networks import seeded

ENTRIES: list[CheckEntry] = [
    SCHEDULE_ENTRY,
    FORWARD_ENTRY,
    SAMPLER_ENTRY,
    GUIDANCE_ENTRY,
    *LEARNING_ENTRIES,
]
TIMES = {"index": "an index", "fraction": "a fraction of T", "sigma": "sigma"}


def examine(
    code: Any = None,
    *,
    schedule: Any = None,
    forward: Any = None,
    sampler: Any = None,
    network: Any = None,
    averaged_network: Any = None,
    guidance: Any = None,
    loss: Any = None,
    training_step: Any = None,
    data: Any = None,
    likelihood: Any = None,
    clips: bool | None = None,
    shape: tuple[int, ...] = (1, 16, 16),
    steps: int = 50,
    seed: int = 0,
    places: dict[str, str] | None = None,
    **conventions: Any,
) -> Report:
    """What is wrong with diffusion code, as far as it is given.

    code: an object of a library that has several of the others: a scheduler or pipeline of
    diffusers, GaussianDiffusion, a Schedule of smalldiffusion, a denoiser of k-diffusion, a
    Schedule of this package, or a Subject.
    schedule: alpha_bar, beta or sigma as a table, or a function that returns one.
    forward: q_sample(x0, t, noise). sampler: sample(network, shape). network: model(x, t).
    guidance: guided(network, x, t, labels, scale). loss: loss(network, x0).
    training_step: step(x0). likelihood: bits(network, x0). Other argument orders are found by name.
    clips: whether the sampler is meant to clip x0_hat; None: either will do.
    shape: of one image, for networks that take only one. steps: of a library's sampler.
    places: the user's names for these, for the report.
    conventions: fixes fields of Conventions, such as prediction="v", that else are found out.
    """
    functions = {
        "schedule": schedule,
        "forward": forward,
        "sampler": sampler,
        "network": network,
        "averaged_network": averaged_network,
        "guidance": guidance,
        "loss": loss,
        "training_step": training_step,
        "data": data,
        "likelihood": likelihood,
    }
    options = {"clips": clips, "shape": shape, "steps": steps, "seed": seed, "places": places}
    with seeded(seed):  # the caller's random numbers go on afterwards
        return examine_subject(build_subject(code, functions, **options, **conventions), seed)


def examine_subject(subject: Subject, seed: int = 0) -> Report:
    """The report of a subject whose conventions are known."""
    checks = []
    for entry in ENTRIES:
        checks += run_checks(entry, subject, seed)
    return Report(checks, describe_conventions(subject))


def run_checks(entry: CheckEntry, subject: Subject, seed: int) -> list[Check]:
    """The checks of one entry, or why there are none. What the code raises is reported."""
    missing = [name for name in entry.needs if getattr(subject, name) is None]
    if missing:
        return [Check(entry.name, "not checked", f"needs: {', '.join(missing)}")]
    is_finite = subject.schedule is None or bool(subject.schedule.a.isfinite().all())
    if entry is not SCHEDULE_ENTRY and "schedule" in entry.needs and not is_finite:
        return [Check(entry.name, "not checked", "the schedule is not finite")]
    torch.manual_seed(seed)
    try:
        checks = entry.function(subject, seed)
    except Exception as error:  # of any kind, in code that others wrote
        meaning = "\n".join(["it could not be run:", *users_lines(error)])
        checks = [Check(entry.name, "undecided", meaning)]
    place = subject.places.get(entry.needs[0], entry.needs[0])
    return [replace(c, where=f"{place}: {c.where}" if c.where else place) for c in checks]


def describe_conventions(subject: Subject) -> dict[str, str]:
    """The conventions that were found out or fixed, in words."""
    conventions = subject.conventions
    words = {
        "first_time": ("first time", f"t counts from {conventions.first_time}"),
        "time": ("time", f"the network gets t as {TIMES[conventions.time]}"),
        "prediction": ("prediction", f"the network predicts {conventions.prediction}"),
        "output_range": (
            "range",
            "the sampler returns {:g} … {:g}".format(*conventions.output_range),
        ),
    }
    if conventions.is_flat:
        words["is_flat"] = "layout", "the network takes images as vectors"
    return {key: text for name, (key, text) in words.items() if name in subject.known}
