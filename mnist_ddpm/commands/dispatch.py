"""Runs the function of a command, once its flags are known to be right."""

from functools import partial
from importlib import import_module

from mnist_ddpm.commands.flags import EvaluateFlags, SampleFlags
from mnist_ddpm.commands.training_flags import PlanFlags, TrainFlags, place_flags
from mnist_ddpm.machine import process, processes
from mnist_ddpm.machine.process import exit_status
from mnist_ddpm.machine.processes import adapt_threads

SHARED_WORK = TrainFlags, SampleFlags, EvaluateFlags  # that several processes can do


def dispatch(flags, function_name: str) -> int:
    """Runs a command. Returns the exit status.

    function_name: of the function that does the work, "module:name" in this folder.
    """
    # Of several processes SIGTERM ends at once those that wait for one that has failed.
    signals = process.SIGNALS[:1] if has_several_processes() else process.SIGNALS
    status = exit_status(partial(call_command, flags, function_name), memory_advice(flags), signals)
    if status != 1:
        processes.disconnect()
    return status


def call_command(flags, function_name: str) -> None:
    """Calls a command's function. If training is stopped, adds the resume command to the error."""
    import matplotlib  # raises OSError where no folder can be written

    matplotlib.use("Agg")
    module, name = function_name.split(":")
    function = getattr(import_module(f"mnist_ddpm.commands.{module}"), name)
    if not has_several_processes():
        adapt_threads()
    elif not isinstance(flags, SHARED_WORK):
        raise ValueError("this command is for one process: start it without a launcher")
    try:
        function(flags)
    except process.Stopped as error:
        # Several processes resume by their launcher's command. The folder may have moved.
        if error.folder and not has_several_processes():
            command = ["train", "--resume", *place_flags(flags, error.folder)]
            error.add_note(f"that is: {process.own_command(command)}")
        raise


def has_several_processes() -> bool:
    """Whether this is one of several processes, as the launcher says."""
    return processes.launched_processes() > 1


def memory_advice(flags) -> str:
    """What to do where memory runs out."""
    training = "a larger --accumulation, or --gradient-checkpointing"
    if isinstance(flags, PlanFlags):
        return f"use train, without a plan, and with {training}"
    return f"take less at once (--batch-size; to train, {training})"
