"""One run on several processes, each with its GPU, on one machine or many: by way of Hugging Face Accelerate.

A launcher (`accelerate launch`, `torchrun`, or Accelerate's `notebook_launcher`) starts them all with the same command.
Each draws times and noise for the whole batch and computes its share of it, so that their number does not matter.
"""

import os
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from mnist_ddpm import ddpm
from mnist_ddpm.extractors import Judge


class Processes(ddpm.World):
    """Those that a launcher has started."""

    def __init__(self, accelerator):
        self.accelerator = accelerator
        self.rank, self.size, self.device = accelerator.process_index, accelerator.num_processes, accelerator.device

    def join(self, model: nn.Module) -> nn.Module:
        return self.accelerator.prepare_model(model)

    def gather(self, x: Tensor) -> Tensor:
        return self.accelerator.gather(x.contiguous())

    def any(self, flag: bool) -> bool:
        return bool(self.gather(torch.tensor([flag], device=self.device)).any())


def started() -> int:
    """How many processes the launcher says that it has started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", 1))


def connect(expected: int = 0, cpu: bool = False) -> ddpm.World:
    """This process's world. Raises ValueError unless it is of as many processes as expected; 0: any number."""
    if expected and started() != expected:
        raise ValueError(
            f"{expected} processes were asked for, and {started()} started: launch them with torchrun "
            f"--nproc-per-node {expected}, or accelerate launch --multi_gpu --num_processes {expected} (without GPUs "
            "accelerate launch --cpu starts one alone unless its configuration says otherwise)"
        )
    if started() == 1:
        return ddpm.World()
    from accelerate import Accelerator  # takes its time, and one process does without

    return Processes(Accelerator(cpu=cpu))


def one_first(world: ddpm.World) -> AbstractContextManager:
    """Inside, the others of this machine wait until one is through: it fills a cache, and they read it."""
    return nullcontext() if world.size == 1 else world.accelerator.local_main_process_first()


def share(world: ddpm.World, n: int) -> range:
    """Which of n things are this process's part. Raises ValueError where there are fewer than processes."""
    if n < world.size:
        raise ValueError(f"{n} cannot be shared by {world.size} processes: ask for more, or launch fewer")
    return range(n * world.rank // world.size, n * (world.rank + 1) // world.size)


def collect(world: ddpm.World, part: Tensor, n: int) -> Tensor:
    """The n things (n, …) of which each process has its part, for all of them."""
    most = -(-n // world.size)
    filled = torch.cat([part, part.new_zeros(most - len(part), *part.shape[1:])])
    rows = world.gather(filled.to(getattr(world, "device", "cpu"))).cpu().split(most)
    sizes = [n * (rank + 1) // world.size - n * rank // world.size for rank in range(world.size)]
    return torch.cat([row[:size] for row, size in zip(rows, sizes)])


def generate(
    world: ddpm.World, model: ddpm.Model, schedule: ddpm.Schedule, n: int, shape: tuple[int, int, int],
    labels: Tensor | None = None, **options,
) -> tuple[Tensor, ddpm.Film]:  # fmt: skip
    """As ddpm.generate, each process drawing its part of the images: all get them all, the film is of its own part."""
    mine = share(world, n)
    labels = None if labels is None else labels[mine.start : mine.stop]
    part, film = ddpm.generate(model, schedule, len(mine), shape, start=mine.start, labels=labels, **options)
    return collect(world, part, n), film


class SharedJudge(Judge):
    """One whose features are computed by all processes, each its part."""

    def __init__(self, world: ddpm.World, judge: Judge):
        super().__init__(judge.network, judge.name, judge.device)
        object.__setattr__(self, "world", world)

    def features(self, images: Tensor) -> Tensor:
        mine = share(self.world, len(images))
        return collect(self.world, super().features(images[mine.start : mine.stop]), len(images))

    def logits(self, images: Tensor) -> Tensor:
        mine = share(self.world, len(images))
        return collect(self.world, super().logits(images[mine.start : mine.stop]), len(images))
