"""Writing files that are never left half-finished, and reading tensors with their checksums."""

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

from mnist_ddpm.machine.text import first_line

DEVICE_ERRORS = torch.OutOfMemoryError, torch.AcceleratorError  # not about a file
NO_FSYNC = errno.EINVAL, errno.ENOSYS, errno.ENOTSUP  # of some network drives
IS_FOLDER = 0x10  # a zip's attribute, for which torch.load leaves a tensor's memory unset
ABANDONED = 600  # seconds without writing after which a .partial file counts as left behind


def writable_folder(folder: str | Path) -> Path:
    """The folder, created if missing. Raises OSError at once, not after hours, if read-only."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return Path(folder)
    except OSError as error:
        reason = error.strerror
        raise OSError(f"cannot write to the folder {folder} ({reason}): choose another") from error


def check_writable(path: Path) -> None:
    """Creates the folder of a file. Raises OSError if the file could not be written there."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, and should be a file: name one in it")
    writable_folder(path.parent)


def load_tensors(path: Path) -> object:
    """What torch.save has written, on the processor; no code in it is run.

    torch.load alone compares no checksums, and takes flipped bytes for values. Raises ValueError
    where one differs or the content is larger than the file, and errors of many kinds for other
    damage.
    """
    with path.open("rb") as file:
        if zipfile.is_zipfile(file):  # files from before PyTorch 1.6 are none, without checksums
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
                size = sum(entry.file_size for entry in entries)  # torch.save does not compress
                if size > path.stat().st_size:
                    raise ValueError(f"its content would be {size:,} bytes, more than the file has")
                folders = [entry.filename for entry in entries if entry.external_attr & IS_FOLDER]
                damaged = folders[0] if folders else archive.testzip()
            if damaged is not None:
                raise ValueError(f"{damaged} in it is damaged")
        file.seek(0)
        return torch.load(file, map_location="cpu", weights_only=True)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, whose folder is created; each call has its own.

    If the block ends without an error, the temporary file is flushed to disk and replaces `path`.
    Temporary files of killed runs are removed. Raises OSError where it cannot be written, for
    example on a full disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for partial in path.parent.glob(f"{glob.escape(path.name)}.*partial"):
        remove_abandoned(partial)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    try:
        yield temporary
        flush_to_disk(temporary)
        move_into_place(temporary, path)
    except DEVICE_ERRORS:
        raise
    except (SafetensorError, RuntimeError, OSError) as error:  # a full disk may be any of these
        if isinstance(error, OSError) and error.errno != errno.ENOSPC:
            raise
        reason = first_line(error)
        raise OSError(f"{path} could not be written ({reason}): is the disk full?") from error
    finally:
        with suppress(OSError):  # the first error is the one to report
            temporary.unlink(missing_ok=True)


def move_into_place(temporary: Path, path: Path) -> None:
    """Renames a file over another; on Windows waits until nobody is reading that one."""
    for seconds in (0.1, 1, 5, 0):
        try:
            os.replace(temporary, path)
            return
        except PermissionError:
            if os.name != "nt" or not seconds:
                raise
            time.sleep(seconds)


def remove_abandoned(partial: Path) -> None:
    """Removes the temporary file of a killed run, unless it is so young that one may write it."""
    with suppress(OSError):  # in use, on some systems, or gone already
        if time.time() - partial.stat().st_mtime > ABANDONED:
            partial.unlink()


def flush_to_disk(path: Path) -> None:
    """Waits until a file's content, or a folder's names, would survive a power failure."""
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NO_FSYNC:
            raise
    finally:
        os.close(handle)
