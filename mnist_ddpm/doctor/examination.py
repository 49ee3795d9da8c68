"""Examines diffusion code: all checks that have what they need, in one report."""

from dataclasses import fields
from typing import Any

from mnist_ddpm.doctor.report import Check, Report
from mnist_ddpm.doctor.subject import CheckEntry, Subject

ENTRIES: list[CheckEntry] = []


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
    posterior_variance: Any = None,
    shape: tuple[int, ...] = (1, 8, 8),
    steps: int = 50,
    seed: int = 0,
    places: dict[str, str] | None = None,
    **conventions: Any,
) -> Report:
    """What is wrong with diffusion code, as far as it is given.

    code: an object of a library that has several of the others: a scheduler or pipeline of
    diffusers, GaussianDiffusion, a Schedule of smalldiffusion, or a Subject.
    schedule: alpha_bar, beta or sigma as a table, or a function that returns one.
    forward: q_sample(x0, t, noise). sampler: sample(network, shape). network: model(x, t).
    guidance: guided(network, x, t, labels, scale). loss: loss(network, x0).
    training_step: step(x0). likelihood: bits(network, x0). Other argument orders are found by name.
    shape: of one image, for networks that take only one. steps: of a library's sampler.
    conventions: fixes fields of Conventions, such as prediction="v", that else are found out.
    """
    raise NotImplementedError


def examine_subject(subject: Subject, seed: int = 0) -> Report:
    """The report of a subject whose conventions are known."""
    checks = []
    for entry in ENTRIES:
        checks += run_checks(entry, subject, seed)
    return Report(checks, describe_conventions(subject))


def run_checks(entry: CheckEntry, subject: Subject, seed: int) -> list[Check]:
    """The checks of one entry, or why there are none."""
    names = {each.name for each in fields(Subject)}
    assert names >= {*entry.needs}, entry.needs
    missing = [name for name in entry.needs if getattr(subject, name) is None]
    if missing:
        return [Check(entry.name, "not checked", f"needs: {', '.join(missing)}")]
    return entry.function(subject, seed)


def describe_conventions(subject: Subject) -> dict[str, str]:
    """The subject's conventions, for the report."""
    return {name: str(value) for name, value in vars(subject.conventions).items()}
