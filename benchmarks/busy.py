"""How work fares beside other programs: `python benchmarks/busy.py` writes busy.json.

It trains, samples and runs the notebook on an idle machine, then beside two and four loops that
keep a core busy each. A fair share is what so many programs get of the idle pace: of c cores,
beside k loops, c / (c + k). `fixed` has a thread for each core all the time (OMP_NUM_THREADS).
The machine must have nothing else to do.
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

sys.path.insert(1, str(Path(__file__).parents[1]))

import torch

from mnist_ddpm.machine import devices

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
COMMAND = [sys.executable, "-m", "mnist_ddpm"]
LOOP = [sys.executable, "-c", "while True: pass"]


@contextmanager
def busy(loops: int) -> Iterator[None]:
    """Inside, so many loops keep a core busy each."""
    others = [subprocess.Popen(LOOP) for _ in range(loops)]
    try:
        time.sleep(1)  # until they are at work
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def finished(command: list[str], fixed: bool) -> str:
    """What a command prints, with threads that adapt or are as many as cores."""
    free = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    env = free | ({"OMP_NUM_THREADS": str(CORES)} if fixed else {})
    done = subprocess.run(command, env=env, cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout


def training(fixed: bool, folder: Path, steps: int) -> float:
    """Images a second of `train`, in its steps alone."""
    out = folder / f"train-{time.monotonic_ns()}"
    epochs = steps * 128 / 59904
    finished([*COMMAND, "train", "--out", str(out), "--epochs", f"{epochs:.6f}"], fixed)
    record = json.loads((out / "config.json").read_text(encoding="utf-8"))["training"]
    return record["images"] / record["seconds"]


def sampling(fixed: bool, folder: Path, n: int) -> float:
    """Evaluations a second of `sample`, without its start and pictures."""
    told = finished(
        [*COMMAND, "sample", "--sampler", "ddim", "--n", str(n), "--out", str(folder / "drawn")],
        fixed,
    )
    evaluations, seconds = re.search(r"(\d+) network evaluations in ([\d.]+) s", told).groups()
    return n * int(evaluations) / float(seconds)


def notebook(fixed: bool, folder: Path) -> float:
    """Runs of the notebook an hour, from start to end, each with 117 steps of training."""
    began = time.monotonic()
    run = [sys.executable, "-m", "papermill", "MNIST_DDPM.ipynb", str(folder / "run.ipynb")]
    options = {"train": True, "epochs": 0.25, "save_to": folder / f"saved-{time.monotonic_ns()}"}
    told = (("-p", name, str(value)) for name, value in options.items())
    finished([*run, *chain(*told)], fixed)
    return 3600 / (time.monotonic() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=120, help="of a training")
    parser.add_argument("--n", type=int, default=256, help="images to draw")
    parser.add_argument("--loops", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--fixed", action="store_true", help="beside loops too, which takes long")
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--works", nargs="+", default=["train", "sample", "notebook"])
    parser.add_argument("--out", type=Path, default=RESULTS / "busy.json")
    a = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        works = {
            "train, images/s": lambda fixed: training(fixed, folder, a.steps),
            "sample, evaluations/s": lambda fixed: sampling(fixed, folder, a.n),
            "notebook, runs/h": lambda fixed: notebook(fixed, folder),
        }
        for work in [name for name in works if name.split(",")[0] in a.works]:
            pace, idle = works[work], None
            for loops in sorted({0, *a.loops}):
                for fixed in (True, False) if a.fixed or not loops else (False,):
                    with busy(loops):
                        paces = [pace(fixed) for _ in range(a.trials)]
                    middle = sorted(paces)[len(paces) // 2]
                    idle = idle or middle  # of an idle machine, with a thread for each core
                    share = middle / (idle * CORES / (CORES + loops))
                    row = {"work": work, "loops": loops, "fixed": fixed, "pace": round(middle, 2)}
                    rows.append(row | {"of_fair_share": round(share, 3), "trials": paces})
                    print(json.dumps(rows[-1]), flush=True)
    record = {
        "command": shlex.join(["python", *sys.argv]), "rows": rows, "cores": CORES,
        "device": "cpu", "processor": devices.hardware("cpu"), "torch": torch.__version__,
    }  # fmt: skip
    a.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
