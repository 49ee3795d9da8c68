"""Examines code that others wrote in another process, with a time limit.

That process runs answer_input: it reads a request as JSON from its input and writes an answer to
the file that the request names. What the code prints is shown only where something fails.
"""

import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from mnist_ddpm.machine.text import printable

OBJECTS = (  # arguments of examine that name something in the user's code
    "code",
    "schedule",
    "forward",
    "sampler",
    "network",
    "averaged_network",
    "guidance",
    "loss",
    "training_step",
    "data",
    "likelihood",
)

LAST_LINES = 5  # of the user's own in a traceback
# Of the process; the package may lie in a checkout, and the command run in another folder
PROGRAM = f"""
import sys
sys.path.append({str(Path(__file__).parents[2])!r})
from mnist_ddpm.doctor.foreign_code import answer_input
answer_input()
"""


class NamingError(ValueError):
    """A name that was typed names nothing."""


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
            "picture": None if picture is None else str(picture),
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
    return Answer(answer["report"], answer["picture"])


def run_apart(request: str, seconds: float) -> tuple[int, str]:
    """Runs answer_input in a process. Returns its status and what it printed.

    Raises ValueError where it takes longer, and ends it together with what it has started.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        env=os.environ | {"TQDM_DISABLE": "1", "MPLBACKEND": "Agg"},
    )
    try:
        printed, _ = process.communicate(request, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        raise ValueError(
            f"the code took longer than {seconds:g} s: raise --seconds; or if it trains when it "
            "is imported, put that below if __name__ == '__main__'"
        ) from error
    finally:
        if process.poll() is None:
            end_session(process)
    return process.returncode, printed


def end_session(process: subprocess.Popen) -> None:
    """Ends a process, and where the system has sessions those that it has started."""
    if hasattr(os, "killpg"):
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()


def load_object(name: str) -> Any:
    """What "my.py:name" or "package.module:name" names. Raises ValueError where there is none."""
    source, colon, expression = name.rpartition(":")
    if not colon or not source or not expression:
        raise NamingError(f"{name} names nothing: write file.py:name or package.module:name")
    module = load_module(source)
    try:
        return eval(expression, vars(module))
    except NameError as error:
        known = ", ".join(public_names(module)[:20]) or "none"
        raise ValueError(
            f"{source} has no {error.name or expression}; its names: {known}"
        ) from error


def public_names(module: ModuleType) -> list[str]:
    """The names that a module defines itself, without modules that it imports."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    ]


def load_module(source: str) -> ModuleType:
    """The module of a file, or of a dotted name; each is loaded once."""
    sys.path[:0] = [path for path in (str(Path.cwd()),) if path not in sys.path]
    if not source.endswith(".py"):
        return importlib.import_module(source)
    path = Path(source).resolve()
    if not path.is_file():
        raise NamingError(f"there is no file {source}")
    if path.stem in sys.modules and getattr(sys.modules[path.stem], "__file__", "") == str(path):
        return sys.modules[path.stem]
    sys.path.insert(0, str(path.parent))
    specification = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(specification)
    sys.modules[path.stem] = module
    specification.loader.exec_module(module)
    return module


def users_lines(error: BaseException) -> list[str]:
    """An error, and its traceback shortened to lines outside this package and installed ones."""
    frames = traceback.extract_tb(error.__traceback__)
    hidden = (str(Path(__file__).parents[1]), "site-packages", "importlib", "<frozen")
    users = [each for each in frames if not any(part in each.filename for part in hidden)]
    shown = users[-LAST_LINES:] or frames[-1:]
    lines = [f"{Path(each.filename).name}:{each.lineno}: {each.line}" for each in shown]
    return [f"{type(error).__name__}: {error}", *lines]


def answer_request(request: dict[str, Any]) -> dict[str, Any]:
    """The report of a request, as JSON can hold it, or the error that stopped it."""
    names = request["names"]
    options = request["options"]
    loaded = {}
    for argument, name in names.items():
        is_folder = argument == "code" and ":" not in name
        try:
            loaded[argument] = name if is_folder else load_object(name)
        except NamingError as error:
            return {"error": str(error)}
        except BaseException as error:  # of any kind, in code that others wrote
            reason, *lines = users_lines(error)
            return {"error": f"{name} cannot be loaded: {reason}", "lines": lines}
    from mnist_ddpm.doctor.examination import examine_subject
    from mnist_ddpm.doctor.report_picture import draw_picture
    from mnist_ddpm.doctor.subject_building import build_subject

    code = loaded.pop("code", None)
    try:
        subject = build_subject(code, loaded, places=names, **options)
    except ValueError as error:
        return {"error": str(error)}
    report = examine_subject(subject, options.get("seed", 0))
    picture = None
    if request["picture"] is not None:
        picture = draw_picture(subject, report, Path(request["picture"]))
    return {"report": report.as_dict(), "picture": picture}


def answer_input() -> None:
    """Reads a request from the input, and writes its answer to the file that it names."""
    request = json.load(sys.stdin)
    answer = answer_request(request)
    Path(request["answer"]).write_text(json.dumps(answer), encoding="utf-8")
