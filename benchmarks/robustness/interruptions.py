"""Signals and kills at random moments, after which the same command continues."""

import random
import re
import shutil
import signal
import time
from pathlib import Path

from mnist_ddpm.formats import checkpoints
from mnist_ddpm.machine.process import progress_bar
from robustness.processes import COMMAND, Process, until_interrupt
from robustness.reference import COMMANDS, Reference, saved_step

SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


def signals(reference: Reference, n: int, rng: random.Random, is_new: bool = False) -> dict:
    """A signal at a random moment of each of n commands, which then continue.

    is_new: in new processes, where the moment may be while they import or exit.
    """
    counts = {name: {"trials": 0, "stopped": 0, "ended before": 0} for name in COMMANDS}
    launcher = COMMAND if is_new else None
    seconds = dict(reference.seconds)
    wrong, early = [], 0
    for name in COMMANDS if is_new else ():  # how long they take with the imports
        folder = reference.new_folder(f"new-{name}")
        seconds[name] = Process(reference.command(name), folder, launcher).wait().seconds
    bar = progress_bar(range(n), desc="signals, new processes" if is_new else "signals")
    for k in until_interrupt(bar):
        name, number = COMMANDS[k % len(COMMANDS)], rng.choice(SIGNALS)
        folder, delay = reference.new_folder("trial"), rng.uniform(0, 1.05 * seconds[name])
        process = Process(reference.command(name), folder, launcher)
        time.sleep(delay)
        process.send(number)
        ended, problems = process.wait(), []
        counts[name]["trials"] += 1
        counts[name]["stopped" if ended.status else "ended before"] += 1
        is_early = ended.is_noisy and "mnist_ddpm" not in ended.err  # Python ends in its own way
        if ended.status not in (0, 128 + number, -number) and not is_early:
            problems.append(f"status {ended.status} after {number.name}")
        if ended.is_noisy and not is_early:
            problems.append(ended.err[-2000:])
        early += is_early
        problems += false_messages(ended.err, folder) + reference.problems_resuming(name, folder)
        if problems:
            trial = {"command": name, "signal": number.name, "after": delay}
            wrong.append(trial | {"is": problems})
        shutil.rmtree(folder)
    return counts | {"before the first line of the program": early, "wrong": wrong}


def false_messages(err: str, folder: Path) -> list[str]:
    """Messages on what is saved that are not so."""
    saved = re.search(r"stopped after step (\d+) and saved", err)
    if saved and saved_step(folder / "out") != int(saved[1]):
        return [f"it says step {saved[1]}, and there is {saved_step(folder / 'out')}"]
    parts = re.search(r"kept in (\S+)[,;]", err)
    return [f"there is no {parts[1]}"] if parts and not (folder / parts[1]).is_dir() else []


def kills(reference: Reference, n: int, rng: random.Random) -> dict:
    """SIGKILL at a random moment of n trainings, half of them within a save, then resumed.

    Every second one is killed once more when it has resumed.
    """
    counts = {"kills": 0, "resumes": 0, "within a save": 0, "before the first checkpoint": 0}
    counts["files of two saves, reported"], wrong = 0, []
    for k in until_interrupt(progress_bar(range(n), desc="kills")):
        folder, problems = reference.new_folder("trial"), []
        state = folder / "out" / "training_state.pt"
        for repeat in range(1 + k % 2):
            if repeat and not state.exists():
                break
            process = Process(reference.resumed("train", folder), folder)
            if k % 4 < 2:
                time.sleep(rng.uniform(0, reference.seconds["train"]))
            else:
                counts["within a save"] += wait_for_save(process, folder / "out", rng)
            process.send(signal.SIGKILL)
            process.wait()
            counts["kills"] += 1
            counts["resumes"] += state.exists()
            if (folder / "out" / "config.json").exists():
                try:
                    checkpoints.load(folder / "out")
                except ValueError as error:
                    counts["files of two saves, reported"] += state.exists()
                    problems += [] if state.exists() else [f"lost: {error}"]
        counts["before the first checkpoint"] += not state.exists()
        for path in folder.rglob("*.partial"):
            path.unlink()  # a kill may leave them
        problems += reference.problems_resuming("train", folder)
        if problems:
            wrong.append({"kill": k, "is": problems})
        shutil.rmtree(folder)
    return counts | {"wrong": wrong}


def wait_for_save(process: Process, folder: Path, rng: random.Random) -> bool:
    """Waits for a file that a save writes, and a moment more. Returns whether one came."""
    remaining, was_saving = rng.randint(2, 10), False  # files: a save has three
    while process.is_running():
        is_saving = any(folder.glob("*.partial"))
        remaining -= is_saving and not was_saving
        if is_saving and not remaining:
            time.sleep(rng.uniform(0, 0.02))
            return True
        was_saving = is_saving
        time.sleep(0.0005)
    return False
