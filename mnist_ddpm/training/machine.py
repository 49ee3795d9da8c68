"""This machine: its devices, what they can do and are called, and how its shell has a command."""

import os
import platform
import re
import shlex
import shutil
import sys
from contextlib import nullcontext, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from mnist_ddpm import ddpm
from mnist_ddpm.training.files import first_line
from mnist_ddpm.training.processes import World
from mnist_ddpm.training.text import program

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


def check_precision(precision: str, device: Device) -> None:
    """Raises ValueError for bfloat16 on an NVIDIA GPU that would emulate it slowly."""
    device = torch.device(device)
    if precision != "bfloat16" or device.type != "cuda":
        return
    with nullcontext() if device.index is None else torch.cuda.device(device):  # the one asked
        real = torch.cuda.is_bf16_supported(including_emulation=False)
    problem = "this GPU has no bfloat16 arithmetic"
    ddpm.check(real, f"{problem}: take precision float16 or float32")


def precisions(device: Device) -> list[str]:
    """The ones worth measuring."""
    try:
        check_precision("bfloat16", device)
    except ValueError:
        return ["float32", "float16"]
    return ["float32", "bfloat16"]


def try_compiler(device: Device) -> None:
    """Raises where torch.compile finds no compiler."""
    torch.compile(lambda x: x + 1)(torch.zeros(1, device=device))


def compiles(device: Device) -> bool:
    """Whether torch.compile works on a device. Prints what comes of it."""
    try:
        try_compiler(device)
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
