"""A Subject of what a user has: a library's object, tables, functions."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from diffusion_doctor import plain_functions
from diffusion_doctor.conventions import find_conventions, time_of_forward, with_convention
from diffusion_doctor.libraries import from_library
from diffusion_doctor.mathematics import Schedule, check
from diffusion_doctor.schedule_tables import (
    TABLE_NAMES,
    as_table,
    kind_of_table,
    named_tables,
    own_schedule,
    schedule_of,
)
from diffusion_doctor.subject import OBJECTS, Conventions, Subject

SQUARE_BATCH = 100  # for samplers that lay out their images in a square, or by ten labels


def build_subject(
    code: Any,
    values: dict[str, Any],
    *,
    clips: bool | None = None,
    shape: tuple[int, ...] = (1, 16, 16),
    steps: int = 50,
    seed: int = 0,
    places: dict[str, str] | None = None,
    batch: int = 32,
    **conventions: Any,
) -> Subject:
    """The subject of what examine was given, with all conventions that can be found out.

    values: by argument of examine. Raises ValueError where nothing was given, or what was given
    cannot be understood.
    """
    places = places or {}
    unknown = conventions.keys() - vars(Conventions()).keys()
    known = ", ".join(vars(Conventions()))
    check(not unknown, f"{', '.join(sorted(unknown))} is no convention: they are {known}")
    subject = gather(code, values, steps, tuple(shape), places)
    subject = replace(with_convention(subject, **conventions), batch=batch)
    if clips is not None:
        subject = replace(subject, clips=clips)
    for changes in ({}, {"batch": SQUARE_BATCH}, {"width": 2}):
        tried = replace(subject, **changes)
        torch.manual_seed(seed)
        try:
            return find_conventions(tried, seed)
        except Exception:  # of any kind, in code that others wrote: the checks will show it
            continue
    return subject


def gather(
    code: Any, values: dict[str, Any], steps: int, shape: tuple[int, ...], places: dict[str, str]
) -> Subject:
    """The subject of what examine was given, with conventions as its library has them."""
    check(
        code is not None or any(value is not None for value in values.values()),
        "there is nothing to examine: name a schedule, a forward process, a sampler or a network",
    )
    values = dict.fromkeys(OBJECTS[1:]) | values
    subject = Subject(shape=shape)
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
        fields |= schedule_fields(values["schedule"], tables, places)
    fields["tables"] = tables | fields.get("tables", {})
    schedule = fields.get("schedule") or subject.schedule
    T = None if schedule is None else schedule.T
    if values["step"] is not None and values["sampler"] is None:
        first_time = first_time_of(replace(subject, **fields), values["forward"], tables)
        fields["sampler"] = plain_functions.plain_step(values["step"], tables, T, first_time)
        fields["places"] = {"sampler": places.get("step", "step")} | fields["places"]
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
        "times": lambda value: value,
        "data": plain_functions.as_batch,
    }
    for name, wrap in wrappers.items():
        if values[name] is not None:
            fields[name] = wrap(values[name])
    return replace(subject, **fields)


def first_time_of(subject: Subject, forward: Callable | None, tables: dict[str, Tensor]) -> int:
    """What a code whose steps are looped calls its first time: as its forward process, or 0."""
    first = {name: table[0].item() for name, table in tables.items()}
    if forward is None or subject.schedule is None:
        clean = [name for name in first if first[name] == (0.0 if "beta" in name else 1.0)]
        return int(
            any(kind_of_table(tables[name], name) in ("beta", "alpha_bar") for name in clean)
        )
    forward = plain_functions.plain_forward(forward, tables)
    found = time_of_forward(replace(subject, forward=forward)).conventions
    return int(found.forward_time == "index" and found.forward_first_time == 1)


def from_library_or_none(name: str, value: Any, steps: int, shape: tuple) -> Subject | None:
    """The subject of a library's object. A path counts as one only where it is the code itself."""
    if name in ("network", "averaged_network", "data") or (name != "code" and callable(value)):
        return None
    if isinstance(value, str) and name != "code":
        return None
    return from_library(value, steps, shape)


def tables_around(function: Callable) -> dict[str, Tensor]:
    """The tables of a function's object and of its module."""
    holder, names = plain_functions.surroundings(function)
    around = named_tables(SimpleNamespace(**{k: v for k, v in names.items() if k.isidentifier()}))
    return around | (tables_inside(holder) if holder is not None else {})


def tables_inside(holder: Any) -> dict[str, Tensor]:
    """The tables of an object, else of the first object that it holds and that has some."""
    parts = [*getattr(holder, "__dict__", {}).values()]
    parts += getattr(holder, "_modules", {}).values()
    found = [named_tables(holder)]
    found += [named_tables(each) for each in parts if hasattr(each, "__dict__")]
    return next((tables for tables in found if tables), {})


def sampler_sigmas(schedule: Schedule | None) -> dict[str, Tensor]:
    """For samplers that want sigmas: 50 of the schedule, falling, then 0."""
    if schedule is None or not schedule.a.isfinite().all() or (schedule.a == 0).any():
        return {}
    times = torch.linspace(schedule.T, 1, min(50, schedule.T)).round().long().unique().flip(0)
    sigma = (schedule.b / schedule.a)[times]
    return {"sigmas": torch.cat([sigma, torch.zeros(1)]).float()}


def schedule_fields(
    value: Any, tables: dict[str, Tensor], places: dict[str, str]
) -> dict[str, Any]:
    """The fields of a subject that a schedule determines, or {} where there is none to be found.

    Without a schedule the tables beside the functions are looked through. Raises ValueError for a
    schedule that cannot be understood.
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
            return {}
        value = tables[name]
    schedule = own_schedule(value)
    if schedule is not None:
        return {"schedule": schedule}
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
