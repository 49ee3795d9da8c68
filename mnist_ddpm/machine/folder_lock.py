"""A folder that is locked for one run at a time, and recognised after it was renamed."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from mnist_ddpm.machine.processes import ProcessGroup
from mnist_ddpm.machine.text import first_line

LOCK = ".lock"


@dataclass(frozen=True)
class FolderIdentity:
    """A folder's path, and its inode, which stays the same when it or a parent is renamed."""

    path: Path
    inode: tuple[int, int] | None  # device and inode; None if there is no such folder

    @classmethod
    def of(cls, folder: str | Path) -> "FolderIdentity":
        """The identity of a folder, which need not exist."""
        inode = None
        with suppress(OSError):
            status = os.stat(folder)
            inode = status.st_dev, status.st_ino
        return cls(Path(folder).resolve(), inode)

    def matches(self, folder: str | Path) -> bool:
        """Whether a folder is this one. An equal path suffices: some disks change inodes."""
        other = FolderIdentity.of(folder)
        return self.path == other.path or bool(self.inode and self.inode == other.inode)


@contextmanager
def locked_folder(folder: Path, world: ProcessGroup) -> Iterator[Callable[[], Path]]:
    """Locks a folder against other trainings; the first process locks it for all.

    Yields a function that returns the folder's path, which may change. Where a disk has no locks,
    that is printed. Raises BlockingIOError, in all processes, if another training has the lock.
    """
    with ExitStack() as stack:
        is_busy = False
        if world.rank == 0:
            lock = FileLock(folder / LOCK)
            try:
                lock.acquire(timeout=0)
                stack.callback(lock.release)
            except Timeout:
                is_busy = True
            except (OSError, NotImplementedError) as error:
                advice = "make sure that nothing else trains there meanwhile"
                print(f"{folder} cannot be locked ({first_line(error)}): {advice}")
        if world.any(is_busy):
            raise BlockingIOError(
                f"another training is at work in {folder}: wait, or choose another folder "
                f"(if no training is running, delete {folder / LOCK})"
            )
        current_path = folder_tracker(folder, stack)
        if world.rank == 0:
            stack.callback(lambda: remove_quietly(current_path() / LOCK))
        yield current_path


@contextmanager
def exclusive_writer(folder: Path) -> Iterator[None]:
    """Lets only one process at a time write into the folder; others wait.

    Where folders cannot be locked, as on Windows, it does not wait.
    """
    with ExitStack() as stack:
        with suppress(ImportError, OSError):
            import fcntl

            handle = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def folder_tracker(folder: Path, stack: ExitStack) -> Callable[[], Path]:
    """A function that returns the folder's current path, until the stack is closed."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows cannot open folders, nor rename those in use
        return lambda: folder
    stack.callback(os.close, handle)

    def current_path() -> Path:
        with suppress(OSError):  # no such path, or no /proc
            own_status = os.fstat(handle)
            for path in (folder, Path(os.readlink(f"/proc/self/fd/{handle}"))):
                with suppress(OSError):
                    if os.path.samestat(os.stat(path), own_status):
                        return path
        return folder  # removed or out of reach: it is created again

    return current_path


def remove_quietly(path: Path) -> None:
    """Removes a file if possible."""
    with suppress(OSError):
        path.unlink(missing_ok=True)
