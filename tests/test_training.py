import math
import os
from dataclasses import replace

import pytest
import torch
from conftest import ROOT, same
from torch import nn

from mnist_ddpm import ddpm, runs
from mnist_ddpm.ddpm import (
    UNet,
    ema_update,
    generate,
    l_simple,
    learning_rate_at,
    load_config,
    load_images,
    loss_by_t,
    make_schedule,
    start_run,
    steps_per_epoch,
    training_loop,
    training_step,
)
from mnist_ddpm.runs import fit, resume_run, save_run


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


def test_training_starts_from_given_weights(tiny):
    given = start_run(replace(tiny, seed=5)).model.state_dict()
    run = start_run(tiny, weights=given)
    assert all(torch.equal(given[name], tensor) for name, tensor in run.model.state_dict().items())
    assert same(run.model, run.ema) and not same(run.model, start_run(tiny).model)
    with pytest.raises(ValueError, match=r"weights of mine do not .*time.0.weight is \(32, 8\), should be \(64, 16\)"):
        start_run(replace(tiny, base_channels=16, init_from="mine"), weights=given)


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


def test_a_preview_takes_no_larger_batches_than_training(tiny, blobs, tmp_path, monkeypatch):
    sizes, run = [], start_run(replace(tiny, epochs=1, accumulation=2))
    run.ema.register_forward_pre_hook(lambda model, inputs: sizes.append(len(inputs[0])))
    fit(run, blobs, make_schedule(tiny), tmp_path)
    assert max(sizes) == 8, "of 16 in two parts"


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


def test_an_objective_that_is_no_loss_for_each_image_is_refused(tiny, blobs):
    for shape in ((), (16, 1, 1, 1)):
        flat = lambda *given, shape=shape: l_simple(*given).mean().expand(shape)  # noqa: E731
        with pytest.raises(ValueError, match=r"it must be one loss an image, \(16,\)"):
            next(training_loop(start_run(tiny), blobs, make_schedule(tiny), flat))


def test_loss_by_t_spreads_times_and_is_zero_for_a_seer(paper):
    images = torch.zeros(100, 1, 2, 2, dtype=torch.uint8)
    t, losses = loss_by_t(lambda xt, t: (xt + paper.alpha_bar[t].sqrt().view(-1, 1, 1, 1)) /
                          (1 - paper.alpha_bar[t]).sqrt().view(-1, 1, 1, 1), paper, images)  # fmt: skip
    assert t[0] == 1 and t[-1] == 991 and (t.diff() == 10).all()
    assert losses.max() < 1e-6
    _, losses = loss_by_t(lambda xt, t: torch.full_like(xt, 3.0), paper, images)
    assert losses.mean().item() == pytest.approx(10, abs=0.5), "E (3 - eps)^2: the prediction as it is, not clipped"


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


def test_dropout_changes_training_only():
    model = UNet(base_channels=8, dropout=0.5)
    torch.nn.init.normal_(model.conv_out.weight)
    for block in model.down:
        if hasattr(block, "residual"):
            torch.nn.init.normal_(block.residual.conv2.weight)
    x, t = torch.randn(1, 1, 32, 32), torch.tensor([5])
    assert not torch.equal(model.train()(x, t), model(x, t))
    assert torch.equal(model.eval()(x, t), model(x, t))


def test_part_of_an_epoch_is_trained_and_the_learning_rate_ends_there(tiny, blobs):
    run = start_run(replace(tiny, epochs=1.5))
    steps = [step.step for step in training_loop(run, blobs, make_schedule(tiny))]
    assert steps == list(range(1, 10)), "one and a half times six"
    assert run.optimizer.param_groups[0]["lr"] < 0.05 * tiny.learning_rate


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_step_in_parts_with_checkpointing_is_the_same_step(tiny, precision):
    """Same gradients: the weights after two steps differ by rounding alone."""
    settings = replace(tiny, precision=precision, warmup_steps=0)
    results = []
    for changes in ({}, {"accumulation": 3}, {"gradient_checkpointing": True}):
        run = start_run(replace(settings, **changes))
        assert run.model.gradient_checkpointing == ("gradient_checkpointing" in changes)
        x0 = torch.linspace(-1, 1, 16 * 32 * 32).view(16, 1, 32, 32)
        steps = [training_step(run, x0, None, make_schedule(tiny), l_simple, 1e-4) for _ in range(2)]
        results.append((torch.cat([s.losses for s in steps]), torch.cat([p.flatten() for p in run.model.parameters()])))
    (losses, weights), *others = results
    for other_losses, other_weights in others:
        torch.testing.assert_close(other_losses, losses, rtol=1e-3 if precision != "float32" else 1e-5, atol=1e-5)
        assert (other_weights - weights).abs().mean() < (2e-5 if precision != "float32" else 1e-6)
