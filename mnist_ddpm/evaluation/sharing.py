"""Work on many things, of which each of several processes does a part."""

from collections.abc import Callable

import torch
from torch import Tensor

from mnist_ddpm.machine.processes import World


def collect(world: World, own: Tensor, n: int) -> Tensor:
    """All n things (n, …), of which each process has its own share, on the processor."""
    most = -(-n // world.size)
    missing = own.new_zeros(most - len(own), *own.shape[1:])  # all send as much
    rows = world.gather(torch.cat([own, missing]).to(world.device)).cpu().split(most)
    return torch.cat([row[: len(world.share(n, rank))] for rank, row in enumerate(rows)])


def map_shares(world: World, function: Callable[[Tensor], Tensor], things: Tensor) -> Tensor:
    """function(things), of which each process computes its share of the rows."""
    mine = world.share(len(things))
    return collect(world, function(things[mine.start : mine.stop]), len(things))
