"""Full disks, closed streams, odd surroundings, folders that move, and two runs in a folder."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from faulty.base import ROOT, TINY, Base, Ended, Process
from faulty.moments import goes_on, step_in
from mnist_ddpm.machine.progress import progress_bar

STREAMS = {
    "no stderr": "2>&-", "no stdout": ">&-", "neither": ">&- 2>&-", "none of three": "<&- >&- 2>&-",
    "a pipe that ends": "| head -1", "stderr into a pipe that ends": "2>&1 >&- | head -c 1",
    "output to a full disk": ">/dev/full 2>/dev/full",
}  # fmt: skip
SURROUNDINGS = {
    "no HOME": {"HOME": None}, "HOME is not there": {"HOME": "/nowhere"},
    "TMPDIR is not there": {"TMPDIR": "/nowhere"}, "TERM=dumb": {"TERM": "dumb"},
    "LANG=C": {"LANG": "C", "LC_ALL": "C"},
}  # fmt: skip
NOBODY = "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"


def root() -> bool:
    return sys.platform == "linux" and os.geteuid() == 0


@contextmanager
def disk(folder: Path, size: str) -> Iterator[Path]:
    """A disk of its own, mounted on a folder."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
        folder.rmdir()


class Cases:
    """What was tried, and what is wrong."""

    def __init__(self, base: Base, rng: random.Random):
        self.base, self.rng, self.found, self.wrong = base, rng, {}, []
        self.left_out = []

    def add(self, name: str, ended: Ended, problems: list[str]) -> None:
        if ended.noisy:
            problems = [*problems, ended.err[-1500:]]
        told = ended.last.replace(f"{self.base.folder}/", "").replace(f"{ROOT}/", "")
        self.found[name] = {"status": ended.status, "told": told}
        self.wrong += [{"case": name, "is": problem} for problem in problems]

    def refused(self, name: str, ended: Ended, problems: list[str] = ()) -> None:
        """One that must end in one line."""
        told = ended.status == 1 and ended.last.startswith("error: ")
        self.add(name, ended, [*problems, *([] if told else ["not one line and status 1"])])

    def undisturbed(self, case: str, command: str, folder: Path, **how) -> None:
        """A command that must come to what it always does, in a new process."""
        ended = Process(self.base.command(command), folder, fork=False, **how).wait()
        problems = [] if ended.status == 0 else [f"status {ended.status}"]
        self.add(f"{case}: {command}", ended, problems + self.other(command, folder))

    def other(self, command: str, folder: Path) -> list[str]:
        return [] if self.base.comes_to(command, folder) else ["another result"]

    def full_disks(self) -> None:
        """At the first save and at a later one; with room again, the same command goes on."""
        for name in self.base.expected:
            whole = self.base.folder / name / "out"
            sizes = [path.stat().st_size for path in whole.rglob("*") if path.is_file()]
            some = {"first": max(sizes) // 2, "later": sum(sizes) + max(sizes) // 2}
            if name != "train":  # which saves once
                some["later"] = sum(sizes) - max(sizes) // 2
            for when, size in some.items():
                with disk(self.base.folder / "disk", "1m") as folder:
                    room = size // 4096 * 4096  # of whole pages
                    (folder / "other").write_bytes(bytes(2**20 - room))
                    ended = Process(self.base.command(name), folder).wait()
                    subprocess.run(["mount", "-o", "remount,size=64m", folder], check=True)
                    self.refused(f"full disk, {when} save: {name}", ended)
                    problems = goes_on(self.base, name, folder)
                    self.wrong += [{"case": f"room again: {name}", "is": problems}] * bool(problems)

    def streams(self) -> None:
        for case, end in STREAMS.items():
            for command in self.base.expected:
                with self.place() as folder:
                    self.undisturbed(case, command, folder, shell=True, end=end)

    def surroundings(self) -> None:
        for case, env in SURROUNDINGS.items():
            for command in self.base.expected:
                with self.place("bildér 日") as folder:
                    self.undisturbed(case, command, folder, env=env)
        if not root():
            self.left_out.append("no folder for temporary files at all")
            return
        hide = "for d in /tmp /var/tmp /usr/tmp; do [ -d $d ] && mount -t tmpfs -o ro none $d; done"
        work = self.base.folder
        for command in self.base.expected:
            with self.place() as folder:
                here = f"mount --bind {work} /mnt; {hide}; cd /mnt/{folder.name}"
                script = f'{here}; exec "$@"'
                given = [str(each) for each in self.base.command(command)]
                if command in ("evaluate", "likelihood"):
                    given += ["--dataset", str(self.base.pictures)]
                given = [each.replace(str(work), "/mnt") for each in given]
                before = ["unshare", "-m", "bash", "-c", script, "bash"]
                env = {"TMPDIR": None, "HOME": "/nowhere"}
                ended = Process(given, folder, fork=False, before=before, env=env).wait()
                problems = [] if ended.status == 0 else [f"status {ended.status}"]
                if "--dataset" not in given or command == "train":  # else the card names it
                    problems += self.other(command, folder)
                self.add(f"no /tmp and no HOME: {command}", ended, problems)

    def read_only(self) -> None:
        """Data on a disk that cannot be written: pictures, and MNIST's archives."""
        with disk(self.base.folder / "disk", "64m") as folder, self.place() as out:
            shutil.copytree(self.base.pictures, folder / "pictures")
            raw = folder / "data" / "MNIST" / "raw"
            raw.mkdir(parents=True)
            for path in (ROOT / "data" / "MNIST" / "raw").glob("*.gz"):
                shutil.copy(path, raw)
            subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
            digits = ["mnist", "--image-size", 32, "--epochs", 0.01]
            for name, given in {"digits": digits, "pictures": [folder / "pictures"]}.items():
                given = ["--dataset", *given, "--data", folder / "data", "--out", name]
                command = ["train", *TINY, "--epochs", 2, *given]
                ended = Process(command, out, fork=False).wait()
                problems = [] if ended.status == 0 else [f"status {ended.status}"]
                self.add(f"read-only data: {name}", ended, problems)

    def another_user(self) -> None:
        """Whose own results are made, and who is refused where files are not to be written."""
        for command in self.base.expected:
            with self.place() as folder:
                os.chown(folder, 65534, 65534)
                given, env = self.base.command(command), {"HOME": "/nowhere"}
                process = Process(given, folder, fork=False, before=[*NOBODY], env=env)
                ended = process.wait()
                problems = [] if ended.status == 0 else [f"status {ended.status}"]
                problems += self.other(command, folder)
                self.add(f"another user: {command}", ended, problems)
        with self.place() as folder:
            shutil.copytree(self.base.folder / "train" / "out", folder / "out")
            arguments = ["train", "--resume", "--out", "out", "--epochs", 20, *self.base.data]
            ended = Process(arguments, folder, fork=False, before=[*NOBODY]).wait()
            self.refused("another user resumes: train", ended)
            untouched = self.base.comes_to("train", folder)
            self.wrong += [] if untouched else [{"case": "another user resumes", "is": "touched"}]

    def moves(self) -> None:
        """The folder, the working directory or one above is renamed while it is trained in."""
        for case in ("out", "the working directory", "out, and another is begun there"):
            for relative in (True, False):
                with self.place() as folder:
                    self.moved(case, relative, folder)

    def moved(self, case: str, relative: bool, folder: Path) -> None:
        (folder / "here").mkdir()
        out = Path("out") if relative else folder / "here" / "out"
        command = self.base.command("train", out, epochs=100_000)
        process = Process(command, folder / "here")
        before = reached(process, folder / "here" / "out", 12)
        if case == "the working directory":
            (folder / "here").rename(folder / "there")
            found = folder / "there" / "out"
        else:
            (folder / "here" / "out").rename(found := folder / "moved")
            if "begun" in case:
                shutil.copytree(self.base.folder / "train" / "out", folder / "here" / "out")
        time.sleep(0.5)
        process.send(signal.SIGTERM)
        ended, problems = process.wait(), []
        if ended.status != 143:
            problems.append(f"status {ended.status}")
        step = step_in(found) or 0
        place = os.path.relpath(found, process.cwd if process.cwd.exists() else found.parent)
        told = {f"stopped after step {step} and saved in {name}:" for name in (found, place)}
        if step <= before or not any(line in ended.err for line in told):
            problems.append(f"step {step} after {before} in {found.name}, told: {ended.err[-300:]}")
        resumed = ["train", "--resume", "--out", found, "--epochs", step / 3 + 1, *self.base.data]
        if Process(resumed, folder).wait().status:
            problems.append("cannot be resumed")
        kind = "relative" if relative else "absolute"
        self.add(f"renamed: {case}, --out {kind}", ended, problems)

    def two_at_once(self, pairs: int) -> None:
        """In the middle of a training, and pairs that begin at the same moment."""
        with self.place() as folder:
            first = Process(self.base.command("train", epochs=100_000), folder)
            reached(first, folder / "out", 12)
            resume = ["train", "--resume", "--out", "out", *self.base.data]
            for name, command in (("new", self.base.command("train")), ("resumed", resume)):
                (folder / name).mkdir()
                (folder / name / "out").symlink_to(folder / "out")
                self.refused(f"a second, {name}", Process(command, folder / name).wait())
            first.send(signal.SIGINT)
            ended = first.wait()
            self.add("the first of two", ended, [] if ended.status == 130 else ["not stopped"])
        won = []
        for k in progress_bar(range(pairs), desc="two at once"):
            with self.place() as folder:
                won.append(self.pair(k, folder))
        self.found["two that begin at once"] = {"pairs": pairs, "one trains": sum(won)}

    def pair(self, k: int, folder: Path) -> bool:
        """Two new runs, or two that resume, within 20 ms: one is refused, and the other whole."""
        if k % 2:
            started = Process(self.base.command("train"), folder)
            reached(started, folder / "out", 12)
            started.send(signal.SIGKILL)
            started.wait()
        (folder / "other").mkdir()
        (folder / "out").mkdir(exist_ok=True)
        (folder / "other" / "out").symlink_to(folder / "out")
        arguments = self.base.again("train", folder)
        first = Process(arguments, folder)
        time.sleep(self.rng.uniform(0, 0.02))
        second = Process(arguments, folder / "other")
        ends = [process.wait() for process in (first, second)]
        good = sorted(ended.status for ended in ends) == [0, 1]
        good = good and not any(ended.noisy for ended in ends)
        good = good and self.base.comes_to("train", folder)
        if not good:
            told = [(ended.status, ended.last) for ended in ends]
            self.wrong.append({"case": f"pair {k}", "is": told})
        return good

    def killed_rank(self) -> None:
        """One of three processes; then one process goes on with the others' checkpoint."""
        with self.place() as folder:
            launcher = "-m torch.distributed.run --standalone --nproc-per-node 3 -m mnist_ddpm"
            command = self.base.command("train", epochs=100_000)
            command[command.index("--batch-size") + 1] = 12
            more = [*launcher.split(), *map(str, command), "--device", "cpu"]
            with (folder / "err").open("w") as err:
                env = os.environ | {"PYTHONPATH": str(ROOT)}
                started = {"cwd": folder, "stdout": subprocess.DEVNULL, "stderr": err, "env": env}
                launched = subprocess.Popen([sys.executable, *more], **started)
                while step_in(folder / "out") is None and launched.poll() is None:
                    time.sleep(0.1)
                ranks = subprocess.run(
                    ["pgrep", "-P", str(launched.pid)], capture_output=True, text=True
                ).stdout.split()
                began = time.monotonic()
                os.kill(int(ranks[1]), signal.SIGKILL)
                status = launched.wait()
            seconds = round(time.monotonic() - began, 1)
            step = step_in(folder / "out") or 0
            resumed = ["train", "--resume", "--out", "out", "--epochs", step / 4 + 1]
            ended = Process([*resumed, *self.base.data], folder).wait()
            problems = [] if status and seconds < 30 else [f"status {status} after {seconds} s"]
            problems += [] if step and not ended.status else ["no good checkpoint"]
            self.add("a process of three is killed", ended, problems)
            self.found["a process of three is killed"]["seconds to the end"] = seconds

    @contextmanager
    def place(self, name: str = "trial") -> Iterator[Path]:
        folder = self.base.new(name)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def reached(process: Process, folder: Path, step: int) -> int:
    """Waits for a checkpoint of a step, or a later one. Returns its step."""
    while (step_in(folder) or 0) < step:
        if not process.running():
            raise RuntimeError(process.wait())
        time.sleep(0.01)
    return step_in(folder)


def all_cases(base: Base, pairs: int, rng: random.Random) -> dict:
    cases = Cases(base, rng)
    alone = cases.streams, cases.surroundings, cases.moves, cases.killed_rank
    for work in (*alone, lambda: cases.two_at_once(pairs)):
        work()
    for work in (cases.full_disks, cases.read_only, cases.another_user):
        if root():
            work()
        else:
            cases.left_out.append(work.__name__)
    return {**cases.found, "left out": cases.left_out, "wrong": cases.wrong}
