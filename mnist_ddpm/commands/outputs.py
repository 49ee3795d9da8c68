"""The files that commands write: results, pictures, and the partial results of interrupted work."""

import json
import os
from contextlib import suppress
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import torch

from mnist_ddpm import __version__
from mnist_ddpm.datasets import is_own
from mnist_ddpm.ddpm import check
from mnist_ddpm.evaluation import extractors
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.machine import devices, files
from mnist_ddpm.machine.partial_results import PartialResults

# Flags that do not change the images drawn or their bound (for --data its contents are compared)
WITHOUT_EFFECT = (
    "out data bits extractor dataset command processes batch_size device condition_image"
).split()
FILE_FLAGS = "checkpoint", "guide", "init_image", "mask"


def check_outside(out: Path, folder: str | Path) -> None:
    """Raises ValueError where pictures written to out would count among a folder's images."""
    if not is_own(str(folder)) or not Path(folder).is_dir():
        return
    # Path.resolve fails where links lead in a circle
    is_inside = Path(os.path.realpath(out)).is_relative_to(os.path.realpath(folder))
    message = f"{out} is in the folder of images {folder}, and pictures there would count"
    check(not is_inside, f"{message}: name another")


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Writes a picture (height, width, 1 or 3) completely or not at all. Raises OSError."""
    # Encoded in memory: on a full disk imageio would try once more as it is thrown away.
    encoded = imageio.imwrite("<bytes>", picture, extension=path.suffix)
    with files.replacing(path) as temporary:
        temporary.write_bytes(encoded)


def print_written(*paths: Path) -> None:
    """Prints the last lines of a command: each file that it wrote."""
    for path in paths:
        print(f"written: {path}")


def open_partial_results(
    flags, sampling, out: Path, networks, device: torch.device, *digests: str
) -> PartialResults:
    """The folder beside out that keeps the parts of a command's work until all are done.

    It is named for all that the parts depend on: flags, how images are drawn, files, versions, and
    digests of images. networks: those whose evaluations are counted.
    """
    settings = {name: value for name, value in vars(flags).items() if name not in WITHOUT_EFFECT}
    settings["sampling"] = sampling
    named = {name: settings.pop(name, None) for name in FILE_FLAGS}
    named["guide"] = sampling and sampling.guide
    paths = []
    for name, path in named.items():
        if not path:
            continue
        with suppress(OSError):  # who needs a file that is missing says so
            path = checkpoints.find(path) if name in ("checkpoint", "guide") else path
        paths += [path / "config.json", path / "model.safetensors"] if path.is_dir() else [path]
    contents = [path.read_bytes() for path in paths if path.is_file()]
    machine = {"device": device.type, "hardware": devices.hardware(device), **devices.versions()}
    text = json.dumps([__version__, settings, machine, digests], default=str)
    digest = extractors.digest(text.encode(), *contents)
    return PartialResults(out.with_name(f"{out.stem}-{digest}.kept"), *networks)
