"""Files and folders that results are written to."""

import errno
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from safetensors import SafetensorError

# The errors of a device, which are no errors of a file
DEVICE_ERRORS = torch.OutOfMemoryError, getattr(torch, "AcceleratorError", torch.OutOfMemoryError)


def writable_folder(folder: str | Path) -> Path:
    """The folder, made where missing. Raises OSError now, not after hours, if it is read-only."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return Path(folder)
    except OSError as error:
        problem = f"cannot write to the folder {folder} ({error.strerror})"
        raise OSError(f"{problem}: choose another") from error


def writable_file(path: Path) -> None:
    """Makes the folder of a result. Raises OSError now if the file could not be written later."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, and should be a file: name one in it")
    writable_folder(path.parent)


def first_line(error: BaseException) -> str:
    """An error's first line, or its repr if it says nothing."""
    return (str(error).strip() or repr(error)).splitlines()[0]


def out_of_memory(error: BaseException) -> bool:
    """Whether it says so: for Apple's GPUs and processors PyTorch has no class of errors."""
    said = "out of memory", "not enough memory", "can't allocate memory"
    return isinstance(error, MemoryError) or any(words in str(error) for words in said)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, whose folder is made.

    It takes the place of `path` if the block ends without an error. Raises OSError where it cannot
    be written, a full disk among the reasons.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    try:
        yield temporary
        moved(temporary, path)
    except DEVICE_ERRORS:
        raise
    except (SafetensorError, RuntimeError, OSError) as error:  # so do safetensors, torch
        if isinstance(error, OSError) and error.errno != errno.ENOSPC:
            raise
        problem = f"{path} could not be written ({first_line(error)})"
        raise OSError(f"{problem}: is there room?") from error
    finally:
        with suppress(OSError):  # the first error is the one to tell
            temporary.unlink(missing_ok=True)


def moved(temporary: Path, path: Path) -> None:
    """Puts a file in the place of another, which on Windows somebody may be reading."""
    for wait in (0.1, 1, 5, 0):
        try:
            os.replace(temporary, path)
            return
        except PermissionError:
            if os.name != "nt" or not wait:
                raise
            time.sleep(wait)
