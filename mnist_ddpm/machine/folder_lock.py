"""The folder of a training: for one at a time, and known by more than its name."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from mnist_ddpm.machine.files import first_line
from mnist_ddpm.machine.processes import World

LOCK = ".lock"


@dataclass(frozen=True)
class Place:
    """A folder's name, and its number, which it keeps where it or one above it is renamed."""

    name: Path
    number: tuple[int, int] | None  # device and inode; None where there is no such folder

    @classmethod
    def of(cls, folder: str | Path) -> "Place":
        found = None
        with suppress(OSError):
            found = os.stat(folder)
        return cls(Path(folder).resolve(), found and (found.st_dev, found.st_ino))

    def holds(self, folder: str | Path) -> bool:
        """Whether the folder is this one. A name is enough: some disks number folders again."""
        other = Place.of(folder)
        return self.name == other.name or (self.number and self.number == other.number)


@contextmanager
def occupied(folder: Path, world: World) -> Iterator[Callable[[], Path]]:
    """Inside, no other training is in the folder: the first process locks it for all.

    Yields what returns the folder's name, which may be another later. Where a disk knows no locks,
    that is printed. Raises BlockingIOError, in all processes, where another training is there.
    """
    with ExitStack() as stack:
        taken = True
        if world.rank == 0:
            lock = FileLock(folder / LOCK)
            try:
                lock.acquire(timeout=0)
                stack.callback(lock.release)
            except Timeout:
                taken = False
            except (OSError, NotImplementedError) as error:
                told = f"{folder} cannot be locked ({first_line(error)})"
                print(f"{told}: see to it that nothing else trains there meanwhile")
        if world.any(not taken):
            problem = f"another training is at work in {folder}"
            advice = f"wait, or take another folder (if none is, remove {folder / LOCK})"
            raise BlockingIOError(f"{problem}: {advice}")
        where = followed(folder, stack)
        if world.rank == 0:
            stack.callback(lambda: remove(where() / LOCK))
        yield where


def followed(folder: Path, stack: ExitStack) -> Callable[[], Path]:
    """What returns a folder's name while the stack is open."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders, nor renames those in use
        return lambda: folder
    stack.callback(os.close, handle)

    def now() -> Path:
        with suppress(OSError):  # no such name, or no /proc
            own = os.fstat(handle)
            for path in (folder, Path(os.readlink(f"/proc/self/fd/{handle}"))):
                with suppress(OSError):
                    if os.path.samestat(os.stat(path), own):
                        return path
        return folder  # removed, or out of sight: it is made anew

    return now


def remove(path: Path) -> None:
    """Removes a file, if it can."""
    with suppress(OSError):
        path.unlink(missing_ok=True)
