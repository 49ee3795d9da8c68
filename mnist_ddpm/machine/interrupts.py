"""Ctrl-C and other signals to stop, which may have to wait until a step is done."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from mnist_ddpm.machine.progress import first_process

SIGNALS = "SIGINT", "SIGTERM", "SIGHUP"  # Ctrl-C; kill; a closed terminal, which Windows has not


class Stopped(KeyboardInterrupt):
    """By a signal. folder: that of a run to resume."""

    def __init__(
        self, told: str = "interrupted", signum: int = signal.SIGINT, folder: Path | None = None
    ):
        super().__init__(told)
        self.signum, self.folder = signum, folder


@contextmanager
def handled(handler: Callable, names: tuple[str, ...] = SIGNALS) -> Iterator[None]:
    """Inside, the handler gets these signals. What is ignored, as nohup has it, still is."""
    previous, lost = {}, sys.unraisablehook
    sys.unraisablehook = partial(heard_again, lost)
    try:
        with suppress(ValueError):  # outside the main thread, where no signal arrives
            for signum in [getattr(signal, name) for name in names if hasattr(signal, name)]:
                if signal.getsignal(signum) != signal.SIG_IGN:
                    previous[signum] = signal.signal(signum, handler)
        yield
    finally:
        sys.unraisablehook = lost
        for signum, before in previous.items():
            if before is not None:  # of a program that Python is a part of: it cannot be set again
                signal.signal(signum, before)


def heard_again(lost: Callable, what) -> None:
    """Sends a signal again that came where Python drops errors, as in a finaliser."""
    if isinstance(what.exc_value, Stopped):
        threading.Timer(0.05, to_main_thread, [what.exc_value.signum]).start()
    else:
        lost(what)


def to_main_thread(signum: int) -> None:
    """Sends it a signal, also where it waits; Windows can only mark the signal as come."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident, signum)
    else:
        signal.raise_signal(signum)


def stop(signum, frame) -> None:
    """A handler that stops the work at once."""
    raise Stopped(signum=signum)


@contextmanager
def deferred_interrupt() -> Iterator[list[int]]:
    """Inside, signals to stop only add their numbers to the list that it yields.

    A second Ctrl-C, more than a second after the first signal, raises Stopped at once.
    """
    pressed, since = getattr(signal.getsignal(signal.SIGINT), "pressed", ([], []))

    def handler(signum, frame):
        # Launchers pass a signal on that has come already: one press may come twice.
        pressed.append(signum)
        since.append(time.monotonic())
        if signum == signal.SIGINT and since[-1] > since[0] + 1:
            problem = "interrupted within a step"
            raise Stopped(f"{problem}: what was saved before, if anything, is good", signum)
        if len(pressed) == 1 and first_process():
            more = "; once more stops at once" if signum == signal.SIGINT else ""
            with suppress(RuntimeError, OSError, ValueError):  # of a stream that is busy or broken
                print(f"\nstopping after this step, to save it{more}", flush=True)

    handler.pressed = pressed, since
    with handled(handler):
        yield pressed
