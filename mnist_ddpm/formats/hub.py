"""Files of Hugging Face's kind: configurations and weights, here or on its hub, to and fro."""

import hashlib
import pickle
import re
import zipfile
import zlib
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from mnist_ddpm.ddpm import check
from mnist_ddpm.machine import text
from mnist_ddpm.machine.files import first_line, load_tensors

DAMAGE_ERRORS = (
    SafetensorError, RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def repository_and_revision(name: str) -> tuple[str, str | None] | None:
    """The repository's name and the revision of "owner/name[@revision]"; None for other names."""
    found = re.fullmatch(r"(\w[\w.-]*/\w[\w.-]*)(?:@([\w./-]+))?", name)
    return found and (found[1], found[2])


def download(name: str, revision: str | None, files: tuple[str, ...]) -> Path:
    """The folder with these files of a hub repository, from its cache where they are there.

    name: "owner/name[@revision]"; a revision given apart goes before that one. Raises OSError where
    they cannot be had, FileNotFoundError for a name that no repository has.
    """
    parts = repository_and_revision(name)
    if not parts:
        raise FileNotFoundError(f"there is no folder {Path(name).absolute()}")
    repository, revision = parts[0], revision or parts[1]
    try:
        from huggingface_hub import snapshot_download  # slow to import, not needed for folders

        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(files)))
    except Exception as error:  # of the package, the name, the hub, the network or the disk
        missing = type(error).__name__ in ("RepositoryNotFoundError", "RevisionNotFoundError")
        problem = f"the hub does not give {name} ({error_text(error)})"
        advice = "check the name and the network, or copy its files into a folder and name that"
        raise (FileNotFoundError if missing else OSError)(f"{problem}: {advice}") from error


def upload(
    name: str, files: dict[str, bytes], private: bool = False, revision: str | None = None
) -> str:
    """Commits files, by their paths, to a repository on the hub; returns the commit's address.

    Repository and branch are made where missing. private: of a new one. Raises OSError where the
    hub does not take them.
    """
    try:
        from huggingface_hub import CommitOperationAdd, HfApi

        api = HfApi()
        api.create_repo(name, private=private or None, exist_ok=True)  # None: the owner's default
        if revision:
            api.create_branch(name, branch=revision, exist_ok=True)
        added = [CommitOperationAdd(path, content) for path, content in files.items()]
        commit = api.create_commit(name, added, commit_message="A checkpoint", revision=revision)
        return commit.commit_url
    except Exception as error:  # as in download
        advice = "log in (hf auth login), or set HF_TOKEN to a token that may write there"
        problem = f"the hub does not take {name} ({error_text(error)})"
        raise OSError(f"{problem}: check name and network, and {advice}") from error


def error_text(error: Exception) -> str:
    """What the hub's package says, in one line: first a number and an address, then the reason."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) or repr(error)


def read_config(path: Path) -> dict:
    """The object in a JSON file. Raises ValueError for what is damaged or none."""
    try:
        values = text.read_json(path)
        if not isinstance(values, dict):
            raise ValueError("it holds no object")
        return values
    except ValueError as error:
        raise ValueError(f"{path} is damaged or no configuration ({error})") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors or .bin file; no code in it is run.

    Raises ValueError for a damaged one, which the hub's cache shows: a large file's name there is
    its SHA-256.
    """
    try:
        digest = path.resolve().name
        if re.fullmatch("[0-9a-f]{64}", digest):
            check(digest == hashlib.sha256(path.read_bytes()).hexdigest(), "its SHA-256 differs")
        if path.suffix == ".safetensors":
            return load(path.read_bytes())
        weights = load_tensors(path)
        tensors = isinstance(weights, dict) and all(isinstance(w, Tensor) for w in weights.values())
        if not tensors:
            raise ValueError("it holds something other than tensors")
        return weights
    except DAMAGE_ERRORS as error:
        problem = f"{path} is damaged or holds no weights ({first_line(error)})"
        raise ValueError(problem) from error
