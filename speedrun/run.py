"""Judges entries of the speedrun. README.md has the rules.

`python speedrun/run.py ENTRY --track five-minutes` runs it five times, in turns with other entries
if several are named, and with the track's record if there is one. The same command goes on after
an interruption. `--trial` shows in about a minute whether an entry works.
"""

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENTRIES = ROOT / "speedrun" / "entries"
sys.path.insert(1, str(ROOT))

import torch
from entry_process import RuleError
from judge import RealData
from session import RECORD, Session, Track, verdict

from mnist_ddpm.datasets import dataset_named
from mnist_ddpm.machine import process
from mnist_ddpm.machine.process import Stopped, exit_status
from mnist_ddpm.machine.text import read_json

TRACKS = {
    "five-minutes": Track("mnist", seconds=300, n=2000, epochs=3),
    "least-time": Track(
        "mnist", seconds=1800, n=2000, epochs=3, score="seconds", most_distance=0.5
    ),
    "cifar": Track("torchvision:CIFAR10", seconds=1800, n=2000, epochs=5),
}
LIMIT = 5000  # real images of a trial
LARGEST = 2**16  # bytes of an entry: no room for weights
RECORDS = ROOT / "speedrun" / "records.json"  # "entry" and "seconds" of each track's record


def parse_flags(words: list[str] | None = None) -> argparse.Namespace:
    """The flags of the command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("entries", metavar="ENTRY", nargs="+", help="a file, or a name in speedrun/entries")
    add("--track", choices=TRACKS, default="five-minutes", help="default: %(default)s")
    add("--seconds", type=float, help="of the reference machine, if fewer than the track's")
    add("--trial", action="store_true", help="one run: 30 seconds, 200 images, shipped extractor")
    add("--repeat", type=Path, metavar="LOG", help="one run with the seeds in this log; no record")
    add("--cores", type=int, default=2, help="records take 2")
    add("--data", type=Path, default=ROOT / "data", help="the folder of the data set")
    add("--out", type=Path, default=ROOT / "out" / "speedrun", help="for logs and images")
    return parser.parse_args(words)


def find_entry(name: str) -> Path:
    """The file of an entry: a path, or a name in speedrun/entries. Raises RuleError without one."""
    path = Path(name) if name.endswith(".py") else ENTRIES / f"{name}.py"
    if not path.is_file():
        raise RuleError(f"there is no entry {path}")
    if path.stat().st_size > LARGEST:
        raise RuleError(f"{path} is larger than {LARGEST:,} bytes: an entry has no weights in it")
    return path


def make_session(flags: argparse.Namespace) -> tuple[Session, list[str]]:
    """What the flags ask for, and why it can make no record. Raises RuleError for wrong flags."""
    rules = track = TRACKS[flags.track]
    asked = rules.seconds if flags.seconds is None else flags.seconds
    if not 0 < asked <= rules.seconds:
        raise RuleError(f"--seconds is {flags.seconds:g}: {flags.track} has {rules.seconds:g}")
    entries = {}
    for path in map(find_entry, flags.entries):
        if path.stem in (RECORD, *entries):
            raise RuleError(f"the name {path.stem} is taken: rename {path}")
        entries[path.stem] = path
    seconds = dict.fromkeys(entries, asked)
    record = read_json(RECORDS).get(flags.track)
    seeds = {}
    if flags.trial:
        is_shipped = dataset_named(rules.dataset).extractor
        track = replace(rules, n=200, epochs=0 if is_shipped else 1, runs=1, tries=1)
        seconds = dict.fromkeys(entries, min(30.0, asked))
    elif flags.repeat:
        seeds = read_json(flags.repeat)["seeds"]
        track = replace(rules, runs=1)
    elif record:
        entries[RECORD] = find_entry(record["entry"])
        seconds[RECORD] = record["seconds"]
    reasons = [] if flags.cores == 2 else [f"--cores is {flags.cores}: records take 2"]
    if track != rules:
        reasons.append("--trial and --repeat have other rules")
    command = process.quote(["python", "speedrun/run.py", *sys.argv[1:]])
    options = {"command": command, "cores": flags.cores, "seeds": seeds}
    return Session(track, entries, seconds, flags.out / flags.track, **options), reasons


def take_cores(count: int) -> None:
    """Limits this process, and those that it starts, to some cores, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        if not 0 < count <= len(cores):
            raise RuleError(f"--cores is {count}: this process has {len(cores)}")
        os.sched_setaffinity(0, cores[:count])
    os.environ["OMP_NUM_THREADS"] = str(count)
    torch.set_num_threads(count)


def judge_entries() -> None:
    """Runs and judges what the command line names, and prints the scores."""
    flags = parse_flags()
    session, reasons = make_session(flags)
    take_cores(flags.cores)
    try:
        limit = LIMIT if flags.trial else None
        data = RealData.load(session.track.dataset, flags.data, limit)
        session.run_all(data)
        lines = verdict(session.judge_all(data), session.track, reasons)
    except KeyboardInterrupt as error:
        place = f"runs that have ended are kept in {session.folder}"
        raise Stopped(f"stopped: {place}; the same command goes on") from error
    print(*lines, f"logs: {session.folder}", sep="\n")


if __name__ == "__main__":
    sys.exit(exit_status(judge_entries, "take a machine with more memory"))
