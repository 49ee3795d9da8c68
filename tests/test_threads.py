"""Threads: as many as there are cores for them."""

from itertools import count
from types import SimpleNamespace

import pytest
import torch

from mnist_ddpm.machine import processes
from mnist_ddpm.machine.processes import ThreadCount


@pytest.fixture
def numbers(monkeypatch):
    """The numbers of threads that PyTorch is given, of at most four."""
    given = []
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    monkeypatch.setattr(processes, "MOST", 4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return given


@pytest.fixture
def clock(monkeypatch):
    """A made-up clock, and how many cores it finds free, one count after another."""
    clock = SimpleNamespace(now=0.0, used=0.0, free=[])
    clock.monotonic = lambda: clock.now
    clock.process_time = lambda: clock.used
    monkeypatch.setattr(processes, "time", clock)
    monkeypatch.setattr(processes, "free_cores", lambda most: clock.free.pop(0))
    return clock


@pytest.mark.parametrize("share, free", [(3.97, 4), (3.0, 3), (1.5, 1), (1.33, 1), (0.4, 1)])
def test_as_many_cores_are_free_as_four_threads_get_time(numbers, monkeypatch, share, free):
    now = count(0.0, 0.001)
    clock = SimpleNamespace(perf_counter=now.__next__, process_time=lambda: share * next(now))
    monkeypatch.setattr(processes, "time", clock)
    assert processes.free_cores(4) == free
    assert numbers == [4]  # while it measures


def test_threads_follow_the_free_cores_every_half_minute(numbers, clock):
    clock.free = [2, 4]
    own = ThreadCount()
    for now in (0.0, 1.0, 29.0, 31.0, 40.0):
        clock.now = clock.used = now
        own.adapt()
    assert numbers == [2, 4]


def test_threads_that_lose_a_core_are_fewer_at_once(numbers, clock):
    """Not because a process always waits, as beside a GPU."""
    clock.free = [4, 2]
    own = ThreadCount()
    own.adapt()
    for second, share in enumerate([3.9] * 9 + [2.4] * 4 + [2.0] * 9, 1):
        clock.now = float(second)
        clock.used += share
        own.adapt()
        assert numbers == ([4] if second < 12 else [4, 2]), second


def test_a_number_from_the_environment_stays(numbers, clock, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    ThreadCount().adapt()
    assert numbers == []
