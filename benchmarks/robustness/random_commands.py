"""Commands at random: valid and tiny ones, with a few flags that are odd."""

import random
import typing
from dataclasses import fields

from mnist_ddpm.commands.command_line import COMMANDS
from mnist_ddpm.recipe import Recipe

SMALL = "--image-size 16 --base-channels 4 --T 8 --epochs 1 --out out"
DRAW, JUDGE = "--n 6 --steps 2", "--extractor judge.safetensors --out new.json"
# Each works as it stands
VALID = f"""
train --dataset pictures {SMALL} --batch-size 8 --channel-mults 1 2
train --dataset pictures {SMALL} --batch-size 8 --channel-mults 1 --patch-size 4 \
    --schedule cosine-zero-snr --prediction v
train --dataset celeba {SMALL} --batch-size 16 --channel-mults 1 --attributes Smiling Male \
    --objective vlb
train --dataset ffhq {SMALL} --batch-size 8 --channel-mults 1 2 --optimizer muon --objective p2 \
    --accumulation 2
train --dataset pictures --image-size 8x16 --base-channels 4 --channel-mults 1 --T 8 \
    --batch-size 8 --epochs 1 --out out
train --dataset pictures --init-from run --batch-size 8 --epochs 1 --out out
train --dataset pictures --init-from diffusers --batch-size 8 --epochs 1 --out out
train --resume --out run --epochs 3
plan --minutes 0.2 --dataset pictures --out out
plan --minutes 0.2 --out out --dry-run
plan --minutes 0.2 --dataset mnist --classes 10 --out out --dry-run
plan --minutes 0.2 --dataset celeba --attributes Smiling --out out --dry-run
sample --checkpoint run {DRAW} --out new
sample --checkpoint labels {DRAW} --guidance 2 --out new
sample --checkpoint plain {DRAW} --guide plain --guidance-interval 1 8 --out new
sample --checkpoint faces {DRAW} --sampler heun --label 1 --out new
sample --checkpoint plain {DRAW} --init-image digit.png --mask mask.png --out new
sample --checkpoint plain {DRAW} --init-image digit.png --strength 0.5 --out new
evaluate --checkpoint run {DRAW} {JUDGE}
evaluate --checkpoint faces {DRAW} --bits 3 {JUDGE}
evaluate --checkpoint run --n 8 --images samples {JUDGE}
evaluate --checkpoint run --n 8 --images pictures {JUDGE}
evaluate --checkpoint run --images samples/samples.npz {JUDGE}
likelihood --checkpoint run --split train --n 4 --out new.json
likelihood --checkpoint faces --split valid --n 4 --steps 4 --out new.json
likelihood --checkpoint labels --n 4 --times-per-image 2 --out new.json
extractor --dataset celeba --epochs 1 --out new.safetensors
export --checkpoint plain --out new
export --checkpoint wide --out new
export --checkpoint plain --format onnx --out new.onnx
push --checkpoint run --to me/digits --card card.json
compare card.json other.json
compare bound.json card.json
""".strip().splitlines()
WEIGHTS = {"train": 9, "sample": 6, "evaluate": 5, "likelihood": 4, "compare": 3, "plan": 2}
HIDDEN = {"recipe", "typed", "advised", "command", "began"}  # fields that are no flags
IDLE = {"compile", "gradient_checkpointing", "device", "processes"}  # cost minutes, or need others

INTEGERS = """
0 -1 1 2 3 17 1000 1000000000 99999999999999999999 1e12 1.5 nan ９ 0x10 1_000 100000000
9223372036854775808
""".split()
INTEGERS += ["", "7" * 5000]
FLOATS = """
0 -1 1 0.5 1e308 1e-320 1e12 nan inf -inf 1e400 1e-30 99999999999999999999 0.999999999999999999
""".split()
FLOATS += [""]
PATHS = """
loop loop/x fifo dangling /dev/zero /dev/null /dev/full README.md README.md/x empty secret locked
locked/x readonly readonly/x hollow pictures .. / /proc/self/mem /proc/1/fd - ~nobody naïve/日本
%s{}[0] * huge huge/rgba.png huge/deep.png huge/claims.png huge/grey.jpg huge/steps.jpg
huge/large.png huge/large-deep.png many.npz objects.npz none.npz floats.npz run plain labels faces
ffhq diffusers samples card.json judge.safetensors digits.safetensors data/celeba
""".split()
PATHS += ["", "x" * 300, "y/" * 3000, "a\x1b]0;FORGED\x07", "a\nFORGED", "a\rFORGED", "a\udcff"]
ODD_VALUES = {
    "option": ["eta=1", "x", "=", "a\x1b]0;FORGED\x07=1", "order=[[[", "resamples=1e999"],
    "image_size": [*INTEGERS, *"8x16 16x8 8x9 0x8 5x x 8x8x8 ８x８ 4096x8".split(), "9x" * 5000],
}


def flag_types(command: str) -> dict[str, object]:
    """The flags of a command, and the type of each."""
    types = {}
    for owner in (COMMANDS[command][0], Recipe) if command == "train" else (COMMANDS[command][0],):
        hints = typing.get_type_hints(owner)
        types |= {each.name: hints[each.name] for each in fields(owner)}
    return {name: kind for name, kind in types.items() if name not in IDLE | HIDDEN}


def random_values(kind: object, name: str, rng: random.Random) -> list[str] | None:
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
        return [part for _ in range(count) for part in random_values(inner[0], name, rng) or []]
    if type(None) in inner:
        return random_values(next(each for each in inner if each is not type(None)), name, rng)
    if name in ODD_VALUES:
        return [rng.choice(ODD_VALUES[name])]
    if kind is int:
        return [rng.choice(INTEGERS)]
    return [rng.choice(FLOATS if kind is float else PATHS)]


def random_command(rng: random.Random) -> list[str]:
    """A valid command with one to three flags changed."""
    valid = [line.split() for line in VALID]
    name = rng.choices([*COMMANDS], [WEIGHTS.get(each, 1) for each in COMMANDS])[0]
    arguments = rng.choice([arguments for arguments in valid if arguments[0] == name])
    if name == "compare":
        return [name, *(rng.choice([card, card, rng.choice(PATHS)]) for card in arguments[1:])]
    types = flag_types(name)
    for flag in rng.sample([*types], rng.choice((0, 0, 1, 1, 1, 2, 3))):
        values, typed = random_values(types[flag], flag, rng), f"--{flag.replace('_', '-')}"
        if values is not None and len(values) == 1 and rng.random() < 0.2:
            arguments.append(f"{typed}={values[0]}")
        else:
            arguments += [typed, *(values or [])]
    return arguments
