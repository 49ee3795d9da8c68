"""Several processes, each with its GPU, that share a run through Hugging Face Accelerate.

A launcher (`accelerate launch`, `torchrun`) starts them all with the same command.
"""

import gc
import math
import os
import time
import warnings
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta

import torch
from torch import Tensor, nn

from mnist_ddpm.ddpm import check
from mnist_ddpm.machine.process import import_extra

COUNT_EVERY = 30.0  # seconds from one count of the free cores to the next
WINDOW = 2.0  # seconds over which this process's share of the cores is measured
LOSS = 0.8  # a share below this part of the usual one means that another program has started
MOST = torch.get_num_threads()


class ProcessGroup:
    """The processes that share the work of a run. This base class is a single process.

    rank: this process's number. size: how many processes there are.
    """

    rank = 0
    size = 1
    device = torch.device("cpu")  # of the tensors that gather takes

    def share(self, n: int, rank: int | None = None) -> range:
        """The indices below n that this process works on, or the process of a given rank."""
        rank = self.rank if rank is None else rank
        return range(rank * n // self.size, (rank + 1) * n // self.size)

    def gather(self, x: Tensor) -> Tensor:
        """The x (N, …) of all processes, concatenated by rank: (size * N, …)."""
        return x

    def gather_shares(self, own: Tensor, n: int) -> Tensor:
        """All n rows (n, …), of which each process passes its own share, on the CPU."""
        most = -(-n // self.size)
        padding = own.new_zeros(most - len(own), *own.shape[1:])  # all must send the same size
        rows = self.gather(torch.cat([own, padding]).to(self.device)).cpu().split(most)
        return torch.cat([row[: len(self.share(n, rank))] for rank, row in enumerate(rows)])

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return flag

    def prepare(self, network: nn.Module) -> nn.Module:
        """The network for training: its gradients become the mean over all processes."""
        return network


class LaunchedProcesses(ProcessGroup):
    """Several processes that a launcher has started."""

    def __init__(self, accelerator):
        self.accelerator = accelerator
        self.device = accelerator.device
        self.rank = accelerator.process_index
        self.size = accelerator.num_processes

    def gather(self, x: Tensor) -> Tensor:
        return self.accelerator.gather(x.contiguous())

    def any(self, flag: bool) -> bool:
        return bool(self.gather(torch.tensor([flag], device=self.device)).any())

    def prepare(self, network: nn.Module) -> nn.Module:
        # of 1 x 1 convolutions, whose strides mean nothing
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        return self.accelerator.prepare_model(network)


def launched_processes() -> int:
    """How many processes a launcher started, as its WORLD_SIZE says; 1 without a launcher."""
    size = os.environ.get("WORLD_SIZE", "1")
    return int(size) if size.isdecimal() else 1


def connect_world(expected: int = 0, cpu: bool = False) -> ProcessGroup:
    """The group of the launched processes, or of this one. expected: their number; 0: any.

    Raises ValueError if another number was launched.
    """
    launched = launched_processes()
    check(
        expected in (0, launched),
        f"{expected} processes were asked for, and {launched} started: launch them with torchrun "
        f"--nproc-per-node {expected}, or accelerate launch --multi_gpu --num_processes {expected} "
        "(without GPUs accelerate launch --cpu starts one alone unless its configuration says "
        "otherwise)",
    )
    if launched > 1:
        return connect_processes(launched, cpu)
    if "ACCELERATE_MIXED_PRECISION" in os.environ and not expected:  # set by accelerate launch
        hint = "if you wanted several, --processes N says why not"
        print(f"accelerate launch has started one process; {hint}")
    return ProcessGroup()


def connect_processes(launched: int, cpu: bool) -> LaunchedProcesses:
    """The group of several launched processes.

    Raises ValueError if Accelerate is missing, or connects fewer.
    """
    import torch.distributed.nn  # if imported after connecting, it would keep the connection open

    (accelerate,) = import_extra("accelerate", "accelerate")  # takes two seconds
    cpu = cpu or not torch.cuda.is_available()
    two_hours = timedelta(hours=2)  # the others wait while one decodes a data set
    patience = accelerate.InitProcessGroupKwargs(timeout=two_hours)
    # The precision is the recipe's.
    accelerator = accelerate.Accelerator(cpu=cpu, mixed_precision="no", kwargs_handlers=[patience])
    world = LaunchedProcesses(accelerator)
    counts = f"the launcher started {launched} processes, and Accelerate has connected {world.size}"
    check(world.size == launched, f"{counts}: launch them with torchrun or accelerate launch")
    return world


def disconnect() -> None:
    """Closes the connection. A process that exits without this may be aborted by its threads."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        gc.collect()  # trained networks hold on to the connection


def main_process_first(world: ProcessGroup) -> AbstractContextManager:
    """The machine's first process runs the block before the others, which read what it cached."""
    if world.size == 1:
        return nullcontext()
    return world.accelerator.local_main_process_first()


def check_batch_size(size: int, world: ProcessGroup) -> None:
    """Raises ValueError unless these processes can share a batch of this size equally."""
    refusal = f"batch_size {size} cannot be shared by {world.size} processes: take a multiple"
    check(size % world.size == 0, refusal)


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
