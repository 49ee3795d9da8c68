"""Damages a file in ways that chance does, and in ways that malice does."""

import hashlib
import json
import os
import random
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

DEEP = "[" * 200_000
VALUES = (
    None, [], {}, "", "a\x1b]0;FORGED\x07", "a\nFORGED", "x" * 10_000, -1, 0, 1, 2, 10**12, 10**30,
    1e308, 1e-320, float("nan"), float("inf"), True, [[[]]], {"a": [1]}, "mnist", [0], [10**20] * 2,
)  # fmt: skip
TEXTS = (
    DEEP, '{"a":' * 200_000, "null", '"text"', "[1, 2]", "{}", "1" + "0" * 400, "", "{", "\ufeff{}",
    '{"format": 2, "settings": ' + DEEP, '{"metrics": ' + DEEP, "-" * 100_000,
    '{"format": 1' + "0" * 5000 + "}",
)  # fmt: skip


def places(value, path=()):
    """Each path into nested JSON."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, each in inner:
        yield (*path, key)
        if isinstance(each, dict | list):
            yield from places(each, (*path, key))


def damage_json(path: Path, rng: random.Random) -> None:
    """Another text, or another value somewhere in it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict) or not content or rng.random() < 0.4:
        path.write_text(rng.choice(TEXTS), encoding="utf-8")
        return
    for _ in range(rng.choice((1, 1, 2))):
        *way, key = rng.choice([*places(content)])
        inside = content
        for each in way:
            inside = inside[each]
        if isinstance(inside, dict) and rng.random() < 0.25:
            del inside[key]
        elif isinstance(inside, dict) and rng.random() < 0.1:
            inside["\x1b[2J\nFORGED"] = rng.choice(VALUES)
        else:
            inside[key] = rng.choice(VALUES)
        if not content:
            break
    path.write_text(json.dumps(content), encoding="utf-8")


def odd_tensor(tensor: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """Of another kind, shape or content."""
    return rng.choice((
        lambda: tensor.to(torch.int8), lambda: tensor.bool(), lambda: tensor.flatten(),
        lambda: torch.full_like(tensor, np.nan), lambda: tensor.double(), lambda: tensor.half(),
        lambda: tensor[:0], lambda: torch.full_like(tensor, 1e30), lambda: tensor.to(torch.int64),
        lambda: tensor.to(torch.complex64),
    ))()  # fmt: skip


def damage_tensors(path: Path, rng: random.Random) -> None:
    """Other tensors in a .safetensors file."""
    tensors = load_file(path)
    for name in rng.sample([*tensors], rng.choice((1, 2))):
        if rng.random() < 0.2:
            del tensors[name]
        elif rng.random() < 0.15:
            tensors["\x1b[2J\nFORGED"] = tensors[name].clone()
        else:
            tensors[name] = odd_tensor(tensors[name].float(), rng).contiguous()
    save_file(tensors, path)
    digest(path)


def digest(path: Path) -> None:
    """Writes the SHA-256 that belongs to the damaged file, where one is told."""
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    config, beside = path.with_name("config.json"), path.with_name(f"{path.name}.sha256")
    if beside.is_file():
        beside.write_text(f"{found}  {path.name}\n")
    if config.is_file():
        told = json.loads(config.read_text())
        if "sha256" in told:
            config.write_text(json.dumps(told | {"sha256": {path.name: found}}))


def damage_state(path: Path, rng: random.Random) -> None:
    """A training state that lacks something, or holds something else."""
    state = torch.load(path, weights_only=True)
    inside = state[rng.choice(("settings", "optimizer", "method"))] if rng.random() < 0.4 else state
    key = rng.choice([*inside])
    if rng.random() < 0.4:
        del inside[key]
    else:
        inside[key] = rng.choice((*VALUES, torch.zeros(2), {"state": 1}, [None]))
    torch.save(state, path)


def damage_bytes(path: Path, rng: random.Random) -> None:
    """Cut off, or other bytes in it."""
    data = bytearray(path.read_bytes())
    if rng.random() < 0.4 or not data:
        path.write_bytes(data[: int(len(data) * rng.random())])
        return
    for _ in range(rng.choice((1, 4, 100))):
        data[rng.randrange(min(len(data), rng.choice((64, 10**9))))] = rng.randrange(256)
    path.write_bytes(data)


def replace_by(path: Path, rng: random.Random) -> None:
    """Something that is no file of that kind."""
    path.unlink()
    rng.choice((
        lambda: os.mkfifo(path), lambda: path.mkdir(), lambda: path.touch(),
        lambda: path.symlink_to(path.name), lambda: path.symlink_to("/dev/zero"),
        lambda: path.symlink_to("nowhere"), lambda: path.write_bytes(rng.randbytes(5000)),
        lambda: (path.touch(), path.chmod(0)), lambda: path.write_bytes(bytes(5000)), lambda: None,
        lambda: path.symlink_to(Path("../huge/rgba.png").absolute()),
    ))()  # fmt: skip


def damage(path: Path, rng: random.Random) -> None:
    """One file, in one of these ways."""
    ways = [damage_bytes, replace_by]
    if path.suffix == ".json":
        ways += [damage_json] * 6
    elif path.suffix == ".safetensors":
        ways += [damage_tensors] * 4
    elif path.suffix == ".pt":
        ways += [damage_state] * 6
    rng.choice(ways)(path, rng)
