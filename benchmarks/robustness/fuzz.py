"""Commands at random, to see that each ends well.

Each is a valid tiny command of `python -m mnist_ddpm` with odd flags, damaged files, or both. It
must end by itself, or be at work after a few seconds and then end at Ctrl-C; within 10 s of the
processor, and 2 GB. It ends with status 0, 1, 2 or 130, without a traceback, with at most one line
of error, the last; nothing from a file or a flag reaches the terminal as a control character.
"""

import ctypes
import os
import random
import re
import resource
import shlex
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import chdir, suppress
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torchvision.datasets  # noqa: F401
from harness import write_result

from mnist_ddpm import recipe
from mnist_ddpm.commands.command_line import run_command_line
from mnist_ddpm.datasets import DATASETS
from mnist_ddpm.machine.process import tolerate_broken_streams
from mnist_ddpm.training import throughput
from robustness.file_damage import damage
from robustness.processes import fork, until_interrupt
from robustness.random_commands import random_command
from robustness.tiny_data import make_base

SECONDS, MEMORY = 10.0, 2**31  # of the processor; bytes
PATIENCE = 4.0  # seconds of the processor, or twice as many of no work, before Ctrl-C
WORK = re.compile(
    r"(training|drawing|bound of|decoding|extracting|looking for)[^\n]*?\d+/|exporting"
)
STATUSES = {0: "done", 1: "refused", 2: "flag refused", 130: "at work, then stopped"}
HARMFUL = re.compile(r"(?!\x1b\[A)[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]|^\s*FORGED", re.MULTILINE)


def run_limited(arguments: list[str]) -> int:
    """Runs a command as any user with little memory: root's capabilities are dropped."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    ctypes.CDLL(None).capset(header, (ctypes.c_uint32 * 6)())
    os.environ["HOME"] = os.getcwd()
    soft = MEMORY + 2**28  # of which some is not used
    resource.setrlimit(resource.RLIMIT_DATA, (soft, resource.RLIM_INFINITY))
    tolerate_broken_streams()
    return run_command_line(arguments)


def processor_seconds(pid: int) -> float:
    """What a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def queue_seconds(pid: int) -> float:
    """How long a process has waited for a processor so far, on a busy machine."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9


def read(files: list[Path]) -> list[str]:
    """Their texts, whatever bytes they hold."""
    return [path.read_bytes().decode("utf-8", "replace") for path in files]


def watch(pid: int, files: list[Path]) -> dict:
    """Waits for a process, stops one at work by Ctrl-C, and kills one that does not end."""
    began, interrupts = time.monotonic(), []  # by the processor's time
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            break
        spent = processor_seconds(pid)
        waited = time.monotonic() - began - queue_seconds(pid)
        is_idle = waited > 4 * PATIENCE and spent < waited / 10
        since = spent - (interrupts[-1] if interrupts else PATIENCE / 2)
        if len(interrupts) < 2 and since > PATIENCE / 2:
            if interrupts or WORK.search("".join(read(files))):
                os.kill(pid, signal.SIGINT)  # a second one does not wait for the step
                interrupts.append(spent)
        if spent > SECONDS or waited > 8 * SECONDS or (is_idle and not interrupts):
            os.killpg(pid, signal.SIGKILL)
        time.sleep(0.01)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # processes that it has left behind
    result = {"status": os.waitstatus_to_exitcode(status), "asked": bool(interrupts)}
    result["seconds"] = round(usage.ru_utime + usage.ru_stime, 2)
    return result | {"MB": usage.ru_maxrss // 1024}


def find_faults(result: dict, out: str, err: str) -> list[str]:
    """What is wrong with how a command ended."""
    lines = [line for line in re.split(r"[\r\n]", err) if line.strip()]
    errors = [k for k, line in enumerate(lines) if line.startswith("error:")]
    status = result["status"]
    faults = {
        "status": status not in STATUSES or (status == 130 and not result["asked"]),
        "traceback": "Traceback" in out + err,
        "errors": errors != ([len(lines) - 1] if status == 1 else []),
        "terminal": bool(HARMFUL.search(out.replace("\r", "\n") + err.replace("\r", "\n"))),
        "seconds": result["seconds"] > SECONDS,
        "memory": result["MB"] * 2**20 > MEMORY,
    }
    return [name for name, is_wrong in faults.items() if is_wrong]


def damage_inputs(arguments: list[str], rng: random.Random) -> None:
    """Damages some of the files that a command reads, below the working directory."""
    files = []
    for path in map(Path, arguments[1:]):
        with suppress(OSError, ValueError):
            if path.parts and not path.is_absolute() and ".." not in path.parts:
                inside = sorted(path.rglob("*")) if path.is_dir() else [path]
                files += [each for each in inside if each.is_file()]
    files = [each for each in files if each.stat().st_size < 10**6]
    for path in rng.sample(files, min(len(files), rng.choice((1, 1, 2)))):
        with suppress(ValueError, OSError, RuntimeError):
            damage(path, rng)


def remove(path: Path) -> None:
    """Removes a file or folder, with folders in it that nobody may enter."""
    name = shlex.quote(str(path))
    os.system(f"chmod -R u+rwx {name} 2>/dev/null; rm -rf {name}")


def try_command(base: Path, scratch: Path, seed: int, index: int) -> dict:
    """What came of one command, in a copy of the base, and its output."""
    rng = random.Random(f"{seed} {index}")
    arguments = random_command(rng)
    folder, files = scratch / "here", [scratch / "out", scratch / "err"]
    for path in (folder, *files):
        remove(path)
    os.system(f"cp -a {shlex.quote(str(base))} {shlex.quote(str(folder))}")
    if rng.random() < 0.5:
        with chdir(folder):
            damage_inputs(arguments, rng)
    result = watch(fork(lambda: run_limited(arguments), folder, files), files)
    out, err = read(files)
    faults = find_faults(result, out, err)
    return {"index": index, "given": arguments, **result, "faults": faults, "said": out + err}


def shrink_presets() -> None:
    """Presets as for a machine a hundred times as fast: a plan then takes seconds."""
    for values in recipe.PRESETS.values():
        values |= {"base_channels": 4, "channel_mults": (1,), "blocks_per_level": 1}
        values |= {"batch_size": 16, "attention_resolutions": ()}
    for name, dataset in DATASETS.items():
        planning = replace(dataset.planning, min_images_seen=100)
        DATASETS[name] = replace(dataset, planning=planning)
    throughput.MIN_SECONDS = throughput.MAX_SECONDS = 0.1  # seconds


def main(flags) -> int:
    """Tries all commands and writes what came of them; or one, and prints its output."""
    torch.set_num_threads(1)
    plt.figure()
    shrink_presets()
    began, results = time.monotonic(), []
    scratch = Path(tempfile.mkdtemp(prefix="fuzz-"))
    base, files = scratch / "base", [scratch / "base.out", scratch / "base.err"]
    base.mkdir()
    try:
        # by another process, since this one must not have used OpenMP
        if os.waitpid(fork(lambda: make_base(Path()), base, files), 0)[1]:
            sys.exit(read(files)[1])
        for index in until_interrupt(range(flags.n) if flags.only is None else [flags.only]):
            results.append(try_command(base, scratch, flags.seed, index))
            if results[-1]["faults"] or flags.only is not None:
                print(results[-1] if flags.only is None else results[-1]["said"], flush=True)
    finally:
        remove(scratch)
    failing = [{**each, "said": each["said"][-1000:]} for each in results if each["faults"]]
    if flags.only is None:
        outcomes = {}
        for each in results:
            outcome = STATUSES.get(each["status"], str(each["status"]))
            outcomes.setdefault(each["given"][0], Counter())[outcome] += 1
        record = {"n": len(results), "seed": flags.seed, "outcomes": outcomes, "failing": failing}
        record |= {
            f"most_{unit}": max(each[unit] for each in results) for unit in ("seconds", "MB")
        }
        record["without_memory"] = sum("can't allocate" in each["said"] for each in results)
        record["minutes"] = round((time.monotonic() - began) / 60, 1)
        write_result(flags.out, record)
    print(f"{len(results)} commands, {len(failing)} failing")
    return min(1, len(failing))
