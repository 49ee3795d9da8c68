"""The command line: `python -m mnist_ddpm train`, `sample`, `evaluate` …, each with `--help`.

PyTorch takes seconds to import: it waits until the flags are known to be right.
"""

import io
import shlex
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from functools import partial, reduce
from inspect import cleandoc
from operator import or_
from typing import Annotated

import tyro

from mnist_ddpm import __version__
from mnist_ddpm.commands import flags, training_flags
from mnist_ddpm.machine.process import expand_home, program
from mnist_ddpm.machine.text import check_arguments, printable
from mnist_ddpm.recipe import PRESETS, check_size, merge_settings

# Of each command the class of its flags, and where the function is that takes them
COMMANDS: dict[str, tuple[type, str]] = {
    "train": (training_flags.TrainFlags, "train:run_train"),
    "plan": (training_flags.PlanFlags, "plan:run_plan"),
    "status": (flags.StatusFlags, "status:run_status"),
    "sample": (flags.SampleFlags, "sample:run_sample"),
    "likelihood": (flags.LikelihoodFlags, "evaluate:run_likelihood"),
    "evaluate": (flags.EvaluateFlags, "evaluate:run_evaluate"),
    "compare": (flags.CompareFlags, "evaluate:run_compare"),
    "push": (flags.PushFlags, "push:run_push"),
    "export": (flags.ExportFlags, "push:run_export"),
}
# What replaced commands of earlier versions
REPLACED = {
    "doctor": "the doctor is a package of its own: pip install ./doctor in a clone, then run "
    "diffusion-doctor",
    "extractor": "extractors are trained from a clone: python tools/train_extractor.py",
    "experiments": "experiments are run from a clone: python -m experiments",
}
HELP = {"-h", "--help"}


def run_command_line(arguments: list[str] | None = None, began: float | None = None) -> int:
    """Runs one command. began: when the program started, by time.monotonic().

    Returns 0, 1 for an error reported in one line, or 128 + the number of a signal that stopped it:
    130 after Ctrl-C, 143 after SIGTERM, 129 where the terminal was closed. Exits with 2 for flags
    that are not known, and with 0 after help.
    """
    for stream in (sys.stdout, sys.stderr):  # a file's name may have letters that it cannot write
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    arguments = [expand_home(each) for each in (sys.argv[1:] if arguments is None else arguments)]
    try:
        check_arguments(arguments)
        command = parse_arguments(arguments)
        if isinstance(command, training_flags.TrainFlags):
            check_image_size(command)
        if isinstance(command, training_flags.PlanFlags) and began is not None:
            command.began = began
    except ValueError as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return 1
    try:
        with loading_notice():
            from mnist_ddpm.commands.dispatch import dispatch
    except (ValueError, OSError) as error:
        advice = "a library does not start: is an environment variable wrong?"
        print(f"error: {printable(error)}: {advice}", file=sys.stderr)
        return 1

    return dispatch(command, COMMANDS[arguments[0]][1])


@contextmanager
def loading_notice() -> Iterator[None]:
    """Shows in a terminal, until it is left, that PyTorch is imported: that takes seconds."""
    notice = "loading PyTorch …" if sys.stderr.isatty() else ""
    print(notice, end="", file=sys.stderr, flush=True)
    yield
    print(f"\r{' ' * len(notice)}\r" if notice else "", end="", file=sys.stderr, flush=True)


def typed_flags(arguments: Iterable[str]) -> tuple[str, ...]:
    """The names of the flags that were typed, as attributes: base_channels for --base-channels."""
    names = (argument.split("=")[0][2:] for argument in arguments if argument.startswith("--"))
    return tuple(name.removeprefix("no-").replace("-", "_") for name in names)


def parse_arguments(arguments: list[str]):
    """The flags of a command. Exits as argparse does where they are wrong, or for --help."""
    name, *words = arguments or [""]
    if name == "--version":
        print(f"mnist-ddpm {__version__}")
        sys.exit(0)
    typed_program = shlex.join(program())
    if name and not name.startswith("-") and name not in COMMANDS:
        print(f"error: {suggest_command(name, typed_program)}", file=sys.stderr)
        sys.exit(2)
    if name not in COMMANDS:  # help, or no command
        kinds = [
            Annotated[kind, tyro.conf.subcommand(name, description=describe(kind, typed_program))]
            for name, (kind, _) in COMMANDS.items()
        ]
        tyro.cli(reduce(or_, kinds), args=arguments[:1], prog=typed_program)
    kind = COMMANDS[name][0]
    typed = typed_flags(words)
    about = describe(kind, typed_program)
    parse = partial(tyro.cli, kind, prog=f"{typed_program} {name}", description=about)
    if kind is not training_flags.TrainFlags:
        command = parse(args=words)
        if kind is flags.EvaluateFlags:
            command.command = shlex.join([*program(), *arguments])
        return command
    asks_help = "preset" in typed and HELP & {*words}  # which then shows the preset's defaults
    command = parse(args=[each for each in words if not (asks_help and each in HELP)])
    command.typed = typed
    if asks_help:
        parse(args=["--help"], default=replace(command, recipe=complete_recipe(command)))
    return command


def suggest_command(name: str, typed_program: str) -> str:
    """What to say of a name that no command has: what replaced it, or which one may be meant."""
    if name in REPLACED:
        return REPLACED[name]
    similar = get_close_matches(name.lower(), COMMANDS, n=1)
    advice = f"take one of {', '.join(COMMANDS)} ({typed_program} --help says more)"
    if similar:
        advice = f"did you mean {typed_program} {similar[0]}?"
    return f"there is no command {printable(name)}: {advice}"


def complete_recipe(command: training_flags.TrainFlags) -> training_flags.RecipeFlags:
    """The flags that were typed, and all others as the preset has them."""
    typed = training_flags.typed_settings(command)
    return training_flags.RecipeFlags(**merge_settings(typed, PRESETS[command.preset]))


def check_image_size(command: training_flags.TrainFlags) -> None:
    """Raises ValueError for --image-size where the network cannot take it, as far as is known."""
    recipe = complete_recipe(command)
    if command.resume or recipe.init_from or "image_size" not in command.typed:
        return  # other settings come from there
    if recipe.patch_size > 0 < len(recipe.channel_mults):
        check_size(recipe.image_size, recipe.patch_size, recipe.channel_mults, recipe.dataset)


def describe(kind: type, typed_program: str) -> str:
    """What help says of a command; its example begins with the program that was typed."""
    return cleandoc(kind.__doc__).replace("python -m mnist_ddpm", typed_program)
