"""What a network costs: parameters, operations, memory."""

import math
import weakref
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from mnist_ddpm.machine import devices
from mnist_ddpm.training.recipe import Recipe
from mnist_ddpm.training.run import count_parameters, recompute_blocks


class Cost(NamedTuple):
    """Of a network and its training."""

    parameters: int
    flops: int  # of one evaluation of one image: two for each multiplication with an addition
    memory: int  # bytes of a training step: weights, average, Adam's two moments, and the rest


def least_weights(recipe: Recipe) -> int:
    """Parameters that the U-Net has at least: those of two convolutions in each residual block.

    A transformer's block, with attention, two layers and adaLN, has as many.
    """
    blocks = 2 * recipe.blocks_per_level + 1
    return sum(blocks * 18 * (recipe.base_channels * mult) ** 2 for mult in recipe.channel_mults)


def least_maps(recipe: Recipe) -> int:
    """Numbers that drawing an image takes at least: what the way up has from the way down.

    Training keeps at least twice as many, unless it recomputes blocks.
    """
    levels, width = zip(recipe.channel_mults, recipe.positions), recipe.base_channels
    return sum(recipe.blocks_per_level * width * mult * math.prod(each) for mult, each in levels)


def check_network(recipe: Recipe) -> None:
    """Raises ValueError for a network that memory cannot hold, before it is made."""
    widest = recipe.base_channels * max(recipe.channel_mults)
    names = f"base_channels, channel_mults ({widest:,} channels at most) or blocks_per_level"
    devices.check_memory(4 * least_weights(recipe), "the network", f"lower {names}")


def check_training(recipe: Recipe) -> None:
    """Raises ValueError for a training step that memory cannot hold, on the processor."""
    weights, part = 16 * least_weights(recipe), math.ceil(recipe.batch_size / recipe.accumulation)
    names = "lower image_size, base_channels or batch_size, or raise accumulation or patch_size"
    needed = weights + (1 if recipe.gradient_checkpointing else 2) * 4 * part * least_maps(recipe)
    devices.check_memory(needed, "a training step", names)


def check_drawing(recipe: Recipe, n: int, batch_size: int) -> None:
    """Raises ValueError for n images, or a batch of them, that memory cannot hold."""
    pixels = math.prod(recipe.shape)
    devices.check_memory(n * pixels, f"n is {n:,}: so many images", "take fewer")
    needed = min(n, batch_size) * 4 * (least_maps(recipe) + pixels)
    problem = f"batch_size is {batch_size:,}: so many images at once"
    devices.check_memory(needed, problem, "take fewer")


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of the tensors made inside it: `live` now, `peak` at the worst moment."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self.seen = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            storage = tensor.untyped_storage() if isinstance(tensor, Tensor) else None
            if storage is not None and storage not in self.seen:
                self.seen.add(storage)
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self.forget, storage.nbytes())
        return result

    def forget(self, size: int) -> None:
        self.live -= size


@cache
def network_cost(recipe: Recipe, make_network: Callable[[Recipe], nn.Module]) -> Cost:
    """What a recipe's network costs, without allocating a byte of it or doing an operation.

    The memory is counted in float32: half precision takes less, a device's libraries some more.
    """
    s = recipe
    with FakeTensorMode():
        network = make_network(s).train()
        x = torch.zeros(math.ceil(s.batch_size / s.accumulation), *s.shape)
        t = torch.ones(len(x), dtype=torch.long)
        told = {"labels": torch.zeros_like(t)} if s.classes else {}
        # Of attention the counter knows the plain form.
        plain, counter = sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False)
        with torch.no_grad(), plain, counter:
            network(x[:1], t[:1], **{name: labels[:1] for name, labels in told.items()})
        if s.gradient_checkpointing:
            recompute_blocks(network)
        with LiveTensors() as memory:
            memory.seen.update(weight.untyped_storage() for weight in network.parameters())
            output = partial(network, **told)(x, t)
            target = x.repeat(1, output.shape[1] // x.shape[1], 1, 1)
            (output - target).square().mean().backward()
    parameters = count_parameters(network)
    return Cost(parameters, counter.get_total_flops(), memory.peak + 4 * 4 * parameters)
