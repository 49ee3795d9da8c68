"""Prefetching: another thread makes the next batch or noise while a GPU computes."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor

END = object()


def is_asynchronous(device: torch.device) -> bool:
    """Whether the device computes beside the processor, which then has time to prefetch."""
    return device.type == "cuda"


def prefetched(items: Iterable) -> Iterator:
    """The same items. While one is in use, another thread makes the next."""
    iterator = iter(items)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(next, iterator, END)
        while True:
            item = future.result()
            if item is END:
                return
            future = pool.submit(next, iterator, END)
            yield item


def to_device(tensors: Iterable[Tensor], device: torch.device) -> Iterator[Tensor]:
    """The processor's tensors on a device, prefetched if that is asynchronous."""
    if not is_asynchronous(device):
        return (tensor.to(device) for tensor in tensors)
    pinned = prefetched(map(partial(pin, device=device), tensors))
    return (tensor.to(device, non_blocking=True) for tensor in pinned)


def pin(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor in page-locked memory, from which a GPU copies by itself."""
    with torch.cuda.device(device):  # else a thread would open the first GPU
        return tensor.pin_memory()
