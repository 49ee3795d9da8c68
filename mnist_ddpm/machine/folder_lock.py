"""A folder that one program writes into at a time."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from mnist_ddpm.machine.processes import ProcessGroup
from mnist_ddpm.machine.text import first_line

LOCK = ".lock"


@contextmanager
def locked_folder(
    folder: Path, world: ProcessGroup | None = None, waits: bool = False
) -> Iterator[None]:
    """Locks a folder against other programs; the first process locks it for all.

    Where a disk has no locks, that is printed. Raises BlockingIOError, in all processes, if another
    program has the lock; waits: it waits for it instead.
    """
    world = world or ProcessGroup()
    with ExitStack() as stack:
        is_busy = False
        if world.rank == 0:
            lock = FileLock(folder / LOCK)
            try:
                lock.acquire(timeout=-1 if waits else 0)
                stack.callback(remove_quietly, folder / LOCK)
                stack.callback(lock.release)
            except Timeout:
                is_busy = True
            except (OSError, NotImplementedError) as error:
                advice = "make sure that nothing else writes there meanwhile"
                print(f"{folder} cannot be locked ({first_line(error)}): {advice}")
        if world.any(is_busy):
            raise BlockingIOError(
                f"another training is at work in {folder}: wait, or choose another folder "
                f"(if no training is running, delete {folder / LOCK})"
            )
        yield


def remove_quietly(path: Path) -> None:
    """Removes a file if possible."""
    with suppress(OSError):
        path.unlink(missing_ok=True)
