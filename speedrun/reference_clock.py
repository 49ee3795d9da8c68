"""How fast this machine is, beside the reference machine: the seconds of a fixed training loop.

A track's seconds are the reference machine's. This machine gets as many times more, or fewer.
"""

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import nn

# Of the loop below on the reference machine: two cores of an AMD EPYC (Zen 3). After the first
# record it must stay, or no records compare.
REFERENCE_SECONDS = 1.6
STEPS, ROUNDS = 20, 9
STEADY = 1.1  # the loop's seconds after an entry, over those before it, that count as one speed


def seconds_of_loop(
    steps: int = STEPS, rounds: int = ROUNDS, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Seconds to train three convolutions for some steps: the median of some rounds.

    A first round, of a quarter of the steps, is not timed. The caller's random numbers stay as
    they are.
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
        take_steps(network, x, steps // 4)
        seconds = []
        for _ in range(rounds):
            began = clock()
            take_steps(network, x, steps)
            seconds.append(clock() - began)
    return median(seconds)


def take_steps(network: nn.Module, x: torch.Tensor, steps: int) -> None:
    """Of gradient descent, towards a network that returns its input."""
    for _ in range(steps):
        network.zero_grad()
        (network(x) - x).square().mean().backward()
        with torch.no_grad():
            for weight in network.parameters():
                weight -= 1e-3 * weight.grad


def slowness(loop: float) -> float:
    """Seconds of this machine, whose loop took some seconds, for one of the reference machine."""
    return loop / REFERENCE_SECONDS


def is_steady(before: float, after: float) -> bool:
    """Whether the machine was as fast after an entry as before it."""
    return max(before, after) <= STEADY * min(before, after)
