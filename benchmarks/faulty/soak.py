"""Hours of tiny epochs: what a training holds, and whether it grows."""

import os
import signal
import time
from pathlib import Path

import numpy as np

from faulty.base import Base, Process
from faulty.moments import step_in
from mnist_ddpm.machine.progress import progress_bar

EVERY = 10  # seconds
WARM = 0.2  # of the time, which does not count
FLAT = {"MB": 10, "files open": 1, "temporary files": 1}  # an hour, at most
LOSS = 32 / 2**20  # MB: each step's is kept


def soak(folder: Path, minutes: float) -> dict:
    """Of a training with previews and saves: its memory, open files and temporary files."""
    base = Base(folder)
    (folder / "soak").mkdir()
    (folder / "tmp").mkdir()
    os.environ["TMPDIR"] = str(folder / "tmp")
    process = Process(base.command("train", epochs=10_000_000), folder / "soak")
    end, rows = time.monotonic() + 60 * minutes, []
    with progress_bar(total=round(60 * minutes), desc="soak", unit="s") as bar:
        while time.monotonic() < end and process.running():
            time.sleep(min(EVERY, 6 * minutes))
            rows.append(held(process.pid, folder))
            bar.update(round(time.monotonic() - process.began) - bar.n)
    process.send(signal.SIGTERM)
    ended, steps = process.wait(), step_in(folder / "soak" / "out")
    pace = steps / ended.seconds * 3600  # steps an hour
    rows = rows[round(WARM * len(rows)) :]
    hours = np.array([row.pop("seconds") for row in rows]) / 3600
    growth = {name: np.polyfit(hours, [row[name] for row in rows], 1)[0] for name in rows[0]}
    most = FLAT | {"MB": FLAT["MB"] + pace * LOSS}
    wrong = [
        f"{name}: {growth[name]:.1f} more an hour" for name in most if growth[name] > most[name]
    ]
    wrong += [] if ended.status == 143 else [f"status {ended.status}: {ended.last}"]
    return {
        "minutes": minutes, "steps": steps, "first": rows[0], "last": rows[-1],
        "growth an hour": {name: round(value, 2) for name, value in growth.items()},
        "previews": len([*(folder / "soak" / "out" / "previews").iterdir()]), "wrong": wrong,
    }  # fmt: skip


def held(pid: int, folder: Path) -> dict:
    """What a process holds now, by Linux's /proc."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    resident = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
    out = folder / "soak" / "out"
    temporary = [*(folder / "tmp").rglob("*"), *out.glob("*.partial")]
    return {
        "seconds": time.monotonic(), "MB": resident / 1024,
        "files open": len(os.listdir(f"/proc/{pid}/fd")), "temporary files": len(temporary),
    }  # fmt: skip
