"""A training run and its step: the notebook's, plus labels, precisions and micro-batches.

Without these, with Adam in float32 on the CPU in one process, a step gives bit for bit the same
weights as the notebook's. (On a GPU the notebook draws its noise there, and this module does not.)
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

from mnist_ddpm import ddpm
from mnist_ddpm.ddpm import Objective, Schedule, check, random_generator
from mnist_ddpm.machine.processes import ProcessGroup, check_batch_size
from mnist_ddpm.method import Batch, MakeOptimizer, Method, PlainMethod, as_method
from mnist_ddpm.methods.times import TimeSampler
from mnist_ddpm.recipe import Recipe
from mnist_ddpm.training.cost import recompute_blocks

SINGLE_PROCESS = ProcessGroup()


@dataclass
class Run(ddpm.Run):
    """As ddpm.Run, for any recipe: all that changes in training, and is needed to resume it."""

    settings: Recipe
    method: Method = field(default_factory=lambda: PlainMethod(ddpm.l_simple))
    method_optimizers: dict[str, Optimizer] = field(default_factory=dict)  # of method.networks
    time_sampler: TimeSampler | None = None  # None: t is uniform
    scaler: torch.amp.GradScaler | None = None  # keeps small gradients from becoming 0 in float16
    callable_network: Callable[..., Tensor] | None = None  # the network as training calls it
    n_images: int = 0  # in the training set; 0: not known yet
    total_steps: float = 0.0  # expected at the end of training; 0: not known yet
    training_seconds: float = 0.0  # spent on the steps
    folder: Path | None = None  # that it is saved in, absolute
    last_saved_step: int | None = None
    sampling_defaults: dict = field(default_factory=dict)  # that its checkpoint advises
    world: ProcessGroup = SINGLE_PROCESS  # the processes that share each batch

    def __post_init__(self):
        if self.callable_network is None:
            self.callable_network = self.network
        if self.scaler is None:
            enabled = self.settings.precision == "float16"
            self.scaler = torch.amp.GradScaler(self.device.type, enabled=enabled)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.network.parameters()).device

    @property
    def networks_and_optimizers(self) -> list[tuple[nn.Module, Optimizer]]:
        """The run's network and those of its method, each with its optimiser."""
        networks = self.method.networks
        pairs = [(networks[name], each) for name, each in self.method_optimizers.items()]
        return [(self.network, self.optimizer), *pairs]

    def set_learning_rate(self, rate: float) -> None:
        """Sets the learning rate of all optimisers, times each group's "rate_factor"."""
        for _, optimizer in self.networks_and_optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("rate_factor", 1.0)

    @property
    def progress(self) -> float:
        """The share of its steps that is done, from 0 to 1; 0 before training."""
        return self.step / self.total_steps if self.total_steps else 0.0

    def is_at(self, folder: str | Path) -> bool:
        """Whether the run is saved in that folder."""
        return self.folder is not None and self.folder == Path(folder).resolve()

    def record(self) -> dict:
        """The record of the training in a checkpoint's config.json."""
        hundreds = [self.losses[k : k + 100] for k in range(0, len(self.losses), 100)]
        return {
            "steps": self.step,
            "images": self.step * self.settings.batch_size,
            "seconds": round(self.training_seconds, 1),
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "loss_every_100_steps": [round(float(np.mean(losses)), 5) for losses in hundreds],
        }


def new_run(
    recipe: Recipe,
    network: nn.Module,
    make_optimizer: MakeOptimizer,
    method: Method | Objective = ddpm.l_simple,
    time_sampler: TimeSampler | None = None,
) -> Run:
    """A run at step 0 of a network and a method, which are on the same device already."""
    method = as_method(method)
    ema = deepcopy(network).eval().requires_grad_(False)
    if recipe.gradient_checkpointing:
        recompute_blocks(network)
        recompute_blocks(method.networks)
    if recipe.compile:
        network.compile()  # when it is first called
    optimizer = method.optimizer("network", network, make_optimizer)
    method_optimizers = {
        name: method.optimizer(name, each, make_optimizer) for name, each in method.networks.items()
    }
    run = Run(recipe, network, ema, optimizer, method=method, time_sampler=time_sampler)
    run.method_optimizers = method_optimizers
    return run


def attach_processes(run: Run, world: ProcessGroup) -> None:
    """Prepares the run for training by several processes, or by one.

    Raises ValueError where they cannot share its batches or its method has extra networks, and
    for one process where the run is already attached to several.
    """
    recipe = run.settings
    check_batch_size(recipe.batch_size, world)
    if world.size == 1:
        is_attached = run.world.size > 1
        check(not is_attached, "this run is attached to several processes: pass their world")
        return
    names = " and ".join(run.method.networks)
    message = f"a method with extra networks ({names}) trains in one process only: launch one"
    check(not names, message)
    if run.world.size == 1:
        run.world = world
        if recipe.compile and recipe.gradient_checkpointing:
            # Older PyTorch cannot split such a graph into buckets.
            torch._dynamo.config.optimize_ddp = False
        run.callable_network = world.prepare(run.network)


def training_step(
    run: Run,
    x0: Tensor,
    schedule: Schedule,
    generator: torch.Generator,
    labels: Tensor | None = None,
) -> float:
    """As ddpm.training_step, with labels, micro-batches, mixed precision and several processes.

    x0 (N, C, H, W) in [-1, 1], labels (N,). Returns the batch's loss. Raises FloatingPointError if
    it is not finite: the weights then stay as they were.
    """
    recipe = run.settings
    world = run.world
    n = len(x0)
    if run.time_sampler is None:
        t = torch.randint(1, schedule.T + 1, (n,), generator=generator)
        weights = torch.ones(n)
    else:
        t, weights = run.time_sampler.draw(n, generator)
    weights = weights.to(x0)
    eps = torch.randn(x0.shape, generator=generator)
    true_labels = labels = None if labels is None else labels.cpu()
    if labels is not None:
        is_hidden = torch.rand(n, generator=generator) < recipe.label_dropout
        labels = labels.masked_fill(is_hidden, recipe.classes)
    seed_dropout(recipe.seed, run.step, world.rank)
    for _, optimizer in run.networks_and_optimizers:
        optimizer.zero_grad()
    share = slice(world.share(n).start, world.share(n).stop)
    tensors = x0, t, eps, labels, true_labels
    batch = Batch(*(None if each is None else each[share] for each in tensors), run.progress)
    losses = world.gather(add_gradients(run, batch, weights[share], schedule))
    value = update_weights(run, (weights * losses).mean(), t, losses)
    run.losses.append(value)
    if run.time_sampler is not None:
        run.time_sampler.update(t, losses.cpu())
    return value


def seed_dropout(seed: int, step: int, rank: int) -> None:
    """Seeds PyTorch's global generator, of which dropout draws: for each step and process."""
    torch.manual_seed(random_generator(seed, 2, step, rank).initial_seed())


def add_gradients(run: Run, batch: Batch, weights: Tensor, schedule: Schedule) -> Tensor:
    """Adds the gradients of the mean weighted loss, by micro-batches. Returns all losses (N,)."""
    n = len(batch.x0)
    device = batch.x0.device
    dtype = getattr(torch, run.settings.precision)
    size = math.ceil(n / run.settings.accumulation)

    def network(xt: Tensor, *inputs: Tensor, **options: Tensor) -> Tensor:
        options = {name: value.to(device) for name, value in options.items()}
        return run.callable_network(xt, *(each.to(device) for each in inputs), **options)

    losses = []
    for first in range(0, n, size):
        indices = slice(first, first + size)
        micro = micro_batch(batch, indices, device)
        # Several processes share gradients after the last micro-batch.
        no_sync = getattr(run.callable_network, "no_sync", nullcontext)
        with no_sync() if indices.stop < n else nullcontext():
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                micro_losses = run.method.loss(network, schedule, micro)
            shape = tuple(micro_losses.shape)
            is_one_each = shape == (len(micro.x0),)
            check(is_one_each, f"the loss has shape {shape}, not one value for each image")
            run.scaler.scale((weights[indices] * micro_losses).sum() / n).backward()
        losses.append(micro_losses.detach())
    return torch.cat(losses)


def micro_batch(batch: Batch, indices: slice, device: torch.device) -> Batch:
    """A slice of a batch, with noise and labels on a device; images and times stay on theirs."""
    parts = batch.eps, batch.labels, batch.true_labels
    on_device = [None if values is None else values[indices].to(device) for values in parts]
    return Batch(batch.x0[indices], batch.t[indices], *on_device, batch.progress)


def update_weights(run: Run, loss: Tensor, t: Tensor, losses: Tensor) -> float:
    """Clips each network's gradients, takes the optimiser step and updates the EMA.

    Returns the loss. Raises FloatingPointError if it or a gradient is not finite: the weights then
    stay as they were.
    """
    recipe = run.settings
    for _, optimizer in run.networks_and_optimizers:
        run.scaler.unscale_(optimizer)
    try:
        networks = [network for network, _ in run.networks_and_optimizers]
        norms = [nn.utils.clip_grad_norm_(n.parameters(), recipe.gradient_clip) for n in networks]
        value, *norms = torch.stack([loss.float(), *norms]).tolist()  # the only synchronisation
        # Where gradients overflow in float16, the scaler skips the step and halves the scale.
        # At a scale of 1 that no longer helps.
        if not math.isfinite(value if run.scaler.get_scale() > 1 else value + sum(norms)):
            worst = t[losses.nan_to_num(math.inf).argmax().cpu()].item()
            figures = f"loss {value}, gradient norm {sum(norms)}"
            raise FloatingPointError(f"{figures} in step {run.step + 1}, worst at t = {worst}")
        for _, optimizer in run.networks_and_optimizers:
            run.scaler.step(optimizer)
    finally:
        run.scaler.update()  # ready for another step, even where this one was interrupted
    run.step += 1
    decay = min(recipe.ema_decay, (1 + run.step) / (10 + run.step))
    average = get_ema_multi_avg_fn(decay)  # of all weights in one call
    average([*run.ema.parameters()], [*run.network.parameters()], None)
    return value
