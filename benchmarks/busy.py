"""How fast is work beside other programs? `python benchmarks/busy.py` writes busy.json.

It trains, samples and runs the notebook on an idle machine, then beside two and four loops that
keep a core busy each. The fair share of c cores beside k loops is c / (c + k) of the idle speed.
`fixed` has a thread for each core all the time (OMP_NUM_THREADS). The machine must have nothing
else to do.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median_high

from harness import CORES, RESULTS, ROOT, make_parser, run, write_result

COMMAND = [sys.executable, "-m", "mnist_ddpm"]
BUSY_LOOP = [sys.executable, "-c", "while True: pass"]
WORKS = {"train": "images/s", "sample": "evaluations/s", "notebook": "runs/h"}


@contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """Inside, so many loops keep a core busy each."""
    loops = [subprocess.Popen(BUSY_LOOP) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def output_of(command: list, fixed: bool) -> str:
    """What a command prints, with as many threads as cores, or threads that adapt."""
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    if fixed:
        env["OMP_NUM_THREADS"] = str(CORES)
    options = {"env": env, "cwd": ROOT, "check": True, "capture_output": True, "text": True}
    return subprocess.run([str(part) for part in command], **options).stdout


def measure_speed(work: str, fixed: bool, folder: Path, flags) -> float:
    """Images trained a second, without the start; evaluations a second; or notebooks an hour.

    The notebook trains 117 steps.
    """
    began, out = time.monotonic(), folder / str(time.monotonic_ns())
    if work == "train":
        epochs = f"{flags.steps * 128 / 59904:.6f}"
        output_of([*COMMAND, "train", "--out", out, "--epochs", epochs], fixed)
        record = json.loads((out / "config.json").read_text(encoding="utf-8"))["training"]
        return record["images"] / record["seconds"]
    if work == "sample":
        options = ["--sampler", "ddim", "--n", flags.n, "--out", out]
        printed = output_of([*COMMAND, "sample", *options], fixed)
        match = re.search(r"(\d+) network evaluations in ([\d.]+) s", printed)
        evaluations, seconds = match.groups()
        return flags.n * int(evaluations) / float(seconds)
    command = [sys.executable, "-m", "papermill", "MNIST_DDPM.ipynb", folder / "run.ipynb"]
    output_of([*command, "-p", "train", True, "-p", "epochs", 0.25, "-p", "save_to", out], fixed)
    return 3600 / (time.monotonic() - began)


def main() -> None:
    parser = make_parser(__doc__, RESULTS / "busy.json")
    parser.add_argument("--steps", type=int, default=120, help="of a training")
    parser.add_argument("--n", type=int, default=256, help="images to draw")
    parser.add_argument("--loops", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--fixed", action="store_true", help="beside loops too, which takes long")
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--works", nargs="+", choices=WORKS, default=[*WORKS])
    flags = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for work in flags.works:
            idle = None
            for loops in sorted({0, *flags.loops}):
                for fixed in (True, False) if flags.fixed or not loops else (False,):
                    with busy_loops(loops):
                        time.sleep(1)  # until they are at work
                        speeds = range(flags.trials)
                        speeds = [measure_speed(work, fixed, Path(name), flags) for _ in speeds]
                    speed = median_high(speeds)
                    idle = idle or speed  # of an idle machine, with a thread for each core
                    share = speed / (idle * CORES / (CORES + loops))
                    row = {"work": f"{work}, {WORKS[work]}", "loops": loops, "fixed": fixed}
                    row |= {"pace": round(speed, 2), "of_fair_share": round(share, 3)}
                    rows.append(row | {"trials": speeds})
                    print(json.dumps(rows[-1]), flush=True)
    write_result(flags.out, {"rows": rows, "cores": CORES})


if __name__ == "__main__":
    run(main)
