"""Is damage detected, does every command end well, is no work lost?

python benchmarks/robustness damage    each kind of file with a changed byte, or cut off
python benchmarks/robustness fuzz      commands with odd flags and damaged files; on Linux
python benchmarks/robustness faults    signals, kills, full disks and the like; an hour on two cores
python benchmarks/robustness soak      memory and files of an hour's training

Each trial is seeded, and each command tiny. The results go to benchmarks/results/damage.json,
fuzz.json and faults.json (a soak adds its part). The status is 1 if anything is wrong. Ctrl-C ends
a part after the present trial, and its results are written. `fuzz --only K` runs command K once
more and prints its output. Faults that need a mount or another user need root on Linux, and are
named as left out elsewhere.
"""

import argparse
import os
import signal
import sys
from importlib import import_module
from pathlib import Path

# Commands are forked from this process, which must not have used OpenMP's threads
os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TORCHDYNAMO_DISABLE": "1"}
os.environ |= {"HF_HUB_OFFLINE": "1", "https_proxy": "http://127.0.0.1:9"}
os.environ |= {"COLUMNS": "100", "MPLBACKEND": "Agg"}
sys.path.insert(1, str(Path(__file__).parents[1]))

from harness import RESULTS, run

PARTS = ["signals", "starts", "kills", "cases"]


def main() -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("robustness", description=__doc__, formatter_class=raw)
    trials = parser.add_subparsers(dest="trial", required=True)

    def add(trial: str, module: str, file: str, **numbers: float) -> argparse.ArgumentParser:
        own = trials.add_parser(trial)
        for name, default in ({"seed": 0} | numbers).items():
            own.add_argument(f"--{name}", type=type(default), default=default)
        own.add_argument("--out", type=Path, default=RESULTS / file)
        own.set_defaults(module=module)
        return own

    add("damage", "byte_damage", "damage.json", n=300)
    fuzz = add("fuzz", "fuzz", "fuzz.json", n=1000)
    fuzz.add_argument("--only", type=int, help="number of a command")
    faults = add("faults", "faults", "faults.json", signals=200, starts=40, kills=220, pairs=20)
    faults.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    add("soak", "faults", "faults.json", minutes=60.0).set_defaults(only=["soak"])
    flags = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored in the background
    return import_module(f"robustness.{flags.module}").main(flags)


if __name__ == "__main__":
    run(main)
