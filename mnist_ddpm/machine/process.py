"""This process: its start, streams, progress bars and signals, how it ends, and its commands."""

import io
import os
import re
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType

from tqdm import tqdm

from mnist_ddpm.machine import text
from mnist_ddpm.machine.text import first_line, printable

SIGNALS = "SIGINT", "SIGTERM", "SIGHUP"  # Ctrl-C; kill; a closed terminal, not on Windows


def prepare_process() -> None:
    """Lets this process outlive broken streams, and Ctrl-C end it while modules are imported."""
    # As it ends other programs: without a traceback.
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    tolerate_broken_streams()


class TolerantStream(io.TextIOWrapper):
    """A stream that drops its output once its reader is gone or its disk is full."""

    def write(self, text: str) -> int:
        """Writes text, or drops it; returns its length."""
        try:
            return super().write(text)
        except OSError:
            redirect_to_null(self.fileno())
            return len(text)

    def flush(self) -> None:
        """Writes what is buffered, or drops it."""
        try:
            super().flush()
        except OSError:  # Python would try again at exit, and print an error
            redirect_to_null(self.fileno())


def redirect_to_null(descriptor: int) -> None:
    """Discards all further output to a file descriptor."""
    null = os.open(os.devnull, os.O_WRONLY)
    if null != descriptor:
        os.dup2(null, descriptor)
        os.close(null)


def tolerate_broken_streams() -> None:
    """Makes this process's stdout and stderr tolerant, also if they were closed at its start."""
    for descriptor, name in enumerate(("stdout", "stderr"), 1):
        stream = getattr(sys, name)
        if stream is None:  # else the next file would get this number, to which C code writes
            redirect_to_null(descriptor)
            stream = open(descriptor, "w")
        buffering = {"line_buffering": stream.line_buffering, "write_through": stream.write_through}
        encoding = stream.encoding
        tolerant = TolerantStream(stream.detach(), encoding, "backslashreplace", **buffering)
        setattr(sys, name, tolerant)
        setattr(sys, f"__{name}__", tolerant)


def is_first_process() -> bool:
    """Whether this is the first of the processes that a launcher has started, or the only one."""
    is_alone = os.environ.get("WORLD_SIZE", "1") == "1"
    return is_alone or os.environ.get("RANK", "0") == "0"


def progress_bar(iterable=None, disable: bool = False, **kwargs) -> tqdm:
    """As ddpm.progress_bar, but of several processes only the first one shows it."""
    # A notebook shows stderr in red.
    stream = sys.stdout if "ipykernel" in sys.modules else sys.stderr
    if disable or stream is None or not is_first_process():
        kwargs["disable"] = True  # if not given, the environment decides: TQDM_DISABLE
    return tqdm(iterable, file=stream, mininterval=1.0, ncols=96, **kwargs)


class Stopped(KeyboardInterrupt):
    """A signal stopped the work. folder: that of the run to resume, if there is one."""

    def __init__(
        self, message: str = "interrupted", signum: int = signal.SIGINT, folder: Path | None = None
    ):
        super().__init__(message)
        self.signum = signum
        self.folder = folder


@contextmanager
def signal_handler(handler: Callable, names: tuple[str, ...] = SIGNALS) -> Iterator[None]:
    """Calls the handler for these signals. Ignored ones stay ignored, as nohup wants it."""
    previous_handlers = {}
    previous_hook = sys.unraisablehook
    sys.unraisablehook = partial(resend_dropped_signal, previous_hook)
    try:
        with suppress(ValueError):  # outside the main thread, where no signal arrives
            for signum in [getattr(signal, name) for name in names if hasattr(signal, name)]:
                if signal.getsignal(signum) != signal.SIG_IGN:
                    previous_handlers[signum] = signal.signal(signum, handler)
        yield
    finally:
        sys.unraisablehook = previous_hook
        for signum, previous in previous_handlers.items():
            if previous is not None:  # None: of a program that embeds Python
                signal.signal(signum, previous)


def resend_dropped_signal(previous_hook: Callable, unraisable) -> None:
    """Sends a signal again that arrived where Python drops exceptions, as in a finaliser."""
    if not isinstance(unraisable.exc_value, Stopped):
        previous_hook(unraisable)
        return
    send = signal.raise_signal
    if hasattr(signal, "pthread_kill"):  # not on Windows; it also ends the main thread's waiting
        send = partial(signal.pthread_kill, threading.main_thread().ident)
    threading.Timer(0.05, send, [unraisable.exc_value.signum]).start()


def raise_stopped(signum, frame) -> None:
    """A signal handler that stops the work at once."""
    raise Stopped(signum=signum)


@contextmanager
def deferred_interrupt() -> Iterator[list[int]]:
    """Only records the signals to stop, in the list of numbers that it yields.

    A second Ctrl-C, more than a second after the first signal, raises Stopped at once.
    """
    record = getattr(signal.getsignal(signal.SIGINT), "record", ([], []))
    received, times = record

    def handler(signum, frame):
        # Launchers pass signals on, so one Ctrl-C may arrive twice.
        received.append(signum)
        times.append(time.monotonic())
        if signum == signal.SIGINT and times[-1] > times[0] + 1:
            advice = "what was saved before, if anything, is good"
            raise Stopped(f"interrupted within a step: {advice}", signum)
        if len(received) == 1 and is_first_process():
            hint = "; once more stops at once" if signum == signal.SIGINT else ""
            with suppress(RuntimeError, OSError, ValueError):  # the stream is busy or broken
                print(f"\nstopping after this step, to save it{hint}", flush=True)

    handler.record = record
    with signal_handler(handler):
        yield received


def exit_status(
    work: Callable[[], None], memory_advice: str, signals: tuple[str, ...] = SIGNALS
) -> int:
    """Does the work of a command, which one of these signals stops. Returns its exit status.

    0; 1 after printing one line about an error; or 128 + the number of the signal, after printing
    what the Stopped says, and its notes. memory_advice: what to do where memory runs out.
    """
    try:
        with signal_handler(raise_stopped, signals):
            return report_errors(work, memory_advice)
    except KeyboardInterrupt as error:
        lines = str(error) or "interrupted", *getattr(error, "__notes__", ())
        print("", *map(printable, lines), sep="\n", file=sys.stderr)
        return 128 + getattr(error, "signum", signal.SIGINT)


def report_errors(work: Callable[[], None], memory_advice: str) -> int:
    """Does the work. Returns 0, or 1 after printing one line about what was wrong."""
    try:
        work()
    except (ValueError, OSError, FloatingPointError) as error:
        is_from_system = isinstance(error, OSError) and error.filename is not None
        message = f"{error.filename}: {error.strerror}" if is_from_system else error
        print(f"error: {printable(message)}", file=sys.stderr)
        return 1
    except (RuntimeError, MemoryError) as error:
        if not text.is_out_of_memory(error):
            raise
        reason = printable(text.first_line(error)) if str(error) else "out of memory"
        print(f"error: {reason}: {memory_advice}", file=sys.stderr)
        return 1
    return 0


def program() -> list[str]:
    """The words that started this program: `mnist-ddpm`, or `python -m mnist_ddpm`."""
    is_script = Path(sys.argv[0]).stem == "mnist-ddpm"
    return ["mnist-ddpm"] if is_script else ["python", "-m", "mnist_ddpm"]


def own_command(arguments: list[str]) -> str:
    """This program with other arguments, as a line to type in the current folder.

    `python` gets its path where the shell would find another one.
    """
    first, *others = program()
    python = Path(sys.executable)
    on_path = shutil.which("python")
    if first == "python" and not (on_path and Path(on_path).absolute() == python):
        is_inside = python.is_relative_to(Path.cwd())
        first = str(python.relative_to(Path.cwd()) if is_inside else python)
    return quote([first, *others, *arguments])


def quote(words: list[str]) -> str:
    """The words as one line, quoted for the shell of this system."""
    if os.name != "nt":
        return shlex.join(words)
    plain = re.compile(r"[\w./:\\=-]+")
    return " ".join(word if plain.fullmatch(word) else f'"{word}"' for word in words)


def expand_home(argument: str) -> str:
    """The argument with the home folder for ~, which shells do not expand in --out=~/faces."""
    if not argument.startswith("-"):
        return os.path.expanduser(argument)
    flag, equals, value = argument.partition("=")
    return flag + equals + os.path.expanduser(value)


def import_extra(extra: str, *names: str) -> list[ModuleType]:
    """The modules of these names. Raises ValueError, which names the extra, if one is missing."""
    try:
        return [import_module(name) for name in names]
    except ImportError as error:
        packages = " ".join(name.split(".")[0] for name in names)
        raise ValueError(
            f"{packages} cannot be imported ({first_line(error)}): "
            f'pip install ".[{extra}]" in a clone, or pip install {packages}'
        ) from error
