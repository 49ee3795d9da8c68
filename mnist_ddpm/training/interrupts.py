"""Ctrl-C and other signals to stop, which wait until a step is done."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from mnist_ddpm.training.progress import first_process


@contextmanager
def deferred_interrupt() -> Iterator[list]:
    """Inside, Ctrl-C, SIGTERM and a closed terminal only add to the list that it yields.

    A second Ctrl-C, more than a second later, raises KeyboardInterrupt at once.
    """
    outer = signal.getsignal(signal.SIGINT)
    pressed, previous = getattr(outer, "pressed", []), {}

    def handler(signum, frame):
        # Launchers pass a signal on that has come already: one press may come twice.
        pressed.append(time.monotonic())
        if signum == signal.SIGINT and pressed[-1] > pressed[0] + 1:
            problem = "interrupted within a step"
            raise KeyboardInterrupt(f"{problem}: what was saved before, if anything, is good")
        if len(pressed) == 1 and first_process():
            more = "; once more stops at once" if signum == signal.SIGINT else ""
            with suppress(RuntimeError, OSError, ValueError):  # of a stream that is busy or broken
                print(f"\nstopping after this step, to save it{more}", flush=True)

    handler.pressed, signals = pressed, [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        signals.append(signal.SIGHUP)  # nohup ignores it
    try:
        with suppress(ValueError):  # outside the main thread, where Ctrl-C does not arrive
            for signum in signals:
                previous[signum] = signal.signal(signum, handler)
        yield pressed
    finally:
        for signum, handled in previous.items():
            if handled is not None:  # of a program that Python is a part of: it cannot be set again
                signal.signal(signum, handled)
