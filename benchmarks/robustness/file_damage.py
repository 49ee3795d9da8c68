"""Damages a file in ways that chance does, and in ways that malice does."""

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

DEEP = "[" * 200_000
NUMBERS = -1, 0, 1, 2, 10**12, 10**30, 1e308, 1e-320, float("nan"), float("inf"), True
STRINGS = "", "a\x1b]0;FORGED\x07", "a\nFORGED", "x" * 10_000, "mnist"
VALUES = *NUMBERS, *STRINGS, None, [], {}, [[[]]], {"a": [1]}, [0], [10**20] * 2
TEXTS = [DEEP, '{"a":' * 200_000, '{"format": 2, "settings": ' + DEEP, '{"metrics": ' + DEEP]
TEXTS += ["null", '"text"', "[1, 2]", "{}", "1" + "0" * 400, "", "{", "\ufeff{}", "-" * 100_000]
TEXTS += ['{"format": 1' + "0" * 5000 + "}"]


def paths_into(value: dict | list, path: tuple = ()) -> Iterator[tuple]:
    """Each path into nested JSON."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*path, key)
        if isinstance(inner, dict | list):
            yield from paths_into(inner, (*path, key))


def damage_json(path: Path, rng: random.Random) -> None:
    """Another text, or another value somewhere in it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict) or not content or rng.random() < 0.4:
        path.write_text(rng.choice(TEXTS), encoding="utf-8")
        return
    *keys, last = rng.choice([*paths_into(content)])
    inside = content
    for key in keys:
        inside = inside[key]
    if isinstance(inside, dict) and rng.random() < 0.25:
        del inside[last]
    elif isinstance(inside, dict) and rng.random() < 0.1:
        inside["\x1b[2J\nFORGED"] = rng.choice(VALUES)
    else:
        inside[last] = rng.choice(VALUES)
    path.write_text(json.dumps(content), encoding="utf-8")


def damage_bytes(path: Path, rng: random.Random) -> None:
    """Cut off, or other bytes in it."""
    data = bytearray(path.read_bytes())
    if rng.random() < 0.4 or not data:
        path.write_bytes(data[: int(len(data) * rng.random())])
        return
    for _ in range(rng.choice((1, 4, 100))):
        data[rng.randrange(min(len(data), rng.choice((64, 10**9))))] = rng.randrange(256)
    path.write_bytes(data)


def replace(path: Path, rng: random.Random) -> None:
    """No file, or something that is no file of that kind."""
    path.unlink()
    links = path.name, "/dev/zero", "nowhere", Path("../huge/rgba.png").absolute()
    kind = rng.choice(("link", "bytes", "pipe", "folder", "unreadable", "nothing"))
    if kind == "link":
        path.symlink_to(rng.choice(links))
    elif kind == "bytes":
        path.write_bytes(rng.choice((b"", bytes(5000), rng.randbytes(5000))))
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "unreadable":
        path.touch(mode=0)


def damage(path: Path, rng: random.Random) -> None:
    """One file, in one of these ways."""
    ways = [damage_bytes, replace, *[damage_json] * 6 * (path.suffix == ".json")]
    rng.choice(ways)(path, rng)
