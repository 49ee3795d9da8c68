"""The command line: `python -m mnist_ddpm train`, `sample`, `evaluate` …, each with `--help`."""

import io
import os
import shlex
import signal
import sys
from typing import Annotated

import matplotlib
import tyro

from mnist_ddpm.commands.common import typed_flags
from mnist_ddpm.commands.compare import Compare
from mnist_ddpm.commands.evaluate import Evaluate
from mnist_ddpm.commands.export import Export
from mnist_ddpm.commands.extractor import TrainExtractor
from mnist_ddpm.commands.likelihood import MeasureLikelihood
from mnist_ddpm.commands.plan import PlanTraining
from mnist_ddpm.commands.push import Push
from mnist_ddpm.commands.sample import Sample
from mnist_ddpm.commands.train import Train, places
from mnist_ddpm.ddpm import check
from mnist_ddpm.training import files, interrupts, machine, processes
from mnist_ddpm.training.text import CONTROL, printable
from mnist_ddpm.training.threads import adapt_threads

PROGRAM = "python -m mnist_ddpm"
Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[PlanTraining, tyro.conf.subcommand("plan")]
    | Annotated[Sample, tyro.conf.subcommand("sample")]
    | Annotated[MeasureLikelihood, tyro.conf.subcommand("likelihood")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[TrainExtractor, tyro.conf.subcommand("extractor")]
    | Annotated[Push, tyro.conf.subcommand("push")]
    | Annotated[Export, tyro.conf.subcommand("export")]
)


def main(arguments: list[str] | None = None) -> int:
    """Runs one command.

    Returns 0, 1 for an error told in one line, or 128 + the number of a signal that stopped it: 130
    after Ctrl-C, 143 after SIGTERM, 129 where the terminal was closed.
    """
    # Of several processes SIGTERM ends at once those that wait for one that has failed.
    names = interrupts.SIGNALS[:1] if several() else interrupts.SIGNALS
    try:
        with interrupts.handled(interrupts.stop, names):
            status = run(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt as error:
        lines = str(error) or "interrupted", *getattr(error, "__notes__", ())
        print("", *map(printable, lines), sep="\n", file=sys.stderr)
        status = 128 + getattr(error, "signum", signal.SIGINT)
    if status != 1:
        processes.leave()
    return status


def run(arguments: list[str]) -> int:
    """As main. Raises KeyboardInterrupt where it is stopped, with a note of how to go on."""
    matplotlib.use("Agg")
    for stream in (sys.stdout, sys.stderr):  # a file's name may have letters that it cannot write
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    given = [machine.at_home(argument) for argument in arguments]
    try:
        check_arguments(given)
        command = parsed(given)
        if isinstance(command, Train):
            start_training(command, given)
        if isinstance(command, Evaluate):
            command.command = shlex.join([*PROGRAM.split(), *given])
        if several() and not isinstance(command, Train | Sample | Evaluate):
            raise ValueError("this command is for one process: start it without a launcher")
        if not several():
            adapt_threads()
        command.run()
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return 1
    except (RuntimeError, MemoryError) as error:
        if not files.out_of_memory(error):
            raise
        told = printable(files.first_line(error))
        print(f"error: {told}: {advice(command)}", file=sys.stderr)
        return 1
    except interrupts.Stopped as error:
        if error.folder and not several():  # several go on by their launcher's command
            command.out = error.folder  # which may have moved
            again = machine.own_command(["train", "--resume", *places(command)])
            error.add_note(f"that is: {again}")
        raise
    return 0


def several() -> bool:
    """Whether this is one of several processes, as the launcher says."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def check_arguments(arguments: list[str]) -> None:
    """Raises ValueError for what is empty, or would be obeyed by the terminal that shows it."""
    for before, argument in zip(["", *arguments], arguments):
        problem = f"an argument, {argument[:50]!r}, has control characters"
        check(not CONTROL.search(argument), f"{problem}: rename what it names")
        flag, equals, value = argument.partition("=")
        name = flag if equals else before or "an argument"
        empty = not argument or (flag.startswith("--") and equals and not value)
        check(not empty or name == "--init-from", f"{name} is empty: name something")


def parsed(arguments: list[str]) -> Command:
    """The command with its flags. Exits as argparse does where they are wrong, or for --help."""
    if "preset" in typed_flags(arguments):  # --help then shows its defaults: start_training
        arguments = [argument for argument in arguments if argument not in ("-h", "--help")]
    return tyro.cli(Command, args=arguments, prog=PROGRAM)


def start_training(command: Train, arguments: list[str]) -> None:
    """Settles its recipe, or shows the help that a preset changes."""
    typed = typed_flags(arguments)
    command.settle(typed)
    if {"-h", "--help"} & {*arguments}:
        tyro.cli(Train, default=command, args=["--help"], prog=f"{PROGRAM} train")


def advice(command: Command) -> str:
    """What to do where memory runs out."""
    parts = "a larger --accumulation, or --gradient-checkpointing"
    if isinstance(command, PlanTraining):
        return f"use train, without a plan, and with {parts}"
    return f"take less at once (--batch-size; to train, {parts})"
