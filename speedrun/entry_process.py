"""An entry in its own process: without a network, and ended when its time is over.

That process runs answer_input: it reads a request as JSON from its input, and leaves what the entry
drew, or the error that stopped it, in the folder that the request names.
"""

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

from mnist_ddpm.doctor.foreign_code import end_session, load_module, users_lines
from mnist_ddpm.machine.progress import progress_bar
from mnist_ddpm.machine.text import printable

IMAGES, LABELS, DRAWN, ERROR = "images.npy", "labels.npy", "drawn.npy", "error.json"
PROGRAM = f"""
import sys
sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]!r}
import entry_process
entry_process.answer_input()
"""


class RuleError(ValueError):
    """An entry breaks a rule. Its notes are lines of the entry's traceback."""


def run_entry(
    entry: Path, folder: Path, n: int, seconds: float, seeds: dict[str, int]
) -> tuple[np.ndarray, float]:
    """What an entry draws in another process, uint8 (n, C, H, W), and the seconds that it took.

    folder: holds images.npy and labels.npy to train on. seconds: from the start of the process, by
    which its images are there. seeds: "train" and "draw". Raises RuleError where it draws no such
    images, or not in time.
    """
    (folder / DRAWN).unlink(missing_ok=True)
    (folder / ERROR).unlink(missing_ok=True)
    began = time.time()
    request = {"entry": str(entry), "folder": str(folder), "n": n, "seeds": seeds}
    request |= {"began": began, "seconds": seconds}
    with (folder / "printed.txt").open("w+", encoding="utf-8", errors="replace") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg"},
        )
        try:
            process.stdin.write(json.dumps(request).encode())
            process.stdin.close()
            took = wait_for(process, began, seconds, entry.stem)
        finally:
            with suppress(ProcessLookupError, PermissionError):  # all have ended
                end_session(process)  # and what it has started
        output.seek(0)
        printed = output.read()
    check_ending(folder, entry.name, process.returncode, printed)
    return read_drawn(folder / DRAWN, n, np.load(folder / IMAGES, mmap_mode="r").shape[1:]), took


def wait_for(process: subprocess.Popen, began: float, seconds: float, name: str) -> float:
    """Waits until a process has ended. Returns its seconds; raises RuleError when they are over."""
    with progress_bar(total=round(seconds), desc=name, unit="s", leave=False) as bar:
        passed = time.time() - began
        while passed < seconds:
            bar.update(int(passed) - bar.n)
            with suppress(subprocess.TimeoutExpired):
                process.wait(min(1.0, seconds - passed))
                return time.time() - began
            passed = time.time() - began
    raise RuleError(f"{name} took longer than its {seconds:.1f} s of this machine, and was ended")


def check_ending(folder: Path, name: str, status: int, printed: str) -> None:
    """Raises RuleError unless an entry ended by itself and drew."""
    if (folder / ERROR).exists():
        message, *lines = json.loads((folder / ERROR).read_text(encoding="utf-8"))
        error = RuleError(f"{name}: {message}")
        for line in lines:
            error.add_note(line)
        raise error
    if not (folder / DRAWN).exists():
        last = (printed.strip() or "nothing").splitlines()[-1]
        ended = f"{name} ended its process with status {status}"
        raise RuleError(f"{ended} before it had drawn, and last printed: {printable(last)[:300]}")


def read_drawn(path: Path, n: int, shape: tuple[int, int, int]) -> np.ndarray:
    """The images that draw returned. Raises RuleError unless they are uint8 (n, *shape)."""
    images = np.load(path, allow_pickle=False)
    wanted = f"they must be uint8 {(n, *shape)}"
    if images.shape != (n, *shape):
        raise RuleError(f"draw({n}, seed) returned images of shape {images.shape}: {wanted}")
    if images.dtype != np.uint8:
        has_nan = ", with NaN" if np.isnan(images).any() else ""
        found = f"{images.dtype} values{has_nan}"
        raise RuleError(f"draw({n}, seed) returned {found}: {wanted}, 0 black and 255 white")
    return images


def forbid_network(event: str, arguments: tuple) -> None:
    """An audit hook: raises OSError where a program connects to another machine."""
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        raise OSError(f"an entry has no network, and this one connects to {arguments[1][0]}")


def draw_images(request: dict) -> np.ndarray:
    """Loads an entry, trains it and draws with it. Raises what the entry raises, and RuleError."""
    module = load_module(request["entry"])
    train = getattr(module, "train", None)
    if not callable(train):
        raise RuleError("it has no function train(images, labels, seconds, seed)")
    import torch  # not before the entry, which may choose how

    folder = Path(request["folder"])
    images, labels = (torch.from_numpy(np.load(folder / name)) for name in (IMAGES, LABELS))
    seconds = request["seconds"] - (time.time() - request["began"])
    draw = train(images, labels, seconds, request["seeds"]["train"])
    if not callable(draw):
        kind = type(draw).__name__
        raise RuleError(f"train returned a {kind}: it must return a function draw(n, seed)")
    return np.asarray(draw(request["n"], request["seeds"]["draw"]))


def answer_input() -> None:
    """Reads a request from the input, and leaves the images, or an error, in its folder."""
    request = json.load(sys.stdin)
    sys.addaudithook(forbid_network)
    folder = Path(request["folder"])
    try:
        images = draw_images(request)
        with (folder / f"{DRAWN}.partial").open("wb") as file:
            np.save(file, images, allow_pickle=False)
        os.replace(folder / f"{DRAWN}.partial", folder / DRAWN)
    except RuleError as error:
        (folder / ERROR).write_text(json.dumps([str(error)]), encoding="utf-8")
    except BaseException as error:  # of any kind, in code that others wrote
        own = f"{Path(__file__).name}:"
        lines = [line for line in users_lines(error) if not line.startswith(own)]
        (folder / ERROR).write_text(json.dumps(lines), encoding="utf-8")
