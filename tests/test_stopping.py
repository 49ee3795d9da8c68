"""Stopping: Ctrl-C, signals and closed terminals, and pipes that break with them."""

import os
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from helpers import raising
from tqdm import tqdm
from training_helpers import TINY, fit, same, stopped_clock
from training_helpers import start_simple as start

from mnist_ddpm.commands import sample
from mnist_ddpm.commands.command_line import run_command_line
from mnist_ddpm.ddpm import l_simple
from mnist_ddpm.formats.checkpoints import saved_step
from mnist_ddpm.machine import folder_lock, process
from mnist_ddpm.machine.process import SIGNALS, Stopped, deferred_interrupt
from mnist_ddpm.training import loop
from mnist_ddpm.training.saving import resume_run

STATUS = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    return stopped_clock(monkeypatch)


def test_a_first_interrupt_waits_and_one_a_second_later_does_not(clock):
    """One that arrives twice, since a launcher passes it on, counts once."""
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), deferred_interrupt() as received:
        assert not received
        for seconds in (0, 0.01, 1.1):
            clock[0] += seconds
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before and len(received) == 3


@pytest.mark.parametrize("name", [name for name in SIGNALS[1:] if hasattr(signal, name)])
def test_other_signals_wait_also_the_second_time_and_one_is_reported(clock, capsys, name):
    with deferred_interrupt() as received:
        for _ in range(2):
            clock[0] += 10
            signal.raise_signal(getattr(signal, name))
    assert len(received) == 2 and len(capsys.readouterr().out.split("\n")) == 3


@pytest.mark.parametrize("error", [BrokenPipeError, ValueError])
def test_an_interrupt_counts_also_if_it_cannot_be_printed(monkeypatch, error):
    """Ctrl-C ends what the output is piped to as well, and training must be saved still."""
    monkeypatch.setattr("builtins.print", raising(error))
    with deferred_interrupt() as received:
        signal.raise_signal(signal.SIGINT)
    assert len(received) == 1


def test_a_handler_of_a_program_that_embeds_python_is_left_alone(monkeypatch):
    """Python knows it as None, which cannot be set."""

    def install(signum, handler):
        assert callable(handler)

    monkeypatch.setattr(process.signal, "signal", install)
    with deferred_interrupt():
        pass


def test_an_interrupt_before_fit_is_one_within_it(tmp_path):
    with deferred_interrupt() as outer:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt, match="step 1 "):
            fit(start(TINY), tmp_path)
        assert len(outer) == 1
    with deferred_interrupt() as later:
        assert not later


@pytest.mark.parametrize("name", SIGNALS)
def test_a_command_ends_with_the_status_of_the_signal_that_stops_it(monkeypatch, capsys, name):
    """128 + its number, as in shells; an ignored signal stays ignored, as nohup wants it."""
    signum = getattr(signal, name)
    ignored = []

    def draw(flags):
        signal.raise_signal(signum)
        ignored.append(signum)

    monkeypatch.setattr(sample, "run_sample", draw)
    before = signal.getsignal(signum)
    assert run_command_line(["sample"]) == 128 + signum == STATUS[name] and not ignored
    assert capsys.readouterr().err == "\ninterrupted\n" and signal.getsignal(signum) is before
    signal.signal(signum, signal.SIG_IGN)
    try:
        assert run_command_line(["sample"]) == 0 and ignored
    finally:
        signal.signal(signum, before)


@pytest.mark.parametrize("moment", ["last preview", "after the last save"])
def test_a_signal_at_the_end_is_not_lost(tmp_path, monkeypatch, moment):
    def stop(*arguments):
        signal.raise_signal(signal.SIGTERM)
        return np.zeros((1, 1), np.uint8)

    options = {"preview": stop} if moment == "last preview" else {}
    if not options:
        monkeypatch.setattr(folder_lock, "remove_quietly", stop)
    with pytest.raises(Stopped, match=r"step 12 .*its last$") as stopped:
        fit(start(TINY), tmp_path, **options)
    assert stopped.value.signum == signal.SIGTERM and saved_step(tmp_path) == 12


def test_an_interrupted_fit_saves_and_resumes_bit_for_bit(tmp_path):
    run = start(TINY)

    def stopping(*arguments):
        if run.step == 4:
            signal.raise_signal(signal.SIGINT)
        return l_simple(*arguments)

    with pytest.raises(KeyboardInterrupt, match=r"step 5 .*resume"):
        fit(run, tmp_path / "run", stopping)
    resumed = fit(resume_run(tmp_path / "run", start), tmp_path / "run")
    whole = fit(start(TINY), tmp_path / "whole")
    assert resumed.losses == whole.losses and same(resumed.ema, whole.ema)


def test_a_signal_that_comes_while_python_frees_an_object_is_not_lost():
    class Freed:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Stopped) as stopped, process.signal_handler(process.raise_stopped):
        Freed()
        threading.Event().wait(10)
    assert stopped.value.signum == signal.SIGTERM


def test_a_progress_bar_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch):
    """Ctrl-C ends what it is piped to as well."""

    class Pipe:
        writes = 0

        def write(self, text):
            self.writes += 1
            if self.writes > 2:
                raise BrokenPipeError(32, "gone")

    pipe, released = Pipe(), []
    monkeypatch.setattr(loop, "progress_bar", partial(tqdm, file=pipe, mininterval=0))
    run = fit(start(TINY), tmp_path)
    assert saved_step(tmp_path) == run.step == 12 and pipe.writes > 2

    def other():
        locks = tqdm.get_lock().locks
        released.append(all(lock.acquire(timeout=1) and not lock.release() for lock in locks))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert released == [True], "no other thread waits for a lock that the bar held"


def python(*arguments, **options) -> subprocess.CompletedProcess:
    """The result of Python with these arguments, in the project's folder."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, **{"cwd": ROOT, "env": env, "text": True, "timeout": 60} | options
    )


def test_ctrl_c_while_pytorch_is_imported_leaves_no_traceback(tmp_path):
    (tmp_path / "torch.py").write_text("import signal; signal.raise_signal(signal.SIGINT)")
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    result = python("-m", "mnist_ddpm", "sample", env=env, capture_output=True)
    assert (result.returncode, result.stdout, result.stderr) == (-signal.SIGINT, "", "")


WRITING = """
import os, sys
from mnist_ddpm.machine import process
for number in map(int, sys.argv[1]):
    os.close(number)
sys.stdout = None if "1" in sys.argv[1] else sys.stdout
sys.stderr = None if "2" in sys.argv[1] else sys.stderr
process.tolerate_broken_streams()
with open(sys.argv[2], "w") as result:
    for k in range(int(sys.argv[3])):
        print("line", k)
        print("line", k, file=sys.stderr)
    os.write(2, b"as C code writes")
    result.write("done")
"""


@pytest.mark.parametrize("closed", ["1", "2", "12", "012"])
def test_work_goes_on_without_standard_streams(tmp_path, closed):
    """And what is written to them does not end up in a file that has their number."""
    result = python("-c", WRITING, closed, tmp_path / "result", 9, capture_output=True)
    assert result.returncode == 0 and "Error" not in result.stderr
    assert (tmp_path / "result").read_text() == "done"


@pytest.mark.parametrize("name", ["stdout", "stderr"])
@pytest.mark.parametrize("end", ["pipe", "disk"])
@pytest.mark.parametrize("lines", [1, 10_000])
def test_work_goes_on_if_a_stream_ends(tmp_path, name, end, lines):
    """A pipe whose reader leaves, as head does, and a full disk; exiting prints no error.

    One line is written only when Python exits.
    """
    if end == "disk" and not Path("/dev/full").exists():
        pytest.skip("only Linux has such a disk")
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") if end == "pipe" else open("/dev/full", "w") as broken:
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, name: broken}
        result = python("-c", WRITING, "", tmp_path / "result", lines, **streams)
    assert result.returncode == 0 and (tmp_path / "result").read_text() == "done"
    assert "Error" not in (result.stdout or "") + (result.stderr or "")
