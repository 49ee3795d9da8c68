"""A training that keeps a time, on machines whose pace changes, with a clock that is made up."""

import math
import signal
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import in_processes
from training_helpers import TINY, fit, start_simple, stopped_clock

from mnist_ddpm.ddpm import learning_rate_at, total_steps
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.machine.process import Stopped
from mnist_ddpm.training import loop, saving, session
from mnist_ddpm.training.session import TimedLength

SECONDS = 600.0
# Steps a second, by the share of the time that is gone; 0.6 are planned for
PACES = {
    "as planned": lambda gone: 0.6,
    "a third faster": lambda gone: 0.8,
    "half as fast": lambda gone: 0.3,
    "faster, then slower": lambda gone: 1.2 if gone < 0.4 else 0.3,
    "others come and go": lambda gone: 0.8 if math.floor(10 * gone) % 2 else 0.4,
    "slow at last": lambda gone: 0.6 if gone < 0.9 else 0.2,
}


class Machine:
    """Steps take what its pace says, and the first what compiling takes; previews take 6 s."""

    def __init__(self, monkeypatch, pace=PACES["as planned"], compiling=0.0):
        self.now, self.pace, self.compiling = stopped_clock(monkeypatch), pace, compiling
        self.began, self.rates, self.pressed = self.now[0], [], math.inf
        monkeypatch.setattr(loop, "training_step", self.step)
        monkeypatch.setattr(session, "PREVIEW_EVERY", 60)

    @property
    def gone(self):
        return (self.now[0] - self.began) / SECONDS

    def step(self, run, *given):
        self.rates.append((self.gone, run.optimizer.param_groups[0]["lr"]))
        self.now[0] += 1 / self.pace(self.gone) + (0.0 if run.step else self.compiling)
        run.step += 1
        run.losses.append(1.0)
        if self.gone >= self.pressed:
            self.pressed = math.inf
            signal.raise_signal(signal.SIGINT)

    def preview(self, run, schedule, images):
        self.now[0] += 6.0
        return np.zeros((1, 1), np.uint8)

    def fit(self, folder, recipe=TINY, **options):
        """Six steps are an epoch, and 60 epochs the plan."""
        run = start_simple(replace(recipe, epochs=60))
        options = {"deadline": self.began + SECONDS, "final_preview_steps": 3.6} | options
        return fit(run, folder, preview=self.preview, **options)


@pytest.mark.parametrize("name", PACES)
def test_the_time_is_kept_whatever_the_pace(monkeypatch, tmp_path, name):
    """With previews and saves in it; and the rate falls to 0 with the clock."""
    machine = Machine(monkeypatch, PACES[name])
    run = machine.fit(tmp_path)
    assert machine.gone == pytest.approx(1, abs=0.005)
    falling = [(gone, rate) for gone, rate in machine.rates if gone > 0.05]
    peak = run.settings.learning_rate
    for gone, rate in falling:
        assert rate == pytest.approx(peak * (1 + math.cos(math.pi * gone)) / 2, abs=0.03 * peak)
    assert falling[-1][1] < 0.002 * peak


def test_what_is_saved_tells_what_was_done(monkeypatch, tmp_path):
    machine = Machine(monkeypatch, PACES["faster, then slower"])
    run = machine.fit(tmp_path)
    state, recipe, _ = saving.load_state(tmp_path)
    assert recipe == run.settings and state["step"] == run.step == len(machine.rates)
    assert total_steps(recipe, 96) == run.step and recipe.epochs == pytest.approx(run.step / 6)


def test_compiling_in_the_first_step_spoils_no_forecast(monkeypatch, tmp_path):
    machine = Machine(monkeypatch, compiling=100.0)
    machine.pressed = 0.2
    with pytest.raises(Stopped):
        machine.fit(tmp_path)
    assert total_steps(saving.load_state(tmp_path)[1], 96) == pytest.approx(300, rel=0.05)


@pytest.mark.parametrize(("early", "foreseen"), [(0.005, 390), (0.5, 460)])
def test_a_stopped_run_goes_on_to_the_steps_foreseen(monkeypatch, tmp_path, early, foreseen):
    """By steps: bit for bit the same however often it is stopped; and its rate does not jump."""
    machine = Machine(monkeypatch, PACES["a third faster"])
    machine.pressed = early
    with pytest.raises(Stopped) as stopped:
        machine.fit(tmp_path)
    assert stopped.value.folder == tmp_path
    last = machine.rates[-1][1]
    resumed = fit(saving.resume_run(tmp_path, start_simple), tmp_path)
    total = total_steps(resumed.settings, 96)
    assert resumed.step == total == pytest.approx(foreseen, rel=0.05)
    step = len([gone for gone, _ in machine.rates if gone < early])
    following = machine.rates[step][1]
    assert following == learning_rate_at(step + 1, total, resumed.settings)
    assert following == pytest.approx(last, rel=0.02 if early == 0.5 else 0.6)


def test_a_time_that_is_up_leaves_one_step(monkeypatch, tmp_path):
    machine = Machine(monkeypatch)
    run = machine.fit(tmp_path, deadline=machine.began - 1, final_preview_steps=0.0)
    assert run.step == checkpoints.saved_step(tmp_path) == 1


def test_processes_keep_one_time(monkeypatch):
    """Though their clocks differ by two seconds: that which is behind decides."""
    now = threading.local()
    monkeypatch.setattr(session, "time", SimpleNamespace(monotonic=lambda: now.time))

    def told(world):
        now.time = 2.0 * world.rank
        clock, totals = TimedLength(10.0, 10, 0.0, world), []
        for step in range(1, 11):
            now.time = step + 2.0 * world.rank
            totals.append(clock(step))
        return totals

    first, second = in_processes(2, told)
    assert first == second and first[8] > 9 and first[9] == 10
