"""Learned variances: what their losses teach, and times drawn by importance."""

import pytest
import torch
from helpers import PAPER

from mnist_ddpm import ddpm
from mnist_ddpm.methods.learned_variance import (
    ImportanceTimes,
    ancestral_sampler,
    keeping_exponent,
    l_hybrid,
    l_vlb,
    learned_denoiser,
    learned_step_variance,
    split_output,
    without_exponent,
)
from mnist_ddpm.methods.likelihood import bits_per_dim
from mnist_ddpm.methods.predictions import EPS, MU, X0, V, weighted
from mnist_ddpm.methods.schedules import cosine

TIMES = torch.tensor([1, 2, 30, 100])
SCHEDULE = cosine(100)
KINDS = pytest.mark.parametrize("conversion", [EPS, X0, V, MU], ids=["eps", "x0", "v", "mu"])


def example(n=4):
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(60, 200, (n, 1, 2, 2), generator=generator, dtype=torch.uint8)
    x0 = ddpm.to_float(levels).double()
    return x0, torch.randn(x0.shape, generator=generator, dtype=torch.float64)


def outputs(conversion, x0_hat):
    """A network that says x0_hat and some variance, and its two outputs, with gradients."""
    kept = {}

    def network(xt, t):
        value = conversion.from_x0(SCHEDULE, xt, t, x0_hat)
        v = torch.linspace(-0.9, 0.8, value.numel(), dtype=value.dtype).view(value.shape)
        kept["value"], kept["v"] = value.detach().requires_grad_(), v.requires_grad_()
        return torch.cat([kept["value"], kept["v"]], dim=1)

    return network, kept


def gradients(objective, network, kept, x0, eps):
    loss = objective(network, SCHEDULE, x0, TIMES, eps).sum()
    return torch.autograd.grad(loss, (kept["value"], kept["v"]))


@KINDS
def test_hybrid_loss_teaches_the_prediction_plainly_and_the_variance_by_the_bound(conversion):
    x0, eps = example()
    network, kept = outputs(conversion, 0.9 * x0 + 0.05)
    hybrid = gradients(l_hybrid(conversion), network, kept, x0, eps)
    alone = lambda xt, t: network(xt, t)[:, :1]  # noqa: E731
    loss = weighted(conversion)(alone, SCHEDULE, x0, TIMES, eps).sum()
    (plain,) = torch.autograd.grad(loss, kept["value"])
    bound = gradients(l_vlb(conversion), network, kept, x0, eps)
    torch.testing.assert_close(hybrid[0], plain)
    torch.testing.assert_close(hybrid[1], 0.001 * bound[1])
    assert (bound[0] != 0).all() and (bound[1] != 0).all()


@KINDS
def test_hybrid_loss_is_the_sum_of_both(conversion):
    """Where x0_hat needs no clipping; where it does, the bound is that of the clipped x0_hat."""
    x0, eps = example()

    def losses(objective, x0_hat):
        return objective(outputs(conversion, x0_hat)[0], SCHEDULE, x0, TIMES, eps)

    for x0_hat in (0.9 * x0, 5 * torch.ones_like(x0)):
        plain = losses(l_hybrid(conversion, weight=0), x0_hat)
        bound = losses(l_vlb(conversion), x0_hat.clamp(max=1))
        both = losses(l_hybrid(conversion, weight=1), x0_hat)
        torch.testing.assert_close(both, plain + bound)


@pytest.mark.parametrize("conversion", [EPS, X0], ids=["eps", "x0"])
def test_mean_of_l_vlb_over_all_times_is_the_bound(conversion):
    """With an x0_hat that does not depend on x_t, no term depends on the noise."""
    images = torch.tensor([[0, 255], [90, 140]], dtype=torch.uint8).view(1, 1, 2, 2)

    def network(xt, t):
        value = conversion.from_x0(SCHEDULE, xt, t, torch.full_like(xt, 0.1))
        return torch.cat([value, torch.full_like(xt, 0.3)], dim=1)

    denoise = learned_denoiser(network, SCHEDULE, conversion)
    bound = bits_per_dim(denoise, SCHEDULE, images, exponent=None)
    t, x0 = torch.arange(1, 101), ddpm.to_float(images).double().expand(100, -1, -1, -1)
    eps = torch.randn(x0.shape, dtype=x0.dtype, generator=torch.Generator().manual_seed(0))
    losses = l_vlb(conversion)(network, SCHEDULE, x0, t, eps)
    assert losses.mean().item() + bound.prior == pytest.approx(bound.mean, rel=1e-3)
    torch.testing.assert_close(losses / 100, bound.terms, rtol=1e-3, atol=1e-6)


def test_without_its_exponent_a_denoiser_is_clipped_and_sampled_as_any_other():
    """And the package's sampler is the notebook's where the variance is not learned."""
    network = lambda xt, t: torch.cat([0.1 * xt, 0.3 + 0 * xt], dim=1)  # noqa: E731
    denoise = learned_denoiser(network, PAPER, EPS)
    x = torch.linspace(-1, 1, 8).view(2, 1, 2, 2)
    plain = ddpm.clipped(without_exponent(denoise), PAPER)
    found = keeping_exponent(ddpm.clipped)(denoise, PAPER)(x, 300)
    assert all(map(torch.equal, found, (*plain(x, 300), denoise(x, 300)[2])))
    assert learned_step_variance.needs_exponent
    for variance in (ddpm.posterior_variance, ddpm.step_variance):
        options = plain, PAPER, [900, 400, 30], x, lambda: x, variance
        pairs = zip(ancestral_sampler(*options), ddpm.ddpm_sampler(*options), strict=True)
        assert all(torch.equal(ours[1], notebook[1]) for ours, notebook in pairs)


def test_exponents_0_and_1_are_the_posteriors_variance_and_betas():
    t, s = torch.tensor([2, 30, 1000]), torch.tensor([1, 7, 999])
    zero = torch.zeros(3, 1, 1, 1, dtype=torch.float64)
    for exponent, variance in ((zero, ddpm.posterior_variance), (zero + 1, ddpm.step_variance)):
        expected = variance(PAPER, t, s)
        torch.testing.assert_close(learned_step_variance(PAPER, t, s, exponent).flatten(), expected)
    last = [learned_step_variance(PAPER, 5, 0, zero[:1] + e).item() for e in (0, 0.5, 1)]
    assert last[0] == pytest.approx(0, abs=1e-100) and last[1] == pytest.approx(0, abs=1e-100)
    assert last[2] == pytest.approx(ddpm.step_variance(PAPER, 5, 0).item()), "no 0 · inf"


def test_a_variance_that_was_not_learned_is_refused():
    x = torch.zeros(1, 3, 1, 1)
    with pytest.raises(ValueError):
        learned_denoiser(lambda xt, t: xt, PAPER, EPS)(x, 10)
    with pytest.raises(ValueError):
        learned_step_variance(PAPER, 10, 9)
    with pytest.raises(ValueError):
        bits_per_dim(lambda xt, t: (xt, xt), PAPER, x.to(torch.uint8), exponent=None)
    value, exponent = split_output(torch.tensor([0.1, 0.2, -1, 1]).view(1, 4, 1, 1), 2)
    assert value.flatten().tolist() == pytest.approx([0.1, 0.2])
    assert exponent.flatten().tolist() == [0, 1]


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
    mean = (weights * losses[t - 1]).mean().item()
    assert mean == pytest.approx(losses.mean().item(), rel=0.02)


def test_times_by_importance_go_on_where_their_state_was_saved():
    times, again = filled(), ImportanceTimes(3)
    again.load_state_dict(times.state_dict())
    for each in (times, again):
        each.update(torch.tensor([2, 2, 3]), torch.tensor([9.0, 4.0, 1.0]))
    assert torch.equal(times.probability(), again.probability())
