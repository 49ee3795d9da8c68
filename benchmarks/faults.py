"""Signals, kills, full disks, closed streams, odd surroundings, two runs in a folder, and a soak.

python benchmarks/faults.py                     all but the soak: an hour on two cores
    … --signals 200 --kills 220 --starts 40     how many of each; --only kills cases
python benchmarks/faults.py soak --minutes 60   memory, open files and temporary files over time

Each trial is seeded. Commands are tiny: 48 pictures of 16 x 16 pixels, a network of 13,000 weights.
After each fault the same command goes on, and must come to what it comes to undisturbed, bit for
bit. The first prints what is wrong and writes faults.json, the second adds its part. As root on
Linux all is tried; else what needs a mount or another user is named as left out.
"""

import argparse
import json
import os
import random
import shlex
import signal
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(1, str(ROOT))

os.environ["OMP_NUM_THREADS"] = "1"  # commands are forked from this process

from faulty import cases, moments  # noqa: E402
from faulty.base import Base  # noqa: E402
from faulty.soak import soak  # noqa: E402

from mnist_ddpm.machine import devices  # noqa: E402


def flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", default="trials", choices=["trials", "soak"])
    parser.add_argument("--signals", type=int, default=200, help="at random moments")
    parser.add_argument("--starts", type=int, default=40, help="of these in new processes, more")
    parser.add_argument("--kills", type=int, default=220)
    parser.add_argument("--pairs", type=int, default=20, help="of trainings begun at once")
    parser.add_argument("--only", nargs="*", default=["signals", "starts", "kills", "cases"])
    parser.add_argument(
        "--minutes", type=float, default=60, help="of the soak; fewer than 10 tell little"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/faults.json")
    return parser


def trials(given: argparse.Namespace, folder: Path) -> dict:
    """All that is asked for, by name."""
    base, found = Base(folder), {}
    rng = {name: random.Random(f"{given.seed} {name}") for name in given.only}
    if "signals" in given.only:
        found["signals"] = moments.signals(base, given.signals, rng["signals"])
    if "starts" in given.only:
        found["starts"] = moments.signals(base, given.starts, rng["starts"], fork=False)
    if "kills" in given.only:
        found["kills"] = moments.kills(base, given.kills, rng["kills"])
    if "cases" in given.only:
        found["cases"] = cases.all_cases(base, given.pairs, rng["cases"])
    return found


def main() -> int:
    given = flags().parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        os.chmod(folder, 0o755)  # another user reads it
        made = Path(folder).resolve()
        found = {"soak": soak(made, given.minutes)} if given.what == "soak" else trials(given, made)
    about = {
        "command": shlex.join(["python", *sys.argv]), "seed": given.seed,
        "minutes": round((time.monotonic() - began) / 60, 1), "device": "cpu",
        "hardware": devices.hardware("cpu"), "cores": os.cpu_count(), "system": sys.platform,
        "versions": devices.versions(),
    }  # fmt: skip
    record = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else {}
    record |= {name: {**part, "about": about} for name, part in found.items()}
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    wrong = [problem for part in found.values() for problem in part.get("wrong", [])]
    print(json.dumps(found, indent=1))
    print(f"written to {given.out}; wrong: {len(wrong)}")
    return min(1, len(wrong))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("\nstopped")
