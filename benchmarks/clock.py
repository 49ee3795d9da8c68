"""Does `plan` keep its time where the machine's speed changes? It writes clock.json.

`python benchmarks/clock.py` trains five plans, one after the other, while a loop that keeps a core
busy starts and stops at random times. A row has the seconds that were asked for, those from the
command's start to its end, and the steps beside those expected.
"""

import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from busy import COMMAND, busy_loops
from harness import RESULTS, ROOT, make_parser, run, write_result


@contextmanager
def changing_load(seed: int, longest: float) -> Iterator[list[float]]:
    """Inside, a loop keeps a core busy every other period, each of up to `longest` seconds.

    Yields the ends of the periods, which grow.
    """
    over, rng = threading.Event(), random.Random(seed)
    ends, began = [], time.monotonic()

    def alternate() -> None:
        while not over.is_set():
            with busy_loops(len(ends) % 2):
                over.wait(rng.uniform(0.2, 1) * longest)
            ends.append(round(time.monotonic() - began, 1))

    thread = threading.Thread(target=alternate)
    thread.start()
    try:
        yield ends
    finally:
        over.set()
        thread.join()


def time_plan(minutes: float, seed: int, folder: Path) -> dict:
    """One plan: the time it was asked for, and what it took and did."""
    out = folder / f"run-{seed}"
    command = [*COMMAND, "plan", "--minutes", f"{minutes:g}", "--device", "cpu", "--out", str(out)]
    with changing_load(seed, 20 * minutes) as turns:
        began = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
        took = time.monotonic() - began
    if done.returncode:
        sys.exit(done.stderr.splitlines()[-1])
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    planned = next(line for line in done.stdout.splitlines() if "measured in" in line)
    row = {"seed": seed, "asked": 60 * minutes, "took": round(took, 1)}
    row |= {"off": round(took / (60 * minutes) - 1, 4), "steps": config["training"]["steps"]}
    return row | {"planned": planned.partition(": ")[2], "turns": turns}


def main() -> None:
    parser = make_parser(__doc__, RESULTS / "clock.json")
    parser.add_argument("--minutes", type=float, default=1.0, help="of each plan")
    parser.add_argument("--trials", type=int, default=5)
    flags = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for seed in range(flags.trials):
            rows.append(time_plan(flags.minutes, seed, Path(name)))
            print(json.dumps(rows[-1]), flush=True)
    write_result(flags.out, {"rows": rows})


if __name__ == "__main__":
    run(main)
