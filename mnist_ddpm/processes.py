"""One run on several processes, each with its GPU, on one machine or many: by way of Hugging Face Accelerate.

A launcher (`accelerate launch`, `torchrun`, or Accelerate's `notebook_launcher`) starts them all with the same command.
Each draws times and noise for the whole batch and computes its share of it, so that their number does not matter.
"""

import gc
import math
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mnist_ddpm import ddpm, machine, resumable, runs


class Processes(runs.World):
    """Processes that a launcher started."""

    def __init__(self, accelerator):
        self.accelerator = accelerator
        self.rank, self.size, self.device = accelerator.process_index, accelerator.num_processes, accelerator.device

    def gather(self, x: Tensor) -> Tensor:
        return self.accelerator.gather(x.contiguous())

    def any(self, flag: bool) -> bool:
        return bool(self.gather(torch.tensor([flag], device=self.device)).any())


def connect(expected: int = 0, cpu: bool = False) -> runs.World:
    """This process's world. Raises ValueError unless it is of as many processes as expected; 0: as launched."""
    started = int(os.environ.get("WORLD_SIZE", 1))  # as the launcher says
    if expected and started != expected:
        raise ValueError(
            f"{expected} processes were asked for, and {started} started: launch them with torchrun "
            f"--nproc-per-node {expected}, or accelerate launch --multi_gpu --num_processes {expected} (without GPUs "
            "accelerate launch --cpu starts one alone unless its configuration says otherwise)"
        )
    if started == 1:
        if "ACCELERATE_MIXED_PRECISION" in os.environ and not expected:  # which accelerate launch sets
            print("accelerate launch has started one process; if you wanted several, --processes N says why not")
        return runs.World()
    import torch.distributed.nn  # imported after, its functions' defaults would keep the connection open
    from accelerate import Accelerator, InitProcessGroupKwargs  # takes its time, and one process does without

    patience = InitProcessGroupKwargs(timeout=timedelta(hours=2))  # the others wait while one decodes a data set
    cpu = cpu or not torch.cuda.is_available()
    accelerator = Accelerator(cpu=cpu, mixed_precision="no", kwargs_handlers=[patience])  # precision is a setting's
    world = Processes(accelerator)
    if world.size != started:
        problem = f"the launcher speaks of {started} processes, and Accelerate has connected {world.size}"
        raise ValueError(f"{problem}: launch them with torchrun or accelerate launch")
    return world


def leave() -> None:
    """Closes the connection at the end of the work: a process that exits with its threads at work may be aborted."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        gc.collect()  # networks that trained hold on to it


def one_first(world: runs.World) -> AbstractContextManager:
    """Inside, the others of this machine wait until one is through: it fills a cache, and they read it."""
    return nullcontext() if world.size == 1 else world.accelerator.local_main_process_first()


def check_batch(size: int, world: runs.World) -> None:
    """Raises ValueError where these processes cannot share a batch of this size equally."""
    if size % world.size:
        raise ValueError(f"batch_size {size} cannot be shared by {world.size} processes: take a multiple")


def join(run: ddpm.Run, world: runs.World) -> ddpm.Run:
    """The run as one of these processes trains it. Raises as check_batch."""
    check_batch(run.settings.batch_size, world)
    if world.size > 1:
        run.add_gradients = partial(add_shared_gradients, world)
    if isinstance(world, Processes):
        if run.settings.compile and run.settings.gradient_checkpointing:  # which older PyTorch cannot cut into buckets
            torch._dynamo.config.optimize_ddp = False
        run.network = world.accelerator.prepare_model(run.model)
    return run


def add_shared_gradients(
    world: runs.World, run: ddpm.Run, x0: Tensor, labels: Tensor | None, t: Tensor, eps: Tensor, weights: Tensor, *rest
) -> Tensor:  # fmt: skip
    """ddpm.add_gradients, of this process's share; the network has the mean of all. Returns all losses (N,)."""
    ddpm.seed_step(run.settings.seed, run.step, world.rank)
    mine = world.share(len(x0))
    own = slice(mine.start, mine.stop)
    labels = None if labels is None else labels[own]
    return world.gather(ddpm.add_gradients(run, x0[own], labels, t[own], eps[own], weights[own], *rest))


class OwnImages:
    """Images of which a process reads only its share of each batch; the others' are black to it."""

    def __init__(self, images: Tensor, world: runs.World):
        self.images, self.world, self.device = images, world, images.device

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, batch: Tensor) -> Tensor:
        mine, images = self.world.share(len(batch)), self.images
        own = images[batch[mine.start : mine.stop]].to(self.world.device)
        x = torch.zeros(len(batch), *images.shape[1:], dtype=images.dtype, device=own.device)
        x[mine.start : mine.stop] = own
        return x


def fit(
    run: ddpm.Run, images: Tensor, schedule: ddpm.Schedule, folder: ddpm.PathLike, world: runs.World,
    objective: ddpm.Objective | None = None, labels: Tensor | None = None, deadline: float = math.inf,
) -> ddpm.Run:  # fmt: skip
    """runs.fit, of a run that joins a world, if it has not. Where one process fails, it saves what the first has.

    Raises ConnectionError then, and as join and runs.fit.
    """
    options = {"objective": objective, "labels": labels, "deadline": deadline}
    if world.size == 1:
        return runs.fit(run, images, schedule, folder, **options)
    if run.add_gradients is None:
        join(run, world)
    folder, drawn, done = Path(folder), run.generator.get_state(), run.step

    def loop(run: ddpm.Run, images: Tensor, *rest) -> Iterator[ddpm.TrainingStep]:
        nonlocal drawn, done
        for step in ddpm.training_loop(run, OwnImages(images, world), *rest):
            drawn, done = run.generator.get_state(), run.step
            yield step

    def draw(run: ddpm.Run, schedule: ddpm.Schedule) -> np.ndarray:
        share = replace(run.settings, batch_size=run.settings.batch_size // world.size)  # what fits
        return ddpm.preview(replace(run, settings=share), schedule)

    with resumable.deferred_interrupt():  # a launcher that ends the others must not break into the saving
        try:
            return runs.fit(run, images, schedule, folder, **options, loop=loop, draw=draw, world=world)
        except RuntimeError as error:
            saved = f"what the first of them has saved is in {folder}"
            if world.rank == 0:
                if run.step == done:
                    run.generator.set_state(drawn)  # the step that failed comes again, with the same times and noise
                saved = save_what_is_there(run, folder)
            problem = f"one of {world.size} processes failed, this or another ({resumable.first_line(error)})"
            raise ConnectionError(f"{problem}; {saved}") from error


def save_what_is_there(run: ddpm.Run, folder: Path) -> str:
    """Saves the run, if it can. Returns what is saved then."""
    with suppress(OSError, RuntimeError):  # the first error is the one to tell
        runs.must_be_free(folder, run)
        if run.step:
            runs.save_run(folder, run)
    with suppress(OSError, ValueError):
        if run.home == folder.resolve():
            return f"step {ddpm.load_config(folder)[1]['steps']} is saved in {folder}: resume to go on"
    return runs.left_there(folder, run)


def train(
    settings: ddpm.Settings, images: Tensor, folder: ddpm.PathLike, labels: Tensor | None = None, resume: bool = False,
    weights: dict[str, Tensor] | None = None, deadline: float = math.inf, device: ddpm.Device = "cpu",
    world: runs.World | None = None,
) -> ddpm.Run:  # fmt: skip
    """Starts a run, or resumes that in folder, and trains it to its end: alone, or as one process of a world.

    Raises ValueError for a new run whose settings name weights to start from that are not given, and as
    check_precision and fit.
    """
    if settings.init_from and weights is None and not resume:
        advice = "pass those that pretrained gives, or leave init_from empty"
        raise ValueError(f"init_from is {settings.init_from}, and there are no weights: {advice}")
    machine.check_precision(settings.precision, device)
    settings = replace(settings, compile=settings.compile and machine.compiles(device))
    run = runs.resume_run(folder, settings, device) if resume else ddpm.start_run(settings, device, weights)
    world = world or runs.World()
    if world.rank == 0:
        many = f"{world.size} processes" if world.size > 1 else str(device)
        count = ddpm.count_parameters(run.model)
        print(f"{len(images):,} images of {tuple(images.shape[1:])}, {count:,} parameters, on {many}", flush=True)
    return fit(run, images, ddpm.make_schedule(settings), folder, world, labels=labels, deadline=deadline)


def train_in_notebook(
    processes: int, settings: ddpm.Settings, images: Tensor, folder: ddpm.PathLike, labels: Tensor | None = None,
    resume: bool = False, weights: dict[str, Tensor] | None = None,
) -> None:  # fmt: skip
    """`train` on so many GPUs of this machine (or processes, where it has none), from a notebook.

    Raises ValueError for fewer than two, and where this process has used a GPU already: its copies could not.
    """
    if processes < 2:
        raise ValueError("one process needs no launcher: use train, or fit")
    if torch.cuda.is_initialized():
        raise ValueError(f"to train on {processes} GPUs, run this before anything else uses one: restart the notebook")
    from accelerate import notebook_launcher

    notebook_launcher(
        notebook_process, (processes, settings, images, folder, labels, resume, weights), num_processes=processes
    )


def notebook_process(processes: int, *arguments) -> None:
    world = connect(processes, cpu=not torch.cuda.is_available())
    torch.set_num_threads(1)  # OpenMP's others do not outlive the fork: what they share would wait for them for ever
    train(*arguments, device=world.device, world=world)


def collect(world: runs.World, own: Tensor, n: int) -> Tensor:
    """The n things (n, …) of which each process has its own part, for all of them."""
    most = -(-n // world.size)
    filled = torch.cat([own, own.new_zeros(most - len(own), *own.shape[1:])])
    rows = world.gather(filled.to(world.device)).cpu().split(most)
    return torch.cat([row[: len(world.share(n, rank))] for rank, row in enumerate(rows)])


def shared(world: runs.World, function: Callable[[Tensor], Tensor], things: Tensor) -> Tensor:
    """function(things), each process doing its part."""
    mine = world.share(len(things))
    return collect(world, function(things[mine.start : mine.stop]), len(things))


def generate(
    world: runs.World, model: ddpm.Model, schedule: ddpm.Schedule, n: int, shape: tuple[int, int, int],
    labels: Tensor | None = None, draw: Callable = ddpm.generate, **options,
) -> tuple[Tensor, ddpm.Film]:  # fmt: skip
    """As ddpm.generate, each process drawing its part of the images: all get them all, the film is of its own part.

    draw: ddpm.generate, or what draws in its place. Raises ValueError for fewer images than processes, and as
    ddpm.labels_of.
    """
    if n < world.size:
        raise ValueError(f"{n} images cannot be shared by {world.size} processes: ask for more, or launch fewer")
    mine = world.share(n)
    told = ddpm.labels_of(mine, labels, n)
    own, film = draw(model, schedule, len(mine), shape, start=mine.start, labels=told, **options)
    return collect(world, own, n), film
