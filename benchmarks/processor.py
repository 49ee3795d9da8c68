"""What the processor can do, and what a process has held."""

import sys
import time
from pathlib import Path

import torch

BFLOAT16 = {"avx512_bf16", "amx_bf16", "bf16"}  # what Linux calls its arithmetic


def peak_memory() -> float:
    """The most that this process has held so far, in MB."""
    import resource  # here, since Windows has none, and other scripts use this one there

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**20 if sys.platform == "darwin" else 2**10)


def emulates_bfloat16() -> bool:
    """Whether the processor has no bfloat16 arithmetic; told by its speed where Linux is absent."""
    path = Path("/proc/cpuinfo")
    if path.exists():
        return not BFLOAT16 & set(path.read_text(encoding="utf-8").split())
    return product_seconds(torch.bfloat16) > 2 * product_seconds(torch.float32)


def product_seconds(dtype: torch.dtype) -> float:
    """How long the product of two matrices takes, the best of three."""
    a, b = torch.ones(2, 512, 512, dtype=dtype)
    times = []
    for _ in range(3):
        began = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - began)
    return min(times)


def precisions() -> tuple[str, ...]:
    """Those worth measuring; says which is left out."""
    if not emulates_bfloat16():
        return "float32", "bfloat16"
    print("bfloat16 is left out: this processor only emulates it", file=sys.stderr)
    return ("float32",)
