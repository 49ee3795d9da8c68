"""The PyTorch modules of a network: finding them, and changing their state for one check."""

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from diffusion_doctor.mathematics import seeded


def find_module(network: object, depth: int = 3) -> nn.Module | None:
    """The module that a network is or calls: itself, or among what its function uses. Or None."""
    level = [network]
    for _ in range(depth + 1):
        modules = [each for each in level if isinstance(each, nn.Module)]
        if modules:
            return modules[0]
        level = [part for each in level for part in parts_of(each)]
    return None


def parts_of(value: object) -> list:
    """What a function, a method, a partial or an object of a user's class refers to."""
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if inspect.ismethod(value):
        return [value.__self__, value.__func__]
    if inspect.isfunction(value):
        used = inspect.getclosurevars(value)
        return [*used.nonlocals.values(), *used.globals.values()]
    if callable(value) and not isinstance(value, type) and hasattr(value, "__dict__"):
        return [*vars(value).values(), type(value).__call__]
    return []


@contextmanager
def awakened(module: nn.Module, seed: int = 0) -> Iterator[None]:
    """Inside, every parameter that is all zeros has random values instead.

    A network that begins with an output of 0, as many do, then shows what it is made of.
    """
    generator = torch.Generator().manual_seed(seed)
    zeros = [weight for weight in module.parameters() if not weight.detach().any()]
    with torch.no_grad():
        for weight in zeros:
            weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))
    try:
        yield
    finally:
        with torch.no_grad():
            for weight in zeros:
                weight.zero_()


@contextmanager
def in_mode(module: nn.Module, training: bool) -> Iterator[None]:
    """Inside, the module trains or evaluates; afterwards its modes and buffers are as before."""
    modes = {layer: layer.training for layer in module.modules()}
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    module.train(training)
    try:
        yield
    finally:
        for layer, mode in modes.items():
            layer.training = mode
        for buffer, values in buffers:
            buffer.copy_(values)


@contextmanager
def restored_weights(module: nn.Module) -> Iterator[None]:
    """Inside, the module may be trained; afterwards its weights and buffers are as before."""
    state = {name: value.clone() for name, value in module.state_dict().items()}
    try:
        yield
    finally:
        module.load_state_dict(state)


@torch.no_grad()
def output_of(network: Callable, x: Tensor, t: Tensor, seed: int = 0) -> Tensor:
    """The network's output in float64, with the same dropout in every call."""
    with seeded(seed):
        return network(x, t).detach().double().cpu()


def rms(x: Tensor) -> float:
    """The root of the mean square."""
    return x.double().square().mean().sqrt().item()
