"""Learned variances: what their losses teach, and times drawn by importance."""

import math
from dataclasses import replace

import pytest
import torch

from mnist_ddpm.ddpm import (
    Settings,
    UNet,
    ddpm_sampler,
    make_denoiser,
    make_model,
    make_objective,
    make_schedule,
    predict,
    q_posterior,
    start_run,
    to_float,
    training_loop,
)
from mnist_ddpm.learned_variance import ImportanceTimes, l_hybrid, l_vlb
from mnist_ddpm.likelihood import bits_per_dim
from mnist_ddpm.parameterisation import CONVERSIONS, Denoiser, convert, weighted
from mnist_ddpm.runs import fit, resume_run, save_run
from mnist_ddpm.schedules import cosine_schedule

TIMES = torch.tensor([1, 2, 30, 100])
SMALL = Settings(
    image_size=8, base_channels=8, channel_mults=(1,), schedule="cosine", objective="vlb", T=5, epochs=4, batch_size=16
)


@pytest.fixture
def schedule():
    return cosine_schedule(Settings(T=100))


def example(n=4):
    generator = torch.Generator().manual_seed(0)
    x0 = to_float(torch.randint(60, 200, (n, 1, 2, 2), generator=generator)).double()
    return x0, torch.randn(x0.shape, generator=generator, dtype=torch.float64)


def outputs(schedule, prediction, x0_hat):
    """A model that says x0_hat and some variance, and its two outputs, which will have gradients."""
    kept = {}

    def model(xt, t):
        value = convert(schedule, xt, t, x0_hat, "x0", prediction)
        kept["value"] = value.detach().requires_grad_()
        kept["v"] = torch.linspace(-0.9, 0.8, value.numel(), dtype=value.dtype).view(value.shape).requires_grad_()
        return torch.cat([kept["value"], kept["v"]], dim=1)

    return model, kept


def gradients(objective, model, kept, schedule, x0, eps):
    loss = objective(model, schedule, x0, TIMES, eps).sum()
    return torch.autograd.grad(loss, (kept["value"], kept["v"]))


@pytest.mark.parametrize("prediction", CONVERSIONS)
def test_hybrid_loss_teaches_the_prediction_by_l_simple_and_the_variance_by_the_bound(schedule, prediction):
    x0, eps = example()
    model, kept = outputs(schedule, prediction, 0.9 * x0 + 0.05)
    hybrid = gradients(l_hybrid(prediction), model, kept, schedule, x0, eps)
    if prediction == "eps":  # l_simple itself is for networks without a variance
        simple = 2 / 4 * (kept["value"] - eps)
    else:
        simple, _ = gradients(weighted(prediction), model, kept, schedule, x0, eps)
    bound = gradients(l_vlb(prediction), model, kept, schedule, x0, eps)
    torch.testing.assert_close(hybrid[0], simple)
    torch.testing.assert_close(hybrid[1], 0.001 * bound[1])
    assert (bound[0] != 0).all() and (bound[1] != 0).all()


@pytest.mark.parametrize("prediction", CONVERSIONS)
def test_hybrid_loss_is_the_sum_of_both(schedule, prediction):
    """Where x0_hat needs no clipping; where it does, the bound is that of the clipped x0_hat."""
    x0, eps = example()

    def losses(objective, x0_hat):
        return objective(outputs(schedule, prediction, x0_hat)[0], schedule, x0, TIMES, eps)

    def error(x0_hat):
        return losses(l_hybrid(prediction, weight=0), x0_hat)

    inside, outside = 0.9 * x0, 5 * torch.ones_like(x0)
    torch.testing.assert_close(
        losses(l_hybrid(prediction), inside), error(inside) + 0.001 * losses(l_vlb(prediction), inside)
    )
    clipped = losses(l_vlb(prediction), outside.clamp(max=1))
    torch.testing.assert_close(losses(l_hybrid(prediction, weight=1), outside), error(outside) + clipped)


@pytest.mark.parametrize("prediction", ["eps", "x0"])
def test_mean_of_l_vlb_over_all_times_is_the_bound(schedule, prediction):
    """With an x0_hat that does not depend on x_t, no term depends on the noise."""
    images = torch.tensor([[0, 255], [90, 140]], dtype=torch.uint8).view(1, 1, 2, 2)

    def network(xt, t):
        value = convert(schedule, xt, t, torch.full_like(xt, 0.1), "x0", prediction)
        return torch.cat([value, torch.full_like(xt, 0.3)], dim=1)

    model = network if prediction == "eps" else Denoiser(network, schedule, prediction)
    bound = bits_per_dim(model, schedule, images, variance="learned", progress=False)
    t, x0 = torch.arange(1, 101), to_float(images).double().expand(100, -1, -1, -1)
    losses = l_vlb(prediction)(network, schedule, x0, t, torch.randn(x0.shape, dtype=x0.dtype))
    assert losses.mean().item() + bound.prior == pytest.approx(bound.mean, rel=1e-3)
    torch.testing.assert_close(losses / 100, bound.terms, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("t", "v"), [(600, 0.2), (20, 59.0)])
def test_a_learned_step_has_the_variance_that_the_network_says(paper, t, v):
    """v = 0.2 is an exponent of 0.6 between the logarithms of beta-tilde and beta; 59 is 30, far outside."""
    x = torch.full((1, 1, 1, 1), 0.4)
    model = lambda xt, t: torch.cat([0.5 * xt, torch.full_like(xt, v)], dim=1)  # noqa: E731
    states = ddpm_sampler(model, paper, [t, t - 1], x, lambda: torch.ones_like(x), variance="learned", clip=False)
    _, (_, got, _), *_ = states
    mean, posterior = q_posterior(paper, predict(model, paper, x, t).x0_hat, x, t, t - 1)
    exponent = (v + 1) / 2
    deviation = torch.exp(exponent * paper.beta[t].log() + (1 - exponent) * posterior.log()).sqrt()
    torch.testing.assert_close(got, mean + deviation.float())


def test_variance_that_was_not_learned_is_refused(paper):
    x = torch.zeros(1, 1, 1, 1)
    with pytest.raises(ValueError, match="has learned no variance"):
        next(ddpm_sampler(lambda xt, t: xt, paper, [10], x, None, variance="learned"))


def test_objectives_with_a_variance_double_the_networks_output():
    x, t = torch.zeros(2, 1, 8, 8), torch.tensor([1, 5])
    for objective, channels in (("simple", 1), ("min-snr", 1), ("hybrid", 2), ("vlb", 2)):
        settings = replace(SMALL, objective=objective)
        assert make_model(settings)(x, t).shape == (2, channels, 8, 8)
    assert UNet(channels=3, learned_variance=True)(torch.zeros(1, 3, 32, 32), t[:1]).shape == (1, 6, 32, 32)


def test_both_outputs_of_a_network_learn():
    for objective in ("hybrid", "vlb"):
        settings = replace(SMALL, objective=objective, epochs=1)
        images = torch.arange(16 * 64).view(16, 1, 8, 8).remainder(251).to(torch.uint8)
        run = start_run(settings)
        for _ in training_loop(run, images, make_schedule(settings), make_objective(settings)):
            pass
        change = run.model.conv_out.bias.detach().view(2, -1).abs().amax(dim=1)
        assert (change > 0).all()
        assert make_denoiser(run.model, None, settings) is run.model


def filled(T=3, history=10):
    """Losses 1, 2, … times t at each t."""
    times = ImportanceTimes(T, history)
    for k in range(1, history + 1):
        times.update(torch.arange(1, T + 1), torch.arange(1, T + 1) * float(k))
    return times


def test_times_are_uniform_until_each_has_ten_losses():
    times = ImportanceTimes(3)
    times.update(torch.tensor([1] * 30 + [2] * 10 + [3] * 9), torch.arange(49.0))
    torch.testing.assert_close(times.probability(), torch.full((3,), 1 / 3))
    times.update(torch.tensor([3]), torch.tensor([1.0]))
    assert times.probability().unique().numel() == 3


def test_times_are_then_drawn_by_the_root_mean_square_of_their_last_ten_losses():
    expected = 0.999 * torch.tensor([1, 2, 3]) / 6 + 0.001 / 3
    times = filled()
    torch.testing.assert_close(times.probability(), expected)
    for loss in (100, 100, *range(2, 22, 2)):  # the last ten are as before
        times.update(torch.tensor([2]), torch.tensor([float(loss)]))
    torch.testing.assert_close(times.probability(), expected)
    times.update(torch.tensor([2]), torch.tensor([9.0]))  # in the place of the 2
    size = torch.tensor([385.0, 4 * 385 - 4 + 81, 9 * 385]).sqrt()
    torch.testing.assert_close(times.probability(), 0.999 * size / size.sum() + 0.001 / 3)


def test_draws_have_their_probability_and_weights_make_up_for_it():
    times, losses = filled(), torch.tensor([7.0, -2.0, 30.0])
    t, weights = times.draw(40_000, torch.Generator().manual_seed(0))
    p = times.probability()
    torch.testing.assert_close(t.bincount(minlength=4)[1:] / len(t), p, rtol=0, atol=0.01)
    torch.testing.assert_close(weights, 1 / (3 * p[t - 1]))
    assert (weights * losses[t - 1]).mean().item() == pytest.approx(losses.mean().item(), rel=0.02)


def test_training_weighs_the_losses_of_the_times_that_were_drawn():
    run, images = start_run(SMALL), torch.zeros(16, 1, 8, 8, dtype=torch.uint8)
    run.times = filled(SMALL.T)
    weights = 1 / (SMALL.T * run.times.probability())
    step = next(training_loop(run, images, make_schedule(SMALL), make_objective(SMALL)))
    assert step.loss == pytest.approx((weights[step.t - 1] * step.losses).mean().item(), rel=1e-5)
    assert step.loss != pytest.approx(step.losses.mean().item(), rel=0.01)


def test_so_do_the_gradients():
    run, images = start_run(replace(SMALL, gradient_clip=1e9)), torch.zeros(16, 1, 8, 8, dtype=torch.uint8)
    run.times = filled(SMALL.T)
    weights = 1 / (SMALL.T * run.times.probability())
    steep = lambda model, schedule, x0, t, eps: model(x0, t).sum(dim=(1, 2, 3)) * t  # noqa: E731
    step = next(training_loop(run, images, make_schedule(SMALL), steep))
    found, pixels = run.model.conv_out.bias.grad, 4 * 4  # of each channel of a patch
    expected = pixels * (weights[step.t - 1] * step.t).mean().item()
    torch.testing.assert_close(found, torch.full_like(found, expected))
    assert expected != pytest.approx(pixels * step.t.double().mean().item(), rel=0.01)


def test_only_the_bound_alone_draws_times_by_importance():
    for objective in ("simple", "bound", "hybrid", "vlb"):
        times = start_run(replace(SMALL, objective=objective)).times
        assert isinstance(times, ImportanceTimes) if objective == "vlb" else times is None


def test_times_by_importance_are_all_that_is_drawn_before_the_noise():
    images, settings = torch.zeros(64, 1, 8, 8, dtype=torch.uint8), replace(SMALL, objective="vlb", seed=5)
    step = next(training_loop(start_run(settings), images, make_schedule(settings)))
    generator = torch.Generator().manual_seed(5)
    t, _ = ImportanceTimes(settings.T).draw(settings.batch_size, generator)
    assert torch.equal(step.t, t)


def test_resumed_run_with_importance_times_continues_bit_for_bit(tmp_path):
    images = torch.randint(0, 256, (64, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    schedule, objective = make_schedule(SMALL), make_objective(SMALL)
    whole = fit(start_run(SMALL), images, schedule, tmp_path / "whole")
    part = start_run(SMALL)
    for step, *_ in training_loop(part, images, schedule, objective):
        if step == 10:
            break
    assert (part.times.seen >= 10).all() and part.times.probability().unique().numel() > 1
    save_run(tmp_path / "part", part)
    resumed = fit(resume_run(tmp_path / "part"), images, schedule, tmp_path / "part")
    assert resumed.step == whole.step == 16 and resumed.losses == whole.losses
    assert all(math.isfinite(loss) for loss in whole.losses)
    for module in ("model", "ema", "times"):
        for a, b in zip(*(getattr(run, module).state_dict().values() for run in (whole, resumed)), strict=True):
            assert torch.equal(a, b)
