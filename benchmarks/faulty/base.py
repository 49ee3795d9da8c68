"""Tiny commands, how they are started, and what each should come to."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mnist_ddpm.commands.command_line import run_command_line as main
from mnist_ddpm.evaluation.extractors import Extractor, save_extractor
from mnist_ddpm.machine import streams
from mnist_ddpm.training import loop, previews

ROOT = Path(__file__).parents[2]
TINY = "--image-size 16 --base-channels 4 --channel-mults 1 2 --T 20 --batch-size 16".split()
# What differs each time, and on another user's Python
TIMES = {"seconds", "seconds_per_image", "command", "checkpoint", "versions"}
NOISE = "Traceback", "Exception ignored", "Fatal Python error"
PATIENCE = 120  # seconds, for what takes some two


@dataclass
class Ended:
    """A command that has ended, by its exit status or, negative, by a signal."""

    status: int
    out: str
    err: str
    seconds: float

    @property
    def noisy(self) -> bool:
        return any(word in self.err + self.out for word in NOISE)

    @property
    def last(self) -> str:
        """What it said in the end, without progress bars."""
        lines = f"{self.out}\n{self.err}".replace("\r", "\n").splitlines()
        said = [line for line in lines if line.strip() and "%|" not in line]
        return said[-1][:300] if said else ""


class Process:
    """A command at work: forked from this process, which has PyTorch loaded, or started anew."""

    def __init__(self, arguments: list, cwd: Path, fork: bool = True, **how):
        self.began, self.cwd = time.monotonic(), cwd
        arguments = [str(argument) for argument in arguments]
        self.files = [cwd.with_name(f".{cwd.name}.{name}") for name in ("out", "err")]
        with self.files[0].open("w") as out, self.files[1].open("w") as err:
            if fork:
                self.popen, self.pid = None, forked(arguments, cwd, out, err)
                return
            command = [sys.executable, "-m", "mnist_ddpm", *arguments]
            if how.pop("shell", False):
                end = how.pop("end")  # redirections
                command = ["bash", "-c", f"set -o pipefail; {shlex.join(command)} {end}"]
            command = [*how.pop("before", []), *command]
            own = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": None}
            env = os.environ | own | how.pop("env", {})
            env = {name: value for name, value in env.items() if value is not None}
            given = {"stdout": out, "stderr": err, "cwd": cwd, "env": env} | how
            self.popen = subprocess.Popen(command, **given)
            self.pid = self.popen.pid

    def send(self, signum: int) -> None:
        if self.running():
            os.kill(self.pid, signum)

    def running(self) -> bool:
        if self.popen:
            return self.popen.poll() is None
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def wait(self) -> Ended:
        """Kills it when patience ends, which is a status of -9."""
        end = time.monotonic() + PATIENCE
        while self.running():
            time.sleep(0.005)
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
        if self.popen:
            status = self.popen.wait()
        else:
            status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        out, err = (path.read_text(errors="replace") for path in self.files)
        return Ended(status, out, err, time.monotonic() - self.began)


def forked(arguments: list[str], cwd: Path, out, err) -> int:
    """The number of a process that does as __main__ does, after its imports."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.chdir(cwd)
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    streams.tolerate_broken_streams()
    # some saves in a short run
    loop.PREVIEW_EVERY, loop.SAVE_EVERY, previews.STEPS = 12, 1, 4
    status = 1
    try:
        status = main(arguments)
    except SystemExit as error:
        status = error.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class Base:
    """A folder with pictures, a checkpoint and a judge; the commands; what they come to."""

    def __init__(self, folder: Path):
        torch.set_num_threads(1)  # a fork has none of OpenMP's threads
        self.folder, self.data = folder, ["--data", folder / "data"]
        self.pictures = folder / "bildér"
        self.pictures.mkdir()
        for k in range(48):
            pixels = np.full((16, 16, 3), 40 + 2 * k, np.uint8)
            pixels[k % 12 : k % 12 + 4, k // 12 : k // 12 + 8] = 255 - k, 200, 2 * k
            Image.fromarray(pixels).save(self.pictures / f"{k:02d}.png")
        save_extractor(folder / "judge.safetensors", Extractor("celeba", 40, (8, 8)), {})
        self.seconds, self.expected = {}, {}
        for name in ("train", "sample", "evaluate", "likelihood"):
            ended = Process(self.command(name), self.new(name)).wait()
            assert ended.status == 0, ended
            self.seconds[name], self.expected[name] = ended.seconds, result(folder / name)

    def new(self, name: str) -> Path:
        (self.folder / name).mkdir()
        return self.folder / name

    def command(self, name: str, out: str | Path = "out", epochs: int = 14) -> list:
        """Its arguments, for results in out."""
        if name == "train":
            more = ["--dataset", self.pictures, *TINY, "--epochs", epochs]
            return ["train", *more, "--warmup-steps", 2, "--out", out, *self.data]
        ours = ["--checkpoint", self.folder / "train" / "out", "--n", 12, "--batch-size", 3]
        if name == "sample":
            return ["sample", *ours, "--steps", 12, "--out", out]
        ours += [*self.data, "--out", Path(out, "card.json")]
        if name == "likelihood":
            return ["likelihood", *ours, "--split", "train"]
        return ["evaluate", *ours, "--steps", 12, "--extractor", self.folder / "judge.safetensors"]

    def again(self, name: str, folder: Path) -> list:
        """The arguments that go on with a command in a folder."""
        if name == "train" and (folder / "out" / "training_state.pt").exists():
            return ["train", "--resume", "--out", "out", *self.data]
        return self.command(name)

    def comes_to(self, name: str, folder: Path) -> bool:
        """Whether there is in a folder what the command comes to undisturbed, bit for bit."""
        try:
            return same(result(folder), self.expected[name])
        except (OSError, ValueError, KeyError):
            return False


def result(folder: Path) -> dict:
    """What a command has written to out in a folder."""
    out = folder / "out"
    if (out / "training_state.pt").exists():
        state = torch.load(out / "training_state.pt", weights_only=True)
        config = json.loads((out / "config.json").read_text())
        return {**state["model"], **{f"ema.{name}": x for name, x in state["ema"].items()},
                "losses": state["losses"], "step": config["training"]["steps"]}  # fmt: skip
    if (out / "samples.npz").exists():
        return {"images": torch.from_numpy(np.load(out / "samples.npz")["images"])}
    return without_times(json.loads((out / "card.json").read_text()))


def without_times(card: dict) -> dict:
    inner = {k: without_times(v) if isinstance(v, dict) else v for k, v in card.items()}
    return {name: value for name, value in inner.items() if name not in TIMES}


def same(a: dict, b: dict) -> bool:
    def equal(x, y):
        return torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y

    return a.keys() == b.keys() and all(equal(a[name], b[name]) for name in a)
