"""Hours of tiny epochs: what a training holds, and whether it grows."""

import os
import signal
import tempfile
import time
from pathlib import Path

import numpy as np

from mnist_ddpm.machine.process import progress_bar
from robustness.processes import Process
from robustness.reference import Reference, saved_step

EVERY = 10  # seconds
WARM = 0.2  # of the time, which does not count
LIMITS = {"MB": 10, "files open": 1, "temporary files": 1}  # growth an hour, at most
LOSS = 32 / 2**20  # MB: each step's is stored


def soak(reference: Reference, minutes: float) -> dict:
    """Memory, open files and temporary files of a training with previews and saves."""
    folder = reference.new_folder("soak")
    tempfile.tempdir = str(reference.new_folder("tmp"))  # of the forked process, too
    process = Process(reference.command("train", epochs=10_000_000), folder)
    deadline, rows = time.monotonic() + 60 * minutes, []
    with progress_bar(total=round(60 * minutes), desc="soak", unit="s") as bar:
        while time.monotonic() < deadline and process.is_running():
            time.sleep(min(EVERY, 6 * minutes))
            rows.append(measure(process.pid, folder / "out"))
            bar.update(round(time.monotonic() - process.began) - bar.n)
    process.send(signal.SIGTERM)
    ended, steps = process.wait(), saved_step(folder / "out")
    rows = rows[round(WARM * len(rows)) :]
    hours = np.array([row.pop("seconds") for row in rows]) / 3600
    growth = {name: np.polyfit(hours, [row[name] for row in rows], 1)[0] for name in rows[0]}
    limits = LIMITS | {"MB": LIMITS["MB"] + 3600 * steps / ended.seconds * LOSS}
    above = [name for name, limit in limits.items() if growth[name] > limit]
    wrong = [f"{name}: {growth[name]:.1f} more an hour" for name in above]
    wrong += [] if ended.status == 143 else [f"status {ended.status}: {ended.last_line}"]
    result = {"minutes": minutes, "steps": steps, "first": rows[0], "last": rows[-1]}
    result["growth an hour"] = {name: round(value, 2) for name, value in growth.items()}
    previews = len([*(folder / "out" / "previews").glob("*")])
    return result | {"previews": previews, "wrong": wrong}


def measure(pid: int, out: Path) -> dict:
    """What a process holds now, by Linux's /proc."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    resident = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
    temporary = [*Path(tempfile.tempdir).rglob("*"), *out.glob("*.partial")]
    row = {"seconds": time.monotonic(), "MB": resident / 1024}
    files = len(os.listdir(f"/proc/{pid}/fd"))
    return row | {"files open": files, "temporary files": len(temporary)}
