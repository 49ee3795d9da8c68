"""Contestants at work, each in a separate process."""

import multiprocessing
import signal
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


def begin(task: Task, threads: int) -> None:
    """In a new process, which leaves Ctrl-C to the one that started it."""
    global contestant
    signal.signal(signal.SIGINT, signal.SIG_IGN)
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


def seconds_to_first_image(task: Task, threads: int, evaluations: int) -> float:
    """In a fresh process: importing, PyTorch too, building and drawing."""
    began = time.time()
    with hire(task, threads) as worker:
        ask(worker, "sample", 1, evaluations, task.seed)
        return time.time() - began
