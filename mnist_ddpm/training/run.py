"""A training run and its step: the notebook's, in other precisions, in parts, with labels.

In float32 with Adam, on a processor, in one process and without any of that, it is the notebook's
bit for bit. (On a GPU the notebook draws its noise there.)
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from mnist_ddpm import ddpm
from mnist_ddpm.ddpm import Objective, Schedule, check, random_generator
from mnist_ddpm.machine.folder_lock import FolderIdentity
from mnist_ddpm.machine.processes import World, check_batch_size
from mnist_ddpm.method import Batch, MakeOptimizer, Method, PlainMethod, as_method
from mnist_ddpm.training.recipe import Recipe

ALONE = World()


class TimeSampler(Protocol):
    """Draws t in another way than each of 1 … T alike. A module, on the processor."""

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Times (n,), and what to multiply their losses by.

        1 / (T p_t) keeps the mean that of uniform times, p_t being the probability of t. 1 changes
        it: some times count more, as those who draw them more often intend.
        """

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Learns from the losses (N,) at times t (N,)."""

    def state_dict(self) -> dict: ...

    def load_state_dict(self, state: dict) -> object: ...


@dataclass
class Run(ddpm.Run):
    """A training run: all that changes while it trains. Nothing else is needed to go on."""

    settings: Recipe
    method: Method = field(default_factory=lambda: PlainMethod(ddpm.l_simple))
    part_optimizers: dict[str, Optimizer] = field(default_factory=dict)  # of the method's parts
    times: TimeSampler | None = None  # None: each t alike
    scaler: torch.amp.GradScaler | None = None  # keeps small gradients from becoming 0 in float16
    called: Callable[..., Tensor] | None = None  # the network as training calls it
    n: int = 0  # training images; 0: not known yet
    total: float = 0.0  # steps in all, as training foresees; 0: not known yet
    seconds: float = 0.0  # spent on the steps
    home: FolderIdentity | None = None  # where it is saved
    saved: int | None = None  # the step that was saved last

    def __post_init__(self):
        if self.called is None:
            self.called = self.network
        if self.scaler is None:
            enabled = self.settings.precision == "float16"
            self.scaler = torch.amp.GradScaler(self.device.type, enabled=enabled)

    @property
    def device(self) -> torch.device:
        """That of the weights."""
        return next(self.network.parameters()).device

    @property
    def trained(self) -> list[tuple[nn.Module, Optimizer]]:
        """The network and the method's parts, each with its optimiser."""
        parts = self.method.parts
        pairs = [(parts[name], each) for name, each in self.part_optimizers.items()]
        return [(self.network, self.optimizer), *pairs]

    def set_learning_rate(self, rate: float) -> None:
        """Sets that of all optimisers, times their groups' factors."""
        for _, optimizer in self.trained:
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("rate_factor", 1.0)

    def done(self) -> float:
        """The part of its steps that is done, from 0 to 1; 0 before training."""
        return self.step / self.total if self.total else 0.0

    def is_at(self, folder: str | Path) -> bool:
        """Whether it is saved in that folder."""
        return self.home is not None and self.home.matches(folder)

    def record(self) -> dict:
        """What a checkpoint records of its training."""
        hundreds = [self.losses[k : k + 100] for k in range(0, len(self.losses), 100)]
        return {
            "steps": self.step,
            "images": self.step * self.settings.batch_size,
            "seconds": round(self.seconds, 1),
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "loss_every_100_steps": [round(float(np.mean(part)), 5) for part in hundreds],
        }


def count_parameters(network: nn.Module) -> int:
    """Numbers that training adjusts."""
    return sum(weight.numel() for weight in network.parameters())


def new_run(
    recipe: Recipe,
    network: nn.Module,
    make_optimizer: MakeOptimizer,
    method: Method | Objective = ddpm.l_simple,
    times: TimeSampler | None = None,
) -> Run:
    """A run at step 0 of a network and a method, each on its device."""
    method = as_method(method)
    ema = deepcopy(network).eval().requires_grad_(False)
    if recipe.gradient_checkpointing:
        recompute_blocks(network)
        recompute_blocks(method.parts)
    if recipe.compile:
        network.compile()  # when it is first called
    optimizer = method.optimizer("network", network, make_optimizer)
    part_optimizers = {
        name: method.optimizer(name, part, make_optimizer) for name, part in method.parts.items()
    }
    run = Run(recipe, network, ema, optimizer, method=method, times=times)
    run.part_optimizers = part_optimizers
    return run


def recompute_blocks(network: nn.Module) -> None:
    """Makes blocks in lists compute their outputs again for gradients, instead of storing them."""
    for blocks in network.modules():
        for block in blocks if isinstance(blocks, nn.ModuleList) else ():
            block.forward = partial(recomputed, block.forward)


def recomputed(forward: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """forward(*inputs), computed again in the backward pass."""
    if not torch.is_grad_enabled():
        return forward(*inputs)
    return checkpoint(forward, *inputs, use_reentrant=False)


def join_world(run: Run, world: World) -> None:
    """Makes the run one of these processes'.

    Raises ValueError where they cannot share its batches, and for a run that has joined others.
    """
    s = run.settings
    check_batch_size(s.batch_size, world)
    parts = " and ".join(run.method.parts)
    alone = world.size == 1 or not parts
    check(alone, f"a method with a network of its own ({parts}) is for one process: launch no more")
    if world.size == 1:
        check(run.called is run.network, "the run has joined several processes: pass their world")
    elif run.called is run.network:
        if s.compile and s.gradient_checkpointing:  # older PyTorch cannot cut it into buckets
            torch._dynamo.config.optimize_ddp = False
        run.called = world.prepare(run.network)


def training_step(
    run: Run,
    x0: Tensor,
    schedule: Schedule,
    generator: torch.Generator,
    labels: Tensor | None = None,
    world: World = ALONE,
) -> float:
    """One step of Algorithm 1 on images x0 (N, C, H, W) in [-1, 1], and their labels (N,).

    Returns the batch's loss. Raises FloatingPointError, with good weights, if it is not finite.
    """
    s = run.settings
    n = len(x0)
    if run.times is None:
        t = torch.randint(1, schedule.T + 1, (n,), generator=generator)
        weights = torch.ones(n)
    else:
        t, weights = run.times.draw(n, generator)
    weights = weights.to(x0)
    eps = torch.randn(x0.shape, generator=generator)
    true_labels = labels = None if labels is None else labels.cpu()
    if labels is not None:
        is_hidden = torch.rand(n, generator=generator) < s.label_dropout
        labels = labels.masked_fill(is_hidden, s.classes)
    seed_dropout(s.seed, run.step, world.rank)
    for _, optimizer in run.trained:
        optimizer.zero_grad()
    share = slice(world.share(n).start, world.share(n).stop)
    tensors = x0, t, eps, labels, true_labels
    batch = Batch(*(None if each is None else each[share] for each in tensors), run.done())
    losses = world.gather(add_gradients(run, batch, weights[share], schedule))
    value = update_weights(run, (weights * losses).mean(), t, losses)
    run.losses.append(value)
    if run.times is not None:
        run.times.update(t, losses.cpu())
    return value


def seed_dropout(seed: int, step: int, rank: int) -> None:
    """Seeds PyTorch's global generator, of which dropout draws: for each step and process."""
    torch.manual_seed(random_generator(seed, 2, step, rank).initial_seed())


def add_gradients(run: Run, batch: Batch, weights: Tensor, schedule: Schedule) -> Tensor:
    """Adds the gradients of the mean weighted loss, part by part. Returns all losses (N,)."""
    n = len(batch.x0)
    device = batch.x0.device
    dtype = getattr(torch, run.settings.precision)
    size = math.ceil(n / run.settings.accumulation)

    def network(xt: Tensor, t: Tensor, *labels: Tensor, **options: Tensor) -> Tensor:
        options = {name: value.to(device) for name, value in options.items()}
        return run.called(xt, t.to(device), *(each.to(device) for each in labels), **options)

    losses = []
    for first in range(0, n, size):
        part = slice(first, first + size)
        part_batch = part_of(batch, part, device)
        # Several processes share gradients after the last part.
        unshared = getattr(run.called, "no_sync", nullcontext)
        with unshared() if part.stop < n else nullcontext():
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                part_losses = run.method.loss(network, schedule, part_batch)
            shape = tuple(part_losses.shape)
            is_one_each = shape == (len(part_batch.x0),)
            check(is_one_each, f"the loss is {shape}: it must be one for each image")
            run.scaler.scale((weights[part] * part_losses).sum() / n).backward()
        losses.append(part_losses.detach())
    return torch.cat(losses)


def part_of(batch: Batch, part: slice, device: torch.device) -> Batch:
    """Some of a batch's images, with noise and labels on a device; times stay where they are."""
    on_device = [
        None if values is None else values[part].to(device)
        for values in (batch.eps, batch.labels, batch.true_labels)
    ]
    return Batch(batch.x0[part], batch.t[part], *on_device, batch.done)


def update_weights(run: Run, loss: Tensor, t: Tensor, losses: Tensor) -> float:
    """Clips each network's gradients, moves the weights and the average. Returns the loss.

    Raises FloatingPointError where the loss or a gradient is not finite, before it reaches them.
    """
    s = run.settings
    for _, optimizer in run.trained:
        run.scaler.unscale_(optimizer)
    try:
        networks = [network for network, _ in run.trained]
        norms = [nn.utils.clip_grad_norm_(n.parameters(), s.gradient_clip) for n in networks]
        value, *norms = torch.stack([loss.float(), *norms]).tolist()  # the step's one wait
        # Where gradients overflow in float16, the scaler leaves the step out and halves the scale.
        # That helps down to a scale of 1.
        if not math.isfinite(value if run.scaler.get_scale() > 1 else value + sum(norms)):
            worst = t[losses.nan_to_num(math.inf).argmax().cpu()].item()
            where = f"in step {run.step + 1}, worst at t = {worst}"
            raise FloatingPointError(f"loss {value}, gradient norm {sum(norms)} {where}")
        for _, optimizer in run.trained:
            run.scaler.step(optimizer)
    finally:
        run.scaler.update()  # ready for another step, even where this one was interrupted
    run.step += 1
    decay = min(s.ema_decay, (1 + run.step) / (10 + run.step))
    average = get_ema_multi_avg_fn(decay)  # of all weights in one call
    average([*run.ema.parameters()], [*run.network.parameters()], None)
    return value
