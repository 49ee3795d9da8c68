"""The command line: `python -m mnist_ddpm train`, `sample`, `evaluate` …, each with `--help`."""

import io
import os
import shlex
import sys
from typing import Annotated

import matplotlib
import tyro

from mnist_ddpm.commands.common import typed_flags
from mnist_ddpm.commands.compare import Compare
from mnist_ddpm.commands.evaluate import Evaluate
from mnist_ddpm.commands.extractor import TrainExtractor
from mnist_ddpm.commands.likelihood import MeasureLikelihood
from mnist_ddpm.commands.plan import PlanTraining
from mnist_ddpm.commands.sample import Sample
from mnist_ddpm.commands.train import Train, places
from mnist_ddpm.training import files, machine, processes

PROGRAM = "python -m mnist_ddpm"
Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[PlanTraining, tyro.conf.subcommand("plan")]
    | Annotated[Sample, tyro.conf.subcommand("sample")]
    | Annotated[MeasureLikelihood, tyro.conf.subcommand("likelihood")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[TrainExtractor, tyro.conf.subcommand("extractor")]
)


def main(arguments: list[str] | None = None) -> int:
    """Runs one command. Returns 0, 1 for an error told in one line, 130 after Ctrl-C."""
    matplotlib.use("Agg")
    for stream in (sys.stdout, sys.stderr):  # a file's name may have letters that it cannot write
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    given = sys.argv[1:] if arguments is None else arguments
    given = [machine.at_home(argument) for argument in given]
    command = parsed(given)
    status, several = 0, int(os.environ.get("WORLD_SIZE", 1)) > 1  # processes, as the launcher says
    try:
        if isinstance(command, Train):
            start_training(command, given)
        if isinstance(command, Evaluate):
            command.command = shlex.join([*PROGRAM.split(), *given])
        if several and not isinstance(command, Train | Sample | Evaluate):
            raise ValueError("this command is for one process: start it without a launcher")
        command.run()
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (RuntimeError, MemoryError) as error:
        if not files.out_of_memory(error):
            raise
        print(f"error: {files.first_line(error)}: {advice(command)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print(f"\n{str(error) or 'interrupted'}", file=sys.stderr)
        saved = isinstance(command, Train | PlanTraining) and "resume to go on" in str(error)
        if saved and not several:  # several go on by their launcher's command
            again = machine.own_command(["train", "--resume", *places(command)])
            print(f"that is: {again}", file=sys.stderr)
        status = 130
    processes.leave()
    return status


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
