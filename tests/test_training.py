import math
import os
import signal
import threading
from dataclasses import replace
from functools import partial
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import nn
from tqdm import tqdm

from mnist_ddpm import ddpm, machine, processes, resumable, runs
from mnist_ddpm.ddpm import (
    UNet,
    ema_update,
    generate,
    l_simple,
    learning_rate_at,
    load_checkpoint,
    load_config,
    load_images,
    loss_by_t,
    make_schedule,
    preview,
    start_run,
    steps_per_epoch,
    training_loop,
)
from mnist_ddpm.resumable import deferred_interrupt
from mnist_ddpm.runs import World, fit, resume_run, save_run


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_l_simple_by_hand(paper):
    x0, eps = torch.zeros(2, 1, 2, 2), torch.stack([torch.ones(1, 2, 2), 3 * torch.ones(1, 2, 2)])
    losses = l_simple(lambda xt, t: torch.ones_like(xt), paper, x0, torch.tensor([1, 1000]), eps)
    assert losses.tolist() == [0, 4]


def test_l_simple_shows_the_model_the_noised_image_and_its_time(paper):
    seen = {}

    def model(xt, t):
        seen.update(xt=xt, t=t)
        return xt

    x0, eps, t = torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2), torch.tensor([400])
    l_simple(model, paper, x0, t, eps)
    alpha_bar = paper.alpha_bar[400].item()
    assert torch.equal(seen["t"], t)
    torch.testing.assert_close(seen["xt"], torch.full_like(x0, math.sqrt(alpha_bar) + math.sqrt(1 - alpha_bar)))


def test_learning_rate_rises_then_falls_towards_zero(tiny):
    settings = replace(tiny, warmup_steps=10, learning_rate=1.0)
    rates = [learning_rate_at(step, 100, settings) for step in range(1, 101)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == pytest.approx(1, abs=0.03)
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.001
    assert learning_rate_at(1, 1, replace(tiny, warmup_steps=0)) == tiny.learning_rate


def test_ema_averages_parameters_and_leaves_buffers_alone():
    class Model(nn.Module):
        def __init__(self, value):
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([value]))
            self.register_buffer("table", torch.tensor([value]))

    ema, model = Model(1.0), Model(2.0)
    ema_update(ema, model, 0.9)
    assert ema.weight.item() == pytest.approx(1.1) and ema.table.item() == 1.0


def test_ema_is_warmed_up(tiny, blobs):
    """With a decay of 0.999 from the start, the average would stay at the random weights."""
    run = start_run(replace(tiny, learning_rate=0.1, warmup_steps=0))
    before = run.model.conv_in.bias.detach().clone()
    next(training_loop(run, blobs, make_schedule(tiny)))
    moved = run.model.conv_in.bias.detach() - before
    torch.testing.assert_close(run.ema.conv_in.bias - before, moved * (1 - 2 / 11))


def test_the_average_forgets_as_fast_as_ema_decay_says(tiny, blobs):
    run = start_run(replace(tiny, epochs=4, ema_decay=0.5))
    for _ in training_loop(run, blobs, make_schedule(tiny)):
        if run.step == 23:
            kept = run.ema.conv_out.bias.clone()
    torch.testing.assert_close(run.ema.conv_out.bias, 0.5 * kept + 0.5 * run.model.conv_out.bias)


def test_every_image_has_its_own_time_and_all_times_occur(tiny, blobs):
    settings = replace(tiny, T=5, epochs=8)
    steps = list(training_loop(start_run(settings), blobs, make_schedule(settings)))
    assert len(steps) == 8 * 6 and steps[-1].step == 48
    assert all(len(step.t) == len(step.losses) == 16 for step in steps)
    assert set(torch.cat([step.t for step in steps]).tolist()) == {1, 2, 3, 4, 5}
    assert any(len(set(step.t.tolist())) > 1 for step in steps)


def test_an_epoch_shows_every_image_once(tiny):
    images = torch.arange(96, dtype=torch.uint8).view(96, 1, 1, 1).expand(96, 1, 32, 32).contiguous()
    seen = []

    def objective(model, schedule, x0, t, eps):
        seen.extend(((x0[:, 0, 0, 0] + 1) * 127.5).round().int().tolist())
        return l_simple(model, schedule, x0, t, eps)

    list(training_loop(start_run(tiny), images, make_schedule(tiny), objective))
    assert sorted(seen[:96]) == sorted(seen[96:]) == list(range(96))
    assert seen[:96] != seen[96:] and seen[:96] != list(range(96))


def test_runs_of_one_seed_are_equal_and_of_two_seeds_are_not(dropout, blobs):
    first, second, other = (start_run(replace(dropout, seed=seed)) for seed in (0, 0, 1))
    for run in (first, second, other):
        list(training_loop(run, blobs, make_schedule(dropout)))
    assert same(first.model, second.model) and same(first.ema, second.ema) and not same(first.model, other.model)


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


def test_training_fits_64_digits(tiny):
    images = load_images(tiny, ROOT / "data")[:64]
    settings = replace(
        tiny, base_channels=16, T=1000, epochs=120, batch_size=32, learning_rate=4e-3, warmup_steps=20, ema_decay=0.99
    )
    schedule = make_schedule(settings)
    run = start_run(settings)
    losses = [step.loss for step in training_loop(run, images, schedule)]
    assert losses[0] > 0.9 and sum(losses[-20:]) / 20 < 0.09
    _, averaged = loss_by_t(run.ema, schedule, images.repeat(4, 1, 1, 1))
    assert averaged.mean() < 0.09, "the averaged weights, which sample, must have learnt it too"


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


def test_infinite_gradient_stops_too(tiny, blobs, tmp_path):
    explode = lambda model, schedule, x0, t, eps: model(x0, t).sum(dim=(1, 2, 3)) * 1e38 * 1e-30 * 1e38  # noqa: E731
    with pytest.raises(FloatingPointError, match="gradient norm (inf|nan) in step 1.*nothing was saved"):
        fit(start_run(tiny), blobs, make_schedule(tiny), tmp_path, explode)


@pytest.mark.parametrize(("precision", "factor"), [("float32", 1e4), ("float16", 0.1)])
def test_gradients_are_clipped(tiny, blobs, precision, factor):
    """In float16 those of the loss itself, not of what it is scaled to."""
    run = start_run(replace(tiny, gradient_clip=1e-3, precision=precision))
    objective = lambda *args: factor * l_simple(*args)  # noqa: E731
    next(training_loop(run, blobs, make_schedule(tiny), objective))
    norm = torch.stack([p.grad.norm() for p in run.model.parameters() if p.grad is not None]).norm()
    assert norm.item() == pytest.approx(1e-3, rel=1e-3)


def test_bfloat16_trains_like_float32(tiny, blobs):
    def final_loss(precision):
        settings = replace(tiny, epochs=10, learning_rate=4e-3, precision=precision)
        return (
            sum(step.loss for step in list(training_loop(start_run(settings), blobs, make_schedule(settings)))[-6:]) / 6
        )

    assert final_loss("bfloat16") == pytest.approx(final_loss("float32"), rel=0.1)
    seen = []

    def objective(model, schedule, x0, t, eps):
        seen.append(model(x0, t).dtype)
        return l_simple(model, schedule, x0, t, eps)

    for precision in ("float32", "bfloat16"):
        run = start_run(replace(tiny, precision=precision))
        next(training_loop(run, blobs, make_schedule(tiny), objective))
    assert seen == [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_float16_scales_the_loss_and_leaves_out_steps_that_overflow(tiny, blobs, optimizer):
    """A gradient of 1e-8 would be 0 in float16; one above 65,504 is infinite until the scale has come down."""
    tiny = replace(tiny, precision="float16", optimizer=optimizer, warmup_steps=0)
    run = start_run(replace(tiny, gradient_clip=1e9))
    assert run.scaler.get_scale() == 65536
    before, schedule = [p.detach().clone() for p in run.model.parameters()], make_schedule(tiny)
    steep = lambda *args: 100 * l_simple(*args)  # noqa: E731
    steps = training_loop(run, blobs, schedule, steep)
    next(steps)
    assert run.scaler.get_scale() == 32768 and all(map(torch.equal, before, run.model.parameters()))
    assert [step.loss > 50 and math.isfinite(step.loss) for step in steps] == [True] * 11
    assert run.scaler.get_scale() >= 128 and not all(map(torch.equal, before, run.model.parameters()))
    assert all(p.isfinite().all() for p in run.model.parameters())
    faint = start_run(tiny)
    list(zip(range(3), training_loop(faint, blobs, schedule, lambda *args: 1e-6 * l_simple(*args))))
    assert faint.model.conv_out.weight.abs().max() > 1e-4, "Adam takes full steps, however small the gradient"


def test_float16_goes_on_after_an_interrupt_within_a_step(tiny, blobs, monkeypatch):
    run, schedule = start_run(replace(tiny, precision="float16")), make_schedule(tiny)

    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(torch.nn.utils, "clip_grad_norm_", interrupted)
        next(training_loop(run, blobs, schedule))
    assert next(training_loop(run, blobs, schedule)).step == 1


def test_float16_that_overflows_even_unscaled_stops(tiny, blobs, tmp_path):
    run = start_run(replace(tiny, precision="float16", epochs=10))
    with pytest.raises(FloatingPointError, match=r"loss \d.*gradient norm (inf|nan) in step 17, .*nothing was saved"):
        fit(run, blobs, make_schedule(tiny), tmp_path, lambda *args: 1e20 * l_simple(*args))
    with pytest.raises(FloatingPointError, match="loss nan"):
        fit(run, blobs, make_schedule(tiny), tmp_path, lambda *args: l_simple(*args) * math.nan)


def test_the_scale_of_float16_is_resumed(tiny, blobs, tmp_path):
    run, schedule = start_run(replace(tiny, precision="float16")), make_schedule(tiny)
    for _ in zip(range(3), training_loop(run, blobs, schedule, lambda *args: 100 * l_simple(*args))):
        save_run(tmp_path, run)
    assert resume_run(tmp_path).scaler.get_scale() == run.scaler.get_scale() < 65536
    other = resume_run(tmp_path, replace(run.settings, precision="float32"))
    assert not other.scaler.is_enabled()
    save_run(tmp_path, other)
    assert resume_run(tmp_path, run.settings).scaler.get_scale() == 65536


def test_training_starts_from_given_weights(tiny):
    given = start_run(replace(tiny, seed=5)).model.state_dict()
    run = start_run(tiny, weights=given)
    assert all(torch.equal(given[name], tensor) for name, tensor in run.model.state_dict().items())
    assert same(run.model, run.ema) and not same(run.model, start_run(tiny).model)
    with pytest.raises(ValueError, match=r"weights of mine do not .*time.0.weight is \(32, 8\), should be \(64, 16\)"):
        start_run(replace(tiny, base_channels=16, init_from="mine"), weights=given)


def test_weights_that_settings_name_must_be_given(tiny, blobs, fits, tmp_path):
    """Else the run would start from random ones, and its record would say otherwise."""
    named = replace(tiny, init_from="mine")
    with pytest.raises(ValueError, match="init_from is mine, and there are no weights: pass those that pretrained"):
        processes.train(named, blobs, tmp_path)
    run = processes.train(named, blobs, tmp_path, weights=start_run(tiny).model.state_dict())
    save_run(tmp_path, run)
    processes.train(named, blobs, tmp_path, resume=True)
    assert len(fits) == 2


def test_batch_larger_than_the_data_is_refused(tiny, blobs):
    with pytest.raises(ValueError, match=r"batch_size 97 is larger than the data set \(96 images\)"):
        steps_per_epoch(replace(tiny, batch_size=97), blobs)


@pytest.mark.parametrize("rank, size, shown", [("0", "2", True), ("1", "2", False), ("3", "1", True)])
def test_of_several_processes_the_first_shows_its_progress(monkeypatch, rank, size, shown):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", size)
    assert ddpm.progress_bar([]).disable is not shown


@pytest.mark.parametrize("gpus", [0, 1, 2])
def test_several_gpus_are_asked_for_without_touching_them(monkeypatch, gpus):
    """Else a process forked from a notebook could not use them."""
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "")  # restored in the end
    monkeypatch.delenv("PYTORCH_NVML_BASED_CUDA_CHECK")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(
        torch.cuda, "is_available", lambda: asked.append(os.environ.get("PYTORCH_NVML_BASED_CUDA_CHECK"))
    )
    asked = []
    ddpm.best_device()
    assert asked == (["1"] if gpus > 1 else [None])


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


def test_too_few_steps_for_the_warm_up_are_told(tiny, blobs, tmp_path, capsys):
    for warmup, told in ((7, True), (6, False)):  # of twelve
        settings = replace(tiny, warmup_steps=warmup)
        fit(start_run(settings), blobs, make_schedule(settings), tmp_path / str(warmup))
        assert ("12 steps in all, and in the first 7 the learning rate only" in capsys.readouterr().out) is told


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


def test_memory_that_ends_in_training_leaves_a_checkpoint_that_is_told(tiny, blobs, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "PREVIEW_EVERY", 1)

    def loop(*arguments):
        yield from islice(ddpm.training_loop(*arguments), 6)
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError, match="out of memory.; the checkpoint of step 6 in .* is good"):
        fit(start_run(tiny), blobs, make_schedule(tiny), tmp_path, loop=loop)


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


def test_a_preview_takes_no_larger_batches_than_training(tiny, blobs, tmp_path, monkeypatch):
    sizes, run = [], start_run(replace(tiny, epochs=1, accumulation=2))
    run.ema.register_forward_pre_hook(lambda model, inputs: sizes.append(len(inputs[0])))
    fit(run, blobs, make_schedule(tiny), tmp_path)
    assert max(sizes) == 8, "of 16 in two parts"


def test_a_schedule_that_leaves_signal_is_told(tiny, blobs, tmp_path, capsys):
    for T, told in ((100, True), (1000, False)):
        settings = replace(tiny, T=T, epochs=0.1)
        fit(start_run(settings), blobs, make_schedule(settings), tmp_path / str(T))
        assert ("At t = T 36% of the signal's power is left" in capsys.readouterr().out) == told


def test_of_several_processes_a_failure_claims_no_checkpoint_that_is_not_there(tiny, blobs, tmp_path):
    def failing(*arguments):
        if len(run.losses) == fails_at:
            raise RuntimeError("out of memory")
        return l_simple(*arguments)

    for rank, fails_at, message in ((0, 0, "nothing was saved"), (0, 2, "step 2 is saved in"),
                                    (1, 2, "what the first of them has saved is in")):  # fmt: skip
        world = type("Fake", (runs.World,), {"rank": rank, "size": 2, "gather": lambda self, x: x.repeat(2)})()
        run, folder = processes.join(start_run(tiny), world), tmp_path / f"{rank}-{fails_at}"
        with pytest.raises(ConnectionError, match=rf"one of 2 processes failed, .* \(out of memory\); {message}"):
            processes.fit(run, blobs, make_schedule(tiny), folder, world, objective=failing)
        assert (folder / "config.json").exists() == ("is saved" in message)
        if "is saved" in message:  # and what the step that failed had drawn is drawn again
            undisturbed = processes.join(start_run(tiny), world)
            list(islice(training_loop(undisturbed, blobs, make_schedule(tiny)), fails_at))
            resumed = resume_run(folder)
            assert torch.equal(resumed.generator.get_state(), undisturbed.generator.get_state())


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


def test_each_process_reads_its_own_images_only(tiny, blobs, tmp_path, monkeypatch):
    class Watched:
        device, dtype, shape, read = blobs.device, blobs.dtype, blobs.shape, 0

        def __len__(self):
            return len(blobs)

        def __getitem__(self, which):
            self.read += len(which)
            return blobs[which]

    world = type("Second", (World,), {"rank": 1, "size": 2, "gather": lambda self, x: x.repeat(2)})()
    images, seen = Watched(), []

    def objective(model, schedule, x0, t, eps):
        seen.append(x0)
        return l_simple(model, schedule, x0, t, eps)

    def fitted(run, images, schedule, folder, loop, **options):
        next(loop(run, images, schedule, options["objective"]))

    monkeypatch.setattr(runs, "fit", fitted)
    processes.fit(start_run(tiny), images, make_schedule(tiny), tmp_path, world, objective)  # which joins the world
    next(training_loop(start_run(tiny), blobs, make_schedule(tiny), objective))
    assert images.read == 8 and torch.equal(seen[0], seen[1][8:])


def test_a_run_of_several_processes_is_not_fitted_as_if_it_were_alone(tiny, blobs, tmp_path):
    world = type("Second", (World,), {"rank": 1, "size": 2})()
    with pytest.raises(ValueError, match="joined several processes: fit it with processes.fit"):
        fit(processes.join(start_run(tiny), world), blobs, make_schedule(tiny), tmp_path)


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


def test_bfloat16_is_refused_where_a_gpu_only_emulates_it(tiny, blobs, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    for precision in ("float32", "float16"):
        machine.check_precision(precision, "cuda")
    machine.check_precision("bfloat16", "cpu")
    with pytest.raises(ValueError, match="no bfloat16 arithmetic: take precision float16"):
        processes.train(replace(tiny, precision="bfloat16"), blobs, tmp_path, device="cuda")


def test_the_gpu_that_is_asked_for_bfloat16_is_the_one_that_computes(monkeypatch):
    current = [0]

    class Visited:
        def __init__(self, device):
            self.index = device.index

        def __enter__(self):
            current.append(self.index)

        def __exit__(self, *_):
            current.pop()

    monkeypatch.setattr(torch.cuda, "device", Visited)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: current[-1] == 1)
    machine.check_precision("bfloat16", "cuda:1")
    with pytest.raises(ValueError, match="no bfloat16 arithmetic"):
        machine.check_precision("bfloat16", "cuda:0")
    assert current == [0]


def test_sampling_between_steps_does_not_end_dropout(dropout, blobs):
    watched, plain = start_run(dropout), start_run(dropout)
    for step, _ in enumerate(training_loop(watched, blobs, make_schedule(dropout))):
        if step == 2:
            generate(watched.model, make_schedule(dropout), 2, (1, 32, 32), steps=2, progress=False)
    list(training_loop(plain, blobs, make_schedule(dropout)))
    assert same(watched.model, plain.model)


def test_a_run_remembers_its_seconds(tiny, tmp_path):
    run = start_run(tiny)
    run.seconds = 123.4
    save_run(tmp_path, run)
    assert resume_run(tmp_path).seconds == 123.4 and load_config(tmp_path)[1]["seconds"] == 123.4


def test_previews_are_of_the_same_noise_and_of_all_labels_in_turn(tiny, blobs, tmp_path, monkeypatch):
    settings, asked = replace(tiny, classes=3, seed=4), []
    real = ddpm.generate
    monkeypatch.setattr(ddpm, "generate", lambda *given, **options: asked.append(options) or real(*given, **options))
    monkeypatch.setattr(runs, "PREVIEW_EVERY", 6)
    fit(start_run(settings), blobs, make_schedule(settings), tmp_path, labels=torch.arange(len(blobs)) % 3)
    assert [options["seed"] for options in asked] == [4, 4]
    assert asked[0]["labels"].tolist() == [0, 1, 2] * 12


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


def test_an_objective_that_is_no_loss_for_each_image_is_refused(tiny, blobs):
    for shape in ((), (16, 1, 1, 1)):
        flat = lambda *given, shape=shape: l_simple(*given).mean().expand(shape)  # noqa: E731
        with pytest.raises(ValueError, match=r"it must be one loss an image, \(16,\)"):
            next(training_loop(start_run(tiny), blobs, make_schedule(tiny), flat))


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


def test_loss_by_t_spreads_times_and_is_zero_for_a_seer(paper):
    images = torch.zeros(100, 1, 2, 2, dtype=torch.uint8)
    t, losses = loss_by_t(lambda xt, t: (xt + paper.alpha_bar[t].sqrt().view(-1, 1, 1, 1)) /
                          (1 - paper.alpha_bar[t]).sqrt().view(-1, 1, 1, 1), paper, images)  # fmt: skip
    assert t[0] == 1 and t[-1] == 991 and (t.diff() == 10).all()
    assert losses.max() < 1e-6
    _, losses = loss_by_t(lambda xt, t: torch.full_like(xt, 3.0), paper, images)
    assert losses.mean().item() == pytest.approx(10, abs=0.5), "E (3 - eps)^2: the prediction as it is, not clipped"


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


def test_the_seed_decides_order_times_noise_and_dropout(tiny, blobs):
    seen = []

    def objective(model, schedule, x0, t, eps):
        seen.append((x0, t, eps, torch.tensor(torch.initial_seed())))
        return l_simple(model, schedule, x0, t, eps)

    for seed in (0, 1):
        next(training_loop(start_run(replace(tiny, seed=seed)), blobs, make_schedule(tiny), objective))
    assert not any(map(torch.equal, *seen))


def test_previews_are_of_averaged_weights_and_know_what_they_predict(tiny, blobs, tmp_path, monkeypatch):
    seen, settings = [], replace(tiny, prediction="v", epochs=0.2)
    real = ddpm.generate
    monkeypatch.setattr(ddpm, "generate", lambda model, *rest, **kw: seen.append(model) or real(model, *rest, **kw))
    run = fit(start_run(settings), blobs, make_schedule(settings), tmp_path)
    assert [(model.prediction, model.network) for model in seen] == [("v", run.ema)]


def test_a_preview_that_fails_does_not_end_the_training(tiny, blobs, tmp_path, monkeypatch):
    def failing(*_):
        raise FloatingPointError("the images are NaN")

    assert fit(start_run(tiny), blobs, make_schedule(tiny), tmp_path, draw=failing).step == 12


def test_each_step_and_each_process_draws_its_own_dropout(dropout, blobs):
    class Second(World):
        rank, size = 1, 2

        def gather(self, x):
            return torch.cat([x, x])

    seen = {}
    for world in (World(), Second()):
        run = processes.join(start_run(dropout), world)
        seen[world.rank] = [torch.initial_seed() for _ in islice(training_loop(run, blobs, make_schedule(dropout)), 4)]
    assert len({*seen[0], *seen[1]}) == 8


def test_dropout_changes_training_only():
    model = UNet(base_channels=8, dropout=0.5)
    torch.nn.init.normal_(model.conv_out.weight)
    for block in model.down:
        if hasattr(block, "residual"):
            torch.nn.init.normal_(block.residual.conv2.weight)
    x, t = torch.randn(1, 1, 32, 32), torch.tensor([5])
    assert not torch.equal(model.train()(x, t), model(x, t))
    assert torch.equal(model.eval()(x, t), model(x, t))


def test_the_network_is_compiled_where_a_compiler_is_found(tiny, blobs, tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda function: function)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: asked.append(module))
    run = processes.train(replace(tiny, compile=True), blobs, tmp_path)
    assert asked == [run.model] and "compiling the network" in capsys.readouterr().out
    start_run(tiny)
    assert len(asked) == 1


@pytest.mark.parametrize(
    "error, told",
    [(RuntimeError("NoCompiler: no C++\nand more"), "NoCompiler: no C++\n"), (AssertionError(), "AssertionError()\n")],
)
def test_without_a_compiler_the_network_runs_as_it_is(tiny, blobs, tmp_path, monkeypatch, capsys, error, told):
    def missing(function):
        raise error

    monkeypatch.setattr(torch, "compile", missing)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: pytest.fail("there is no compiler"))
    processes.train(replace(tiny, compile=True), blobs, tmp_path)
    assert f"does not work here, so the network runs as it is: {told}" in capsys.readouterr().out
