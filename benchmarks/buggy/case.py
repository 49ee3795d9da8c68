"""A case of the proof: what an examination is given, and the bug that is in it."""

import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import FunctionType, MethodType, ModuleType

import torch

from mnist_ddpm import ddpm


@dataclass(frozen=True)
class Case:
    """One codebase, healthy or with one bug. given() makes the arguments of doctor.examine."""

    codebase: str
    bug: str  # a name in BUGS; "" for healthy code
    given: Callable[[], dict]
    change: str = ""  # what was changed, in words or as "old → new"

    @property
    def name(self) -> str:
        """Of a row: codebase, bug and change."""
        return " · ".join(part for part in (self.codebase, self.bug, self.change) if part)


def changed_text(text: str, old: str, new: str) -> str:
    """A text with every `old` replaced. Raises ValueError where there is none."""
    if old not in text:
        raise ValueError(f"{old!r} is not in the code: it has changed since the bug was written")
    return text.replace(old, new)


def changed_module(source: ModuleType, *changes: tuple[str, str]) -> ModuleType:
    """A copy of a module with pieces of its text replaced."""
    text = Path(source.__file__).read_text(encoding="utf-8")
    for old, new in changes:
        text = changed_text(text, old, new)
    module = ModuleType(source.__name__)
    module.__file__ = source.__file__
    exec(compile(text, source.__file__, "exec"), module.__dict__)
    return module


def changed_function(function: FunctionType, *changes: tuple[str, str]) -> FunctionType:
    """A function with pieces of its text replaced, in the namespace of its module."""
    function = inspect.unwrap(function)
    text = textwrap.dedent(inspect.getsource(function))
    for old, new in changes:
        text = changed_text(text, old, new)
    text = text[text.index("def ") :]  # without decorators
    namespace = dict(function.__globals__)
    exec(compile(text, inspect.getfile(function), "exec"), namespace)
    return namespace[function.__name__]


def with_changed(owner, name: str, *changes: tuple[str, str], **names):
    """An object, one method with pieces of its text replaced, or names that the method sees."""
    function = changed_function(getattr(type(owner), name), *changes)
    function.__globals__.update(names)
    setattr(owner, name, MethodType(function, owner))
    return owner


def text_pairs(text: str) -> list[tuple[str, str]]:
    """Pairs of old and new text from "old => new | old => new", in which \\n is a new line."""
    changes = [change.replace("\\n", "\n").split("=>") for change in text.split(" | ")]
    return [(old.strip(" "), new.strip(" ")) for old, new in changes]


def text_changes(table: str, changed: Callable) -> list[tuple]:
    """Rows for as_cases of a table of texts: bug | part | old => new | further changes.

    changed: of (part, pairs of old and new text) to what is given.
    """
    rows = []
    for line in table.strip().replace("\\\n    ", "").splitlines():
        bug, part, text = (piece.strip() for piece in line.split(" | ", maxsplit=2))
        pairs = text_pairs(text)
        short = [f"{' '.join(old.split())} → {' '.join(new.split())}" for old, new in pairs]
        rows.append((bug, "; ".join(short), partial(changed, part, pairs)))
    return rows


@cache
def digits(side: int = 16, n: int = 2000) -> torch.Tensor:
    """Training images of MNIST in [-1, 1], (n, 1, side, side)."""
    images = ddpm.to_float(ddpm.load_mnist()[:n])
    return torch.nn.functional.avg_pool2d(images, 32 // side)


def as_cases(codebase: str, rows: list[tuple]) -> list[Case]:
    """Cases of rows (bug, change, make): make() returns an object, or examine's arguments.

    Where clipping is missing or inconsistent, the examination is told that it is meant.
    """

    def arguments(bug: str, make: Callable) -> dict:
        made = make()
        given = made if isinstance(made, dict) else {"code": made}
        return given | ({"clips": True} if bug in ("no-clipping", "stale-eps") else {})

    return [Case(codebase, bug, partial(arguments, bug, make), text) for bug, text, make in rows]


def cosine_betas(T: int) -> torch.Tensor:
    """The cosine schedule's betas without a bound: the last is 1."""
    t = torch.linspace(0, 1, T + 1, dtype=torch.float64)
    bar = torch.cos((t + 0.008) / 1.008 * torch.pi / 2) ** 2
    return 1 - bar[1:] / bar[:-1]


class Proxy:
    """A module with some names replaced, for the code of one library alone."""

    def __init__(self, module: ModuleType, **names):
        self._module = module
        self.__dict__.update(names)

    def __getattr__(self, name: str):
        return getattr(self._module, name)


def uniform(*args, **options) -> torch.Tensor:
    """torch.rand with randn's or randn_like's arguments."""
    is_like = isinstance(args[0], torch.Tensor)
    return (torch.rand_like if is_like else torch.rand)(*args, **options)
