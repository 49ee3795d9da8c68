"""Commands of the project in other processes: forked from this one, or new."""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from harness import ROOT

from mnist_ddpm.commands.command_line import run_command_line
from mnist_ddpm.machine import process
from mnist_ddpm.training import session

COMMAND = sys.executable, "-m", "mnist_ddpm"
NOISE = "Traceback", "Exception ignored", "Fatal Python error"
PATIENCE = 120  # seconds, for what takes some two


def fork(work: Callable[[], int], folder: Path, files: Sequence[Path]) -> int:
    """Forks a process that does the work in a folder and exits with the status it returns.

    files: of its output and errors. Returns the number of the process.
    """
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.chdir(folder)
        for number, path in enumerate((os.devnull, *files)):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND), number)
        status = work()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(status)


def until_interrupt(trials: Iterable) -> Iterator:
    """The trials, one by one. Ctrl-C lets the present one end, and none follow."""
    interrupts = []
    signal.signal(signal.SIGINT, lambda *_: interrupts.append(True))
    for trial in trials:
        yield trial
        if interrupts:
            break
    signal.signal(signal.SIGINT, signal.default_int_handler)


def run_command(arguments: list[str]) -> int:
    """As `python -m mnist_ddpm` after its imports, but with some saves in a short run."""
    process.tolerate_broken_streams()
    session.PREVIEW_EVERY, session.SAVE_EVERY, session.STEPS = 12, 1, 4
    return run_command_line(arguments)


@dataclass
class Ended:
    """A command that has ended, by its exit status or, negative, by a signal."""

    status: int
    out: str
    err: str
    seconds: float

    @property
    def is_noisy(self) -> bool:
        return any(word in self.err + self.out for word in NOISE)

    @property
    def last_line(self) -> str:
        """What it printed in the end, without progress bars."""
        lines = f"{self.out}\n{self.err}".replace("\r", "\n").splitlines()
        printed = [line for line in lines if line.strip() and "%|" not in line]
        return printed[-1][:300] if printed else ""


class Process:
    """A command at work in a folder.

    launcher: the start of the command line of a new process, with variables of its environment;
    None forks this process, which has PyTorch loaded.
    """

    def __init__(self, arguments: list, folder: Path, launcher: Sequence | None = None, **env):
        self.began, self.folder = time.monotonic(), folder
        self.files = [folder.with_name(f".{folder.name}.{name}") for name in ("out", "err")]
        for path in self.files:
            path.write_bytes(b"")
        arguments = [str(argument) for argument in arguments]
        work = partial(run_command, arguments)
        if launcher is not None:
            own = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": None}
            variables = os.environ | own | env
            variables = {name: value for name, value in variables.items() if value is not None}
            work = partial(os.execvpe, launcher[0], [*launcher, *arguments], variables)
        self.pid = fork(work, folder, self.files)

    def send(self, number: int) -> None:
        """Sends a signal to it, if it is running."""
        if self.is_running():
            os.kill(self.pid, number)

    def is_running(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def wait(self) -> Ended:
        """Waits for its end, and kills it when patience ends, which is a status of -9."""
        deadline = time.monotonic() + PATIENCE
        while self.is_running():
            time.sleep(0.005)
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        out, err = (path.read_text(errors="replace") for path in self.files)
        return Ended(status, out, err, time.monotonic() - self.began)
