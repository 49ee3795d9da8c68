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
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from mnist_ddpm.machine import devices
from mnist_ddpm.recipe import Recipe


class Cost(NamedTuple):
    """The cost of a network and its training."""

    parameters: int
    flops: int  # to evaluate one image: two for each multiplication with an addition
    memory: int  # bytes of a training step: weights, EMA, Adam's two moments, activations


def least_weights(recipe: Recipe) -> int:
    """A lower bound of the U-Net's parameters: two convolutions in each residual block.

    It is also one for a transformer, whose block has attention, two layers and adaLN.
    """
    blocks = 2 * recipe.blocks_per_level + 1
    return sum(blocks * 18 * (recipe.base_channels * mult) ** 2 for mult in recipe.channel_mults)


def least_maps(recipe: Recipe) -> int:
    """A lower bound of the numbers kept while drawing an image: those of the skip connections.

    Training keeps at least twice as many, unless it recomputes blocks.
    """
    width = recipe.base_channels
    levels = zip(recipe.channel_mults, recipe.positions)
    return sum(recipe.blocks_per_level * width * mult * math.prod(size) for mult, size in levels)


def check_network(recipe: Recipe) -> None:
    """Raises ValueError for a network that exceeds the memory, before it is made."""
    widest = recipe.base_channels * max(recipe.channel_mults)
    names = f"base_channels, channel_mults ({widest:,} channels at most) or blocks_per_level"
    devices.check_memory(4 * least_weights(recipe), "the network", f"lower {names}")


def check_training(recipe: Recipe) -> None:
    """Raises ValueError for a training step that exceeds the memory, on the processor."""
    advice = "lower image_size, base_channels or batch_size, or raise accumulation or patch_size"
    images = math.ceil(recipe.batch_size / recipe.accumulation)
    maps = (1 if recipe.gradient_checkpointing else 2) * images * least_maps(recipe)
    devices.check_memory(16 * least_weights(recipe) + 4 * maps, "a training step", advice)


def check_drawing(recipe: Recipe, n: int, batch_size: int) -> None:
    """Raises ValueError for n images, or a batch of them, that exceed the memory."""
    pixels = math.prod(recipe.shape)
    devices.check_memory(n * pixels, f"n is {n:,}: so many images", "take fewer")
    needed = min(n, batch_size) * 4 * (least_maps(recipe) + pixels)
    batch = f"batch_size is {batch_size:,}: so many images at once"
    devices.check_memory(needed, batch, "take fewer")


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of the tensors created inside it: `live` now, and their `peak`."""

    def __init__(self):
        super().__init__()
        self.live = 0
        self.peak = 0
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
        """Subtracts the bytes of a tensor that is gone."""
        self.live -= size


@cache
def network_cost(recipe: Recipe, make_network: Callable[[Recipe], nn.Module]) -> Cost:
    """The cost of a recipe's network, computed without allocating or evaluating it.

    The memory is that in float32: half precision takes less, a device's libraries some more.
    """
    with FakeTensorMode():
        network = make_network(recipe).train()
        x = torch.zeros(math.ceil(recipe.batch_size / recipe.accumulation), *recipe.shape)
        t = torch.ones(len(x), dtype=torch.long)
        labels = {"labels": torch.zeros_like(t)} if recipe.classes else {}
        counter = FlopCounterMode(display=False)
        # The counter knows only the plain form of attention.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            network(x[:1], t[:1], **{name: value[:1] for name, value in labels.items()})
        if recipe.gradient_checkpointing:
            recompute_blocks(network)
        with LiveTensors() as memory:
            memory.seen.update(weight.untyped_storage() for weight in network.parameters())
            output = network(x, t, **labels)
            target = x.repeat(1, output.shape[1] // x.shape[1], 1, 1)
            (output - target).square().mean().backward()
    parameters = count_parameters(network)
    return Cost(parameters, counter.get_total_flops(), memory.peak + 4 * 4 * parameters)


def count_parameters(network: nn.Module) -> int:
    """How many numbers the weights of a network are."""
    return sum(weight.numel() for weight in network.parameters())


def recompute_blocks(network: nn.Module) -> None:
    """Sets up gradient checkpointing: blocks in a ModuleList recompute their activations."""
    for blocks in network.modules():
        for block in blocks if isinstance(blocks, nn.ModuleList) else ():
            block.forward = partial(recomputed, block.forward)


def recomputed(forward: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """forward(*inputs), computed again in the backward pass."""
    if not torch.is_grad_enabled():
        return forward(*inputs)
    return checkpoint(forward, *inputs, use_reentrant=False)
