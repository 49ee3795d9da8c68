"""Does `plan` keep its time where the machine's pace changes? It writes clock.json.

`python benchmarks/clock.py` trains five plans, one after the other, while a loop that keeps a core
busy comes and goes, as a seed draws it. A row has the seconds that were asked for, those from the
command's start to its end, and the steps beside those expected.
"""

import argparse
import json
import random
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(1, str(Path(__file__).parents[1]))

from mnist_ddpm.machine import devices

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
LOOP = [sys.executable, "-c", "while True: pass"]


@contextmanager
def restless(seed: int, longest: float) -> Iterator[list[float]]:
    """Inside, a loop keeps a core busy by turns, of up to so many seconds. Yields their ends."""
    over, turns, drawn = threading.Event(), [], random.Random(seed)
    began = time.monotonic()

    def come_and_go() -> None:
        while not over.is_set():
            other = subprocess.Popen(LOOP) if len(turns) % 2 else None
            over.wait(drawn.uniform(0.2, 1) * longest)
            if other is not None:
                other.kill()
                other.wait()
            turns.append(round(time.monotonic() - began, 1))

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        yield turns
    finally:
        over.set()
        thread.join()


def trial(minutes: float, seed: int, folder: Path) -> dict:
    """One plan: what it was asked for, and what it did."""
    out = folder / f"run-{seed}"
    plan = ["plan", "--minutes", f"{minutes:g}", "--device", "cpu", "--out", str(out)]
    with restless(seed, 20 * minutes) as turns:
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "mnist_ddpm", *plan], cwd=ROOT, text=True, capture_output=True
        )
        took = time.monotonic() - began
    if done.returncode:
        sys.exit(done.stderr.splitlines()[-1])
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    expected = next(line for line in done.stdout.splitlines() if "measured in" in line)
    return {
        "seed": seed, "asked": 60 * minutes, "took": round(took, 1),
        "off": round(took / (60 * minutes) - 1, 4), "steps": config["training"]["steps"],
        "planned": expected.partition(": ")[2], "turns": turns,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1.0, help="of each plan")
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "clock.json")
    a = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for seed in range(a.trials):
            rows.append(trial(a.minutes, seed, Path(name)))
            print(json.dumps(rows[-1]), flush=True)
    record = {
        "command": shlex.join(["python", *sys.argv]), "rows": rows, "device": "cpu",
        "hardware": devices.hardware("cpu"), "versions": devices.versions(),
    }  # fmt: skip
    a.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
