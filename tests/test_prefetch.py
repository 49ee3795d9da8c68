"""What is made ahead for a GPU is what would be made without; here the processor stands in."""

import threading
from functools import partial

import pytest
import torch
from trained import PATH, TINY, same, squares, steps
from trained import start_simple as start

from mnist_ddpm import ddpm
from mnist_ddpm.evaluation import generation
from mnist_ddpm.machine import prefetch


@pytest.fixture
def gpu(monkeypatch):
    """The processor, taken for a GPU. Tells which threads made what it was sent."""
    makers = []

    def pinned(tensor, device):
        makers.append(threading.current_thread())
        return tensor

    monkeypatch.setattr(prefetch, "is_asynchronous", lambda device: True)
    monkeypatch.setattr(prefetch, "pin", pinned)
    return makers


def test_the_next_is_made_while_one_is_in_use():
    asked = [threading.Event() for _ in range(4)]

    def made():
        for k, event in enumerate(asked):
            event.set()
            if k == 3:
                raise OSError("unreadable")
            yield k

    got = []
    with pytest.raises(OSError, match="unreadable"):
        for k in prefetch.prefetched(made()):
            assert asked[k + 1].wait(60)
            got.append(k)
    assert got == [0, 1, 2], "an error comes in its turn"
    assert [*prefetch.prefetched(range(5))] == [0, 1, 2, 3, 4]


def test_what_is_not_asked_for_leaves_no_thread_behind():
    def made():
        while True:
            yield threading.current_thread()

    several = prefetch.prefetched(made())
    worker = next(several)
    assert worker is not threading.current_thread()
    several.close()
    assert not worker.is_alive()


def test_training_with_batches_read_ahead_is_the_same_bit_for_bit(gpu, monkeypatch):
    run, plain = start(TINY), start(TINY)
    assert [*steps(run)] == run.losses and len(gpu) == run.step == 12
    assert threading.current_thread() not in gpu
    with monkeypatch.context() as patched:
        patched.setattr(prefetch, "is_asynchronous", lambda device: False)
        assert [*steps(plain)] == run.losses
    assert same(run.network, plain.network) and len(gpu) == 12


def test_images_are_those_of_noise_drawn_in_time(gpu, monkeypatch):
    """Whatever the batches and the threads, also where some noise is never asked for."""
    denoiser = ddpm.ideal_denoiser(PATH, ddpm.to_float(squares(8)))
    options = {"times": ddpm.timesteps(PATH.T, 5), "seed": 3, "progress": False}
    for eta, batch_size, threads in ((1.0, 7, 3), (1.0, 2, 1), (0.0, 7, 2)):
        options |= {"sampler": partial(ddpm.ddim_sampler, eta=eta), "batch_size": batch_size}
        drawn = partial(generation.generate, lambda _: denoiser, PATH, 7, TINY.shape, **options)
        gpu.clear()
        with monkeypatch.context() as patched:
            patched.setattr(torch, "get_num_threads", lambda threads=threads: threads)
            images, _ = drawn()
            assert gpu and threading.current_thread() not in gpu
            patched.setattr(prefetch, "is_asynchronous", lambda device: False)
            assert torch.equal(images, drawn()[0])
