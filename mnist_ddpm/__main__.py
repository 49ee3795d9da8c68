"""`python -m mnist_ddpm`, or `mnist-ddpm`: the command line."""

import signal
import sys
import time

from mnist_ddpm.machine import streams


def main() -> int:
    """Runs the command that was typed, and returns its status."""
    began = time.monotonic()
    # Ctrl-C while PyTorch is imported ends the process as it ends others, without a traceback.
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    streams.tolerate_broken_streams()
    from mnist_ddpm.commands.command_line import run_command_line

    return run_command_line(began=began)


if __name__ == "__main__":
    sys.exit(main())
