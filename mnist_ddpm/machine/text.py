"""Text from elsewhere: in files, in their names, and in flags."""

import json
import re
import shlex
from contextlib import suppress
from pathlib import Path

LONG = 1000  # characters that are shown of the beginning, or the end, of a text
LARGEST_JSON = 2**26  # bytes of a file that is read
# What sets a terminal's colour and title, forges lines, or turns the direction of text
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

ABSOLUTE = re.compile(r"(~|[A-Za-z]:)?[/\\]")  # the beginning of such a path


def check(condition: bool, message: str) -> None:
    """Raises ValueError with this message unless the condition holds; as ddpm.check."""
    if not condition:
        raise ValueError(message)


def printable(text: object) -> str:
    """The text in one line, with escapes such as \\x1b for all that a terminal obeys or hides.

    Of a text that would fill screens only the beginning and the end.
    """
    text = str(text)
    if len(text) > 2 * LONG:
        text = f"{text[:LONG]} … {text[-LONG:]}"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def without_folders(content: object) -> object:
    """JSON whose texts, and arguments of commands, that are absolute paths are their last names."""
    if isinstance(content, dict):
        return {name: without_folders(value) for name, value in content.items()}
    if isinstance(content, list):
        return [without_folders(value) for value in content]
    if not isinstance(content, str):
        return content
    if " --" in content:  # a command
        with suppress(ValueError):
            return shlex.join(map(without_folders, shlex.split(content)))
    return re.split(r"[/\\]", content.rstrip("/\\"))[-1] if ABSOLUTE.match(content) else content


def check_arguments(arguments: list[str]) -> None:
    """Raises ValueError for what is empty, or would be obeyed by the terminal that shows it."""
    for before, argument in zip(["", *arguments], arguments):
        if CONTROL.search(argument):
            raise ValueError(
                f"an argument, {argument[:50]!r}, has control characters: rename what it names"
            )
        flag, equals, value = argument.partition("=")
        name = flag if equals else before or "an argument"
        is_empty = not argument or (flag.startswith("--") and equals and not value)
        if is_empty and name != "--init-from":
            raise ValueError(f"{name} is empty: name something")


def describe_error(error: Exception) -> str:
    """Why a file's content could not be used, in one line, for a reader who knows no Python."""
    unknown = re.search(r"unexpected keyword argument '(.*)'", str(error))
    if unknown:
        return f"{unknown[1]} is unknown"
    if isinstance(error, KeyError):
        key = str(error.args[0])
        return key if " " in key else f"{key} is missing"
    if isinstance(error, TypeError | AttributeError | LookupError):
        return "a value in it is of another kind"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, UnicodeDecodeError):
        return "it is no text in UTF-8"
    return (str(error).strip() or "it is damaged").splitlines()[0]


def parse_json(text: str) -> object:
    """As json.loads. Raises ValueError also for text that is nested too deep."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def read_json(path: Path) -> object:
    """The content of a JSON file. Raises OSError if it cannot be read, ValueError if it is none."""
    if path.exists() and not path.is_file():  # reading a pipe or a device might never end
        raise ValueError("it is no regular file")
    if path.exists() and path.stat().st_size > LARGEST_JSON:
        raise ValueError(f"it is larger than {LARGEST_JSON:,} bytes")
    return parse_json(path.read_text(encoding="utf-8"))


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its repr if it has none."""
    return (str(error).strip() or repr(error)).splitlines()[0]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, judged by the message: PyTorch has no class for every device."""
    phrases = "out of memory", "not enough memory", "can't allocate memory"
    return isinstance(error, MemoryError) or any(phrase in str(error) for phrase in phrases)
