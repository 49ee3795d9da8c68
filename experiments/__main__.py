"""`python -m experiments NAME`: one experiment, from training to its picture.

Each writes to experiments/NAME: results.csv (a row for each measurement), plot.png, caption.md, and
record.json (seeds, versions, command). What is there already is not done again: a run that was
stopped goes on, and one that is complete only draws its plot. Remove it, or name another --out, to
start again.
"""

import shlex
import sys
from functools import partial

import tyro

from experiments.experiment_flags import EXPERIMENTS, ONE_OF, Arguments
from mnist_ddpm.machine.process import expand_home, prepare_process
from mnist_ddpm.machine.text import check_arguments, printable

PROGRAM = "python -m experiments"


def main(arguments: list[str] | None = None) -> int:
    """Runs one experiment. Returns 0, 1 after an error, or 128 + a signal's number."""
    words = [expand_home(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    try:
        check_arguments(words)
        flags = tyro.cli(Arguments, args=words, prog=PROGRAM)
        if flags.name not in EXPERIMENTS:
            raise ValueError(f'experiment "{flags.name}" is unknown: take {ONE_OF}')
    except ValueError as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return 1
    from mnist_ddpm.machine.process import exit_status

    work = partial(run, flags, f"{PROGRAM} {shlex.join(words)}")
    return exit_status(work, "take less (--n, --width)")


def run(flags: Arguments, command: str) -> None:
    """Runs an experiment. Adds to a KeyboardInterrupt a note how to go on."""
    try:
        from experiments import registry

        registry.run_experiment(flags, command)
    except KeyboardInterrupt as error:
        error.add_note("the same command goes on from here")
        raise


if __name__ == "__main__":
    prepare_process()
    sys.exit(main())
