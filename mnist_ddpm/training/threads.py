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
MOST = torch.get_num_threads()


class Threads:
    """Watches how many cores there are for PyTorch. OMP_NUM_THREADS fixes the number."""

    def __init__(self):
        self.fixed = MOST == 1 or "OMP_NUM_THREADS" in os.environ
        self.looked = -math.inf

    def adapt(self) -> None:
        """To be called often: sets the number, at most every 30 s, which takes 0.1 s."""
        if time.monotonic() >= self.looked + EVERY:
            self.look()

    def look(self) -> None:
        """Sets the number at once."""
        if not self.fixed:
            torch.set_num_threads(free_cores(MOST))
            self.looked = time.monotonic()


THREADS = Threads()  # of this process, as PyTorch's number is
adapt_threads, look_at_cores = THREADS.adapt, THREADS.look
