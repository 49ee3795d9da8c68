"""Commands at random, to see that each ends well: `python benchmarks/fuzz.py` writes fuzz.json.

Each is a valid tiny command of `python -m mnist_ddpm` with odd flags, damaged files, or both. It
must end by itself, or be at work after a few seconds and then end at Ctrl-C; within 10 s of the
processor, and 2 GB. It ends with status 0, 1, 2 or 130, without a traceback, with at most one line
of error, the last; nothing from a file or a flag reaches the terminal as a control character.

--n commands (1,000), --seed (0), --only K runs one again and shows what it says. On Linux. The
process that holds the package forks one for each command, with 2 GiB of data allowed to it.
"""

import argparse
import contextlib
import ctypes
import json
import os
import random
import re
import resource
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import replace
from pathlib import Path

os.environ |= {
    "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "100",
    "TORCHDYNAMO_DISABLE": "1", "https_proxy": "http://127.0.0.1:9", "MPLBACKEND": "Agg",
}  # fmt: skip
sys.path.insert(1, str(Path(__file__).parents[1]))

import matplotlib.pyplot as plt
import torch
import torchvision.datasets  # noqa: F401
from hostile.base import make_base
from hostile.commands import SEEN, VALID, files_of, random_command
from hostile.damage import damage

from mnist_ddpm.commands import evaluate, measure_likelihood, outputs, sample
from mnist_ddpm.commands.command_line import run_command_line as run
from mnist_ddpm.datasets import DATASETS
from mnist_ddpm.machine import devices
from mnist_ddpm.machine.streams import tolerate_broken_streams
from mnist_ddpm.training import presets, throughput

RESULTS = Path(__file__).parent / "results"
SECONDS, MEMORY = 10.0, 2**31  # of the processor; bytes
PATIENCE = 4.0  # seconds of the processor, or twice as many of no work, before Ctrl-C
WORK = re.compile(r"(training|drawing|bound of|decoding|extracting|looking for)[^\n]*?\d+/")
STATUSES = {0: "done", 1: "refused", 2: "flag refused", 130: "at work, then stopped"}
HARMFUL = re.compile(r"(?!\x1b\[A)[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]|^\s*FORGED", re.MULTILINE)


def without_privilege() -> None:
    """Root is refused what others are: no capability is left."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    ctypes.CDLL(None).capset(header, (ctypes.c_uint32 * 6)())


def child(work, log: Path, folder: Path) -> int:
    """Forks a process that does the work in a folder, and returns its number."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
        os.chdir(folder)
        for number, path in enumerate((Path(os.devnull), log, log.with_suffix(".err"))):
            flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND
            os.dup2(os.open(path, flags), number)
        status = work()
    except SystemExit as stopped:
        status = stopped.code if isinstance(stopped.code, int) else 1
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(status)


def command(given: list[str]) -> int:
    """What `python -m mnist_ddpm` does."""
    without_privilege()
    os.environ["HOME"] = os.getcwd()
    soft = MEMORY + 2**28  # of which some is not used
    resource.setrlimit(resource.RLIMIT_DATA, (soft, resource.RLIM_INFINITY))
    tolerate_broken_streams()
    return run(given)


def used(pid: int) -> float:
    """Seconds of the processor that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def said(log: Path) -> list[str]:
    """What a command has written, to its output and as errors."""
    paths = log, log.with_suffix(".err")
    return [path.read_bytes().decode("utf-8", "replace") for path in paths]


def watch(pid: int, log: Path) -> dict:
    """Waits for a process, asks one at work to stop, and kills one that does not."""
    began, asked = time.monotonic(), []  # when Ctrl-C was sent, by the processor's time
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            break
        spent, waited = used(pid), time.monotonic() - began
        idle = waited > 4 * PATIENCE and spent < waited / 10
        if len(asked) < 2 and spent > (asked[-1] if asked else PATIENCE / 2) + PATIENCE / 2:
            if asked or WORK.search("".join(said(log))):
                os.kill(pid, signal.SIGINT)  # a second one does not wait for the step
                asked.append(spent)
        if spent > SECONDS or waited > 8 * SECONDS or (idle and not asked):
            os.killpg(pid, signal.SIGKILL)
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # what it has left behind
    return {
        "status": os.waitstatus_to_exitcode(status), "asked": bool(asked),
        "seconds": round(usage.ru_utime + usage.ru_stime, 2), "MB": usage.ru_maxrss // 1024,
    }  # fmt: skip


def faults(found: dict, out: str, err: str) -> list[str]:
    """What is wrong with how a command ended."""
    lines = [line for line in re.split(r"[\r\n]", err) if line.strip()]
    errors = [k for k, line in enumerate(lines) if line.startswith("error:")]
    status = found["status"]
    wrong = {
        "status": status not in STATUSES or (status == 130 and not found["asked"]),
        "traceback": "Traceback" in out + err,
        "errors": len(errors) != (status == 1) or (status == 1 and errors != [len(lines) - 1]),
        "terminal": bool(HARMFUL.search(out.replace("\r", "\n") + err.replace("\r", "\n"))),
        "seconds": found["seconds"] > SECONDS,
        "memory": found["MB"] * 2**20 > MEMORY,
    }
    return [name for name, bad in wrong.items() if bad]


def case(seed: int, index: int) -> tuple[list[str], random.Random, float]:
    """A command, what decides its damages, and how likely these are."""
    rng = random.Random(f"{seed} {index}")
    if index < len(SEEN):
        name, *changed = shlex.split(SEEN[index])
        valid = VALID[name][4 if re.search("--images|--init", SEEN[index]) else 0]
        return [name, *valid.split(), *changed], rng, 0
    return random_command(rng), rng, 0.5


def spoil(given: list[str], rng: random.Random, chance: float) -> None:
    """Damages some of the files that a command reads, here."""
    if rng.random() > chance:
        return
    files = []
    for path in files_of(given):
        with contextlib.suppress(OSError):
            inside = sorted(path.rglob("*")) if path.is_dir() and path.parts[0] != "/" else [path]
            files += [each for each in inside if each.is_file() and each.stat().st_size < 10**6]
    files = [each for each in files if not each.is_absolute() and ".." not in each.parts]
    for path in rng.sample(files, min(len(files), rng.choice((1, 1, 2)))):
        with contextlib.suppress(ValueError, OSError, RuntimeError):
            damage(path, rng)


def plant(rng: random.Random) -> None:
    """Lets the parts that a command keeps be there already, and damaged."""
    open_partial_results = outputs.open_partial_results

    def planted(*arguments):
        kept = open_partial_results(*arguments)
        kept.folder.mkdir(parents=True, exist_ok=True)
        for name in ("images-0-6", "bound-0-4-of-4", "bound-0-3-of-3"):
            path = kept.folder / f"{name}.npz"
            shutil.copy("samples/samples.npz", path)
            damage(path, rng)
        return kept

    for module in (sample, evaluate, measure_likelihood):
        module.open_partial_results = planted


def try_one(base: Path, scratch: Path, seed: int, index: int) -> dict:
    """One command, in a copy of the base. Returns what came of it, and what it said."""
    given, rng, chance = case(seed, index)
    folder, log = scratch / "here", scratch / "said"
    for path in (folder, log, log.with_suffix(".err")):
        remove(path)
    os.system(f"cp -a {shlex.quote(str(base))} {shlex.quote(str(folder))}")
    before = os.getcwd()
    os.chdir(folder)
    spoil(given, rng, chance)
    os.chdir(before)

    def work() -> int:
        if given[0] in ("sample", "evaluate", "likelihood") and rng.random() < 0.15 * (chance > 0):
            plant(rng)
        return command(given)

    found = watch(child(work, log, folder), log)
    out, err = said(log)
    wrong = faults(found, out, err)
    return {"index": index, "given": given, **found, "faults": wrong, "said": out + err}


def remove(path: Path) -> None:
    """A file or folder, with folders in it that nobody may enter."""
    name = shlex.quote(str(path))
    os.system(f"chmod -R u+rwx {name} 2>/dev/null; rm -rf {name}")


def made_tiny() -> None:
    """Presets as for a machine a hundred times as fast: a plan then takes seconds."""
    for values in presets.PRESETS.values():
        values |= {"base_channels": 4, "channel_mults": (1,), "blocks_per_level": 1}
        values |= {"batch_size": 16, "attention_resolutions": ()}
    for name, dataset in DATASETS.items():
        planning = replace(dataset.planning, images_needed=100)
        DATASETS[name] = replace(dataset, planning=planning)
    throughput.MIN_SECONDS = throughput.MAX_SECONDS = 0.1  # seconds


def made_base(scratch: Path) -> Path:
    """The base, made by a process of its own: this one must not have used OpenMP."""
    base = scratch / "base"
    base.mkdir()

    def step(given: list[str]) -> None:
        status = run(given)
        assert status == 0, given

    pid = child(lambda: make_base(Path(), step) or 0, scratch / "base.log", base)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status:
        sys.exit((scratch / "base.err").read_text())
    return base


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("--n", 1000), ("--seed", 0), ("--only", None)):
        parser.add_argument(name, type=int, default=default)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    plt.figure()
    made_tiny()
    scratch = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        base = made_base(scratch)
        if asked.only is not None:
            found = try_one(base, scratch, asked.seed, asked.only)
            said = found.pop("said")
            sys.exit(f"{said}\n{json.dumps(found, indent=1)}")
        write(asked, *trials(base, scratch, asked))
    finally:
        remove(scratch)


def trials(base: Path, scratch: Path, asked) -> tuple[list[dict], float]:
    """All commands, and how long they took."""
    began, found = time.monotonic(), []
    for index in range(asked.n):  # a bar of ours would be in the way of the commands'
        found.append(try_one(base, scratch, asked.seed, index))
        if wrong := found[-1]["faults"]:
            given = ascii(shlex.join(found[-1]["given"]))[:250]
            print(f"{index}: {wrong}: {given}", flush=True)
        if index % 50 == 49:
            print(f"{index + 1} commands, {time.monotonic() - began:.0f} s", flush=True)
    return found, time.monotonic() - began


def write(asked, found: list[dict], seconds: float) -> None:
    """fuzz.json, and the sum of it."""
    counts = Counter(
        (each["given"][0], STATUSES.get(each["status"], str(each["status"]))) for each in found
    )
    by_command = {}
    for (name, outcome), count in sorted(counts.items()):
        by_command.setdefault(name, {})[outcome] = count
    failing = [{**each, "said": each["said"][-1000:]} for each in found if each["faults"]]
    record = {
        "command": shlex.join(["python", *sys.argv]), "n": len(found), "seed": asked.seed,
        "outcomes": by_command, "failing": failing,
        "most_seconds": max(each["seconds"] for each in found),
        "most_MB": max(each["MB"] for each in found), "minutes": round(seconds / 60, 1),
        "without_memory": sum("can't allocate" in each["said"] for each in found),
        "device": "cpu", "processor": devices.hardware("cpu"), **devices.versions(),
    }  # fmt: skip
    (RESULTS / "fuzz.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"{len(found)} commands, {len(failing)} failing: {by_command}")


if __name__ == "__main__":
    main()
