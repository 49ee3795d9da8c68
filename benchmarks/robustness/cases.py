"""Full disks, closed streams, odd surroundings, other users, and two runs in a folder."""

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

from harness import ROOT

from mnist_ddpm.machine.process import progress_bar
from robustness.processes import COMMAND, Ended, Process
from robustness.reference import COMMANDS, SIZES, Reference, saved_step

STREAMS = {
    "no stderr": "2>&-",
    "no stdout": ">&-",
    "neither": ">&- 2>&-",
    "none of three": "<&- >&- 2>&-",
    "a pipe that ends": "| head -1",
    "stderr into a pipe that ends": "2>&1 >&- | head -c 1",
    "output to a full disk": ">/dev/full 2>/dev/full",
}
SURROUNDINGS = {
    "no HOME": {"HOME": None},
    "HOME is not there": {"HOME": "/nowhere"},
    "TMPDIR is not there": {"TMPDIR": "/nowhere"},
    "TERM=dumb": {"TERM": "dumb"},
    "LANG=C": {"LANG": "C", "LC_ALL": "C"},
}
NOBODY = 65534
AS_NOBODY = "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *COMMAND
# Without folders for temporary files, in /mnt, where the folder of the trials ($1) is seen
HIDDEN = """
mount --bind "$1" /mnt
for d in /tmp /var/tmp /usr/tmp; do [ -d $d ] && mount -t tmpfs -o ro none $d; done
cd "/mnt/$2" && shift 2 && exec "$@"
"""


@contextmanager
def disk(folder: Path, size: str) -> Iterator[Path]:
    """A new disk, mounted on a folder."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
        folder.rmdir()


def remount(folder: Path, option: str) -> None:
    """Changes the size of a mounted disk, or makes it read-only."""
    subprocess.run(["mount", "-o", f"remount,{option}", folder], check=True)


def wait_for_step(process: Process, folder: Path, step: int) -> int:
    """Waits for a checkpoint of a step, or a later one. Returns its step."""
    while saved_step(folder) < step:
        if not process.is_running():
            raise RuntimeError(process.wait())
        time.sleep(0.01)
    return saved_step(folder)


class Cases:
    """What was tried, and what is wrong."""

    def __init__(self, reference: Reference, rng: random.Random):
        self.reference, self.rng, self.ended, self.wrong = reference, rng, {}, []

    def check(self, case: str, what: str, is_good: bool) -> None:
        """Notes a problem."""
        if not is_good:
            self.wrong.append({"case": case, "is": what})

    def expect(self, case: str, status: int, ended: Ended) -> None:
        """Notes how a case ended: quietly, with a status, which for an error is one line."""
        last_line = ended.last_line.replace(f"{self.reference.folder}/", "")
        self.ended[case] = {"status": ended.status, "told": last_line.replace(f"{ROOT}/", "")}
        self.check(case, ended.err[-1500:], not ended.is_noisy)
        self.check(case, f"status {ended.status} instead of {status}", ended.status == status)
        is_error = ended.last_line.startswith("error: ")
        self.check(case, "no line that begins with error:", is_error or status != 1)

    def expect_result(self, case: str, command: str, folder: Path) -> None:
        """Notes where a command's result is not the undisturbed one."""
        self.check(case, "another result", self.reference.agrees(command, folder))

    @contextmanager
    def folder(self, name: str = "trial") -> Iterator[Path]:
        folder = self.reference.new_folder(name)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def full_disks(self) -> None:
        """At the first save and at a later one; when there is space, the same command continues."""
        for name in COMMANDS:
            files = (self.reference.folder / name / "out").rglob("*")
            sizes = [path.stat().st_size for path in files if path.is_file()]
            half = max(sizes) // 2
            later = sum(sizes) + (half if name == "train" else -half)  # the others save once
            for when, size in {"first": half, "later": later}.items():
                with disk(self.reference.folder / "disk", "1m") as folder:
                    pages = size // 4096 * 4096
                    (folder / "other").write_bytes(bytes(2**20 - pages))
                    ended = Process(self.reference.command(name), folder).wait()
                    remount(folder, "size=64m")
                    self.expect(f"full disk, {when} save: {name}", 1, ended)
                    problems = self.reference.problems_resuming(name, folder)
                    self.check(f"resumed after a full disk: {name}", str(problems), not problems)

    def undisturbed(self, case: str, launcher: tuple, name: str = "trial", **env) -> None:
        """Each command in a new process, which must come to what it always does."""
        for command in COMMANDS:
            with self.folder(name) as folder:
                if launcher == AS_NOBODY:
                    os.chown(folder, NOBODY, NOBODY)
                ended = Process(self.reference.command(command), folder, launcher, **env).wait()
                self.expect(f"{case}: {command}", 0, ended)
                self.expect_result(f"{case}: {command}", command, folder)

    def streams(self) -> None:
        for case, redirections in STREAMS.items():
            script = f'set -o pipefail; "$@" {redirections}'
            self.undisturbed(case, ("bash", "-c", script, "bash", *COMMAND))

    def surroundings(self) -> None:
        for case, env in SURROUNDINGS.items():
            self.undisturbed(case, COMMAND, "bildér 日", **env)

    def no_temporary_folder(self) -> None:
        work = str(self.reference.folder)
        for command in COMMANDS:
            with self.folder() as folder:
                arguments = [str(each) for each in self.reference.command(command)]
                if command in ("evaluate", "likelihood"):
                    arguments += ["--dataset", str(self.reference.pictures)]
                arguments = [each.replace(work, "/mnt") for each in arguments]
                launcher = "unshare", "-m", "bash", "-c", HIDDEN, "bash", work, folder.name
                launcher = *launcher, *COMMAND
                env = {"TMPDIR": None, "HOME": "/nowhere"}
                case = f"no /tmp and no HOME: {command}"
                self.expect(case, 0, Process(arguments, folder, launcher, **env).wait())
                if command in ("train", "sample"):  # the cards name the other folder
                    self.expect_result(case, command, folder)

    def read_only(self) -> None:
        """Data on a disk that cannot be written: pictures, and MNIST's archives."""
        with disk(self.reference.folder / "disk", "64m") as folder, self.folder() as out:
            shutil.copytree(self.reference.pictures, folder / "pictures")
            raw = Path("data", "MNIST", "raw")
            shutil.copytree(ROOT / raw, folder / raw, ignore=shutil.ignore_patterns("*ubyte"))
            remount(folder, "ro")
            digits = ["mnist", "--image-size", 32, "--epochs", 0.01]
            for name, dataset in {"digits": digits, "pictures": [folder / "pictures"]}.items():
                options = ["--epochs", 2, "--dataset", *dataset, "--data", folder / "data"]
                command = ["train", *SIZES, *options, "--out", name]
                self.expect(f"read-only data: {name}", 0, Process(command, out, COMMAND).wait())

    def another_user(self) -> None:
        """Whose own results are made, and who is refused where files are not to be written."""
        self.undisturbed("another user", AS_NOBODY, HOME="/nowhere")
        with self.folder() as folder:
            shutil.copytree(self.reference.folder / "train" / "out", folder / "out")
            resume = [*self.reference.resumed("train", folder), "--epochs", 20]
            self.expect("another user resumes", 1, Process(resume, folder, AS_NOBODY).wait())
            self.expect_result("another user resumes", "train", folder)

    def begin_pair(self, resumes: bool) -> bool:
        """Two runs begin, new or resumed, within 20 ms: one is refused, the other undisturbed."""
        with self.folder() as folder:
            if resumes:
                process = Process(self.reference.command("train"), folder)
                wait_for_step(process, folder / "out", 12)
                process.send(signal.SIGKILL)
                process.wait()
            other = self.reference.new_folder("trial/other")
            (folder / "out").mkdir(exist_ok=True)
            (other / "out").symlink_to(folder / "out")
            arguments = self.reference.resumed("train", folder)
            first = Process(arguments, folder)
            time.sleep(self.rng.uniform(0, 0.02))
            ends = [process.wait() for process in (first, Process(arguments, other))]
            is_good = {each.status for each in ends} == {0, 1}
            is_good = is_good and not any(each.is_noisy for each in ends)
            is_good = is_good and self.reference.agrees("train", folder)
            self.check(f"a pair, resumes: {resumes}", str(ends), is_good)
            return is_good


def try_cases(reference: Reference, pairs: int, rng: random.Random) -> dict:
    """How each case ended, what is wrong, and what was left out."""
    cases, left_out = Cases(reference, rng), []
    for work in (cases.streams, cases.surroundings):
        work()
    bar = progress_bar(range(pairs), desc="two at once")
    trains = sum(cases.begin_pair(bool(k % 2)) for k in bar)
    cases.ended["two that begin at once"] = {"pairs": pairs, "one trains": trains}
    privileged = cases.full_disks, cases.read_only, cases.another_user, cases.no_temporary_folder
    for work in privileged:
        if sys.platform == "linux" and os.geteuid() == 0:
            work()
        else:
            left_out.append(work.__name__)
    return cases.ended | {"wrong": cases.wrong, "left out": left_out}
