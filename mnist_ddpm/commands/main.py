"""The command line: `python -m mnist_ddpm train`, `sample`, `evaluate` …, each with `--help`.

PyTorch takes seconds to import: it waits until the flags are known to be right.
"""

import io
import shlex
import sys
from collections.abc import Iterable
from dataclasses import replace
from difflib import get_close_matches
from functools import partial, reduce
from inspect import cleandoc
from operator import or_
from typing import Annotated

import tyro

from mnist_ddpm.commands import flags, training_flags
from mnist_ddpm.machine.shell import expand_home, program
from mnist_ddpm.machine.text import CONTROL, printable
from mnist_ddpm.training.options import PRESETS, check_size, settled

COMMANDS = {
    "train": training_flags.Train, "plan": training_flags.PlanTraining, "sample": flags.Sample,
    "likelihood": flags.MeasureLikelihood, "evaluate": flags.Evaluate, "compare": flags.Compare,
    "extractor": flags.TrainExtractor, "push": flags.Push, "export": flags.Export,
}  # fmt: skip
HELP = {"-h", "--help"}


def main(arguments: list[str] | None = None, began: float | None = None) -> int:
    """Runs one command. began: when the program did, by time.monotonic().

    Returns 0, 1 for an error told in one line, or 128 + the number of a signal that stopped it: 130
    after Ctrl-C, 143 after SIGTERM, 129 where the terminal was closed. Exits with 2 for flags that
    are not known, and with 0 after help.
    """
    for stream in (sys.stdout, sys.stderr):  # a file's name may have letters that it cannot write
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    given = [expand_home(each) for each in (sys.argv[1:] if arguments is None else arguments)]
    try:
        check_arguments(given)
        command = parsed(given)
        if isinstance(command, training_flags.Train):
            check_images(command, typed_flags(given))
        if isinstance(command, training_flags.PlanTraining) and began is not None:
            command.began = began
    except ValueError as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return 1
    from mnist_ddpm.commands import dispatch

    return dispatch.main(command, typed_flags(given))


def typed_flags(arguments: Iterable[str]) -> set[str]:
    """The names of the flags that were typed, as attributes: base_channels for --base-channels."""
    names = {argument.split("=")[0][2:] for argument in arguments if argument.startswith("--")}
    return {name.removeprefix("no-").replace("-", "_") for name in names}


def check_arguments(arguments: list[str]) -> None:
    """Raises ValueError for what is empty, or would be obeyed by the terminal that shows it."""
    for before, argument in zip(["", *arguments], arguments):
        if CONTROL.search(argument):
            problem = f"an argument, {argument[:50]!r}, has control characters"
            raise ValueError(f"{problem}: rename what it names")
        flag, equals, value = argument.partition("=")
        name = flag if equals else before or "an argument"
        empty = not argument or (flag.startswith("--") and equals and not value)
        if empty and name != "--init-from":
            raise ValueError(f"{name} is empty: name something")


def parsed(arguments: list[str]):
    """The command with its flags. Exits as argparse does where they are wrong, or for --help."""
    name, *rest = arguments or [""]
    own = shlex.join(program())
    if name and not name.startswith("-") and name not in COMMANDS:
        print(f"error: {unknown(name, own)}", file=sys.stderr)
        sys.exit(2)
    if name not in COMMANDS:  # help, or no command
        known = [
            Annotated[each, tyro.conf.subcommand(name, description=described(each, own))]
            for name, each in COMMANDS.items()
        ]
        tyro.cli(reduce(or_, known), args=arguments[:1], prog=own)
    kind, typed = COMMANDS[name], typed_flags(rest)
    about = described(kind, own)
    parse = partial(tyro.cli, kind, prog=f"{own} {name}", description=about)
    presets = kind is training_flags.Train and "preset" in typed  # help then shows its defaults
    asked = HELP & {*rest} if presets else set()
    command = parse(args=[each for each in rest if each not in asked])
    if asked:
        parse(args=["--help"], default=replace(command, flags=completed(command, typed)))
    if kind is flags.Evaluate:
        command.command = shlex.join([*program(), *arguments])
    return command


def unknown(name: str, own: str) -> str:
    """What to say of a name that no command has: which one may be meant."""
    near = get_close_matches(name.lower(), COMMANDS, n=1)
    known = f"take one of {', '.join(COMMANDS)} ({own} --help says more)"
    advice = f"did you mean {own} {near[0]}?" if near else known
    return f"there is no command {printable(name)}: {advice}"


def completed(command: training_flags.Train, typed: set[str]) -> training_flags.Flags:
    """The flags that were typed, and all others as the preset has them."""
    given = {name: value for name, value in vars(command.flags).items() if name in typed}
    return training_flags.Flags(**settled(given, PRESETS[command.preset]))


def check_images(command: training_flags.Train, typed: set[str]) -> None:
    """Raises ValueError for --image-size where the network cannot take it, as far as is known."""
    made = completed(command, typed)
    elsewhere = command.resume or made.init_from  # other settings come from there
    if "image_size" in typed and not elsewhere and made.patch_size > 0 < len(made.channel_mults):
        check_size(made.image_size, made.patch_size, made.channel_mults, made.dataset)


def described(kind: type, own: str) -> str:
    """What help says of a command; its example begins with the program that was typed."""
    return cleandoc(kind.__doc__).replace("python -m mnist_ddpm", own)
