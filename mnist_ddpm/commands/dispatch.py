"""Runs the function of a command, once its flags are known to be right."""

import signal
import sys
from importlib import import_module

from mnist_ddpm.commands.flags import EvaluateFlags, SampleFlags
from mnist_ddpm.commands.training_flags import PlanFlags, TrainFlags, place_flags
from mnist_ddpm.machine import files, interrupts, processes, shell
from mnist_ddpm.machine.text import printable
from mnist_ddpm.machine.threads import adapt_threads

SHARED_WORK = TrainFlags, SampleFlags, EvaluateFlags  # that several processes can do


def dispatch(flags, path: str) -> int:
    """Runs a command by the function at path, "module:name" of this folder. Returns its status."""
    # Of several processes SIGTERM ends at once those that wait for one that has failed.
    names = interrupts.SIGNALS[:1] if has_several_processes() else interrupts.SIGNALS
    try:
        with interrupts.signal_handler(interrupts.raise_stopped, names):
            status = report_errors(flags, path)
    except KeyboardInterrupt as error:
        lines = str(error) or "interrupted", *getattr(error, "__notes__", ())
        print("", *map(printable, lines), sep="\n", file=sys.stderr)
        status = 128 + getattr(error, "signum", signal.SIGINT)
    if status != 1:
        processes.disconnect()
    return status


def report_errors(flags, path: str) -> int:
    """Calls the function at path. Returns 0, or 1 after printing one line about what was wrong.

    Raises KeyboardInterrupt where it is stopped, with a note that says how to resume.
    """
    module, name = path.split(":")
    try:
        import matplotlib  # raises OSError where no folder can be written

        matplotlib.use("Agg")
        function = getattr(import_module(f"mnist_ddpm.commands.{module}"), name)
        if not has_several_processes():
            adapt_threads()
        elif not isinstance(flags, SHARED_WORK):
            raise ValueError("this command is for one process: start it without a launcher")
        function(flags)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return 1
    except (RuntimeError, MemoryError) as error:
        if not files.is_out_of_memory(error):
            raise
        reason = printable(files.first_line(error))
        print(f"error: {reason}: {memory_advice(flags)}", file=sys.stderr)
        return 1
    except interrupts.Stopped as error:
        # Several processes resume by their launcher's command. The folder may have moved.
        if error.folder and not has_several_processes():
            command = ["train", "--resume", *place_flags(flags, error.folder)]
            error.add_note(f"that is: {shell.own_command(command)}")
        raise
    return 0


def has_several_processes() -> bool:
    """Whether this is one of several processes, as the launcher says."""
    return processes.launched_processes() > 1


def memory_advice(flags) -> str:
    """What to do where memory runs out."""
    training = "a larger --accumulation, or --gradient-checkpointing"
    if isinstance(flags, PlanFlags):
        return f"use train, without a plan, and with {training}"
    return f"take less at once (--batch-size; to train, {training})"
