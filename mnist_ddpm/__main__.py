"""`python -m mnist_ddpm`, or `mnist-ddpm`: the command line."""

import sys
import time

from mnist_ddpm.machine.process import prepare_process


def main() -> int:
    """Runs the command that was typed, and returns its status."""
    began = time.monotonic()
    prepare_process()
    from mnist_ddpm.commands.command_line import run_command_line

    return run_command_line(began=began)


if __name__ == "__main__":
    sys.exit(main())
