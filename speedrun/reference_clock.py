"""How fast this machine is, beside the reference machine: the seconds of a fixed training loop.

A track's seconds are the reference machine's. This machine gets as many times more, or fewer.
"""

import time
from collections.abc import Callable

import torch
from torch import nn

# Of the loop below on the reference machine. Until the first record is measured, a definition: the
# reference machine is one that takes as long. After that it must stay, or no records compare.
REFERENCE_SECONDS = 5.0
STEPS = 100
STEADY = 1.1  # the loop's seconds after an entry, over those before it, that count as one speed


def seconds_of_loop(steps: int = STEPS, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds to train three convolutions for some steps, after a tenth as many to warm up.

    The caller's random numbers stay as they are.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 1, 3, padding=1),
        )
        x = torch.randn(64, 1, 32, 32)
        began = 0.0
        warmup = steps // 10
        for step in range(warmup + steps):
            if step == warmup:
                began = clock()
            network.zero_grad()
            (network(x) - x).square().mean().backward()
            with torch.no_grad():
                for weight in network.parameters():
                    weight -= 1e-3 * weight.grad
        return clock() - began


def slowness(loop: float) -> float:
    """Seconds of this machine, whose loop took some seconds, for one of the reference machine."""
    return loop / REFERENCE_SECONDS


def is_steady(before: float, after: float) -> bool:
    """Whether the machine was as fast after an entry as before it."""
    return max(before, after) <= STEADY * min(before, after)
