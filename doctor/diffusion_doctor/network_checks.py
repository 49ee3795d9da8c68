"""Checks of what a network does with the batch and with t, trained or not."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from diffusion_doctor.modules import awakened, find_module, in_mode, output_of, rms
from diffusion_doctor.report import Check

Network = Callable[[Tensor, Tensor], Tensor]  # x_t and our times 1 … T (N,) to any prediction
LEAK_TOLERANCE = 1e-3  # kernels may depend on the batch's values by rounding alone, about 1e-6
TIME_TOLERANCE = 1e-5  # equal images at different places of a batch differ by about 1e-7
PAIRS = 4  # sines and cosines that an embedding of t has at least
LEAST_PHASE = 1.2  # radians from t = 1 to T; t in [0, 1] makes 1, EDM's ln(sigma) / 4 makes 2.6
WHOLE_TURN = 2 * math.pi


def awake(network: Network, x: Tensor, t: Tensor) -> Callable | None:
    """Makes a context in which the network's output is not zero throughout; None: there is none."""
    module = find_module(network)
    contexts = [nullcontext] if module is None else [nullcontext, partial(awakened, module)]
    for context in contexts:
        with evaluated(module), context():
            if rms(output_of(network, x, t)) > 0:
                return context
    return None


def evaluated(module: nn.Module | None):
    """A context with the module, if there is one, in evaluation mode."""
    return nullcontext() if module is None else in_mode(module, False)


def spread_times(T: int, n: int) -> Tensor:
    """n times from 1 to T, evenly."""
    return torch.linspace(1, T, n).round().long()


def check_batch_leak(network: Network, T: int, shape: tuple[int, ...], seed: int = 0) -> Check:
    """Whether an image's output depends on the other images of its batch, or on their times.

    The value is the largest change of the first or last image's output when all others change,
    over the RMS of the output; in evaluation and, for modules, in training mode.
    """
    name = "network: images of a batch"
    generator = torch.Generator().manual_seed(seed)
    x, others = torch.randn(2, 4, *shape, generator=generator)
    t = spread_times(T, 4)
    context = awake(network, x, t)
    if context is None:
        return Check(name, "undecided", "the output is 0 for any input", None, LEAK_TOLERANCE)
    module = find_module(network)
    modes = {"a batch": nullcontext()}
    if module is not None:
        modes = {"evaluation mode": in_mode(module, False), "training mode": in_mode(module, True)}
    changes = {}
    for mode, mode_context in modes.items():
        with mode_context, context():
            before = output_of(network, x, t)
            if not torch.equal(before, output_of(network, x, t)):
                continue  # dropout with random numbers of its own
            for place in (0, 3):
                mixed = others.clone()
                mixed[place] = x[place]
                times = t.flip(0)
                times[place] = t[place]
                difference = (output_of(network, mixed, times) - before)[place]
                change = difference.abs().max().item() / rms(before)
                changes[mode] = max(change, changes.get(mode, 0.0))
    if not changes:
        return Check(name, "undecided", "equal inputs have different outputs")
    mode, worst = max(changes.items(), key=lambda item: item[1])
    if not worst > LEAK_TOLERANCE:
        return Check(name, "ok", "no image sees another", worst, LEAK_TOLERANCE)
    layers = module.modules() if module is not None else ()
    cause = "BatchNorm" if any(isinstance(each, _BatchNorm) for each in layers) else "something"
    meaning = f"in {mode}, {cause} mixes images of different noise levels"
    is_advice = cause == "BatchNorm" and changes.get("evaluation mode", 0.0) <= LEAK_TOLERANCE
    verdict = "undecided" if is_advice else "wrong"
    return Check(name, verdict, meaning, worst, LEAK_TOLERANCE, {"batch-leak": 1.0})


def check_time_use(network: Network, T: int, shape: tuple[int, ...], seed: int = 0) -> Check:
    """Whether the output depends on t. The value is its deviation over t, over its RMS."""
    name = "network: use of t"
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, *shape, generator=generator).expand(8, *shape).contiguous()
    t = spread_times(T, 8)
    context = awake(network, x, t)
    if context is None:
        return Check(name, "undecided", "the output is 0 for any input", None, TIME_TOLERANCE)
    module = find_module(network)
    with evaluated(module), context():
        output = output_of(network, x, t)
    change = rms(output - output.mean(dim=0)) / rms(output)
    if change > TIME_TOLERANCE:
        return Check(name, "ok", "the output depends on t", change, TIME_TOLERANCE)
    meaning = "the same image has the same output at every t"
    return Check(name, "wrong", meaning, change, TIME_TOLERANCE, {"time-ignored": 1.0})


def check_time_unit(network: Network, T: int, shape: tuple[int, ...]) -> Check:
    """Whether the sines and cosines of t turn while t runs from 1 to T.

    The value is how far the fastest of them turns, in radians. Frequencies from 1 down to 1/10000
    need t up to about 1000: for t in [0, 1] the fastest turns by 1, and half of them by less than
    0.01. Undecided up to a whole turn, since EDM's ln(sigma) / 4 turns by 2.6; and where no sines
    of t are seen inside the network.
    """
    name = "network: unit of t"
    module = find_module(network)
    if module is None or T < 10:
        return Check(name, "not checked", "needs: a network that is a torch.nn.Module, T from 10")
    starts = torch.tensor([1, T // 4, T // 2, T - 1])
    t = torch.stack([starts, starts + 1], dim=1).flatten()
    x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)).expand(8, *shape)
    with vectors_inside(module) as vectors, evaluated(module):
        output_of(network, x.contiguous(), t)
    turns = [phases for phases in (turned(each, T) for each in vectors) if phases is not None]
    if not turns:
        return Check(name, "undecided", "no sines and cosines of t are seen in the network")
    turned_by = max(turns, key=lambda phases: phases.max().item())
    fastest = turned_by.max().item()
    if fastest > WHOLE_TURN:
        return Check(name, "ok", "the sines of t turn", fastest, LEAST_PHASE)
    if fastest > LEAST_PHASE or turned_by.median().item() > 0.1:
        return Check(name, "undecided", "the sines of t turn little", fastest, LEAST_PHASE)
    meaning = "t is in [0, 1], but its sines and cosines are made for 1 … 1000: they hardly change"
    return Check(name, "wrong", meaning, fastest, LEAST_PHASE, {"unit-time": 1.0})


@contextmanager
def vectors_inside(module: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, a list that collects every vector (N, D) that goes into a layer or comes out."""
    vectors = []

    def keep(layer: nn.Module, inputs: tuple, output: object) -> None:
        for value in (*inputs, output):
            if isinstance(value, Tensor) and value.ndim == 2 and value.is_floating_point():
                vectors.append(value.detach().double().cpu())

    handles = [layer.register_forward_hook(keep) for layer in module.modules()]
    try:
        yield vectors
    finally:
        for handle in handles:
            handle.remove()


def turned(vectors: Tensor, T: int) -> Tensor | None:
    """How far each pair of sine and cosine turns from t = 1 to T, if the vectors are such pairs.

    vectors (8, D): at four times, and each one's successor. Returns radians (D/2,); None for other
    vectors, and for those that do not depend on t. A turn by more than pi a step looks shorter,
    but not for all frequencies.
    """
    columns = vectors[:, vectors.abs().amax(dim=0) > 0]
    half = columns.shape[1] // 2
    if len(vectors) != 8 or half < PAIRS:
        return None
    columns = columns[:, : 2 * half]
    for first, second in (
        (columns[:, :half], columns[:, half:]),
        (columns[:, ::2], columns[:, 1::2]),
    ):
        radius = first.square() + second.square()
        if (radius / radius.mean() - 1).abs().max() < 1e-3:
            phase = torch.atan2(first, second).view(4, 2, -1).diff(dim=1).squeeze(1)
            step = (phase + math.pi).remainder(2 * math.pi) - math.pi
            turns = step.abs().amax(dim=0) * (T - 1)
            return turns if turns.max() > 0 else None
    return None
