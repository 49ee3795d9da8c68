"""PyTorch's number of threads: as many as there are CPU cores free beside other programs.

OpenMP's threads spin while they wait for each other. If another program has the core of one, all
wait for it, and a second thread makes work slower, not faster.
"""

import math
import os
import time

import torch

COUNT_EVERY = 30.0  # seconds from one count of the free cores to the next
WINDOW = 2.0  # seconds over which this process's share of the cores is measured
LOSS = 0.8  # a share below this part of the usual one means that another program has started
MOST = torch.get_num_threads()


def free_cores(threads: int) -> int:
    """How many of these cores are free; more threads than that would wait for each other."""
    torch.set_num_threads(threads)
    began = time.perf_counter()
    spent = time.process_time()
    while time.perf_counter() < began + 0.1:
        torch.zeros(2**16).sin()
    share = (time.process_time() - spent) / (time.perf_counter() - began)
    return max(1, round(share - 0.1))


class ThreadCount:
    """Sets how many threads PyTorch uses, unless OMP_NUM_THREADS fixes that."""

    def __init__(self):
        self.is_fixed = MOST == 1 or "OMP_NUM_THREADS" in os.environ
        self.counted_at = -math.inf
        self.usual_share = 0.0  # seconds of processor time a second
        self.since = 0.0, 0.0  # the window's beginning, by the clock and in processor time

    def adapt(self) -> None:
        """To be called often: recounts every 30 s, and at once if cores are lost. Takes 0.1 s."""
        if time.monotonic() >= self.counted_at + COUNT_EVERY or self.has_lost_cores():
            self.recount()

    def recount(self) -> None:
        """Sets the number of threads to that of the cores that are free now."""
        if not self.is_fixed:
            torch.set_num_threads(free_cores(MOST))
            self.counted_at = time.monotonic()
            self.usual_share = 0.0
            self.since = self.counted_at, time.process_time()

    def has_lost_cores(self) -> bool:
        """Whether this process got a smaller share of the cores in the last two seconds."""
        now = time.monotonic(), time.process_time()
        seconds, used = (end - start for end, start in zip(now, self.since))
        if seconds < WINDOW:
            return False
        self.since = now
        usual_share = self.usual_share
        self.usual_share = max(usual_share, used / seconds)
        return used / seconds < LOSS * usual_share


THREAD_COUNT = ThreadCount()  # one for the process, as PyTorch has one number
adapt_threads = THREAD_COUNT.adapt
recount_cores = THREAD_COUNT.recount
