"""This project and its peers on MNIST, each with its own network, training step and sampler.

pip install -r benchmarks/requirements-peers.txt
python benchmarks/peers.py              speed, memory, time to a first image; half an hour
python benchmarks/peers.py --race 10    ten minutes of training for each, then distances
    … --evaluations 50 10               of images drawn in fifty evaluations, and again in ten

The first prints tables with ratios and writes peers.json. Each contestant has a separate process,
one works at a time, rounds rotate, the first is discarded. A race trains in the faster precision;
race-MINUTES.json holds a contestant as soon as it is judged, a grid of its images lies beside it.
The same command continues where it was stopped.
Network evaluations are counted where the network is called, not taken from the settings.
bfloat16 takes part where the processor has arithmetic for it.
"""

import argparse
import json
import os
import platform
import sys
from concurrent.futures.process import BrokenProcessPool
from importlib import metadata
from importlib.util import find_spec

from contest.contestant import Contestant
from contest.race import race
from contest.speed import measure
from contest.workers import CONTESTANTS, PEERS
from harness import RESULTS, make_parser, precisions, run

PACKAGES = "torch", "numpy", "accelerate"  # and those of the peers at work


def parse_flags() -> argparse.Namespace:
    """The flags, checked, with the defaults of a race or of the speeds."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    of_training = "of training for each, instead of the speeds"
    add("--race", type=float, metavar="MINUTES", help=of_training)
    names = f"of {', '.join(CONTESTANTS)}; all but the last two by default"
    usual = ["mnist-ddpm", *PEERS]
    add("--only", nargs="+", choices=CONTESTANTS, default=usual, metavar="NAME", help=names)
    add("--n", type=int, help="images drawn: 64 in each round, 2000 in a race")
    each = "of the network, for each image; a race takes several"
    add("--evaluations", type=int, nargs="+", default=[50], help=each)
    add("--rounds", type=int, default=5, help="that count")
    add("--starts", type=int, default=3, help="of fresh processes, each to its first image")
    pace = "of training in a round, or to learn a race's pace"
    add("--seconds", type=float, default=20, help=pace)
    add("--batch", type=int, help="of training: 128, but in a race each contestant's own")
    add("--rate", type=float, help="learning rate of every peer, instead of its own")
    add("--threads", type=int, default=2)
    add("--seed", type=int, default=0)
    parser.set_defaults(out=None)
    flags = parser.parse_args()
    if len(flags.evaluations) > 1 and not flags.race:
        parser.error("several numbers of --evaluations are for a --race")
    others = "only", "seed", "out", "evaluations"
    numbers = [value for key, value in vars(flags).items() if key not in others]
    if any(value is not None and value <= 0 for value in (*numbers, *flags.evaluations)):
        parser.error("only --seed may be 0, and nothing below it")
    flags.n = flags.n or (2000 if flags.race else 64)
    flags.batch = flags.batch or (None if flags.race else Contestant.BATCH)
    flags.out = flags.out or RESULTS / (f"race-{flags.race:g}.json" if flags.race else "peers.json")
    missing = [name for name in flags.only if find_spec(CONTESTANTS[name].package) is None]
    if missing:
        advice = "pip install -r benchmarks/requirements-peers.txt"
        sys.exit(f"not installed: {', '.join(missing)}; {advice}")
    return flags


def read_card(flags: argparse.Namespace) -> dict:
    """What the result says of its origin; of a race that was stopped, all rows so far."""
    settings = {key: value for key, value in vars(flags).items() if key not in ("only", "out")}
    if len(flags.evaluations) == 1:
        settings["evaluations"] = flags.evaluations[0]
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    if flags.out.is_dir() or not os.access(flags.out.parent, os.W_OK):
        raise ValueError(f"{flags.out} cannot be written: name a JSON file")
    is_there = flags.race and flags.out.exists()
    card = json.loads(flags.out.read_text(encoding="utf-8")) if is_there else {}
    if card.get("settings", settings) != settings:
        raise ValueError(f"{flags.out} holds a race with other settings: name another --out")
    names = [*PACKAGES, *(name for name in flags.only if name in PEERS)]
    versions = card.get("versions", {}) | {name: metadata.version(name) for name in names}
    about = {"settings": settings, "python": platform.python_version(), "versions": versions}
    return card | about


def main() -> None:
    flags = parse_flags()
    os.environ["TQDM_DISABLE"] = "1"  # in the contestants' processes
    try:
        (race if flags.race else measure)(flags, read_card(flags), precisions())
    except BrokenProcessPool as error:
        raise ValueError(str(error)) from error
    print(f"written to {flags.out}")


if __name__ == "__main__":
    run(main, "stopped: the same command continues a race, and starts anything else again")
