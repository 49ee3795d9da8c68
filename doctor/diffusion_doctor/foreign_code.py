"""Examines code that others wrote in another process, with a time limit.

That process runs answer_input: it reads a request as JSON from its input and writes an answer to
the file that the request names. What the code prints is shown only where something fails.
"""

import contextlib
import importlib
import importlib.util
import inspect
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

LAST_LINES = 5  # of the user's own in a traceback


class NamingError(ValueError):
    """A name that was typed names nothing."""


def end_session(process: subprocess.Popen) -> None:
    """Ends a process, and where the system has sessions those that it has started."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    elif process.poll() is None:
        process.kill()
    process.wait()


def load_object(name: str) -> Any:
    """What "my.py:name" or "package.module:name" names. Raises ValueError where there is none."""
    source, colon, expression = name.rpartition(":")
    if not colon or not source or not expression:
        raise NamingError(f"{name} names nothing: write file.py:name or package.module:name")
    module = load_module(source)
    try:
        return eval(expression, vars(module), ModuleNames(module))
    except NameError as error:
        known = ", ".join(public_names(module)[:20]) or "none"
        raise ValueError(
            f"{source} has no {error.name or expression}; its names: {known}"
        ) from error


class ModuleNames(dict):
    """The names of a module for eval, those included that it imports when first asked, lazily."""

    def __init__(self, module: ModuleType):
        super().__init__(vars(module))
        self.module = module

    def __missing__(self, name: str) -> Any:
        """What the module's own __getattr__ returns, as that of diffusers does."""
        try:
            return getattr(self.module, name)
        except AttributeError:
            raise KeyError(name) from None  # so that eval looks among the builtins


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


def place_of(value: Any, name: str) -> str:
    """Where a function or class begins, as "my.py:12 (name)"; where that is not known, the name."""
    value = getattr(value, "func", value)  # of a partial
    plain = inspect.unwrap(getattr(value, "__func__", value))
    code = getattr(plain, "__code__", None)
    if code is None:
        return name
    return f"{Path(code.co_filename).name}:{code.co_firstlineno} ({name.rpartition(':')[2]})"


def users_lines(error: BaseException) -> list[str]:
    """An error, and its traceback shortened to lines outside this package and installed ones."""
    frames = traceback.extract_tb(error.__traceback__)
    hidden = (str(Path(__file__).parents[1]), "site-packages", "importlib", "<frozen")
    users = [each for each in frames if not any(part in each.filename for part in hidden)]
    shown = users[-LAST_LINES:] or frames[-1:]
    lines = [f"{Path(each.filename).name}:{each.lineno}: {each.line}" for each in shown]
    return [f"{type(error).__name__}: {error}", *lines]
