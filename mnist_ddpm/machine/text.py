"""Text that others have written: in files, in their names, and in flags."""

import json
import os
import re
import sys
from pathlib import Path

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # sets a terminal's colour and title, forges lines


def printable(text: object) -> str:
    """Text in one line, with escapes such as \\x1b for all that a terminal would obey, or hide."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def program() -> list[str]:
    """What begins our command lines, as it was typed."""
    typed = Path(sys.argv[0]).stem == "mnist-ddpm"
    return ["mnist-ddpm"] if typed else ["python", "-m", "mnist_ddpm"]


def at_home(argument: str) -> str:
    """An argument with ~ as its folder: shells leave it alone in --out=~/faces, or quoted."""
    flag, equals, value = "", "", argument
    if argument.startswith("-"):
        flag, equals, value = argument.partition("=")
    return flag + equals + os.path.expanduser(value)


def parse_json(text: str) -> object:
    """As json.loads. Raises ValueError, too, for what is nested too deep to be read."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def read_json(path: Path) -> object:
    """What is in a JSON file. Raises OSError where it cannot be read, ValueError if it is none."""
    if path.exists() and not path.is_file():  # a pipe would keep us waiting, a device never ends
        raise ValueError("it is no regular file")
    return parse_json(path.read_text(encoding="utf-8"))
