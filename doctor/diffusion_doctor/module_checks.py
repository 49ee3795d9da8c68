"""Checks of the layers of a network, trained or not: normalisation, attention, buffers."""

import functools
import inspect
import re
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from diffusion_doctor.modules import awakened, in_mode, rms
from diffusion_doctor.report import Check, Verdict

ATTENTION = re.compile(r"scaled_dot_product_attention|softmax|MultiheadAttention")
POSITIONS = re.compile(r"\b(sin|cos|arange|rotary|rope|linspace|meshgrid)\b")
ATTENTION_CHECK = "network: attention"
BUFFER_CHECK = "network: buffers of its average"
POINTWISE = nn.Linear, nn.GroupNorm, nn.LayerNorm, nn.Dropout, nn.Identity, nn.Softmax
CONVOLUTIONS = nn.Conv1d, nn.Conv2d
CONSTANCY_TOLERANCE = 1e-3  # float32 sums in another order differ by about 1e-5
DRIFT = 1e-3  # of an averaged constant: rounding of 6e-8 a step, over 1 / (1 - decay) steps


def check_channel_groups(module: nn.Module) -> Check:
    """Whether a normalisation takes each channel alone, which removes the channel's mean.

    The value counts such layers. None is right.
    """
    lone = [
        path
        for path, layer in module.named_modules()
        if isinstance(layer, _InstanceNorm)
        or (isinstance(layer, nn.GroupNorm) and layer.num_groups == layer.num_channels)
    ]
    name = "network: normalisation groups"
    if not lone:
        return Check(name, "ok", "no normalisation takes a channel alone", 0, 0)
    meaning = (
        f"{len(lone)} layers normalise each channel alone, so the network cannot see how bright "
        "or how coloured an image is"
    )
    return Check(name, "wrong", meaning, len(lone), 0, {"channel-groups": 1.0}, where=lone[0])


def check_attention(module: nn.Module, run: Callable[[], object]) -> Check:
    """Whether attention gives the same output at all positions where all inputs are the same.

    run: calls the network once, so that the layers' inputs are known. The value is the largest
    difference over the RMS of what a layer adds. A layer with parameters for its positions passes
    if it does so without them. One that computes positions, or has convolutions, is undecided.
    """
    layers = attention_inputs(module, run)
    checks = {path: attention_layer_check(path, *call) for path, *call in layers}
    decided = [path for path, check in checks.items() if check.verdict in ("ok", "wrong")]
    for path in [*checks]:
        has_decided_part = any(other.startswith(f"{path}.") for other in decided)
        if checks[path].verdict == "undecided" and has_decided_part:
            del checks[path]
    order = "wrong", "undecided", "ok", "not checked"
    nothing = Check(ATTENTION_CHECK, "not checked", "no layer of self-attention was found")
    return min([*checks.values(), nothing], key=lambda check: order.index(check.verdict))


def attention_inputs(
    module: nn.Module, run: Callable
) -> Iterator[tuple[str, nn.Module, tuple, dict]]:
    """Each layer whose own code has attention: its path, itself and its arguments in one call."""
    calls = {}

    def keep(layer: nn.Module, inputs: tuple, options: dict) -> None:
        calls.setdefault(layer, (inputs, options))

    layers = {path: layer for path, layer in module.named_modules() if has_attention(layer)}
    handles = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in layers.values()]
    try:
        with in_mode(module, False):
            run()
    finally:
        for handle in handles:
            handle.remove()
    for path, layer in layers.items():
        if layer in calls:
            yield path, layer, *calls[layer]


def has_attention(layer: nn.Module) -> bool:
    """Whether a layer's own code mixes positions by attention, as far as its class shows."""
    if type(layer).__module__.startswith("torch."):
        return False
    is_named = "atten" in type(layer).__name__.lower()
    return is_named or bool(ATTENTION.search(source_of(type(layer))))


@functools.cache
def source_of(layer_type: type) -> str:
    """The source of a layer's class, or nothing where it cannot be read."""
    try:
        return inspect.getsource(layer_type)
    except (OSError, TypeError):
        return ""


def attention_layer_check(path: str, layer: nn.Module, inputs: tuple, options: dict) -> Check:
    """The check of one layer, in evaluation mode."""
    sequences = [x for x in (*inputs, *options.values()) if isinstance(x, Tensor) and x.ndim > 2]
    if len(sequences) != 1 or sequences[0].ndim > 4:
        return Check(ATTENTION_CHECK, "not checked", "a layer of attention takes several sequences")
    recorded = sequences[0]
    x = torch.randn(small_shape(recorded), generator=torch.Generator().manual_seed(0)).to(recorded)
    with in_mode(layer, False), awakened(layer), torch.no_grad():

        def call(x: Tensor) -> Tensor:
            changed = {key: x if each is recorded else each for key, each in options.items()}
            return layer(*(x if each is recorded else each for each in inputs), **changed)

        try:
            output = call(x)
        except Exception:  # of many kinds: a layer for one size alone
            x = torch.randn_like(recorded)
            output = call(x)
        if not isinstance(output, Tensor) or output.shape != x.shape or x.dtype.itemsize < 4:
            meaning = "a layer of attention returns another shape"
            return Check(ATTENTION_CHECK, "undecided", meaning, where=path)
        error = constancy_error(call, x)
        verdict: Verdict = "ok"
        if error <= CONSTANCY_TOLERANCE:
            meaning = "attention gives equal outputs for equal inputs"
        elif error_without_parameters(layer, call, x) <= CONSTANCY_TOLERANCE:
            meaning = "attention has parameters for positions, and treats them alike without"
        elif POSITIONS.search(source_of(type(layer))) or not is_pointwise(layer):
            meaning = "attention with convolutions or computed positions cannot be judged"
            verdict = "undecided"
        else:
            meaning = "attention scrambles positions and channels"
            verdict = "wrong"
    evidence = {"attention-reshape": 1.0} if verdict == "wrong" else {}
    return Check(
        ATTENTION_CHECK, verdict, meaning, error, CONSTANCY_TOLERANCE, evidence, where=path
    )


def small_shape(x: Tensor) -> tuple[int, ...]:
    """The shape of two images with 3 × 5 positions, a number that divides no usual channels.

    With as many positions as channels, a reshaped attention would be attention over channels.
    """
    n = min(2, len(x))
    return (n, x.shape[1], 3, 5) if x.ndim == 4 else (n, 15, x.shape[2])


def constancy_error(call: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """How much the output varies over positions where the input does not.

    Positions of images are pixels; those of sequences the first or the second dimension.
    """
    errors = []
    for dim in [2] if x.ndim == 4 else [1, 2]:
        flat = x.flatten(2)
        constant = flat.narrow(dim, 0, 1).expand_as(flat).reshape(x.shape).contiguous()
        added = (call(constant) - constant).view(flat.shape)
        spread = added - added.mean(dim=dim, keepdim=True)
        errors.append(spread.abs().max().item() / max(rms(added), 1e-12))
    return min(errors)


def error_without_parameters(layer: nn.Module, call: Callable, x: Tensor) -> float:
    """The error while the layers' own parameters and buffers are constant."""
    own = [
        tensor
        for part in layer.modules()
        if not type(part).__module__.startswith("torch.")
        for tensor in (*part.parameters(recurse=False), *part.buffers(recurse=False))
        if tensor.is_floating_point() and tensor.numel() > 1
    ]
    values = [tensor.detach().clone() for tensor in own]
    with torch.no_grad():
        for tensor in own:
            tensor.fill_(tensor.mean())
        try:
            return constancy_error(call, x)
        finally:
            for tensor, value in zip(own, values):
                tensor.copy_(value)


def is_pointwise(layer: nn.Module) -> bool:
    """Whether PyTorch's layers in it see one position at a time, but for their statistics."""
    leaves = [part for part in layer.modules() if not [*part.children()]]
    return all(
        not type(leaf).__module__.startswith("torch.")
        or isinstance(leaf, POINTWISE)
        or "activation" in type(leaf).__module__
        or (isinstance(leaf, CONVOLUTIONS) and max(leaf.kernel_size) == 1)
        for leaf in leaves
    )


def check_averaged_buffers(module: nn.Module, averaged: nn.Module) -> Check:
    """Whether buffers, such as tables, are the same in both networks. The value is a difference.

    BatchNorm's statistics may differ. A table that differs by rounding, or by one factor, has been
    averaged. Whether another buffer should differ cannot be known.
    """
    statistics = {
        f"{path}.{key}".lstrip(".")
        for path, layer in module.named_modules()
        if isinstance(layer, _BatchNorm)
        for key, _ in layer.named_buffers(recurse=False)
    }
    others = dict(averaged.named_buffers())
    pairs = [(key, own, others[key]) for key, own in module.named_buffers() if key in others]
    undecided = []
    for key, own, other in pairs:
        if own.is_floating_point() != other.is_floating_point():
            return averaged_buffer(key, 1.0)
        if key in statistics or own.shape != other.shape or torch.equal(own.cpu(), other.cpu()):
            continue
        own = own.detach().double().cpu()
        other = other.detach().double().cpu()
        size = rms(own)
        factor = ((own * other).mean() / own.square().mean()).item() if size else 0.0
        difference = rms(other - own) / max(size, 1e-30)
        is_drift = difference < DRIFT
        is_scaled = 0 < factor < 1 and rms(other - factor * own) < DRIFT * size
        if own.numel() >= 8 and (is_drift or is_scaled):
            return averaged_buffer(key, difference)
        undecided.append((key, difference))
    if undecided:
        key, difference = undecided[0]
        meaning = "a buffer differs; if it is a constant, it must not be averaged"
        return Check(BUFFER_CHECK, "undecided", meaning, difference, 0, where=key)
    return Check(BUFFER_CHECK, "ok", f"{len(pairs)} buffers are as they should be", 0, 0)


def averaged_buffer(key: str, difference: float) -> Check:
    """The check of a buffer that has been averaged."""
    meaning = "a table in a buffer has been averaged like a weight"
    evidence = {"averaged-buffers": 1.0}
    return Check(BUFFER_CHECK, "wrong", meaning, difference, 0, evidence, where=key)
