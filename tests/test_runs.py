"""Runs and their folders: saving, stopping and going on."""

import math
import signal
import threading
import time
from dataclasses import replace
from functools import partial
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import same
from tqdm import tqdm

from mnist_ddpm import ddpm, processes, resumable, runs
from mnist_ddpm.ddpm import (
    generate,
    l_simple,
    load_checkpoint,
    load_config,
    make_schedule,
    preview,
    start_run,
    training_loop,
)
from mnist_ddpm.resumable import deferred_interrupt
from mnist_ddpm.runs import fit, load_state, resume_run, save_run


@pytest.mark.parametrize("optimizer, dataset", [("adam", "mnist"), ("muon", "mnist"), ("adam", "celeba")])
@pytest.mark.parametrize("kill_at", [3, 6, 7])
def test_resumed_run_continues_bit_for_bit(dropout, blobs, tmp_path, kill_at, optimizer, dataset):
    """With dropout, and with faces, which are mirrored at random."""
    settings = replace(dropout, optimizer=optimizer, dataset=dataset, channels=1)
    schedule = make_schedule(settings)
    whole = start_run(settings)
    list(training_loop(whole, blobs, schedule))
    killed = start_run(settings)
    for step in training_loop(killed, blobs, schedule):
        if step.step == kill_at:
            save_run(tmp_path, killed)
            break
    torch.manual_seed(99)
    resumed = resume_run(tmp_path)
    assert resumed.step == kill_at
    list(training_loop(resumed, blobs, schedule))
    assert resumed.losses == whole.losses
    assert same(resumed.model, whole.model) and same(resumed.ema, whole.ema)


def test_loss_that_is_not_finite_stops_with_step_and_time_and_leaves_the_checkpoint(tiny, blobs, tmp_path, monkeypatch):
    monkeypatch.setattr("mnist_ddpm.runs.PREVIEW_EVERY", 6)

    def objective(model, schedule, x0, t, eps):
        losses = l_simple(model, schedule, x0, t, eps)
        if len(run.losses) == 8:  # the ninth step, in the second epoch of six
            losses = torch.where(t == t[5], math.nan, losses)
            times.append(t[5].item())
        return losses

    run, schedule, times = start_run(tiny), make_schedule(tiny), []
    with pytest.raises(FloatingPointError) as caught:
        fit(run, blobs, schedule, tmp_path, objective)
    message = str(caught.value)
    assert "step 9" in message and f"t = {times[0]}" in message
    assert f"the checkpoint of step 6 in {tmp_path} is good" in message
    assert all(p.isfinite().all() for p in run.model.parameters())
    assert load_checkpoint(tmp_path)[2] == tiny and resume_run(tmp_path).step == 6


def test_the_scale_of_float16_is_resumed(tiny, blobs, tmp_path):
    run, schedule = start_run(replace(tiny, precision="float16")), make_schedule(tiny)
    for _ in zip(range(3), training_loop(run, blobs, schedule, lambda *args: 100 * l_simple(*args))):
        save_run(tmp_path, run)
    assert resume_run(tmp_path).scaler.get_scale() == run.scaler.get_scale() < 65536
    other = resume_run(tmp_path, replace(run.settings, precision="float32"))
    assert not other.scaler.is_enabled()
    save_run(tmp_path, other)
    assert resume_run(tmp_path, run.settings).scaler.get_scale() == 65536


def test_first_interrupt_waits_and_one_a_second_later_does_not(monkeypatch):
    """One that comes twice, as where a launcher passes it on, is one."""
    before, clock = signal.getsignal(signal.SIGINT), iter([10.0, 10.01, 11.1])
    monkeypatch.setattr(ddpm.time, "monotonic", lambda: next(clock))
    with pytest.raises(KeyboardInterrupt), deferred_interrupt() as pressed:
        assert not pressed
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert len(pressed) == 2
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before and len(pressed) == 3


def test_a_first_interrupt_says_what_it_waits_for(capsys):
    with deferred_interrupt():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    assert capsys.readouterr().out == "\nstopping after this step, to save it; once more stops at once\n"


@pytest.mark.parametrize("error", [BrokenPipeError, ValueError])
def test_an_interrupt_that_cannot_be_told_is_one_all_the_same(monkeypatch, error):
    """Ctrl-C ends what the output is piped to as well, and training must be saved still."""

    def broken(*arguments, **options):
        raise error

    monkeypatch.setattr("builtins.print", broken)
    with deferred_interrupt() as pressed:
        signal.raise_signal(signal.SIGINT)
    assert len(pressed) == 1


def test_a_handler_that_python_does_not_know_is_left_alone(monkeypatch):
    """Of a program that Python is a part of; None is what it is then, and what cannot be set."""

    def install(signum, handler):
        assert callable(handler)

    monkeypatch.setattr(resumable.signal, "signal", install)
    with deferred_interrupt():
        pass


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no such signal")
@pytest.mark.parametrize("before", ["SIG_DFL", "SIG_IGN"])
def test_a_closed_terminal_is_an_interrupt_unless_it_is_ignored(monkeypatch, before):
    """As nohup has it."""
    restored = signal.signal(signal.SIGHUP, getattr(signal, before))
    try:
        with deferred_interrupt() as pressed:
            assert signal.getsignal(signal.SIGHUP) != signal.SIG_DFL, "which would end all tests"
            signal.raise_signal(signal.SIGHUP)
        assert len(pressed) == (before == "SIG_DFL")
        assert signal.getsignal(signal.SIGHUP) == getattr(signal, before)
    finally:
        signal.signal(signal.SIGHUP, restored)


def test_terminating_signals_that_come_twice_wait_too():
    with deferred_interrupt() as pressed:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    assert len(pressed) == 2


def test_an_interrupt_before_fit_is_one_within_it(tiny, blobs, tmp_path):
    """As where several processes train, which defer interrupts until what they have is saved."""
    with deferred_interrupt() as outer:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt, match="stopped after step 1 and saved"):
            fit(start_run(tiny), blobs, make_schedule(tiny), tmp_path)
        assert len(outer) == 1
    with deferred_interrupt() as later:
        assert not later


def test_interrupted_fit_saves_and_resumes_bit_for_bit(tiny, blobs, tmp_path):
    def objective(*args):
        if len(run.losses) == 4:
            signal.raise_signal(signal.SIGINT)
        return l_simple(*args)

    run, schedule = start_run(tiny), make_schedule(tiny)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 5 and saved in .*: resume to go on"):
        fit(run, blobs, schedule, tmp_path / "run", objective)
    resumed = fit(resume_run(tmp_path / "run"), blobs, schedule, tmp_path / "run")
    whole = fit(start_run(tiny), blobs, schedule, tmp_path / "whole")
    assert resumed.losses == whole.losses and same(resumed.ema, whole.ema)


def test_an_interrupt_while_the_last_preview_is_drawn_is_not_lost(tiny, blobs, tmp_path):
    def draw(run, schedule):
        signal.raise_signal(signal.SIGINT)
        return preview(run, schedule)

    run = start_run(tiny)
    with pytest.raises(KeyboardInterrupt, match=r"stopped after step 12 and saved in .*, its last$"):
        fit(run, blobs, make_schedule(tiny), tmp_path, draw=draw)
    assert run.step == 12 and load_config(tmp_path)[1]["steps"] == 12


def test_a_progress_bar_that_cannot_be_written_stops_nothing(tiny, blobs, tmp_path, monkeypatch):
    """Ctrl-C ends what it is piped to as well."""

    class Piped:
        written = 0

        def write(self, text):
            self.written += 1
            if self.written > 2:
                raise BrokenPipeError(32, "gone")

    pipe, free = Piped(), []
    monkeypatch.setattr(ddpm, "progress_bar", partial(tqdm, file=pipe, mininterval=0))

    def other() -> None:
        free.append(all(lock.acquire(timeout=1) and not lock.release() for lock in tqdm.get_lock().locks))

    run = fit(start_run(tiny), blobs, make_schedule(tiny), tmp_path)
    assert ddpm.load_config(tmp_path)[1]["steps"] == run.step == 12 and pipe.written > 2
    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert free == [True], "no other thread waits for what was at work"


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, RuntimeError, MemoryError])
def test_memory_that_ends_in_training_leaves_a_checkpoint_that_is_told(tiny, blobs, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(runs, "PREVIEW_EVERY", 1)

    def loop(*arguments):
        yield from islice(ddpm.training_loop(*arguments), 6)
        raise kind("out of memory.")

    with pytest.raises(kind, match="out of memory.; the checkpoint of step 6 in .* is good"):
        fit(start_run(tiny), blobs, make_schedule(tiny), tmp_path, loop=loop)


def test_too_few_steps_for_the_warm_up_are_told(tiny, blobs, tmp_path, capsys):
    for warmup, told in ((7, True), (6, False)):  # of twelve
        settings = replace(tiny, warmup_steps=warmup)
        fit(start_run(settings), blobs, make_schedule(settings), tmp_path / str(warmup))
        assert ("12 steps in all, and in the first 7 the learning rate only" in capsys.readouterr().out) is told


def test_a_schedule_that_leaves_signal_is_told(tiny, blobs, tmp_path, capsys):
    for T, told in ((100, True), (1000, False)):
        settings = replace(tiny, T=T, epochs=0.1)
        fit(start_run(settings), blobs, make_schedule(settings), tmp_path / str(T))
        assert ("At t = T 36% of the signal's power is left" in capsys.readouterr().out) == told


def test_a_failure_names_the_step_that_is_on_disk(tiny, blobs, tmp_path, monkeypatch):
    """Also where the run goes on in memory from a later one."""
    monkeypatch.setattr("mnist_ddpm.runs.PREVIEW_EVERY", 6)
    run = start_run(tiny)
    for told in ("the checkpoint of step 6 in .* is good", "step 9, .*; the run in .* can be resumed"):
        with pytest.raises(FloatingPointError, match=told):
            fit(run, blobs, make_schedule(tiny), tmp_path, lambda *a: l_simple(*a) * (1 if run.step < 8 else math.nan))
    assert run.step == 8 and load_config(tmp_path)[1]["steps"] == 6


def test_fit_leaves_a_checkpoint_and_a_preview_of_every_epoch(tiny, blobs, tmp_path, monkeypatch):
    monkeypatch.setattr("mnist_ddpm.runs.PREVIEW_EVERY", 6)
    run = fit(start_run(tiny), blobs, make_schedule(tiny), tmp_path)
    assert sorted(path.name for path in (tmp_path / "previews").iterdir()) == ["epoch_001.png", "epoch_002.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json", "model.safetensors", "previews", "training_state.pt",
    ]  # fmt: skip
    model, schedule, settings = load_checkpoint(tmp_path)
    assert same(model, run.ema) and settings == tiny and not model.training
    images, _ = generate(model, schedule, 2, (1, 32, 32), steps=3)
    assert images.shape == (2, 1, 32, 32)


def test_short_epochs_have_no_preview_each(tiny, blobs, tmp_path):
    """Six steps an epoch, so eight epochs are about fifty; the last epoch has one in any case."""
    fit(start_run(replace(tiny, epochs=9)), blobs, make_schedule(tiny), tmp_path)
    assert sorted(path.name for path in (tmp_path / "previews").iterdir()) == ["epoch_008.png", "epoch_009.png"]


def test_a_preview_that_fails_does_not_end_the_training(tiny, blobs, tmp_path, monkeypatch):
    def failing(*_):
        raise FloatingPointError("the images are NaN")

    assert fit(start_run(tiny), blobs, make_schedule(tiny), tmp_path, draw=failing).step == 12


def test_a_loop_that_ends_early_is_saved_as_far_as_it_went(tiny, blobs, tmp_path):
    run = fit(
        start_run(tiny), blobs, make_schedule(tiny), tmp_path, loop=lambda *given: islice(training_loop(*given), 4)
    )
    assert run.step == resume_run(tmp_path).step == load_config(tmp_path)[1]["steps"] == 4


def test_long_epochs_are_saved_every_five_minutes(tiny, blobs, tmp_path, monkeypatch):
    """Of six steps that take 100 s each, the fourth is the first past 300."""
    now, saved = [0.0], []
    for module in (ddpm, runs):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(runs, "save_run", lambda folder, run: saved.append(run.step))

    def slow(*arguments):
        now[0] += 100
        return l_simple(*arguments)

    run = fit(start_run(replace(tiny, epochs=1)), blobs, make_schedule(tiny), tmp_path, slow)
    assert saved == [4, 6] and run.seconds == 600


def test_saving_and_previews_take_little_of_the_time(tiny, blobs, tmp_path, monkeypatch):
    """Epochs of six steps, each a second, and 4 s to save."""
    now, saved, settings = [0.0], [], replace(tiny, epochs=60)
    for module in (ddpm, runs):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(runs, "PREVIEW_EVERY", 6)

    def save(folder, run):
        saved.append(run.step)
        now[0] += 4

    def step(run, *_):
        run.step += 1
        run.losses.append(1.0)
        now[0] += 1
        return ddpm.TrainingStep(run.step, 1.0, None, None)

    monkeypatch.setattr(runs, "save_run", save)
    monkeypatch.setattr(ddpm, "training_step", step)
    black = np.zeros((1, 1), np.uint8)
    fit(start_run(settings), blobs, make_schedule(tiny), tmp_path, draw=lambda *_: black)
    assert saved[:2] == [6, 18] and saved[-1] == 360 and 4 * len(saved) <= 3 + 4 + 4 + now[0] / 20


def test_a_run_whose_images_were_refused_takes_others(tiny, blobs, tmp_path):
    run = start_run(tiny)
    with pytest.raises(ValueError, match="larger than the data set"):
        fit(run, blobs[:8], make_schedule(tiny), tmp_path)
    assert fit(run, blobs, make_schedule(tiny), tmp_path).n == len(blobs)


def test_images_of_another_shape_than_the_settings_are_refused(tiny, blobs, tmp_path):
    """The network itself would take any size."""
    for images in (blobs.repeat(1, 1, 2, 2), blobs.repeat(1, 3, 1, 1)):
        with pytest.raises(ValueError, match=r"the images are \(., .., ..\), and the run's settings say \(1, 32, 32\)"):
            fit(start_run(tiny), images, make_schedule(tiny), tmp_path)


@pytest.mark.parametrize("fails", ["save_run", "imwrite"])
def test_a_disk_that_is_full_is_told_with_what_is_saved_and_is_no_reason_to_end_for_a_preview(
    tiny, blobs, tmp_path, monkeypatch, fails
):  # fmt: skip
    monkeypatch.setattr(runs, "PREVIEW_EVERY", 6)
    place = runs if fails == "save_run" else runs.imageio
    real = getattr(place, fails)

    def full(*given):
        if (tmp_path / "config.json").exists():
            raise OSError("No space left on device")
        real(*given)

    monkeypatch.setattr(place, fails, full)
    if fails == "imwrite":
        assert fit(start_run(tiny), blobs, make_schedule(tiny), tmp_path).step == 12
        return
    with pytest.raises(OSError, match=f"No space left on device; the checkpoint of step 6 in {tmp_path} is good"):
        fit(start_run(tiny), blobs, make_schedule(tiny), tmp_path)


def test_a_first_checkpoint_that_fits_the_disk_in_part_can_be_resumed(tiny, blobs, tmp_path, monkeypatch):
    def full(*given):
        raise OSError("No space left on device")

    run = start_run(tiny)
    with monkeypatch.context() as no_room:
        no_room.setattr(ddpm, "save_checkpoint", full)
        with pytest.raises(OSError, match="No space left on device; the run in .* can be resumed"):
            fit(run, blobs, make_schedule(tiny), tmp_path)
    assert fit(run, blobs, make_schedule(tiny), tmp_path).step == 12, "by the same process"
    assert resume_run(tmp_path).step == 12


@pytest.mark.parametrize("same_process", [True, False])
def test_a_later_checkpoint_that_fits_the_disk_in_part_can_be_resumed(
    tiny, blobs, tmp_path, monkeypatch, same_process
):  # fmt: skip
    def full(*given):
        raise OSError("No space left on device")

    fit(start_run(replace(tiny, epochs=1)), blobs, make_schedule(tiny), tmp_path)
    run = resume_run(tmp_path, tiny)
    with monkeypatch.context() as no_room:
        no_room.setattr(ddpm, "save_checkpoint", full)
        with pytest.raises(OSError, match="No space left on device"):
            fit(run, blobs, make_schedule(tiny), tmp_path)
    assert load_config(tmp_path)[1]["steps"] == 6, "and the state is of step 12"
    fit(run if same_process else resume_run(tmp_path), blobs, make_schedule(tiny), tmp_path)
    assert load_config(tmp_path)[1]["steps"] == 12


def test_fit_does_not_overwrite_another_run(tiny, blobs, tmp_path):
    schedule = make_schedule(tiny)
    fit(start_run(tiny), blobs, schedule, tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="holds a checkpoint already: resume it, or train into another folder"):
        fit(start_run(replace(tiny, seed=1)), blobs, schedule, tmp_path)
    (tmp_path / "training_state.pt").unlink()  # as in a checkpoint that is shipped
    with pytest.raises(FileExistsError, match="holds a checkpoint already: init_from can start from it, but train"):
        fit(start_run(replace(tiny, seed=1)), blobs, schedule, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_a_run_does_not_move_into_the_folder_of_another(tiny, blobs, tmp_path):
    schedule = make_schedule(tiny)
    for seed in (0, 1):
        fit(start_run(replace(tiny, seed=seed)), blobs, schedule, tmp_path / f"{seed}")
    longer = resume_run(tmp_path / "0", replace(tiny, epochs=3))
    with pytest.raises(FileExistsError, match="holds a checkpoint already"):
        fit(longer, blobs, schedule, tmp_path / "1")
    assert fit(longer, blobs, schedule, tmp_path / "0").step == 18 and resume_run(tmp_path / "1").settings.seed == 1
    assert fit(longer, blobs, schedule, tmp_path / "new").step == 18, "an empty one is as good as its own"
    saved = start_run(tiny)
    save_run(tmp_path / "saved", saved)
    assert fit(saved, blobs, schedule, tmp_path / "saved").step == 12


def test_a_run_that_began_in_the_same_folder_meanwhile_is_not_overwritten(tiny, blobs, tmp_path):
    schedule, other = make_schedule(tiny), start_run(replace(tiny, seed=1))

    def meanwhile(*arguments):
        if not (tmp_path / "config.json").exists():
            save_run(tmp_path, other)
        return l_simple(*arguments)

    with pytest.raises(FileExistsError, match="holds a checkpoint already"):
        fit(start_run(tiny), blobs, schedule, tmp_path, meanwhile)
    assert resume_run(tmp_path).settings.seed == 1


def test_of_two_trainings_of_one_saved_run_the_later_to_save_is_told_and_overwrites_nothing(tiny, blobs, tmp_path):
    schedule, longer = make_schedule(tiny), replace(tiny, epochs=3)
    first = fit(start_run(tiny), blobs, schedule, tmp_path)
    second, third = resume_run(tmp_path, longer), resume_run(tmp_path, longer)

    def meanwhile(*arguments):
        if second.step == 14:
            fit(third, blobs, schedule, tmp_path)
        return l_simple(*arguments)

    told = "another training has saved step 18 in .* meanwhile: this would overwrite it"
    with pytest.raises(FileExistsError, match=f"{told}; the run in .* can be resumed$"):
        fit(second, blobs, schedule, tmp_path, meanwhile)
    before = (tmp_path / "training_state.pt").read_bytes()
    with pytest.raises(FileExistsError, match=f"{told}$"):
        fit(first, blobs, schedule, tmp_path)
    processes.save_what_is_there(second, tmp_path)  # as where one of several processes fails
    assert (tmp_path / "training_state.pt").read_bytes() == before
    assert fit(third, blobs, schedule, tmp_path).step == resume_run(tmp_path).step == 18


def test_training_ends_with_the_time_and_keeps_its_checkpoint(tiny, blobs, tmp_path):
    run = start_run(replace(tiny, epochs=1000))
    began = time.monotonic()
    fit(run, blobs, make_schedule(tiny), tmp_path, deadline=began + 1)
    assert 0 < run.step < 6000 and load_config(tmp_path)[1]["steps"] == run.step
    assert len(list((tmp_path / "previews").iterdir())) >= 1
    assert resume_run(tmp_path).step == run.step


def test_a_run_whose_last_save_was_cut_short_goes_on_with_its_last_settings(tiny, tmp_path, monkeypatch):
    save_run(tmp_path, start_run(tiny))

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(ddpm, "save_checkpoint", full)
    with pytest.raises(OSError, match="No space"):
        save_run(tmp_path, resume_run(tmp_path, replace(tiny, epochs=40)))
    assert load_state(tmp_path)[1].epochs == 40
