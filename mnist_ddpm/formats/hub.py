"""The Hugging Face hub: download, upload, and reading its configurations and weights."""

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
from mnist_ddpm.machine.files import load_tensors
from mnist_ddpm.machine.text import first_line

DAMAGE_ERRORS = SafetensorError, RuntimeError, EOFError, OSError, ValueError
DAMAGE_ERRORS += pickle.UnpicklingError, zipfile.BadZipFile, zlib.error


def repository_and_revision(name: str) -> tuple[str, str | None] | None:
    """The two parts of "owner/name[@revision]"; None for other names."""
    match = re.fullmatch(r"(\w[\w.-]*/\w[\w.-]*)(?:@([\w./-]+))?", name)
    return match and (match[1], match[2])


def download(name: str, revision: str | None, files: tuple[str, ...]) -> Path:
    """Downloads files of "owner/name[@revision]" unless they are in the cache; returns the folder.

    The argument revision, if any, replaces that of the name. Raises FileNotFoundError for a name
    that no repository has, OSError where the download fails.
    """
    parts = repository_and_revision(name)
    if not parts:
        raise FileNotFoundError(f"there is no folder {Path(name).absolute()}")
    try:
        from huggingface_hub import snapshot_download  # slow to import, not needed for folders

        revision = revision or parts[1]
        return Path(snapshot_download(parts[0], revision=revision, allow_patterns=[*files]))
    except Exception as error:  # of the package, the name, the hub, the network or the disk
        missing = type(error).__name__ in ("RepositoryNotFoundError", "RevisionNotFoundError")
        raise (FileNotFoundError if missing else OSError)(
            f"the hub does not give {name} ({error_text(error)}): check the name and the network, "
            "or copy its files into a folder and name that"
        ) from error


def upload(
    name: str, files: dict[str, bytes], private: bool = False, revision: str | None = None
) -> str:
    """Commits files, by their paths, to a repository on the hub; returns the commit's address.

    Repository (private or not) and branch are made where missing. Raises OSError where it fails.
    """
    try:
        from huggingface_hub import CommitOperationAdd, HfApi

        api = HfApi()
        api.create_repo(name, private=private or None, exist_ok=True)  # None: the owner's default
        if revision:
            api.create_branch(name, branch=revision, exist_ok=True)
        additions = [CommitOperationAdd(path, content) for path, content in files.items()]
        commit = api.create_commit(
            name, additions, commit_message="A checkpoint", revision=revision
        )
        return commit.commit_url
    except Exception as error:  # as in download
        raise OSError(
            f"the hub does not take {name} ({error_text(error)}): check name and network, and "
            "log in (hf auth login), or set HF_TOKEN to a token that may write there"
        ) from error


def error_text(error: Exception) -> str:
    """An error of the hub's package in one line: status and address, then the reason."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) or repr(error)


def read_config(path: Path) -> dict:
    """The object in a JSON file. Raises ValueError for a damaged file or another value."""
    try:
        values = text.read_json(path)
        check(isinstance(values, dict), "it holds no object")
        return values
    except ValueError as error:
        raise ValueError(f"{path} is damaged or no configuration ({error})") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors or .bin file; no code in it is run.

    Raises ValueError for a damaged one. In the hub's cache a large file's name is its SHA-256.
    """
    try:
        digest = path.resolve().name
        if re.fullmatch("[0-9a-f]{64}", digest):
            check(digest == hashlib.sha256(path.read_bytes()).hexdigest(), "its SHA-256 differs")
        if path.suffix == ".safetensors":
            return load(path.read_bytes())
        weights = load_tensors(path)
        check(isinstance(weights, dict), "it holds no names with tensors")
        check(all(isinstance(w, Tensor) for w in weights.values()), "it does not only hold tensors")
        return weights
    except DAMAGE_ERRORS as error:
        raise ValueError(f"{path} is damaged or holds no weights ({first_line(error)})") from error
