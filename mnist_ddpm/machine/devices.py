"""This machine: its devices, what they can do and are called, and how its shell has a command."""

import os
import platform
import re
import shlex
import shutil
import sys
from contextlib import nullcontext, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from mnist_ddpm import ddpm
from mnist_ddpm.machine.files import first_line
from mnist_ddpm.machine.processes import World
from mnist_ddpm.machine.text import program

Device = torch.device | str


def best_device() -> torch.device:
    """A CUDA GPU, else Apple's, else the processor."""
    if torch.cuda.device_count() > 1:
        # Asked without touching them, the GPUs can still be used by forked processes.
        os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    return torch.device(ddpm.best_device())


def pick_device(name: str, world: World | None = None) -> torch.device:
    """The device of that name, or the one of a process among several.

    Raises ValueError where it is not to be had.
    """
    if world is not None and world.size > 1:
        if name not in ("auto", world.device.type):
            problem = f"of several processes each has its own device, here {world.device}"
            raise ValueError(f"{problem}: leave --device {name} out")
        return world.device
    try:
        device = best_device() if name == "auto" else torch.device(name)
        torch.zeros(1, device=device).item()  # which "meta" cannot do
    except (RuntimeError, AssertionError) as error:
        problem = f'device "{name}" is not to be had here ({first_line(error)})'
        raise ValueError(f"{problem}: name another, or auto") from error
    return device


def emulates(precision: str, device: Device) -> bool:
    """Whether it is bfloat16, and the device an NVIDIA GPU that would emulate it slowly."""
    device = torch.device(device)
    if precision != "bfloat16" or device.type != "cuda":
        return False
    with nullcontext() if device.index is None else torch.cuda.device(device):  # the one asked
        return not torch.cuda.is_bf16_supported(including_emulation=False)


def check_precision(precision: str, device: Device) -> None:
    """Raises ValueError for bfloat16 on an NVIDIA GPU that would emulate it slowly."""
    problem = "this GPU has no bfloat16 arithmetic"
    ddpm.check(not emulates(precision, device), f"{problem}: take precision float16 or float32")


def precisions(device: Device) -> list[str]:
    """The ones worth measuring."""
    return ["float32", "float16" if emulates("bfloat16", device) else "bfloat16"]


def own_precision(device: Device) -> str:
    """The fastest that is safe to train in: bfloat16 on GPUs that compute in it, else float32."""
    gpu = torch.device(device).type == "cuda"
    return "bfloat16" if gpu and not emulates("bfloat16", device) else "float32"


@cache
def try_compiler(device: Device, precision: str = "float32") -> None:
    """Raises where torch.compile fails.

    A processor needs a C++ compiler, which serves all if it serves one. On a GPU old for the
    compiler sums may work and a network not: there a block is tried, and its gradients.
    """
    if torch.device(device).type == "cpu":
        torch.compile(lambda x: x + 1)(torch.zeros(1))
    else:
        compile_block(device, precision)


def compile_block(device: Device, precision: str) -> None:
    """Compiles a block of the U-Net, with attention and dropout, and its gradients."""
    device, dtype = torch.device(device), getattr(torch, precision)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        block = ddpm.Block(8, 16, 8, 0.1, True).to(device)
        x, time = torch.zeros(2, 8, 8, 8, device=device), torch.zeros(2, 8, device=device)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            torch.compile(block)(x, time).float().sum().backward()


def compiles(device: Device, precision: str = "float32") -> bool:
    """Whether torch.compile works on a device, in a precision. Prints what comes of it."""
    try:
        try_compiler(device, precision)
    except Exception as error:  # of many kinds: none is a reason to stop
        problem = "torch.compile does not work here, so the network runs as it is"
        print(f"{problem}: {first_line(error)}")
        return False
    took = "this takes a minute or two, less if it is in the compiler's cache"
    print(f"compiling the network: {took}", flush=True)
    return True


def shell(arguments: list[str]) -> str:
    """A command to be typed, quoted as the shells of this system have it."""
    if os.name != "nt":
        return shlex.join(arguments)
    plain = re.compile(r"[\w./:\\=-]+")
    return " ".join(part if plain.fullmatch(part) else f'"{part}"' for part in arguments)


def own_command(arguments: list[str]) -> str:
    """`python -m mnist_ddpm …`, or `mnist-ddpm …`, to be typed in this folder.

    `python` has a path where the shell would find another one.
    """
    first, *rest = program()
    found, python = shutil.which("python"), Path(sys.executable)
    if first == "python" and not (found and Path(found).absolute() == python):
        inside = python.is_relative_to(Path.cwd())
        first = str(python.relative_to(Path.cwd()) if inside else python)
    return shell([first, *rest, *arguments])


def memory() -> int:
    """Bytes of this machine's memory, or of the share that a container has of it."""
    found = [2**40]
    with suppress(AttributeError, ValueError, OSError):  # of Windows, which has no sysconf
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with suppress(ValueError, OSError):  # "max" where it has all
        found.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8")))
    return min(found)


def check_memory(needed: int, what: str, advice: str) -> None:
    """Raises ValueError where something takes more bytes than this machine has."""
    most = memory()
    told = f"{what} would take {needed // 2**30:,} GiB or more, and there are {most // 2**30} here"
    ddpm.check(needed <= most, f"{told}: {advice}")


def hardware(device: Device) -> str:
    """What a device is called by its maker, as far as can be told."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = (line.split(": ")[1] for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def versions() -> dict[str, str]:
    """Of what a result depends on."""
    found = {"python": platform.python_version()}
    for name in ("torch", "torchmetrics", "numpy"):
        with suppress(PackageNotFoundError):  # drawing does without torchmetrics
            found[name] = version(name)
    return found
