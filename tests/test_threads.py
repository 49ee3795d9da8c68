"""Threads: as many as there are cores for them."""

import math
from itertools import count
from types import SimpleNamespace

import pytest
import torch

from mnist_ddpm import ddpm
from mnist_ddpm.machine import threads
from mnist_ddpm.machine.threads import ThreadCount


@pytest.fixture
def chosen(monkeypatch):
    """The numbers that PyTorch is told to take, of at most four."""
    numbers = []
    monkeypatch.setattr(torch, "set_num_threads", numbers.append)
    monkeypatch.setattr(threads, "MOST", 4)
    return numbers


@pytest.mark.parametrize("share, free", [(3.97, 4), (3.0, 3), (1.5, 1), (1.33, 1), (0.4, 1)])
def test_as_many_cores_are_free_as_four_threads_get_time(chosen, monkeypatch, share, free):
    now = count(0.0, 0.001)
    monkeypatch.setattr(ddpm, "perf_counter", now.__next__)
    monkeypatch.setattr(ddpm, "process_time", lambda: share * next(now))
    assert ddpm.free_cores(4) == free
    assert chosen == [4]  # while it measures


def test_threads_follow_the_free_cores_every_half_minute(chosen, monkeypatch):
    clock, free = SimpleNamespace(monotonic=lambda: clock.now, now=0.0), iter([2, 4])
    clock.process_time = clock.monotonic
    monkeypatch.setattr(threads, "time", clock)
    monkeypatch.setattr(threads, "free_cores", lambda most: next(free))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    own = ThreadCount()
    for clock.now in (0.0, 1.0, 29.0, 31.0, 40.0):
        own.adapt()
    assert chosen == [2, 4]


def test_threads_that_lose_a_core_are_fewer_at_once(chosen, monkeypatch):
    """Not because a process always waits, as beside a GPU."""
    clock, free = SimpleNamespace(now=0.0, spent=0.0), iter([4, 2])
    clock.monotonic, clock.process_time = lambda: clock.now, lambda: clock.spent
    monkeypatch.setattr(threads, "time", clock)
    monkeypatch.setattr(threads, "free_cores", lambda most: next(free))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    own = ThreadCount()
    own.adapt()
    for second, share in enumerate([3.9] * 9 + [2.4] * 4 + [2.0] * 9, 1):
        clock.now, clock.spent = float(second), clock.spent + share
        own.adapt()
        assert chosen == ([4] if second < 12 else [4, 2]), second


def test_a_number_that_the_environment_gives_stays(chosen, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    monkeypatch.setattr(threads, "free_cores", lambda most: 1)
    own = ThreadCount()
    own.adapt()
    assert chosen == [] and own.counted_at == -math.inf
