"""Prefetching changes nothing but the time; here the processor stands in for a GPU."""

import threading
from functools import partial

import pytest
import torch
from training_helpers import PATH, TINY, same, squares, steps
from training_helpers import start_simple as start

from mnist_ddpm import ddpm, generation
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


@pytest.mark.parametrize("eta, batch_size, threads", [(1.0, 7, 3), (1.0, 2, 1), (0.0, 7, 2)])
def test_images_are_those_without_prefetching(makers, monkeypatch, eta, batch_size, threads):
    """For any batches and threads, also where some noise is never used."""
    denoiser = ddpm.ideal_denoiser(PATH, ddpm.to_float(squares(8)))
    options = {"times": ddpm.timesteps(PATH.T, 5), "seed": 3, "progress": False}
    options |= {"sampler": partial(ddpm.ddim_sampler, eta=eta), "batch_size": batch_size}
    draw = partial(generation.generate, lambda _: denoiser, PATH, 7, TINY.shape, **options)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    images, _ = draw()
    assert makers and threading.current_thread() not in makers
    monkeypatch.setattr(devices, "is_asynchronous", lambda device: False)
    assert torch.equal(images, draw()[0])
