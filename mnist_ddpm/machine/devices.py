"""Devices: which one to use, its precisions and memory, and whether torch.compile works on it."""

import os
import platform
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor

from mnist_ddpm import ddpm
from mnist_ddpm.machine.processes import ProcessGroup
from mnist_ddpm.machine.text import first_line

Device = torch.device | str
END = object()


def pick_device(name: str, world: ProcessGroup | None = None) -> torch.device:
    """The device of that name, "auto" being the fastest; in one of several processes, its own.

    Raises ValueError if it is not available.
    """
    if world is not None and world.size > 1:
        has_it = name in ("auto", world.device.type)
        ddpm.check(has_it, f"this process computes on {world.device}: leave --device {name} out")
        return world.device
    if torch.cuda.device_count() > 1:
        # Lets PyTorch look for GPUs without opening one: forked processes can still use them.
        os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    try:
        device = torch.device(ddpm.best_device() if name == "auto" else name)
        torch.zeros(1, device=device).item()  # fails on "meta"
    except (RuntimeError, AssertionError) as error:
        reason = f'device "{name}" is not available ({first_line(error)})'
        raise ValueError(f"{reason}: name another, or auto") from error
    return device


def emulates(precision: str, device: Device) -> bool:
    """Whether the precision is bfloat16 and the device an NVIDIA GPU that only emulates it."""
    device = torch.device(device)
    if precision != "bfloat16" or device.type != "cuda":
        return False
    with nullcontext() if device.index is None else torch.cuda.device(device):
        return not torch.cuda.is_bf16_supported(including_emulation=False)


def check_precision(precision: str, device: Device) -> None:
    """Raises ValueError for bfloat16 on an NVIDIA GPU that only emulates it, which is slow."""
    advice = "this GPU has no bfloat16 arithmetic: take precision float16 or float32"
    ddpm.check(not emulates(precision, device), advice)


def candidate_precisions(device: Device) -> list[str]:
    """The precisions that are worth measuring on a device."""
    return ["float32", "float16" if emulates("bfloat16", device) else "bfloat16"]


def default_precision(device: Device) -> str:
    """The fastest that is safe to train in: bfloat16 on GPUs that compute in it, else float32."""
    is_gpu = torch.device(device).type == "cuda"
    return "bfloat16" if is_gpu and not emulates("bfloat16", device) else "float32"


@cache
def try_compiler(device: Device, precision: str = "float32") -> None:
    """Raises an error of any kind if torch.compile fails.

    On a processor it needs a C++ compiler, which a sum shows. On a GPU that is too old a sum may
    compile and a network not, so a block of the U-Net is compiled there.
    """
    if torch.device(device).type == "cpu":
        torch.compile(lambda x: x + 1)(torch.zeros(1))
    else:
        compile_block(device, precision)


def compile_block(device: Device, precision: str) -> None:
    """Compiles a block of the U-Net, with attention and dropout, and its gradients."""
    device = torch.device(device)
    dtype = getattr(torch, precision)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        block = ddpm.Block(8, 16, 8, 0.1, True).to(device)
        x = torch.zeros(2, 8, 8, 8, device=device)
        time = torch.zeros(2, 8, device=device)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            torch.compile(block)(x, time).float().sum().backward()


def compiles(device: Device, precision: str = "float32") -> bool:
    """Whether torch.compile works on a device in a precision; prints which."""
    try:
        try_compiler(device, precision)
    except Exception as error:  # of many kinds: none is a reason to stop
        reason = first_line(error)
        print(f"torch.compile does not work here, so the network runs uncompiled: {reason}")
        return False
    duration = "this takes a minute or two, less if it is in the compiler's cache"
    print(f"compiling the network: {duration}", flush=True)
    return True


def total_memory() -> int:
    """Bytes of this machine's memory, or of a container's share of it; at most 1 TiB."""
    limits = [2**40]
    with suppress(AttributeError, ValueError, OSError):  # Windows has no sysconf
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with suppress(ValueError, OSError):  # the file says "max" where there is no limit
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8")))
    return min(limits)


def check_memory(needed: int, what: str, advice: str) -> None:
    """Raises ValueError if something needs more bytes than this machine has."""
    available = total_memory()
    sizes = f"{needed // 2**30:,} GiB or more, and there are {available // 2**30} here"
    ddpm.check(needed <= available, f"{what} would take {sizes}: {advice}")


def hardware(device: Device) -> str:
    """The maker's name for a device, as far as it is known."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = (line.split(": ")[1] for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that results depend on."""
    numbers = {"python": platform.python_version()}
    for name in ("torch", "torchmetrics", "numpy"):
        with suppress(PackageNotFoundError):  # drawing does without torchmetrics
            numbers[name] = version(name)
    return numbers


def is_asynchronous(device: torch.device) -> bool:
    """Whether the device computes beside the processor, which then has time to prefetch."""
    return device.type == "cuda"


def prefetched(items: Iterable) -> Iterator:
    """The same items. While one is in use, another thread makes the next."""
    iterator = iter(items)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(next, iterator, END)
        while True:
            item = future.result()
            if item is END:
                return
            future = pool.submit(next, iterator, END)
            yield item


def to_device(tensors: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
    """The processor's tensors on a device, prefetched if that is asynchronous."""
    if not is_asynchronous(device):
        return (tensor.to(device) for tensor in tensors)
    pinned = prefetched(map(partial(pin, device=device), tensors))
    return (tensor.to(device, non_blocking=True) for tensor in pinned)


def pin(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor in page-locked memory, from which a GPU copies by itself."""
    with torch.cuda.device(device):  # else a thread would open the first GPU
        return tensor.pin_memory()
