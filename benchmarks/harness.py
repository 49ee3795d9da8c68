"""What the scripts share: flags, results as JSON, errors in one line, what the processor can do."""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}  # Linux's names of the processor's instructions
sys.path[1:1] = [str(ROOT), str(ROOT / "doctor")]  # for the packages


def make_parser(description: str, out: Path = RESULTS) -> argparse.ArgumentParser:
    """A parser with --out, whose help is a script's docstring."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=raw)
    parser.add_argument("--out", type=Path, default=out, help=f"default: {out.relative_to(ROOT)}")
    return parser


def command_line() -> str:
    """The command that was typed, with the script's path from the project's folder."""
    script = Path(sys.argv[0]).resolve()
    inside = script.is_relative_to(ROOT)
    path = script.relative_to(ROOT) if inside else script
    return shlex.join(["python", str(path), *sys.argv[1:]])


def circumstances(device: str = "cpu") -> dict:
    """What figures depend on: the command, and the hardware and versions that it ran with."""
    import torch

    from mnist_ddpm.machine import devices

    about = {"command": command_line(), "device": device, "hardware": devices.hardware(device)}
    return about | {"threads": torch.get_num_threads(), "versions": devices.versions()}


def write_result(path: Path, record: dict, device: str = "cpu") -> None:
    """Writes a record and its circumstances as JSON."""
    text = json.dumps(circumstances(device) | record, indent=1, default=float)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")
    print(f"written to {path}")


def run(main: Callable[[], object], stopped: str = "stopped") -> None:
    """Runs a script and exits with its status. Errors and Ctrl-C end it in one line, with 1."""
    try:
        sys.exit(main())
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(f"\n{stopped}")


def peak_memory() -> float:
    """The most memory that this process has held so far, in MB."""
    import resource  # which Windows does not have

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**20 if sys.platform == "darwin" else 2**10)


def precisions() -> tuple[str, ...]:
    """float32, and bfloat16 where Linux says that the processor computes in it."""
    path = Path("/proc/cpuinfo")
    if path.exists() and BFLOAT16 & set(path.read_text(encoding="utf-8").split()):
        return "float32", "bfloat16"
    print("without bfloat16: this processor only emulates it, or cannot be asked", file=sys.stderr)
    return ("float32",)
