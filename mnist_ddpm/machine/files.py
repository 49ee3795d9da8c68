"""Files and folders that results are written to."""

import errno
import glob
import os
import secrets
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from safetensors import SafetensorError

# The errors of a device, which are no errors of a file
DEVICE_ERRORS = torch.OutOfMemoryError, torch.AcceleratorError
UNSYNCED = errno.EINVAL, errno.ENOSYS, errno.ENOTSUP  # some network drives know no fsync
FOLDER = 0x10  # an attribute in a zip, for which torch.load would leave a tensor's memory as it is
ABANDONED = 600  # seconds without writing, after which a .partial file is taken as left behind


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
    """Whether its text has it: for Apple's GPUs and processors PyTorch has no class of errors."""
    said = "out of memory", "not enough memory", "can't allocate memory"
    return isinstance(error, MemoryError) or any(words in str(error) for words in said)


def load_tensors(path: Path) -> object:
    """What torch.save has written, on the processor; no code in it is run.

    torch.load alone compares no checksums, and takes flipped bytes for values. Raises ValueError
    where one differs, and errors of many kinds for other damage.
    """
    with path.open("rb") as file:
        if zipfile.is_zipfile(file):  # older files than PyTorch 1.6 are none, and have no checksums
            with zipfile.ZipFile(file) as archive:
                parts = archive.infolist()
                folders = [part.filename for part in parts if part.external_attr & FOLDER]
                wrong = folders[0] if folders else archive.testzip()
            if wrong is not None:
                raise ValueError(f"{wrong} in it is damaged")
        file.seek(0)
        return torch.load(file, map_location="cpu", weights_only=True)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, whose folder is made; each call has its own.

    It takes the place of `path`, once it is on the disk, if the block ends without an error. Those
    that were left behind are removed. Raises OSError where it cannot be written, a full disk among
    the reasons.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in path.parent.glob(f"{glob.escape(path.name)}.*partial"):
        remove_abandoned(old)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    try:
        yield temporary
        to_disk(temporary)
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


def remove_abandoned(partial: Path) -> None:
    """Removes what a run that was killed has left. Another may be writing what is younger."""
    with suppress(OSError):  # in use, on some systems, or gone already
        if time.time() - partial.stat().st_mtime > ABANDONED:
            partial.unlink()


def to_disk(path: Path) -> None:
    """Waits until a file's content, or a folder's names, would survive a power failure."""
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in UNSYNCED:
            raise
    finally:
        os.close(handle)
