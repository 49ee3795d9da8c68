"""What the project claims for GPUs, tried on one card in at most ten minutes.

python benchmarks/gpu.py                         all parts; writes benchmarks/results/gpu.json
    … --parts training resume --out some.json    these alone, and elsewhere
    … --device cpu --quick                       tiny sizes, in seconds: whether all parts run

Each part is a process of its own with a time of its own, so that one that fails or hangs costs no
other. What it told until then is kept. The card must have nothing else to do.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

sys.path.insert(1, str(Path(__file__).parents[1]))

import torch
from claims import speed, work
from claims.base import ROOT, Bench

from mnist_ddpm.machine import devices
from mnist_ddpm.machine.files import first_line

# What is done, and for how many seconds at most: the last has what the others leave of the time
PARTS = {
    "rates": (speed.rates, 25), "training": (speed.training, 80), "notebook": (work.notebook, 90),
    "resume": (work.resume, 45), "images": (work.images, 45), "digits": (work.digits, 50),
    "noise": (speed.noise, 30), "batches": (speed.batches, 30), "tf32": (speed.tf32, 25),
    "optimizers": (speed.optimizers, 25), "memory": (speed.memory, 45),
    "compile": (speed.compiled, 80), "epochs": (work.epochs, 300),
}  # fmt: skip
SLOW = "notebook", "compile"  # a minute on a processor, whatever the sizes
LEAST = 15  # seconds, in which a process begins


def flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="default: all")
    parser.add_argument("--minutes", type=float, default=10, help="for all of them")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: figures mean nothing")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/gpu.json on a GPU")
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)  # of a part's own process
    parser.add_argument("--ends", type=float, help=argparse.SUPPRESS)  # by time.time()
    return parser


def run_part(name: str, b: Bench) -> str:
    """Does a part. Returns why it failed, or nothing."""
    try:
        PARTS[name][0](b)
    except Exception as error:  # of many kinds: the other parts are to run
        return f"failed: {type(error).__name__}: {first_line(error)}"
    return ""


def in_process(command: list[str], rows: Path, seconds: float) -> tuple[list[dict], str]:
    """What a command tells in a file of rows, and why it ended too early, or nothing."""
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True)
        try:
            status = process.wait(seconds)
            said.seek(0)
            told = [f"failed: status {status}", *filter(None, said.read().splitlines())]
            own = [line for line in told if line.startswith("failed: ")][1:]
            problem = "" if not status else own[-1] if own else f"{told[0]}: {told[-1]}"
        except subprocess.TimeoutExpired:
            problem = f"stopped: it took more than {seconds:.0f} s"
        finally:
            if process.poll() is None:
                end(process)
    lines = rows.read_text(encoding="utf-8").splitlines() if rows.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")], problem


def end(process: subprocess.Popen) -> None:
    """Ends a process, and those that it started."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()


def part(name: str, given: argparse.Namespace, folder: Path, seconds: float) -> dict:
    """The record of a part that has so many seconds."""
    began = time.monotonic()
    if given.quick and given.parts is None and name in SLOW:
        rows, problem = [], "left out: --quick takes it only where --parts names it"
    elif given.quick:
        b = Bench(torch.device(given.device), folder, True, seconds)
        problem = run_part(name, b)
        rows = b.rows
    elif seconds < LEAST:
        rows, problem = [], "left out: the time was up"
    else:
        rows = folder / f"{name}.jsonl"
        ends = f"{time.time() + seconds - 5:.1f}"
        own = "--parts", name, "--device", given.device, "--ends", ends, "--rows", str(rows)
        command = [sys.executable, __file__, *own]
        rows, problem = in_process(command, rows, seconds)
    found = {"part": name, "seconds": round(time.monotonic() - began, 1), "rows": rows}
    return found | ({"problem": problem} if problem else {})


def lines(found: dict) -> list[str]:
    """The rows of a part, for people."""
    told = []
    for row in found["rows"]:
        words = (f"{name.replace('_', ' ')} {row[name]}" for name in row if name != "what")
        told.append(f"| {found['part']} | {row['what']} | {', '.join(words)} |")
    if "problem" in found:
        told.append(f"| {found['part']} | | {found['problem']} |")
    return told


def surroundings(device: torch.device) -> dict:
    """Of the figures: hardware and versions."""
    found = {"device": device.type, "hardware": devices.hardware(device)}
    versions = devices.versions()
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        found |= {"capability": f"{card.major}.{card.minor}"}
        found |= {"gib": round(card.total_memory / 2**30, 1)}
        versions |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return found | {"versions": versions}


def main(arguments: list[str] | None = None) -> int:
    """Runs all parts, or, in a process of its own, one. Returns 1 where one has failed."""
    given = flags().parse_args(arguments)
    try:
        device = devices.pick_device(given.device)
    except ValueError:
        advice = "--device cpu --quick tries the parts on the processor"
        sys.exit(f"error: there is no device {given.device} here: {advice}")
    with tempfile.TemporaryDirectory() as name:
        if given.rows:
            b = Bench(device, Path(name), given.quick, given.ends - time.time(), given.rows)
            problem = run_part(given.parts[0], b)
            print(problem)
            return 1 if problem else 0
        began, parts = time.monotonic(), []
        for each in given.parts or PARTS:
            left = 60 * given.minutes - (time.monotonic() - began)
            try:
                parts.append(part(each, given, Path(name), min(PARTS[each][1], left)))
            except KeyboardInterrupt:  # what is there already is kept
                parts.append({"part": each, "rows": [], "problem": "stopped by Ctrl-C"})
                break
            print(*lines(parts[-1]), sep="\n", flush=True)
    record = {
        "command": shlex.join(["python", *(sys.argv if arguments is None else arguments)]),
        "quick": given.quick, "seed": 0, **surroundings(device),
        "seconds": round(time.monotonic() - began, 1), "parts": parts,
    }  # fmt: skip
    out = given.out
    if out is None and device.type == "cuda" and not given.quick:
        out = ROOT / "benchmarks" / "results" / "gpu.json"
    if out is not None:
        out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print("\n| part | what | found |\n|---|---|---|")
    print(*(line for each in parts for line in lines(each)), sep="\n")
    print(f"\n{record['hardware']}, {record['versions']}")
    bad = "failed", "stopped"
    return int(any(each.get("problem", "").startswith(bad) for each in parts))


if __name__ == "__main__":
    sys.exit(main())
