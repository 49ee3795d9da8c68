"""Contestants at work, each in a process of its own."""

import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor

import torch

from contest.contestant import Contestant, Task
from contest.ours import Ours, OursGuided, OursIn2x2
from contest.peers import Diffusers, Lucidrains, SmallDiffusion

CONTESTANTS: dict[str, type[Contestant]] = {
    "mnist-ddpm": Ours,
    "denoising-diffusion-pytorch": Lucidrains,
    "diffusers": Diffusers,
    "smalldiffusion": SmallDiffusion,
    "mnist-ddpm-2x2": OursIn2x2,
    "mnist-ddpm-guided": OursGuided,
}
PEERS = [name for name, each in CONTESTANTS.items() if each.package != Ours.package]
SPAWN = multiprocessing.get_context("spawn")


def leave_with_parent() -> None:
    """Ends this process when the one that started it is gone, even killed."""
    multiprocessing.parent_process().join()
    os._exit(1)


def begin(task: Task, threads: int) -> None:
    """In a new process, which leaves Ctrl-C to the one that started it."""
    global contestant
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=leave_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    torch.manual_seed(task.seed)
    contestant = CONTESTANTS[task.name](task)


def answer(question: str, *values: object) -> object:
    """In that process: what the contestant's method of that name returns."""
    return getattr(contestant, question)(*values)


def ask(worker: ProcessPoolExecutor, question: str, *values: object):
    """Calls a method of the contestant in a process, and waits for what it returns."""
    return worker.submit(answer, question, *values).result()


def hire(task: Task, threads: int) -> ProcessPoolExecutor:
    """A process with a contestant in it."""
    return ProcessPoolExecutor(1, SPAWN, begin, (task, threads))


def start_cold(task: Task, threads: int, evaluations: int) -> dict[str, float]:
    """Seconds to a first image in a fresh process: of importing, building, drawing."""
    with ProcessPoolExecutor(1, SPAWN) as worker:
        return worker.submit(first_image, task, threads, evaluations, time.time()).result()


def first_image(task: Task, threads: int, evaluations: int, began: float) -> dict[str, float]:
    """In that process; PyTorch's import counts."""
    CONTESTANTS[task.name].imported()
    imported = time.time()
    begin(task, threads)
    built = time.time()
    contestant.sample(1, evaluations, task.seed)
    return {"import": imported - began, "build": built - imported, "draw": time.time() - built}
