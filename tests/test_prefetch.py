"""Prefetching changes nothing but the time; here the processor stands in for a GPU."""

import threading
from functools import partial

import pytest
import torch
from training_helpers import TINY, same, steps
from training_helpers import start_simple as start

from mnist_ddpm import generation
from mnist_ddpm.machine import devices


@pytest.fixture
def makers(monkeypatch):
    """The threads that prefetched tensors, with the processor taken for a GPU."""
    threads = []
    monkeypatch.setattr(devices, "is_asynchronous", lambda device: True)
    monkeypatch.setattr(
        devices, "pin", lambda tensor, device: threads.append(threading.current_thread()) or tensor
    )
    return threads


def test_the_next_is_made_while_one_is_in_use():
    requests = [threading.Event() for _ in range(4)]

    def items():
        for k, event in enumerate(requests):
            event.set()
            if k == 3:
                raise OSError("unreadable")
            yield k

    received = []
    with pytest.raises(OSError, match="unreadable"):
        for k in devices.prefetched(items()):
            assert requests[k + 1].wait(60)
            received.append(k)
    assert received == [0, 1, 2], "an error comes in its turn"
    assert [*devices.prefetched(range(5))] == [0, 1, 2, 3, 4]


def test_an_unfinished_iteration_leaves_no_thread_behind():
    workers = devices.prefetched(iter(threading.current_thread, None))
    worker = next(workers)
    assert worker is not threading.current_thread()
    workers.close()
    assert not worker.is_alive()


def test_training_with_prefetched_batches_is_the_same_bit_for_bit(makers, monkeypatch):
    run, plain = start(TINY), start(TINY)
    assert [*steps(run)] == run.losses and len(makers) == run.step == 12
    assert threading.current_thread() not in makers
    monkeypatch.setattr(devices, "is_asynchronous", lambda device: False)
    assert [*steps(plain)] == run.losses
    assert same(run.network, plain.network) and len(makers) == 12


def test_noise_drawn_on_a_device_depends_on_seed_and_image_alone(makers):
    draw = partial(generation.noise_source, shape=(1, 4, 4), device=torch.device("cpu"))
    whole, part = draw(3, range(5, 9)), draw(3, range(7, 9))
    for _ in range(3):
        assert torch.equal(whole()[2:], part())
    images = draw(3, range(2))(), draw(4, range(2))(), draw(3, range(9, 11))()
    assert len({image.sum().item() for batch in images for image in batch}) == 6
    assert makers == []
