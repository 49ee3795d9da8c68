"""How a command ends: with a status, and one line about what was wrong."""

import signal
import sys
from collections.abc import Callable

from mnist_ddpm.machine import files, interrupts
from mnist_ddpm.machine.text import printable


def exit_status(
    work: Callable[[], None], memory_advice: str, signals: tuple[str, ...] = interrupts.SIGNALS
) -> int:
    """Does the work of a command, which one of these signals stops. Returns its exit status.

    0; 1 after printing one line about an error; or 128 + the number of the signal, after printing
    what the Stopped says, and its notes. memory_advice: what to do where memory runs out.
    """
    try:
        with interrupts.signal_handler(interrupts.raise_stopped, signals):
            return report_errors(work, memory_advice)
    except KeyboardInterrupt as error:
        lines = str(error) or "interrupted", *getattr(error, "__notes__", ())
        print("", *map(printable, lines), sep="\n", file=sys.stderr)
        return 128 + getattr(error, "signum", signal.SIGINT)


def report_errors(work: Callable[[], None], memory_advice: str) -> int:
    """Does the work. Returns 0, or 1 after printing one line about what was wrong."""
    try:
        work()
    except (ValueError, OSError, FloatingPointError) as error:
        is_from_system = isinstance(error, OSError) and error.filename is not None
        message = f"{error.filename}: {error.strerror}" if is_from_system else error
        print(f"error: {printable(message)}", file=sys.stderr)
        return 1
    except (RuntimeError, MemoryError) as error:
        if not files.is_out_of_memory(error):
            raise
        reason = printable(files.first_line(error)) if str(error) else "out of memory"
        print(f"error: {reason}: {memory_advice}", file=sys.stderr)
        return 1
    return 0
