"""The first lines of a program, before PyTorch is imported."""

import signal

from mnist_ddpm.machine import streams


def prepare_process() -> None:
    """Lets this process outlive broken streams, and Ctrl-C end it while modules are imported."""
    # As it ends other programs: without a traceback.
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    streams.tolerate_broken_streams()
