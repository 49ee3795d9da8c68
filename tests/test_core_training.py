"""The notebook's training: its loss, its loop, what it saves and resumes."""

import json
import math
from dataclasses import replace

import pytest
import torch
from helpers import PAPER, notebook
from training_helpers import NOTEBOOK, same, squares

from mnist_ddpm import ddpm

TINY = replace(NOTEBOOK, epochs=2, warmup_steps=2)


def schedule_of(settings):
    return ddpm.beta_schedule(ddpm.linear_beta(settings.T, settings.beta_1, settings.beta_T))


def trained(settings, images=None, **options):
    run = ddpm.start_run(settings)
    images = squares() if images is None else images
    list(ddpm.training_loop(run, images, schedule_of(settings), **options))
    return run


def test_l_simple_by_hand():
    x0, eps = torch.ones(2, 1, 2, 2), torch.tensor([1.0, 3]).view(2, 1, 1, 1).expand(2, 1, 2, 2)
    t = torch.tensor([1, 400])

    def network(xt, given):
        assert torch.equal(given, t) and torch.equal(xt, ddpm.q_sample(PAPER, x0, t, eps))
        return torch.ones_like(xt)

    assert ddpm.l_simple(network, PAPER, x0, t, eps).tolist() == [0, 4]


def test_learning_rate_rises_then_falls_towards_zero():
    settings = replace(TINY, warmup_steps=10, learning_rate=1.0)
    rates = [ddpm.learning_rate_at(step, 100, settings) for step in range(1, 101)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == pytest.approx(1, abs=0.03)
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.001
    assert ddpm.learning_rate_at(10, 100, replace(settings, warmup_steps=500)) == rates[9]
    assert ddpm.learning_rate_at(1, 1, replace(settings, warmup_steps=0)) == 1


def test_the_average_is_warmed_up_and_forgets_as_fast_as_ema_decay_says():
    """With a decay of 0.999 from the start, it would stay at the random weights."""
    settings = replace(TINY, learning_rate=0.1, ema_decay=0.5)
    run = ddpm.start_run(settings)
    steps = ddpm.training_loop(run, squares(), schedule_of(settings))
    next(steps)
    moved = run.network.conv_out.bias.detach()  # from 0
    assert (moved != 0).all()
    torch.testing.assert_close(run.ema.conv_out.bias, moved * (1 - 2 / 11))
    while run.step < 11:
        next(steps)
    kept = run.ema.conv_out.bias.clone()
    next(steps)
    expected = 0.5 * kept + 0.5 * run.network.conv_out.bias
    torch.testing.assert_close(run.ema.conv_out.bias, expected)


def test_an_epoch_shows_every_image_once_and_each_at_a_time_of_its_own():
    images = torch.arange(96, dtype=torch.uint8).view(96, 1, 1, 1).expand(96, 1, 16, 16)
    seen, times = [], []

    def objective(network, schedule, x0, t, eps):
        seen.extend(ddpm.to_uint8(x0[:, 0, 0, 0]).tolist())
        times.append(t.tolist())
        return ddpm.l_simple(network, schedule, x0, t, eps)

    settings = replace(TINY, T=5, epochs=2.5)
    run = trained(settings, images, objective=objective)
    assert run.step == len(run.losses) == 15, "two and a half times six"
    assert sorted(seen[:96]) == sorted(seen[96:192]) == list(range(96))
    assert seen[:96] != seen[96:192] and seen[:96] != list(range(96))
    assert {t for batch in times for t in batch} == {1, 2, 3, 4, 5}
    assert all(len(batch) == 16 and len(set(batch)) > 1 for batch in times)
    assert run.optimizer.param_groups[0]["lr"] < 0.05 * settings.learning_rate


def test_runs_of_one_seed_are_equal_and_of_two_seeds_are_not():
    first, second, other = (trained(replace(TINY, seed=seed, epochs=0.5)) for seed in (0, 0, 1))
    assert same(first.network, second.network) and same(first.ema, second.ema)
    assert first.losses == second.losses and not same(first.network, other.network)


def test_each_step_draws_times_and_noise_of_its_own_from_the_seed():
    seen = []

    def objective(network, schedule, x0, t, eps):
        seen.append(torch.cat([t, eps.flatten()]))
        return ddpm.l_simple(network, schedule, x0, t, eps)

    for seed in (0, 1):
        trained(replace(TINY, epochs=0.5, seed=seed), objective=objective)
    assert len(torch.stack(seen).unique(dim=0)) == 6


def test_training_fits_64_images_with_both_its_networks():
    settings = replace(
        TINY, channel_mults=(1,), epochs=28, batch_size=32, learning_rate=1e-2, ema_decay=0.9
    )
    run = trained(settings, squares(64))
    assert run.losses[0] > 0.9 and sum(run.losses[-20:]) / 20 < 0.5
    x0, t = ddpm.to_float(squares(64)).repeat(4, 1, 1, 1), torch.arange(256) % 50 + 1
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert ddpm.l_simple(run.ema, schedule_of(settings), x0, t, eps).mean() < 0.5


@pytest.mark.parametrize("size", [math.inf, math.nan, 3e38])
def test_what_is_not_finite_stops_before_it_reaches_the_weights(size):
    """3e38: the loss is finite, the gradient is not."""
    run = trained(replace(TINY, epochs=0.5))
    before = ddpm.make_network(TINY)
    before.load_state_dict(run.network.state_dict())
    explode = lambda network, *given: network(given[1], given[2]).square().mean((1, 2, 3)) * size  # noqa: E731
    x0 = ddpm.to_float(squares(16))
    with pytest.raises(FloatingPointError, match="step 4"):
        ddpm.training_step(run, explode, schedule_of(TINY), x0, ddpm.random_generator(0))
    assert same(run.network, before) and run.step == len(run.losses) == 3


def test_gradients_are_clipped():
    run = ddpm.start_run(TINY)
    steep = lambda *given: 1e4 * ddpm.l_simple(*given)  # noqa: E731
    x0 = ddpm.to_float(squares(16))
    ddpm.training_step(run, steep, schedule_of(TINY), x0, ddpm.random_generator(0))
    norms = torch.stack([p.grad.norm() for p in run.network.parameters()])
    assert norms.norm().item() == pytest.approx(1, rel=1e-3)


def test_half_of_the_images_are_mirrored_and_the_others_are_as_they_were():
    x0 = torch.arange(12.0).view(1, 1, 3, 4).expand(400, 1, 3, 4)
    out = ddpm.mirrored(x0, ddpm.random_generator(0))
    flipped = (out == x0.flip(-1)).flatten(1).all(1)
    assert (flipped | (out == x0).flatten(1).all(1)).all() and 150 < flipped.sum() < 250


def test_too_few_images_for_a_batch_are_refused():
    with pytest.raises(ValueError, match="batch_size is 16"):
        trained(TINY, squares(15))


def test_a_run_goes_on_bit_for_bit_from_the_middle_of_an_epoch(tmp_path):
    images, schedule = squares(48), schedule_of(TINY)
    flipped = {"augment": ddpm.mirrored}
    whole, part = trained(TINY, images, **flipped), ddpm.start_run(TINY)
    for _ in ddpm.training_loop(part, images, schedule, **flipped):
        if part.step == 4:
            break
    notebook.save_run(tmp_path, part, schedule)
    resumed = notebook.resume_run(tmp_path, TINY, schedule)
    assert resumed.step == 4
    list(ddpm.training_loop(resumed, images, schedule, **flipped))
    assert resumed.losses == whole.losses and len(whole.losses) == 6
    assert same(resumed.network, whole.network) and same(resumed.ema, whole.ema)


def test_a_checkpoint_draws_as_the_averaged_network_does(tmp_path):
    settings = replace(TINY, beta_1=1e-3, beta_T=0.1)
    run = trained(settings, squares(32))
    linear = schedule_of(settings)
    tables = ddpm.Schedule(linear.a.square(), linear.b.square())
    for saved in (linear, tables):  # by name, as tables
        notebook.save_run(tmp_path, run, saved)
        network, schedule, found = ddpm.load_checkpoint(tmp_path)
        assert found == settings and torch.equal(schedule.a, saved.a)
        assert torch.equal(schedule.b, saved.b) and schedule.b.dtype == torch.float64
    assert same(network, run.ema) and not same(network, run.network) and not network.training


def test_more_epochs_may_be_trained_and_nothing_else_may_change(tmp_path):
    schedule = schedule_of(TINY)
    notebook.save_run(tmp_path, trained(replace(TINY, epochs=1), squares(32)), schedule)
    more = notebook.resume_run(tmp_path, TINY, schedule)
    list(ddpm.training_loop(more, squares(32), schedule))
    assert more.step == 4
    with pytest.raises(ValueError, match="learning_rate"):
        notebook.resume_run(tmp_path, replace(TINY, learning_rate=0.1), schedule)
    with pytest.raises(ValueError, match="schedule"):
        notebook.resume_run(tmp_path, TINY, ddpm.Schedule(schedule.a.square(), schedule.b))


def test_a_checkpoint_of_another_method_is_refused(tmp_path):
    notebook.save_run(tmp_path, ddpm.start_run(TINY), schedule_of(TINY))
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    ours = {"schedule": "linear", "prediction": "eps"}
    for method in (ours | {"schedule": "cosine"}, ours | {"prediction": "v"}, None):
        path.write_text(json.dumps(config | {"method": method}))
        with pytest.raises(ValueError, match=str(tmp_path)):
            ddpm.load_checkpoint(tmp_path)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("No space left on device")])
def test_a_kill_or_a_full_disk_while_saving_leaves_the_files_whole(tmp_path, monkeypatch, error):
    schedule = schedule_of(TINY)
    notebook.save_run(tmp_path, trained(replace(TINY, epochs=0.5)), schedule)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def half(state, path):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setitem(notebook.save_run.__globals__, "save_file", half)
    with pytest.raises(type(error)):
        notebook.save_run(tmp_path, trained(TINY), schedule)
    monkeypatch.undo()
    assert (tmp_path / "model.safetensors").read_bytes() == before["model.safetensors"]
    ddpm.load_checkpoint(tmp_path)
    assert notebook.resume_run(tmp_path, TINY, schedule).step == 12
    notebook.save_run(tmp_path, trained(TINY), schedule)
    assert {path.name for path in tmp_path.iterdir()} == before.keys()
