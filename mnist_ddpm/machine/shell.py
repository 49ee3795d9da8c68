"""Command lines of this program, as a user's shell reads them."""

import os
import re
import shlex
import shutil
import sys
from pathlib import Path


def program() -> list[str]:
    """The words that started this program: `mnist-ddpm`, or `python -m mnist_ddpm`."""
    is_script = Path(sys.argv[0]).stem == "mnist-ddpm"
    return ["mnist-ddpm"] if is_script else ["python", "-m", "mnist_ddpm"]


def own_command(arguments: list[str]) -> str:
    """This program with other arguments, as a line to type in the current folder.

    `python` gets its path where the shell would find another one.
    """
    first, *others = program()
    python = Path(sys.executable)
    on_path = shutil.which("python")
    if first == "python" and not (on_path and Path(on_path).absolute() == python):
        is_inside = python.is_relative_to(Path.cwd())
        first = str(python.relative_to(Path.cwd()) if is_inside else python)
    return quote([first, *others, *arguments])


def quote(words: list[str]) -> str:
    """The words as one line, quoted for the shell of this system."""
    if os.name != "nt":
        return shlex.join(words)
    plain = re.compile(r"[\w./:\\=-]+")
    return " ".join(word if plain.fullmatch(word) else f'"{word}"' for word in words)


def expand_home(argument: str) -> str:
    """The argument with the home folder for ~, which shells do not expand in --out=~/faces."""
    if not argument.startswith("-"):
        return os.path.expanduser(argument)
    flag, equals, value = argument.partition("=")
    return flag + equals + os.path.expanduser(value)
