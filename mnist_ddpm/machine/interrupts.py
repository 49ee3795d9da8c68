"""Ctrl-C and other signals to stop, which may have to wait until a step is done."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from mnist_ddpm.machine.progress import is_first_process

SIGNALS = "SIGINT", "SIGTERM", "SIGHUP"  # Ctrl-C; kill; a closed terminal, not on Windows


class Stopped(KeyboardInterrupt):
    """A signal stopped the work. folder: that of the run to resume, if there is one."""

    def __init__(
        self, message: str = "interrupted", signum: int = signal.SIGINT, folder: Path | None = None
    ):
        super().__init__(message)
        self.signum = signum
        self.folder = folder


@contextmanager
def signal_handler(handler: Callable, names: tuple[str, ...] = SIGNALS) -> Iterator[None]:
    """Calls the handler for these signals. Ignored ones stay ignored, as nohup wants it."""
    previous_handlers = {}
    previous_hook = sys.unraisablehook
    sys.unraisablehook = partial(resend_dropped_signal, previous_hook)
    try:
        with suppress(ValueError):  # outside the main thread, where no signal arrives
            for signum in [getattr(signal, name) for name in names if hasattr(signal, name)]:
                if signal.getsignal(signum) != signal.SIG_IGN:
                    previous_handlers[signum] = signal.signal(signum, handler)
        yield
    finally:
        sys.unraisablehook = previous_hook
        for signum, previous in previous_handlers.items():
            if previous is not None:  # None: of a program that embeds Python
                signal.signal(signum, previous)


def resend_dropped_signal(previous_hook: Callable, unraisable) -> None:
    """Sends a signal again that arrived where Python drops exceptions, as in a finaliser."""
    if not isinstance(unraisable.exc_value, Stopped):
        previous_hook(unraisable)
        return
    send = signal.raise_signal
    if hasattr(signal, "pthread_kill"):  # not on Windows; it also ends the main thread's waiting
        send = partial(signal.pthread_kill, threading.main_thread().ident)
    threading.Timer(0.05, send, [unraisable.exc_value.signum]).start()


def raise_stopped(signum, frame) -> None:
    """A signal handler that stops the work at once."""
    raise Stopped(signum=signum)


@contextmanager
def deferred_interrupt() -> Iterator[list[int]]:
    """Only records the signals to stop, in the list of numbers that it yields.

    A second Ctrl-C, more than a second after the first signal, raises Stopped at once.
    """
    record = getattr(signal.getsignal(signal.SIGINT), "record", ([], []))
    received, times = record

    def handler(signum, frame):
        # Launchers pass signals on, so one Ctrl-C may arrive twice.
        received.append(signum)
        times.append(time.monotonic())
        if signum == signal.SIGINT and times[-1] > times[0] + 1:
            advice = "what was saved before, if anything, is good"
            raise Stopped(f"interrupted within a step: {advice}", signum)
        if len(received) == 1 and is_first_process():
            hint = "; once more stops at once" if signum == signal.SIGINT else ""
            with suppress(RuntimeError, OSError, ValueError):  # the stream is busy or broken
                print(f"\nstopping after this step, to save it{hint}", flush=True)

    handler.record = record
    with signal_handler(handler):
        yield received
