"""Signals and kills at random moments."""

import json
import random
import re
import shutil
import signal
import time
from pathlib import Path

from faulty.base import Base, Process
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.machine.progress import progress_bar

SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


def signals(base: Base, n: int, rng: random.Random, fork: bool = True) -> dict:
    """A signal at a random moment of each of n commands, which then go on.

    fork: else they are new processes, and the moment may be while they import or exit.
    """
    found = {name: {"trials": 0, "stopped": 0, "ended before": 0} for name in base.expected}
    wrong, early = [], 0
    seconds = dict(base.seconds)
    if not fork:
        for name in seconds:  # with the imports
            folder = base.new(f"real-{name}")
            seconds[name] = Process(base.command(name), folder, fork=False).wait().seconds
    for k in progress_bar(range(n), desc="signals" if fork else "signals, new processes"):
        name, signum = list(found)[k % len(found)], rng.choice(SIGNALS)
        folder, delay = base.new("trial"), rng.uniform(0, 1.05 * seconds[name])
        process = Process(base.command(name), folder, fork=fork)
        time.sleep(delay)
        process.send(signum)
        ended = process.wait()
        counts, problems = found[name], []
        counts["trials"] += 1
        counts["stopped" if ended.status else "ended before"] += 1
        if ended.status not in (0, 128 + signum, -signum):
            problems.append(f"status {ended.status} after {signum.name}")
        if ended.noisy and "mnist_ddpm" in ended.err:
            problems.append(ended.err[-2000:])
        early += ended.noisy and "mnist_ddpm" not in ended.err  # before our first line
        problems += untrue(ended.err, folder)
        problems += goes_on(base, name, folder)
        if problems:
            wrong.append({"command": name, "signal": signum.name, "after": delay, "is": problems})
        shutil.rmtree(folder)
    return found | {"before the first line of the program": early, "wrong": wrong}


def untrue(told: str, folder: Path) -> list[str]:
    """Where a message of what is saved is not so."""
    saved = re.search(r"stopped after step (\d+) and saved", told)
    if saved and step_in(folder / "out") != int(saved[1]):
        return [f"told step {saved[1]}, and there is {step_in(folder / 'out')}"]
    kept = re.search(r"kept in (\S+),", told)
    return [f"there is no {kept[1]}"] if kept and not (folder / kept[1]).is_dir() else []


def step_in(folder: Path) -> int | None:
    path = folder / "config.json"
    return json.loads(path.read_text())["training"]["steps"] if path.exists() else None


def goes_on(base: Base, name: str, folder: Path) -> list[str]:
    """What is wrong when a command that was stopped is given again. It leaves no other files."""
    ended = Process(base.again(name, folder), folder).wait()
    if ended.status or ended.noisy:
        return [f"going on: status {ended.status}, {ended.last}"]
    problems = [] if base.comes_to(name, folder) else ["going on, it comes to something else"]
    left = [path.name for path in folder.rglob("*") if path.suffix in (".partial", ".kept")]
    return problems + ([f"left behind: {left}"] if left else [])


def kills(base: Base, n: int, rng: random.Random) -> dict:
    """SIGKILL at a random moment of n trainings, half of them within a save, then resumed.

    Every second one is killed once more as it goes on.
    """
    counts = {"kills": 0, "resumes": 0, "within a save": 0, "before the first checkpoint": 0}
    counts |= {"files of two saves, told": 0}
    wrong = []
    for k in progress_bar(range(n), desc="kills"):
        folder, problems = base.new("trial"), []
        for again in range(1 + k % 2):
            if again and not (folder / "out" / "training_state.pt").exists():
                break
            process = Process(base.again("train", folder), folder)
            if k % 4 < 2:
                time.sleep(rng.uniform(0, base.seconds["train"]))
            else:
                counts["within a save"] += saving(process, folder, rng)
            process.send(signal.SIGKILL)
            process.wait()
            counts["kills"] += 1
            counts["resumes"] += (folder / "out" / "training_state.pt").exists()
            problems += broken(folder / "out", counts)
        if not (folder / "out" / "training_state.pt").exists():
            counts["before the first checkpoint"] += 1
        for path in folder.rglob("*.partial"):
            path.unlink()  # a kill may leave them
        problems += goes_on(base, "train", folder)
        if problems:
            wrong.append({"kill": k, "is": problems})
        shutil.rmtree(folder)
    return counts | {"wrong": wrong}


def saving(process: Process, folder: Path, rng: random.Random) -> bool:
    """Waits for a file that a save writes, and a moment more. Returns whether one came."""
    wanted, before = rng.randint(2, 10), False  # files: a save has three
    while process.running():
        now = any((folder / "out").glob("*.partial")) if (folder / "out").exists() else False
        wanted -= now and not before
        if now and not wanted:
            time.sleep(rng.uniform(0, 0.02))
            return True
        before = now
        time.sleep(0.0005)
    return False


def broken(folder: Path, counts: dict) -> list[str]:
    """What is wrong with the checkpoint in a folder, unless it says so itself."""
    if not (folder / "config.json").exists():
        return []
    try:
        checkpoints.load(folder)
    except ValueError as error:
        if (folder / "training_state.pt").exists():
            counts["files of two saves, told"] += 1
            return []
        return [f"lost: {error}"]
    return []
