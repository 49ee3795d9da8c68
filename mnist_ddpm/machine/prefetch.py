"""What a GPU would wait for: the next batch, the next noise. Another thread makes it meanwhile."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor

END = object()


def waits(device: torch.device) -> bool:
    """Whether a device would wait for the processor, which has time to spare beside it."""
    return device.type == "cuda"


def one_ahead(made: Iterable) -> Iterator:
    """The same things. While one is in use, the next is made in another thread."""
    made = iter(made)
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, made, END)
        while (thing := coming.result()) is not END:
            coming = pool.submit(next, made, END)
            yield thing


def sent(made: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
    """Tensors that the processor makes, on a device."""
    if not waits(device):
        return (tensor.to(device) for tensor in made)
    pages = one_ahead(map(partial(pinned, device=device), made))
    return (tensor.to(device, non_blocking=True) for tensor in pages)


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor in memory from which a GPU copies by itself."""
    with torch.cuda.device(device):  # else a thread would open the first GPU
        return tensor.pin_memory()
