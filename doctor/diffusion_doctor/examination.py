"""Examines diffusion code: all checks that have what they need, in one report."""

import json
import os
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import torch

from diffusion_doctor.adapter import UNNAMED, Adapter, adapt
from diffusion_doctor.code_file import SUFFIXES, load_file
from diffusion_doctor.foreign_code import (
    NamingError,
    end_session,
    load_object,
    place_of,
    users_lines,
)
from diffusion_doctor.forward_checks import FORWARD_ENTRY
from diffusion_doctor.guidance_checks import GUIDANCE_ENTRY
from diffusion_doctor.learning_entries import LEARNING_ENTRIES
from diffusion_doctor.mathematics import seeded
from diffusion_doctor.report import Check, Report
from diffusion_doctor.report_text import printable
from diffusion_doctor.sampler_checks import SAMPLER_ENTRY
from diffusion_doctor.schedule_checks import SCHEDULE_ENTRY
from diffusion_doctor.subject import CheckEntry, Subject
from diffusion_doctor.subject_building import build_subject

# Of the process; the package may lie in a checkout, and the command run in another folder
PROGRAM = f"""
import sys
sys.path.append({str(Path(__file__).parents[1])!r})
from diffusion_doctor.examination import answer_input
answer_input()
"""
ENTRIES: list[CheckEntry] = [
    SCHEDULE_ENTRY,
    FORWARD_ENTRY,
    SAMPLER_ENTRY,
    GUIDANCE_ENTRY,
    *LEARNING_ENTRIES,
]
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}  # nothing is downloaded
PRINTED = 4000  # bytes of the end of what the code prints
TIMES = {"index": "an index", "fraction": "a fraction of T", "sigma": "sigma"}


def examine(
    code: Any = None,
    *,
    schedule: Any = None,
    forward: Any = None,
    sampler: Any = None,
    step: Any = None,
    network: Any = None,
    averaged_network: Any = None,
    guidance: Any = None,
    loss: Any = None,
    training_step: Any = None,
    data: Any = None,
    likelihood: Any = None,
    times: Any = None,
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
    Schedule of this package, a Subject, or a dict of names such as globals().
    schedule: alpha_bar, beta or sigma as a table, or a function that returns one.
    forward: q_sample(x0, t, noise). sampler: sample(network, shape). network: model(x, t).
    step: p_sample(x, t), or step(noise, t, x), which is looped in the place of a sampler.
    guidance: guided(network, x, t, labels, scale). loss: loss(network, x0).
    training_step: step(x0). likelihood: bits(network, x0). times: random_times(n).
    Other argument orders are found by name.
    clips: whether the sampler is meant to clip x0_hat; None: either will do.
    shape: of one image, for networks that take only one. steps: of a library's sampler.
    places: the user's names for these, for the report.
    conventions: fixes fields of Conventions, such as prediction="v", that else are found out.
    """
    functions = {
        "schedule": schedule,
        "forward": forward,
        "sampler": sampler,
        "step": step,
        "network": network,
        "averaged_network": averaged_network,
        "guidance": guidance,
        "loss": loss,
        "training_step": training_step,
        "data": data,
        "likelihood": likelihood,
        "times": times,
    }
    if isinstance(code, dict):
        adapter = adapt(code, {}, {k: v for k, v in functions.items() if v is not None})
        code, functions = None, adapter.values
        shape, places = adapter.shape, adapter.places | (places or {})
        conventions = {"batch": adapter.batch} | conventions
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


@dataclass(frozen=True)
class Answer:
    """What an examination in another process came to: a report as a dict, and a picture's path."""

    report: dict
    picture: str | None


def examine_foreign_code(
    names: dict[str, str], options: dict[str, Any], picture: Path | None, seconds: float
) -> Answer:
    """The answer of an examination of named objects, in another process.

    names: by argument of examine "my.py:name", "package.module:name" or for code a folder; a name
    may be any expression of the module's names. options: other arguments. Raises ValueError, with
    the user's lines of a traceback, as notes, where the code cannot be loaded, and
    where it takes longer than allowed.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer_path = Path(folder, "answer.json")
        request = {
            "names": names,
            "options": options,
            "picture": None if picture is None else str(picture.resolve()),
            "answer": str(answer_path),
        }
        status, printed = run_apart(json.dumps(request), seconds)
        if not answer_path.exists():
            last = (printed.strip() or "nothing").splitlines()[-1]
            raise ValueError(
                f"the code ended its process with status {status}, and last printed: "
                f"{printable(last)[:300]}"
            )
        answer = json.loads(answer_path.read_text(encoding="utf-8"))
    if "error" in answer:
        error = ValueError(answer["error"])
        for line in answer.get("lines", ()):
            error.add_note(line)
        raise error
    return Answer(answer["report"], answer["picture"] and str(picture))


def run_apart(request: str, seconds: float) -> tuple[int, str]:
    """Runs answer_input in a process. Returns its status and the end of what it printed.

    Raises ValueError where it takes longer. What it has started ends with it.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env=os.environ
        | {"TQDM_DISABLE": "1", "MPLBACKEND": "Agg", "CUDA_VISIBLE_DEVICES": ""}
        | OFFLINE,
    )
    printed = bytearray()
    reader = threading.Thread(target=keep_end, args=(process.stdout, printed), daemon=True)
    reader.start()
    try:
        with process.stdin as stream:
            stream.write(request.encode())
        process.wait(seconds)
    except subprocess.TimeoutExpired as error:
        raise ValueError(
            f"the code took longer than {seconds:g} s: raise --seconds; or if it trains when it "
            "is imported, examine the whole file: diffusion-doctor FILE"
        ) from error
    finally:
        end_session(process)
        reader.join(1.0)
    return process.returncode, printed.decode(errors="replace")


def keep_end(source: IO[bytes], printed: bytearray) -> None:
    """Reads all of a stream, and keeps its last PRINTED bytes."""
    while True:
        piece = source.read1(PRINTED)
        if not piece:
            return
        printed += piece
        del printed[:-PRINTED]


def answer_request(request: dict[str, Any]) -> dict[str, Any]:
    """The report of a request, as JSON can hold it, or the error that stopped it."""
    names = request["names"]
    options = request["options"]
    loaded = {}
    report_parts: dict[str, Any] = {}
    name = names.get("code", "")
    try:
        if Path(name).suffix in SUFFIXES:
            adapter, report_parts = adapt_file(names, options)
            loaded = adapter.values
            options = {"shape": adapter.shape, "batch": adapter.batch} | options
            places = adapter.places
            os.chdir(Path(request["answer"]).parent)  # where a sampler may save its pictures
        else:
            for argument, name in names.items():
                is_folder = argument == "code" and ":" not in name
                loaded[argument] = name if is_folder else load_object(name)
            places = {argument: place_of(loaded[argument], names[argument]) for argument in names}
    except NamingError as error:
        return {"error": str(error)}
    except BaseException as error:  # of any kind, in code that others wrote
        reason, *lines = users_lines(error)
        return {"error": f"{name} cannot be loaded: {reason}", "lines": lines}
    from diffusion_doctor.report_picture import draw_picture

    code = loaded.pop("code", None)
    try:
        subject = build_subject(code, loaded, places=places, **options)
    except ValueError as error:
        return {"error": str(error)}
    except Exception as error:  # of any kind, in code that others wrote
        reason, *lines = users_lines(error)
        return {"error": f"{name} cannot be examined: {reason}", "lines": lines}
    report = examine_subject(subject, options.get("seed", 0))
    picture = None
    if request["picture"] is not None:
        picture = draw_picture(subject, report, Path(request["picture"]))
    return {"report": report.as_dict() | report_parts, "picture": picture}


def adapt_file(names: dict[str, str], options: dict) -> tuple[Adapter, dict[str, Any]]:
    """What was found in a script or notebook, and for the report what was assumed.

    names: by argument of examine; of code the file, else names of that file. Raises NamingError.
    """
    file, others = names["code"], {name: names[name] for name in names if name != "code"}
    module, notes = load_file(Path(file))
    try:
        adapter = adapt(vars(module), others)
    except ValueError as error:
        more = "".join(f"\n  {note}" for note in notes[:5])
        raise NamingError(f"{file}: {error}{more}") from None
    named = {role: name for role, name in adapter.names.items() if not name.startswith(UNNAMED)}
    flags = "".join(f" --{role.replace('_', '-')} {name}" for role, name in named.items())
    shape = f" --shape {' '.join(map(str, adapter.shape))}" if len(adapter.shape) == 3 else ""
    parts = {"assumed": adapter.assumed(), "command": f"diffusion-doctor {file}{flags}{shape}"}
    return adapter, parts | {"failed": notes[:10]}


def answer_input() -> None:
    """Reads a request from the input, and writes its answer to the file that it names."""
    request = json.load(sys.stdin)
    answer = answer_request(request)
    Path(request["answer"]).write_text(json.dumps(answer), encoding="utf-8")
