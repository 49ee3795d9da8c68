"""Schedule, forward process and posterior, against closed forms and brute force."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mnist_ddpm import ddpm
from mnist_ddpm.ddpm import (
    Schedule,
    Settings,
    at,
    make_schedule,
    predict_eps,
    predict_x0,
    q_posterior,
    q_sample,
    to_float,
)


def test_linear_schedule_has_the_papers_values(paper):
    beta = [1e-4 + (0.02 - 1e-4) * (t - 1) / 999 for t in range(1, 1001)]
    assert paper.T == 1000 and len(paper.alpha_bar) == 1001
    assert paper.beta.dtype == paper.alpha_bar.dtype == torch.float64
    np.testing.assert_allclose(paper.beta[1:], beta, rtol=1e-12)
    np.testing.assert_allclose(paper.alpha_bar[1:], np.cumprod(1 - np.array(beta)), rtol=1e-12)
    assert paper.alpha_bar[0] == 1 and paper.beta[0] == 0
    assert paper.alpha_bar[1000].item() == pytest.approx(4.0358e-5, rel=1e-4)


def test_a_schedule_of_ones_own_needs_only_its_betas():
    schedule = Schedule.from_beta(torch.tensor([0.5, 0.5]))
    assert schedule.alpha_bar.tolist() == [1, 0.5, 0.25]


def test_unknown_schedule_is_named():
    with pytest.raises(ValueError, match='"cosin" is unknown: take one of linear'):
        make_schedule(replace(Settings(), schedule="cosin"))


def test_a_schedule_of_another_length_is_refused(monkeypatch):
    monkeypatch.setitem(ddpm.SCHEDULES, "mine", lambda settings: Schedule.from_beta(torch.tensor([0.5, 0.5])))
    with pytest.raises(ValueError, match="the tables of mine end at 2: they must have entries 0 to T = 9"):
        make_schedule(Settings(schedule="mine", T=9))


@pytest.mark.parametrize(
    "wrong",
    [
        {"T": 0},
        {"channels": 2},
        {"epochs": 0},
        {"beta_1": 0.0},
        {"beta_1": 0.5, "beta_T": 0.1},
        {"beta_T": 1.0},
        {"learning_rate": 0.0},
        {"seed": -1},
        {"dropout": 1.0},
        {"ema_decay": 1.5},
        {"label_dropout": 1.0},
        {"classes": -1},
        {"precision": "float64"},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Settings(**wrong)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"T": 1e3}, "T is 1000.0: it must be a whole number"),
        ({"batch_size": "64"}, "batch_size is '64': it must be a whole number"),
        ({"beta_1": "0.1"}, "beta_1 is '0.1': it must be a number"),
        ({"compile": "false"}, "compile is 'false': it must be True or False"),
        ({"learning_rate": "1e-3"}, "learning_rate is '1e-3': it must be a number"),
        ({"seed": np.int64(3)}, "seed is np.int64.3.: it must be a whole number .int."),  # which no file would take
        ({"channels": "1"}, "channels is '1': it must be 1 .grey. or 3"),
        ({"channel_mults": 4}, "channel_mults is 4: it must be a list of whole numbers"),
        ({"channel_mults": [1, 1.5]}, "channel_mults is .1, 1.5.: it must be a list of whole numbers"),
        ({"attention_resolutions": 8}, "attention_resolutions is 8: it must be a list"),
        ({"attributes": "Smiling"}, "attributes is 'Smiling': it must be a list of names"),
    ],
)
def test_settings_of_a_wrong_kind_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        Settings(**values)


def test_closed_form_equals_the_chain(paper):
    """The mean and variance that single steps carry on, eq. 2, are those of eq. 4."""
    x0 = torch.full((1, 1, 1, 1), 0.7, dtype=torch.float64)
    mean, variance = x0.clone(), torch.zeros_like(x0)
    for t in range(1, paper.T + 1):
        mean, variance = paper.alpha[t].sqrt() * mean, paper.alpha[t] * variance + paper.beta[t]
        torch.testing.assert_close(q_sample(paper, x0, t, torch.zeros_like(x0)), mean)
        torch.testing.assert_close(q_sample(paper, 0 * x0, t, torch.ones_like(x0)), variance.sqrt())


def test_forward_moments(paper):
    n = 200_000
    x0 = torch.full((n, 1, 1, 1), -0.6)
    xt = q_sample(paper, x0, 300, torch.randn(n, 1, 1, 1, generator=torch.Generator().manual_seed(0)))
    alpha_bar = paper.alpha_bar[300].item()
    assert xt.mean().item() == pytest.approx(-0.6 * alpha_bar**0.5, abs=4 * (1 - alpha_bar) ** 0.5 / n**0.5)
    assert xt.var().item() == pytest.approx(1 - alpha_bar, rel=0.02)


def test_each_image_gets_its_own_time(paper):
    x0, eps = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4)
    times = torch.tensor([1, 500, 1000])
    together = q_sample(paper, x0, times, eps)
    for k, t in enumerate(times.tolist()):
        torch.testing.assert_close(together[k], q_sample(paper, x0[k : k + 1], t, eps[k : k + 1])[0])


def test_predict_x0_and_predict_eps_invert_q_sample(paper):
    x0, eps = torch.randn(2, 1, 4, 4).double(), torch.randn(2, 1, 4, 4).double()
    for t in (1, 500, 1000, torch.tensor([3, 900])):
        xt = q_sample(paper, x0, t, eps)
        torch.testing.assert_close(predict_x0(paper, xt, t, eps), x0)
        torch.testing.assert_close(predict_eps(paper, xt, t, x0), eps)


@pytest.mark.parametrize(("t", "s"), [(1000, 999), (500, 499), (2, 1), (700, 300), (50, 20)])
def test_posterior_is_the_product_of_two_gaussians(paper, t, s):
    """q(x_s | x_t, x_0) is proportional to q(x_t | x_s) q(x_s | x_0): integrate that product on a fine grid."""
    x0, xt = 0.4, -0.3
    a_t, a_s = paper.alpha_bar[t].item(), paper.alpha_bar[s].item()
    grid = np.linspace(-12, 12, 2_000_001)
    ratio = a_t / a_s
    log = -((xt - ratio**0.5 * grid) ** 2) / (2 * (1 - ratio)) - (grid - a_s**0.5 * x0) ** 2 / (2 * (1 - a_s))
    weight = np.exp(log - log.max())
    mean = np.average(grid, weights=weight)
    variance = np.average((grid - mean) ** 2, weights=weight)
    column = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    got_mean, got_variance = q_posterior(paper, x0 * column, xt * column, t, s)
    assert got_mean.item() == pytest.approx(mean, rel=1e-6)
    assert got_variance.item() == pytest.approx(variance, rel=1e-5)


def test_posterior_by_hand():
    """beta = (0.5, 0.5): alpha_bar = (0.5, 0.25), so at t = 2 the weights are 1/3 * sqrt(0.5) * 0.5 / 0.5 and so on."""
    schedule = Schedule.from_beta(torch.tensor([0.5, 0.5]))
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    mean, variance = q_posterior(schedule, 3 * one, 0 * one, 2, 1)
    assert mean.item() == pytest.approx(3 * 0.5**0.5 * 0.5 / 0.75)
    mean, variance = q_posterior(schedule, 0 * one, 3 * one, 2, 1)
    assert mean.item() == pytest.approx(3 * 0.5**0.5 * 0.5 / 0.75)
    assert variance.item() == pytest.approx(0.5 * 0.5 / 0.75)


def test_posterior_takes_times_of_a_batch(paper):
    x0, xt = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4)
    mean, variance = q_posterior(paper, x0, xt, torch.tensor([10, 900]), torch.tensor([9, 899]))
    for k, t in enumerate((10, 900)):
        one, its = q_posterior(paper, x0[k : k + 1], xt[k : k + 1], t, t - 1)
        torch.testing.assert_close(mean[k : k + 1], one)
        assert variance[k].item() == its.item()
    assert mean.dtype == torch.float32


def test_at_shapes(paper):
    assert at(paper.beta, 3).shape == () and at(paper.beta, torch.tensor([3, 4])).shape == (2, 1, 1, 1)


def test_uint8_round_trip():
    levels = torch.arange(256, dtype=torch.uint8)
    x = ddpm.to_float(levels)
    assert x.min() == -1 and x.max() == 1 and torch.equal(ddpm.to_uint8(x), levels)
    assert ddpm.to_uint8(torch.tensor([-7.0, 7.0])).tolist() == [0, 255]


def test_floats_are_no_pixels():
    digits = torch.full((2, 1, 2, 2), 200, dtype=torch.uint8)
    with pytest.raises(ValueError, match="images must be uint8, 0 to 255, and these are torch.float32"):
        to_float(digits.float())
