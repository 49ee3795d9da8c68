"""PyTorch's threads, as many as it gets cores beside other programs.

OpenMP's threads spin while they wait for each other. Where another program has one's core, all
wait for it, and a second thread makes work slower, not faster.
"""

import math
import os
import time

import torch

from mnist_ddpm.ddpm import free_cores

EVERY = 30.0  # seconds from one look to the next
WINDOW = 2.0  # seconds in which the share of cores is watched meanwhile
LOST = 0.8  # of that share, where another program has come
MOST = torch.get_num_threads()


class Threads:
    """Watches how many cores there are for PyTorch. OMP_NUM_THREADS fixes the number."""

    def __init__(self):
        self.fixed = MOST == 1 or "OMP_NUM_THREADS" in os.environ
        self.looked = -math.inf
        self.usual, self.since = 0.0, (0.0, 0.0)  # share of cores; when it was taken, by two clocks

    def adapt(self) -> None:
        """To be called often: sets the number every 30 s, and at once where cores are lost.

        That takes 0.1 s.
        """
        if time.monotonic() >= self.looked + EVERY or self.has_lost():
            self.look()

    def look(self) -> None:
        """Sets the number at once."""
        if not self.fixed:
            torch.set_num_threads(free_cores(MOST))
            self.looked = time.monotonic()
            self.usual, self.since = 0.0, (self.looked, time.process_time())

    def has_lost(self) -> bool:
        """Whether this process gets less of the cores than before, in the last two seconds."""
        now = time.monotonic(), time.process_time()
        seconds, spent = (new - old for new, old in zip(now, self.since))
        if seconds < WINDOW:
            return False
        self.since, before = now, self.usual
        self.usual = max(before, spent / seconds)
        return spent / seconds < LOST * before


THREADS = Threads()  # of this process, as PyTorch's number is
adapt_threads, look_at_cores = THREADS.adapt, THREADS.look
