"""Files of Hugging Face's kind: configurations and weights, here or on its hub."""

import json
import pickle
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from mnist_ddpm.training.files import first_line

DAMAGES = (
    SafetensorError, RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError,
)  # fmt: skip


def download(name: str, revision: str | None, files: tuple[str, ...]) -> Path:
    """The folder with these files of a hub repository, from its cache where they are there.

    Raises OSError where they cannot be had, FileNotFoundError for a name that no repository has.
    """
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        raise FileNotFoundError(f"there is no folder {name}")
    try:
        from huggingface_hub import snapshot_download  # slow to import, not needed for folders

        return Path(snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except Exception as error:  # of the package, the name, the hub, the network or the disk
        problem = f"{name} is no folder here, and the hub does not give it ({first_line(error)})"
        advice = "check the name and the network, or copy its files into a folder and name that"
        raise OSError(f"{problem}: {advice}") from error


def read_json(path: Path) -> dict:
    """The object in a JSON file. Raises ValueError for what is damaged or none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it holds no object")
        return values
    except ValueError as error:
        raise ValueError(f"{path} is damaged or no configuration ({error})") from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors or .bin file; no code in it is run.

    Raises ValueError for a damaged one.
    """
    try:
        if path.suffix == ".safetensors":
            return load(path.read_bytes())
        weights = torch.load(path, map_location="cpu", weights_only=True)
        tensors = isinstance(weights, dict) and all(isinstance(w, Tensor) for w in weights.values())
        if not tensors:
            raise ValueError("it holds something other than tensors")
        return weights
    except DAMAGES as error:
        problem = f"{path} is damaged or holds no weights ({first_line(error)})"
        raise ValueError(problem) from error
