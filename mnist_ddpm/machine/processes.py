"""One run on several processes, each with its GPU, by way of Hugging Face Accelerate.

A launcher (`accelerate launch`, `torchrun`, or Accelerate's `notebook_launcher`) starts them all
with the same command, on one machine or many.
"""

import gc
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from mnist_ddpm.ddpm import check
from mnist_ddpm.machine.files import first_line


class World:
    """The processes that share the work of a run: here just one."""

    rank, size, device = 0, 1, torch.device("cpu")  # where it gathers

    def share(self, n: int, rank: int | None = None) -> range:
        """This process's part of n things, or another rank's."""
        rank = self.rank if rank is None else rank
        return range(rank * n // self.size, (rank + 1) * n // self.size)

    def gather(self, x: Tensor) -> Tensor:
        """All processes' x, in their order: (size * N, …)."""
        return x

    def any(self, flag: bool) -> bool:
        """Whether any process has flag set."""
        return flag

    def prepare(self, network: nn.Module) -> nn.Module:
        """The network as training calls it: its gradients become the mean of all processes'."""
        return network


class Processes(World):
    """Processes that a launcher started."""

    def __init__(self, accelerator):
        self.accelerator, self.device = accelerator, accelerator.device
        self.rank, self.size = accelerator.process_index, accelerator.num_processes

    def gather(self, x: Tensor) -> Tensor:
        return self.accelerator.gather(x.contiguous())

    def any(self, flag: bool) -> bool:
        return bool(self.gather(torch.tensor([flag], device=self.device)).any())

    def prepare(self, network: nn.Module) -> nn.Module:
        return self.accelerator.prepare_model(network)


def connect(expected: int = 0, cpu: bool = False) -> World:
    """This process's world, of as many processes as expected; 0: as launched.

    Raises ValueError where that is not so.
    """
    started = int(os.environ.get("WORLD_SIZE", 1))  # as the launcher says
    problem = f"{expected} processes were asked for, and {started} started"
    check(
        expected in (0, started),
        f"{problem}: launch them with torchrun --nproc-per-node {expected}, or accelerate launch "
        f"--multi_gpu --num_processes {expected} (without GPUs accelerate launch --cpu starts one "
        "alone unless its configuration says otherwise)",
    )
    if started > 1:
        return connected(started, cpu)
    if "ACCELERATE_MIXED_PRECISION" in os.environ and not expected:  # accelerate launch sets it
        told = "accelerate launch has started one process"
        print(f"{told}; if you wanted several, --processes N says why not")
    return World()


def connected(started: int, cpu: bool) -> Processes:
    """The world of several processes. Raises ValueError where Accelerate connects fewer."""
    import torch.distributed.nn  # after connecting, its functions' defaults would keep it open
    from accelerate import Accelerator, InitProcessGroupKwargs  # two seconds, for several alone

    # The others wait while one decodes a data set.
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=2))
    cpu = cpu or not torch.cuda.is_available()
    # The precision is the recipe's.
    accelerator = Accelerator(cpu=cpu, mixed_precision="no", kwargs_handlers=[patience])
    world = Processes(accelerator)
    told = f"the launcher speaks of {started} processes, and Accelerate has connected {world.size}"
    check(world.size == started, f"{told}: launch them with torchrun or accelerate launch")
    return world


def leave() -> None:
    """Closes the connection: a process that exits with its threads at work may be aborted."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        gc.collect()  # networks that trained hold on to it


def one_first(world: World) -> AbstractContextManager:
    """Inside, the others of this machine wait for the first, which fills a cache that they read."""
    if world.size == 1:
        return nullcontext()
    return world.accelerator.local_main_process_first()


def check_batch(size: int, world: World) -> None:
    """Raises ValueError where these processes cannot share a batch of this size equally."""
    problem = f"batch_size {size} cannot be shared by {world.size} processes"
    check(size % world.size == 0, f"{problem}: take a multiple")


def train_in_notebook(processes: int, train: Callable, *arguments) -> None:
    """train(*arguments, device=, world=) on so many GPUs, or processes, from a notebook.

    Where they cannot be launched, on one, which is printed. Raises ValueError for fewer than two,
    and where this process has used a GPU already: those forked from it could not use one.
    """
    check(processes > 1, "one process needs no launcher: train without it")
    used = f"to train on {processes} GPUs, run this before anything else uses one"
    check(not torch.cuda.is_initialized(), f"{used}: restart the notebook")
    from accelerate import notebook_launcher

    with TemporaryDirectory() as folder:
        connected = Path(folder, "connected")
        given = processes, train, arguments, connected
        try:
            notebook_launcher(notebook_process, given, num_processes=processes)
            return
        except Exception as error:
            if connected.exists():  # then it is not the launch that fails
                raise
            told = f"{processes} processes cannot be launched ({first_line(error)})"
    print(f"{told}: training goes on with one")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train(*arguments, device=device, world=World())


def notebook_process(processes: int, train: Callable, arguments: tuple, connected: Path) -> None:
    """What each of the forked processes does. It makes the file once all are connected."""
    world = connect(processes, cpu=not torch.cuda.is_available())
    connected.touch()
    # OpenMP's other threads do not outlive the fork: work shared with them would never end.
    torch.set_num_threads(1)
    train(*arguments, device=world.device, world=world)
