"""Commands at random: valid and tiny ones, with a few flags that are odd."""

import random
import typing
from dataclasses import fields
from pathlib import Path

from hostile.base import TINY
from mnist_ddpm.commands.command_line import COMMANDS
from mnist_ddpm.training.recipe import Recipe

DRAW, JUDGED = "--n 6 --steps 2", "--extractor judge.safetensors --out new.json"
# Each works as it stands
VALID = {
    "train": (
        f"--dataset pictures {' '.join(TINY)} --epochs 2 --out out",
        "--dataset pictures --image-size 16 --base-channels 4 --patch-size 4 --batch-size 8 "
        "--channel-mults 1 --epochs 1 --T 8 --out out --schedule cosine-zero-snr --prediction v",
        "--dataset celeba --image-size 16 --base-channels 4 --batch-size 16 --channel-mults 1 "
        "--epochs 1 --T 8 --attributes Smiling Male --objective vlb --out out",
        "--dataset ffhq --image-size 16 --base-channels 4 --batch-size 8 --channel-mults 1 2 "
        "--epochs 1 --T 8 --optimizer muon --objective p2 --accumulation 2 --out out",
        "--dataset pictures --image-size 8x16 --base-channels 4 --channel-mults 1 --T 8 "
        "--batch-size 8 --epochs 1 --out out",
        "--dataset pictures --init-from run --batch-size 8 --epochs 1 --out out",
        "--dataset pictures --init-from diffusers --batch-size 8 --epochs 1 --out out",
        "--resume --out run --epochs 3",
    ),
    "plan": (
        "--minutes 0.2 --dataset pictures --out out", "--minutes 0.2 --out out --dry-run",
        "--minutes 0.2 --dataset mnist --classes 10 --guide --out out --dry-run",
        "--minutes 0.2 --dataset celeba --attributes Smiling --out out --dry-run",
    ),
    "sample": (
        f"--checkpoint run {DRAW} --out new", f"--checkpoint labels {DRAW} --guidance 2 --out new",
        f"--checkpoint plain {DRAW} --guide plain --guidance-interval 1 8 --out new",
        f"--checkpoint plain {DRAW} --init-image digit.png --mask mask.png --out new",
        f"--checkpoint plain {DRAW} --init-image digit.png --strength 0.5 --out new",
        f"--checkpoint faces {DRAW} --sampler heun --label 1 --out new",
    ),
    "evaluate": (
        f"--checkpoint run {DRAW} {JUDGED}", f"--checkpoint faces {DRAW} --bits 3 {JUDGED}",
        f"--checkpoint run --n 8 --images samples {JUDGED}",
        f"--checkpoint run --n 8 --images pictures {JUDGED}",
        f"--checkpoint run --images samples/samples.npz {JUDGED}",
    ),
    "likelihood": (
        "--checkpoint run --split train --n 4 --out new.json",
        "--checkpoint faces --split valid --n 4 --steps 4 --out new.json",
        "--checkpoint labels --n 4 --times-per-image 2 --out new.json",
    ),
    "extractor": ("--dataset celeba --epochs 1 --out new.safetensors",),
    "export": (
        "--checkpoint plain --out new", "--checkpoint wide --out new",
        "--checkpoint plain --format onnx --out new.onnx",
    ),
    "push": ("--checkpoint run --to me/digits --card card.json",),  # offline: it is refused
    "compare": ("card.json other.json", "bound.json card.json"),
}  # fmt: skip
WEIGHTS = {"train": 9, "sample": 6, "evaluate": 5, "likelihood": 4, "compare": 3, "plan": 2}
IDLE = {"compile", "gradient_checkpointing", "device", "processes"}  # cost minutes, or need others
HIDDEN = {"recipe", "typed", "advised", "command", "began"}  # fields that are no flags

INTEGERS = (
    "0", "-1", "1", "2", "3", "17", "1000", "1000000000", "99999999999999999999", "1e12", "1.5",
    "nan", "", "９", "0x10", "1_000", "7" * 5000, "100000000", "9223372036854775808",
)  # fmt: skip
FLOATS = (
    "0", "-1", "1", "0.5", "1e308", "1e-320", "1e12", "nan", "inf", "-inf", "1e400", "1e-30", "",
    "99999999999999999999", "0.999999999999999999",
)  # fmt: skip
PATHS = (
    "", "loop", "loop/x", "fifo", "dangling", "/dev/zero", "/dev/null", "/dev/full", "README.md",
    "README.md/x", "empty", "secret", "locked", "locked/x", "readonly", "readonly/x", "hollow",
    "pictures", "..", "/", "/proc/self/mem", "/proc/1/fd", "-", "~nobody", "x" * 300, "y/" * 3000,
    "naïve/日本", "a\x1b]0;FORGED\x07", "a\nFORGED", "a\rFORGED", "%s{}[0]", "a\udcff", "*",
    "huge", "huge/rgba.png", "huge/deep.png", "huge/claims.png", "huge/grey.jpg", "huge/steps.jpg",
    "huge/large.png", "huge/large-deep.png",
    "many.npz", "objects.npz", "none.npz", "floats.npz", "run", "plain", "labels", "faces", "ffhq",
    "diffusers", "samples", "card.json", "judge.safetensors", "digits.safetensors", "data/celeba",
)  # fmt: skip
ODD = {
    "option": ("eta=1", "x", "=", "a\x1b]0;FORGED\x07=1", "order=[[[", "resamples=1e999"),
    "image_size": (
        *INTEGERS, "8x16", "16x8", "8x9", "0x8", "5x", "x", "8x8x8", "８x８", "4096x8", "9x" * 5000,
    ),
}  # fmt: skip

# Seen once, each of them, to end in a traceback, a hang or gigabytes
SEEN = (
    "train --epochs 1e308", "train --epochs 1e-320", "train --base-channels 1000000000",
    "train --channel-mults 1 1000000000000000000", "train --learning-rate 1e308",
    "train --beta-1 1e-320", "train --T 99999999999999999999999", "train --T 1000000000000",
    "train --blocks-per-level 100000000", "train --out loop", "train --out ''",
    "train --dataset ''", "train --accumulation 17", "train --batch-size 16 --accumulation 17",
    "train --beta-T 2", "train --image-size 4096", "train --dataset huge", "sample --n 1e12",
    "sample --n 1000000000000", "sample --n 99999999999999999999", "sample --out loop",
    "sample --batch-size 1000000000 --n 1000000000", "evaluate --n 99999999999999999999",
    "sample --init-image huge/rgba.png", "sample --init-image huge/deep.png",
    "sample --init-image huge/grey.jpg", "sample --init-image huge/steps.jpg",
    "sample --init-image huge/claims.png", "sample --init-image huge/large.png",
    "sample --init-image huge/large-deep.png", "sample --init-image fifo",
    "evaluate --images many.npz", "evaluate --images objects.npz", "evaluate --images fifo",
    "likelihood --seed 1e20",
    "evaluate --extractor fifo", "compare", "extractor --seed 99999999999999999999",
)  # fmt: skip


def kinds(command: str) -> dict[str, object]:
    """The flags of a command, and the type of each."""
    found, cls = {}, COMMANDS[command][0]
    for owner in (cls, Recipe) if command == "train" else (cls,):
        hints = typing.get_type_hints(owner)
        found |= {each.name: hints[each.name] for each in fields(owner)}
    return {name: kind for name, kind in found.items() if name not in IDLE | HIDDEN}


def values(kind: object, name: str, rng: random.Random) -> list[str] | None:
    """Odd ones, or good ones, of a type; None for a switch."""
    inner = typing.get_args(kind)
    if kind is bool:
        return None
    if kind in (int, float) and rng.random() < 0.4:
        return [str(rng.randint(1, 12) if kind is int else round(rng.random(), 3))]
    if typing.get_origin(kind) is typing.Literal:
        return [str(rng.choice([*inner, *inner, "nonsense", "a\x1b]0;FORGED\x07"]))]
    if typing.get_origin(kind) is tuple:
        count = rng.choice((0, 1, 1, 2, 2, 3, 40))
        return [part for _ in range(count) for part in values(inner[0], name, rng) or []]
    if type(None) in inner:
        return values(next(each for each in inner if each is not type(None)), name, rng)
    if name in ODD:
        return [rng.choice(ODD[name])]
    if kind is int:
        return [rng.choice(INTEGERS)]
    return [rng.choice(FLOATS if kind is float else PATHS)]


def random_command(rng: random.Random) -> list[str]:
    """A valid command with one to three flags changed."""
    weights = [WEIGHTS.get(name, 1) for name in VALID]
    name = rng.choices([*VALID], weights)[0]
    given = rng.choice(VALID[name]).split()
    if name == "compare":
        return [name, *(rng.choice(PATHS) if rng.random() < 0.4 else each for each in given)]
    known = kinds(name)
    for _ in range(rng.choice((0, 0, 1, 1, 1, 2, 3))):
        flag = rng.choice([*known])
        chosen = values(known[flag], flag, rng)
        typed = f"--{flag.replace('_', '-')}"
        if chosen is None:
            given.append(typed)
        elif len(chosen) == 1 and rng.random() < 0.2:
            given.append(f"{typed}={chosen[0]}")
        else:
            given += [typed, *chosen]
    return [name, *given]


def files_of(given: list[str]) -> list[Path]:
    """Files and folders that a command reads."""
    return [Path(part) for part in given[1:] if part and "\0" not in part and len(part) < 200]
