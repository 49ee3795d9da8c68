"""`python -m mnist_ddpm.experiments NAME`: one experiment, from training to its picture.

Each writes to experiments/NAME: results.csv (a row for each measurement), plot.png, caption.md, and
record.json (seeds, versions, command). What is there already is not done again: a run that was
stopped goes on, and one that is complete only draws its plot. Remove it, or name another --out, to
start again.
"""

import shlex
import sys

import tyro

from mnist_ddpm.experiments.experiment_flags import NAMES, ONE_OF, Arguments
from mnist_ddpm.machine.shell import expand_home
from mnist_ddpm.machine.text import printable

PROGRAM = "python -m mnist_ddpm.experiments"


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, 1 after an error, which is one line, or 130 after Ctrl-C."""
    words = [expand_home(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    flags = tyro.cli(Arguments, args=words, prog=PROGRAM)
    try:
        if flags.name not in NAMES:
            raise ValueError(f'experiment "{flags.name}" is unknown: take {ONE_OF}')
        from mnist_ddpm.experiments import registry  # and PyTorch, once the flags are right

        registry.run_experiment(flags, f"{PROGRAM} {shlex.join(words)}")
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped: the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
