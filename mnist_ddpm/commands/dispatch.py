"""The work of each command, once its flags are known to be right."""

import os
import signal
import sys

import matplotlib

from mnist_ddpm.commands.compare import Compare
from mnist_ddpm.commands.evaluate import Evaluate
from mnist_ddpm.commands.export import Export
from mnist_ddpm.commands.extractor import TrainExtractor
from mnist_ddpm.commands.likelihood import MeasureLikelihood
from mnist_ddpm.commands.plan import PlanTraining
from mnist_ddpm.commands.push import Push
from mnist_ddpm.commands.sample import Sample
from mnist_ddpm.commands.train import Train, places
from mnist_ddpm.machine import files, interrupts, processes, shell
from mnist_ddpm.machine.text import printable
from mnist_ddpm.machine.threads import adapt_threads

WORK = {
    each.__name__: each
    for each in (
        Train, PlanTraining, Sample, MeasureLikelihood, Evaluate, Compare, TrainExtractor, Push,
        Export,
    )
}  # fmt: skip


def main(command, typed: set[str]) -> int:
    """Runs a command, of those flags and these that were typed. Returns as commands.main."""
    # Of several processes SIGTERM ends at once those that wait for one that has failed.
    names = interrupts.SIGNALS[:1] if several() else interrupts.SIGNALS
    try:
        with interrupts.signal_handler(interrupts.raise_stopped, names):
            status = run(WORK[type(command).__name__](**vars(command)), typed)
    except KeyboardInterrupt as error:
        lines = str(error) or "interrupted", *getattr(error, "__notes__", ())
        print("", *map(printable, lines), sep="\n", file=sys.stderr)
        status = 128 + getattr(error, "signum", signal.SIGINT)
    if status != 1:
        processes.disconnect()
    return status


def run(command, typed: set[str]) -> int:
    """As main. Raises KeyboardInterrupt where it is stopped, with a note of how to go on."""
    matplotlib.use("Agg")
    try:
        if isinstance(command, Train):
            command.settle(typed)
        if several() and not isinstance(command, Train | Sample | Evaluate):
            raise ValueError("this command is for one process: start it without a launcher")
        if not several():
            adapt_threads()
        command.run()
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return 1
    except (RuntimeError, MemoryError) as error:
        if not files.is_out_of_memory(error):
            raise
        told = printable(files.first_line(error))
        print(f"error: {told}: {advice(command)}", file=sys.stderr)
        return 1
    except interrupts.Stopped as error:
        if error.folder and not several():  # several go on by their launcher's command
            command.out = error.folder  # which may have moved
            again = shell.own_command(["train", "--resume", *places(command)])
            error.add_note(f"that is: {again}")
        raise
    return 0


def several() -> bool:
    """Whether this is one of several processes, as the launcher says."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def advice(command) -> str:
    """What to do where memory runs out."""
    parts = "a larger --accumulation, or --gradient-checkpointing"
    if isinstance(command, PlanTraining):
        return f"use train, without a plan, and with {parts}"
    return f"take less at once (--batch-size; to train, {parts})"
