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

from mnist_ddpm.training.recipe import Recipe
from mnist_ddpm.training.run import count_parameters, recompute_blocks


class Cost(NamedTuple):
    """Of a network and its training."""

    parameters: int
    flops: int  # of one evaluation of one image: two for each multiplication with an addition
    memory: int  # bytes of a training step: weights, average, Adam's two moments, and the rest


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
def cost(recipe: Recipe, make_network: Callable[[Recipe], nn.Module]) -> Cost:
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
