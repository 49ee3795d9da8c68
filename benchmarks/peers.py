"""This project and its peers on MNIST, each with its own network, training step and sampler.

pip install -r benchmarks/requirements-peers.txt
python benchmarks/peers.py              speed, memory, time to a first image; half an hour
python benchmarks/peers.py --race 10    ten minutes of training for each, then distances
    … --evaluations 50 10               of images drawn in fifty evaluations, and again in ten

The first prints tables with ratios and writes peers.json. Each contestant has a process of its own,
one works at a time, rounds rotate, the first is discarded. A race trains in the faster precision;
race-MINUTES.json holds a contestant as soon as it is judged, a grid of its images lies beside it.
The same command goes on where it was stopped, and races again with whoever has other settings now.
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
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(1, str(ROOT))  # contestants' packages are imported by their own processes

from contest.contestant import Contestant  # noqa: E402
from contest.race import race  # noqa: E402
from contest.speed import measure  # noqa: E402
from contest.workers import CONTESTANTS, PEERS  # noqa: E402
from processor import precisions  # noqa: E402

PACKAGES = "torch", "numpy", "torchmetrics", "accelerate"  # and those of the peers at work


def flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    of_training = "of training for each, instead of the speeds"
    add("--race", type=float, metavar="MINUTES", help=of_training)
    names = f"of {', '.join(CONTESTANTS)}; all but the last two unless given"
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
    add("--out", type=Path, help="JSON file, in benchmarks/results unless given")
    return parser


def parsed() -> argparse.Namespace:
    """The flags, checked and filled in."""
    parser = flags()
    a = parser.parse_args()
    others = "only", "seed", "out", "evaluations"
    numbers = [value for key, value in vars(a).items() if key not in others] + a.evaluations
    if len(a.evaluations) > 1 and not a.race:
        parser.error("several numbers of --evaluations are for a --race")
    if a.seed < 0 or any(value is not None and value <= 0 for value in numbers):
        parser.error("only --seed may be 0, and nothing below it")
    a.n = a.n or (2000 if a.race else 64)
    a.batch = a.batch or (None if a.race else Contestant.BATCH)
    file = f"race-{a.race:g}.json" if a.race else "peers.json"
    a.out = a.out or ROOT / "benchmarks" / "results" / file
    missing = [name for name in a.only if find_spec(CONTESTANTS[name].package) is None]
    if missing:
        advice = "pip install -r benchmarks/requirements-peers.txt"
        sys.exit(f"not installed: {', '.join(missing)}; {advice}")
    return a


def started_card(a: argparse.Namespace) -> dict:
    """What the result says of how it came about; of a race that was stopped, all it has."""
    settings = {key: value for key, value in vars(a).items() if key not in ("only", "out")}
    settings["evaluations"] = a.evaluations if len(a.evaluations) > 1 else a.evaluations[0]
    a.out.parent.mkdir(parents=True, exist_ok=True)
    if a.out.is_dir() or not os.access(a.out.parent, os.W_OK):
        sys.exit(f"{a.out} cannot be written: name a JSON file")
    card = json.loads(a.out.read_text(encoding="utf-8")) if a.race and a.out.exists() else {}
    if card.get("settings", settings) != settings:
        sys.exit(f"{a.out} holds a race with other settings: name another --out")
    names = [*PACKAGES, *(name for name in a.only if name in PEERS)]
    versions = card.get("versions", {}) | {name: metadata.version(name) for name in names}
    about = {"settings": settings, "python": platform.python_version(), "versions": versions}
    return card | about


def main() -> None:
    a = parsed()
    os.environ["TQDM_DISABLE"] = "1"  # in the contestants' processes
    try:
        card = started_card(a)
        (race if a.race else measure)(a, card, precisions())
    except KeyboardInterrupt:
        goes_on = "the same command goes on with a race, and begins anew with anything else"
        sys.exit(f"stopped: {goes_on}")
    except (OSError, ValueError, BrokenProcessPool) as error:
        sys.exit(str(error))
    print(f"written to {a.out}")


if __name__ == "__main__":
    main()
