"""What the project claims for GPUs, tested on one card in at most ten minutes.

python benchmarks/gpu.py                         all parts; writes benchmarks/results/gpu.json
    … --parts training resume --out some.json    these alone, and elsewhere
    … --device cpu --quick                       tiny sizes, in seconds: whether all parts run

Each part runs in a separate process with a separate time limit. If one fails or hangs, the others
still run, and its results so far are kept. The card must have nothing else to do.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path

import torch
from claims import device_speed, user_tasks
from claims.bench import Bench
from harness import RESULTS, circumstances, make_parser, write_result

from mnist_ddpm.machine import devices
from mnist_ddpm.machine.text import first_line

# What is done, and for how many seconds at most: the last has what the others leave of the time
PARTS = {
    "rates": (device_speed.rates, 25),
    "training": (device_speed.training, 80),
    "notebook": (user_tasks.notebook, 90),
    "resume": (user_tasks.resume, 45),
    "images": (user_tasks.images, 45),
    "digits": (user_tasks.digits, 50),
    "noise": (device_speed.noise, 30),
    "batches": (device_speed.batches, 30),
    "tf32": (device_speed.tf32, 25),
    "optimizers": (device_speed.optimizers, 25),
    "memory": (device_speed.memory, 45),
    "compile": (device_speed.compiled, 80),
    "epochs": (user_tasks.epochs, 300),
}
SLOW = "notebook", "compile"  # a minute on a processor, whatever the sizes
LEAST = 15  # seconds, in which a process begins


def run_part(name: str, bench: Bench) -> str:
    """Runs a part. Returns why it failed, or nothing."""
    try:
        PARTS[name][0](bench)
    except Exception as error:  # of many kinds: the other parts are to run
        return f"failed: {type(error).__name__}: {first_line(error)}"
    return ""


def work(name: str, device: str, folder: Path, seconds: float, rows: Path) -> None:
    """Runs a part in a separate process; writes its rows, and why it failed, to a file."""
    if hasattr(os, "setsid"):
        os.setsid()
    bench = Bench(torch.device(device), folder, False, seconds, rows)
    failure = run_part(name, bench)
    if failure:
        bench.add("", problem=failure)


def in_process(
    target: Callable, arguments: tuple, file: Path, seconds: float
) -> tuple[list[dict], str]:
    """The rows that a call in another process writes to a file; why it ended early, or nothing."""
    process = get_context("spawn").Process(target=target, args=arguments)
    process.start()
    try:
        process.join(seconds)
        failure = f"failed: status {process.exitcode}" if process.exitcode else ""
        if process.exitcode is None:
            failure = f"stopped: it took more than {seconds:.0f} s"
    finally:
        with suppress(AttributeError, OSError):  # of Windows, which has no groups; or it has ended
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    failure = next((row["problem"] for row in rows if "problem" in row), failure)
    return [row for row in rows if "problem" not in row], failure


def measure(name: str, flags: argparse.Namespace, folder: Path, seconds: float) -> dict:
    """The record of a part that has so many seconds."""
    began = time.monotonic()
    rows, failure = [], ""
    if flags.quick and flags.parts is None and name in SLOW:
        failure = "left out: --quick runs it only where --parts names it"
    elif flags.quick:
        bench = Bench(torch.device(flags.device), folder, True, seconds)
        failure, rows = run_part(name, bench), bench.rows
    elif seconds < LEAST:
        failure = "left out: the time was up"
    else:
        file = folder / f"{name}.jsonl"
        arguments = name, flags.device, folder, seconds - 5, file
        rows, failure = in_process(work, arguments, file, seconds)
    record = {"part": name, "seconds": round(time.monotonic() - began, 1), "rows": rows}
    return record | ({"problem": failure} if failure else {})


def table_lines(record: dict) -> list[str]:
    """The rows of a part as Markdown."""
    lines = []
    for row in record["rows"]:
        figures = (f"{name.replace('_', ' ')} {row[name]}" for name in row if name != "what")
        lines.append(f"| {record['part']} | {row['what']} | {', '.join(figures)} |")
    if "problem" in record:
        lines.append(f"| {record['part']} | | {record['problem']} |")
    return lines


def about_card(device: torch.device) -> dict:
    """The card's capability and memory, and the versions of its software."""
    if device.type != "cuda":
        return {}
    card = torch.cuda.get_device_properties(device)
    about = {"capability": f"{card.major}.{card.minor}", "gib": round(card.total_memory / 2**30, 1)}
    return about | {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}


def main(arguments: list[str] | None = None) -> int:
    """Runs the parts. Returns 1 where one has failed."""
    parser = make_parser(__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="default: all")
    parser.add_argument("--minutes", type=float, default=10, help="for all of them")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: figures mean nothing")
    parser.set_defaults(out=None)
    flags = parser.parse_args(arguments)
    try:
        device = devices.pick_device(flags.device)
    except ValueError:
        advice = "--device cpu --quick tries the parts on the processor"
        sys.exit(f"error: there is no device {flags.device} here: {advice}")
    began, parts = time.monotonic(), []
    print("| part | what | figures |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in flags.parts or PARTS:
            remaining = 60 * flags.minutes - (time.monotonic() - began)
            try:
                parts.append(measure(name, flags, Path(folder), min(PARTS[name][1], remaining)))
            except KeyboardInterrupt:  # the results so far are kept
                parts.append({"part": name, "rows": [], "problem": "stopped by Ctrl-C"})
                break
            print(*table_lines(parts[-1]), sep="\n", flush=True)
    out = flags.out
    if out is None and device.type == "cuda" and not flags.quick:
        out = RESULTS / "gpu.json"
    record = {"quick": flags.quick, "seed": 0, **about_card(device), "parts": parts}
    print(json.dumps(circumstances(device.type)))
    if out is not None:
        write_result(out, record, device.type)
    bad = "failed", "stopped"
    return int(any(part.get("problem", "").startswith(bad) for part in parts))


if __name__ == "__main__":
    sys.exit(main())
