"""Examines diffusion code: all checks that have what they need, in one report."""

import traceback
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from mnist_ddpm.ddpm import Schedule, check
from mnist_ddpm.doctor import plain_functions
from mnist_ddpm.doctor.conventions import find_conventions, with_convention
from mnist_ddpm.doctor.forward_checks import FORWARD_ENTRY
from mnist_ddpm.doctor.guidance_checks import GUIDANCE_ENTRY
from mnist_ddpm.doctor.libraries import from_library
from mnist_ddpm.doctor.report import Check, Report
from mnist_ddpm.doctor.sampler_checks import SAMPLER_ENTRY
from mnist_ddpm.doctor.schedule_checks import SCHEDULE_ENTRY
from mnist_ddpm.doctor.schedule_tables import (
    TABLE_NAMES,
    as_table,
    kind_of_table,
    named_tables,
    schedule_of,
)
from mnist_ddpm.doctor.subject import CheckEntry, Conventions, Subject

ENTRIES: list[CheckEntry] = [SCHEDULE_ENTRY, FORWARD_ENTRY, SAMPLER_ENTRY, GUIDANCE_ENTRY]
LONGEST = 10_000  # times of a forward process that are looked for, where there is no schedule


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
    shape: tuple[int, ...] = (1, 8, 8),
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
    values = {
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
    subject = build_subject(code, values, steps, shape, places or {})
    unknown = conventions.keys() - vars(Conventions()).keys()
    known = ", ".join(vars(Conventions()))
    check(not unknown, f"{', '.join(sorted(unknown))} is no convention: they are {known}")
    subject = with_convention(subject, **conventions)
    if clips is not None:
        subject = replace(subject, clips=clips)
    torch.manual_seed(seed)
    try:
        subject = find_conventions(subject, seed)
    except Exception:  # of any kind, in code that others wrote: the checks will show it
        subject = replace(subject, known=subject.known)
    return examine_subject(subject, seed)


def build_subject(
    code: Any, values: dict[str, Any], steps: int, shape: tuple[int, ...], places: dict[str, str]
) -> Subject:
    """The subject of what examine was given. Raises ValueError where it was given nothing."""
    check(
        code is not None or any(value is not None for value in values.values()),
        "there is nothing to examine: name a schedule, a forward process, a sampler or a network",
    )
    subject = Subject(shape=tuple(shape))
    for name, value in [("code", code), *values.items()]:
        library = None if value is None else from_library_or_none(name, value, steps, shape)
        if library is not None:
            subject = library
            values = values | {name: None}
    check(
        code is None or subject.schedule is not None,
        f"{type(code).__name__} is of no library that is known: name its functions one by one",
    )
    functions = [value for value in values.values() if callable(value)]
    tables = dict(subject.tables or {})
    for function in functions:
        tables = tables_around(function) | tables
    fields: dict[str, Any] = {"places": {**subject.places, **places}}
    if subject.schedule is None:
        fields |= schedule_fields(values["schedule"], tables, values["forward"], shape, places)
    fields["tables"] = tables | fields.get("tables", {})
    T = (fields.get("schedule") or subject.schedule or SimpleNamespace(T=None)).T
    wrappers: dict[str, Callable] = {
        "forward": lambda value: plain_functions.plain_forward(value, tables),
        "sampler": lambda value: plain_functions.plain_sampler(
            value, tables | sampler_sigmas(fields.get("schedule")), T
        ),
        "network": plain_functions.plain_network,
        "averaged_network": plain_functions.plain_network,
        "guidance": plain_functions.plain_guidance,
        "loss": lambda value: plain_functions.plain_loss(value, T),
        "likelihood": lambda value: plain_functions.plain_loss(value, T),
        "training_step": lambda value: value,
        "data": plain_functions.as_batch,
    }
    for name, wrap in wrappers.items():
        if values[name] is not None:
            fields[name] = wrap(values[name])
    return replace(subject, **fields)


def from_library_or_none(name: str, value: Any, steps: int, shape: tuple) -> Subject | None:
    """The subject of a library's object. A path counts as one only where it is the code itself."""
    if name in ("network", "averaged_network", "data") or (name != "code" and callable(value)):
        return None
    if isinstance(value, str) and name != "code":
        return None
    return from_library(value, steps, shape)


def tables_around(function: Callable) -> dict[str, Tensor]:
    """The tables of a function's object and of its module."""
    function = getattr(function, "func", function)
    holder = getattr(function, "__self__", None)
    names = getattr(function, "__globals__", None)
    names = names or getattr(getattr(function, "__func__", None), "__globals__", {})
    around = named_tables(SimpleNamespace(**{k: v for k, v in names.items() if k.isidentifier()}))
    return around | (named_tables(holder) if holder is not None else {})


def sampler_sigmas(schedule: Schedule | None) -> dict[str, Tensor]:
    """For samplers that want sigmas: 50 of the schedule, falling, then 0."""
    if schedule is None or not schedule.a.isfinite().all() or (schedule.a == 0).any():
        return {}
    times = torch.linspace(schedule.T, 1, min(50, schedule.T)).round().long().unique().flip(0)
    sigma = (schedule.b / schedule.a)[times]
    return {"sigmas": torch.cat([sigma, torch.zeros(1)]).float()}


def schedule_fields(
    value: Any, tables: dict[str, Tensor], forward: Any, shape: tuple, places: dict[str, str]
) -> dict[str, Any]:
    """The fields of a subject that a schedule determines, or {} where there is none to be found.

    Without a schedule the tables beside the functions are looked through, then the forward process
    is asked. Raises ValueError for a schedule that cannot be understood.
    """
    name = places.get("schedule", "")
    if callable(value) and not isinstance(value, Tensor):
        name = name or getattr(value, "__name__", "")
        values, named = plain_functions.arguments_for(value, {"T": 1000}, ["T"], tables)
        value = value(*values, **named)
        value = value[0] if isinstance(value, tuple) else value
    if value is None:
        name = next((each for each in TABLE_NAMES if each in tables), None)
        if name is None:
            if forward is None:
                return {}
            levels = schedule_of_forward(plain_functions.plain_forward(forward, tables), shape)
            return {} if levels is None else {"schedule": levels}
        value = tables[name]
    if isinstance(value, Schedule):
        return {"schedule": value}
    table = as_table(value)
    if table is None:
        inside = named_tables(value)
        name = next((each for each in TABLE_NAMES if each in inside), None)
        check(
            name is not None,
            f"the schedule is {type(value).__name__}: pass a table of beta, alpha_bar or sigma",
        )
        table = inside[name]
        tables.update(inside)
    kind = kind_of_table(table, name.split(":")[-1])
    place = places.get("schedule", name) or f"schedule ({kind})"
    return {
        "schedule": schedule_of(table, kind),
        "tables": {"given": table},
        "places": {**places, "schedule": place},
    }


def schedule_of_forward(forward: Callable, shape: tuple[int, ...]) -> Schedule | None:
    """The levels that a forward process shows at its times 0, 1, …; None where it shows none."""

    def levels(t: Tensor) -> tuple[Tensor, Tensor]:
        zeros = torch.zeros(len(t), *shape)
        with torch.no_grad():
            both = forward(zeros + 1, t, zeros), forward(zeros, t, zeros + 1)
        return tuple(each.double().flatten(1).mean(1) for each in both)

    T = 1
    while T < LONGEST and is_valid(levels, 2 * T - 1):
        T *= 2
    for step in [2**k for k in range(13, -1, -1)]:
        if T + step <= LONGEST and is_valid(levels, T + step - 1):
            T += step
    T = 1000 if T >= LONGEST else T
    if T < 2:
        return None
    a, b = levels(torch.arange(T))
    if b[0] > 1e-6:
        a, b = torch.cat([torch.ones(1), a]), torch.cat([torch.zeros(1), b])
    return Schedule(a, b)


def is_valid(levels: Callable, t: int) -> bool:
    """Whether a forward process can be called with the time t."""
    try:
        levels(torch.tensor([t]))
    except Exception:  # of any kind, in code that others wrote
        return False
    return True


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
        return entry.function(subject, seed)
    except Exception as error:  # of any kind, in code that others wrote
        place = subject.places.get(entry.name, entry.name)
        return [Check(entry.name, "undecided", describe_failure(error), where=place)]


def describe_failure(error: Exception) -> str:
    """An error in the user's code: its message, and the last lines outside this package."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [each for each in frames if "mnist_ddpm" not in each.filename]
    users = [each for each in own if "site-packages" not in each.filename] or own
    lines = [f"{each.filename}:{each.lineno}: {each.line}" for each in users[-3:]]
    return "; ".join([f"it raised {type(error).__name__}: {error}", *lines])


def describe_conventions(subject: Subject) -> dict[str, str]:
    """The conventions that were found out or fixed, in words."""
    conventions = subject.conventions
    words = {
        "first_time": ("times", f"t counts from {conventions.first_time}"),
        "time": ("time", f"the network is told {conventions.time}"),
        "prediction": ("prediction", f"the network predicts {conventions.prediction}"),
        "output_range": (
            "range",
            "the sampler returns {:g} … {:g}".format(*conventions.output_range),
        ),
    }
    return {key: text for name, (key, text) in words.items() if name in subject.known}
