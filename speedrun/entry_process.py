"""An entry in its own process, without a network, which ends when its time is over.

Run as a program, it trains and draws with an entry, and leaves the images, or the error that
stopped it, in the folder that its request names.
"""

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[1:1] = [str(ROOT), str(ROOT / "doctor")]

from diffusion_doctor.foreign_code import end_session, load_module, users_lines

from mnist_ddpm.machine.process import progress_bar
from mnist_ddpm.machine.text import printable

IMAGES, LABELS, DRAWN, ERROR = "images.npy", "labels.npy", "drawn.npy", "error.json"
SETTINGS = {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg"}


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
    for name in (DRAWN, ERROR):
        (folder / name).unlink(missing_ok=True)
    request = {"entry": str(entry.resolve()), "folder": str(folder), "n": n, "seeds": seeds}
    request |= {"began": time.time(), "seconds": seconds}
    command = [sys.executable, __file__, json.dumps(request)]
    environment = os.environ | SETTINGS | {"PYTHONPATH": str(ROOT)}
    output = folder / "printed.txt"
    with output.open("wb") as file:
        streams = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": file}
        process = subprocess.Popen(command, env=environment, start_new_session=True, **streams)
        try:
            wait_for(process, seconds, entry.stem)
            took = time.time() - request["began"]
        finally:
            with suppress(ProcessLookupError, PermissionError):  # all have ended
                end_session(process)  # and what it has started
    if (folder / ERROR).exists():
        message, *lines = json.loads((folder / ERROR).read_text(encoding="utf-8"))
        error = RuleError(f"{entry.name}: {message}")
        for line in lines:
            error.add_note(line)
        raise error
    if not (folder / DRAWN).exists():
        printed = output.read_text(encoding="utf-8", errors="replace").strip() or "nothing"
        last = printable(printed.splitlines()[-1])[:300]
        ended = f"{entry.name} ended its process with status {process.returncode}"
        raise RuleError(f"{ended} before it had drawn, and last printed: {last}")
    return read_drawn(folder / DRAWN, n, np.load(folder / IMAGES, mmap_mode="r").shape[1:]), took


def wait_for(process: subprocess.Popen, seconds: float, name: str) -> None:
    """Waits until a process has ended. Raises RuleError when its seconds are over."""
    end = time.monotonic() + seconds
    with progress_bar(total=round(seconds), desc=name, unit="s", leave=False) as bar:
        while time.monotonic() < end:
            bar.update(round(seconds - (end - time.monotonic())) - bar.n)
            with suppress(subprocess.TimeoutExpired):
                process.wait(min(1.0, end - time.monotonic()))
                return
    raise RuleError(f"{name} took longer than its {seconds:.1f} s of this machine, and was ended")


def read_drawn(path: Path, n: int, shape: tuple[int, int, int]) -> np.ndarray:
    """The images that draw returned. Raises RuleError unless they are uint8 (n, *shape)."""
    images = np.load(path, allow_pickle=False)
    wanted = f"they must be uint8 {(n, *shape)}"
    if images.shape != (n, *shape):
        raise RuleError(f"draw({n}, seed) returned images of shape {images.shape}: {wanted}")
    if images.dtype != np.uint8:
        has_nan = ", with NaN" if np.isnan(images).any() else ""
        values = f"{images.dtype} values{has_nan}"
        raise RuleError(f"draw({n}, seed) returned {values}: {wanted}, 0 black and 255 white")
    return images


def forbid_network(event: str, arguments: tuple) -> None:
    """An audit hook: raises OSError where a program connects to another machine."""
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        raise OSError(f"an entry has no network, and this one connects to {arguments[1][0]}")


def draw_images(request: dict) -> np.ndarray:
    """Loads an entry, trains it and draws with it. Raises what the entry raises, and RuleError."""
    train = getattr(load_module(request["entry"]), "train", None)
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


def answer(request: dict) -> None:
    """Leaves what an entry draws, or the error that stopped it, in the request's folder."""
    sys.addaudithook(forbid_network)
    folder = Path(request["folder"])
    try:
        np.save(folder / "unfinished.npy", draw_images(request), allow_pickle=False)
        os.replace(folder / "unfinished.npy", folder / DRAWN)
    except RuleError as error:
        (folder / ERROR).write_text(json.dumps([str(error)]), encoding="utf-8")
    except BaseException as error:  # of any kind, in code that others wrote
        own = f"{Path(__file__).name}:"
        lines = [line for line in users_lines(error) if not line.startswith(own)]
        (folder / ERROR).write_text(json.dumps(lines), encoding="utf-8")


if __name__ == "__main__":
    answer(json.loads(sys.argv[1]))
