"""The variational bound, on data whose entropy and whose best denoiser are known exactly."""

import math
from functools import partial

import pytest
import torch
from conftest import restless
from test_solvers import gaussian

from mnist_ddpm.ddpm import Prediction, Settings, UNet, ideal_denoiser, make_schedule, q_posterior, q_sample, to_float
from mnist_ddpm.likelihood import (
    Likelihood,
    bits_per_dim,
    bound_term,
    discretised_log_likelihood,
    gaussian_kl,
    prior_term,
    step_log_variance,
    strata,
)
from mnist_ddpm.schedules import cosine_schedule

bound_of = partial(bits_per_dim, progress=False)
LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1
BIN = 2 / 255


def silent(xt, t):
    return torch.zeros_like(xt)


def random_images(n, size=4, seed=0):
    return torch.randint(0, 256, (n, 1, size, size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def test_gaussian_kl_by_numerical_integration():
    (m1, s1), (m2, s2) = (0.3, 0.5), (-0.2, 0.8)
    x = torch.linspace(-6, 6, 20001, dtype=torch.float64)
    p, q = torch.distributions.Normal(m1, s1), torch.distributions.Normal(m2, s2)
    expected = torch.trapezoid(p.log_prob(x).exp() * (p.log_prob(x) - q.log_prob(x)), x)
    m1, v1, m2, v2 = (torch.tensor(v, dtype=torch.float64) for v in (m1, 2 * math.log(s1), m2, 2 * math.log(s2)))
    torch.testing.assert_close(gaussian_kl(m1, v1, m2, v2), expected, rtol=1e-6, atol=0)
    assert gaussian_kl(m1, v1, m1, v1) == 0


@pytest.mark.parametrize("bins", [1e-3, 0.1, 1, 30, 1e3])
@pytest.mark.parametrize("mean", [-30.0, -1.0, -0.4, 1 / 255, 0.123, 1.0, 1.5])
def test_the_256_levels_share_a_probability_of_one(mean, bins):
    log_variance = torch.full((256,), 2 * math.log(bins * BIN), dtype=torch.float64)
    log_p = discretised_log_likelihood(LEVELS, torch.full_like(LEVELS, mean), log_variance)
    assert log_p.exp().sum().item() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("deviation", [0.004, 0.05, 0.6])
@pytest.mark.parametrize("mean", [-1.2, -0.3, 0.5])
def test_each_level_has_the_gaussians_mass_between_its_neighbours(mean, deviation, dtype):
    """Simpson's rule over each bin; the outer ones reach 12 deviations further."""
    edges = torch.cat([LEVELS - BIN / 2, LEVELS[-1:] + BIN / 2])
    edges[0], edges[-1] = edges[0].clamp(max=mean) - 12 * deviation, edges[-1].clamp(min=mean) + 12 * deviation
    low, high = edges[:-1], edges[1:]
    position = torch.linspace(0, 1, 2001, dtype=torch.float64)[:, None]
    weight = torch.full_like(position, 2).index_fill_(0, torch.arange(1, 2000, 2), 4)
    weight[0] = weight[-1] = 1
    z = (low + position * (high - low) - mean) / deviation
    density = torch.exp(-z.square() / 2) / (deviation * math.sqrt(2 * math.pi))
    expected = (weight * density).sum(0) * (high - low) / 6000
    log_p = discretised_log_likelihood(
        LEVELS.to(dtype),
        torch.full((256,), mean, dtype=dtype),
        torch.full((256,), 2 * math.log(deviation), dtype=dtype),
    )
    torch.testing.assert_close(log_p.double().exp(), expected, rtol=0, atol=1e-5)
    if dtype == torch.float64:
        likely = expected > 1e-250
        torch.testing.assert_close(log_p[likely], expected[likely].log(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("deviation", [1e-2, 0.2, 5.0])
def test_likelihood_has_finite_values_and_right_gradients_far_in_the_tails(deviation):
    x0, mean = (v.flatten() for v in torch.meshgrid(LEVELS[::51], torch.linspace(-6, 6, 41).double(), indexing="ij"))
    gradients = []
    for dtype in (torch.float32, torch.float64):
        at_point = [v.to(dtype).requires_grad_() for v in (mean, torch.full_like(mean, 2 * math.log(deviation)))]
        log_p = discretised_log_likelihood(x0.to(dtype), *at_point)
        assert torch.isfinite(log_p).all()
        gradients.append(torch.autograd.grad(log_p.sum(), at_point))
    for single, double in zip(*gradients):
        assert torch.isfinite(double).all()
        torch.testing.assert_close(single.double(), double, rtol=0.05, atol=0.05)


def test_gradients_are_those_of_finite_differences():
    x0 = LEVELS[[0, 0, 90, 127, 255, 255]]
    mean = torch.tensor([-0.9, 0.5, -1.3, 0.01, 1.2, 0.7], dtype=torch.float64, requires_grad=True)
    log_variance = torch.tensor([-3.0, -1.0, 0.0, -9.0, -2.0, 1.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(discretised_log_likelihood, (x0, mean, log_variance))


def test_step_variance_lies_between_the_posteriors_and_beta(paper):
    t = torch.tensor([2, 500, 1000])
    posterior = q_posterior(paper, torch.zeros(3, 1, 1, 1), torch.zeros(3, 1, 1, 1), t, t - 1)[1]
    beta = paper.beta[t].view(-1, 1, 1, 1)
    torch.testing.assert_close(step_log_variance(paper, t, 0.0).exp(), posterior)
    torch.testing.assert_close(step_log_variance(paper, t, 1.0).exp(), beta)
    torch.testing.assert_close(step_log_variance(paper, t, 0.25).exp(), posterior**0.75 * beta**0.25)
    first = step_log_variance(paper, torch.tensor([1]), 0.0)  # where the posterior has none
    torch.testing.assert_close(first.exp().flatten(), posterior[0].flatten())


@pytest.mark.parametrize("exponent", [0.0, 1.0, 0.3])
def test_terms_have_their_expected_values_for_gaussian_data(paper, exponent):
    """The KL is quadratic in the normal variates of x_0 and eps: four points give its expectation exactly.

    By hand: the means differ by the factor of x_0 times its error, whose variance is that of q(x_0 | x_t).
    """
    mean, std, t = 0.2, 0.4, torch.arange(2, 1001)
    a, before, beta = paper.alpha_bar[t], paper.alpha_bar[t - 1], paper.beta[t]
    error = std**2 * (1 - a) / (a * std**2 + 1 - a)
    posterior = beta * (1 - before) / (1 - a)
    variance = posterior ** (1 - exponent) * beta**exponent
    factor = before.sqrt() * beta / (1 - a)
    expected = (variance / posterior).log() + posterior / variance - 1 + factor**2 * error / variance

    got = torch.zeros_like(expected)
    for z, e in ((2**0.5, 0), (-(2**0.5), 0), (0, 2**0.5), (0, -(2**0.5))):
        x0, eps = (torch.full((len(t), 1, 1, 1), v, dtype=torch.float64) for v in (mean + std * z, float(e)))
        xt = q_sample(paper, x0, t, eps)
        guess = gaussian(paper, mean, std)(xt, t)._replace(exponent=torch.full_like(xt, exponent))
        got += bound_term(paper, x0, xt, t, guess).flatten() / 4
    torch.testing.assert_close(got, expected / 2 / math.log(2), rtol=1e-8, atol=1e-12)


def test_the_last_term_is_the_decoder_around_the_mean_with_the_second_posteriors_variance(paper):
    x0 = to_float(torch.tensor([[[[0, 100, 255]]]])).double()
    xt, t = x0 + 0.01, torch.tensor([1])
    x0_hat = x0 + torch.tensor([0.001, -0.003, 0.0]).double()  # the mean of the step from t = 1 is x0_hat
    variance = step_log_variance(paper, torch.tensor([2]), 0.0)
    expected = -discretised_log_likelihood(x0, x0_hat, variance) / math.log(2)
    for exponent in (None, 0.0, 1.0):
        torch.testing.assert_close(bound_term(paper, x0, xt, t, Prediction(x0_hat, x0, exponent)), expected)


def test_prior_term_is_the_divergence_of_x_T_from_pure_noise():
    schedule = make_schedule(Settings(T=30))  # far from reaching it
    x0, a = torch.tensor([-1.0, 0.5]).double().view(2, 1, 1, 1), schedule.alpha_bar[-1]
    p = torch.distributions.Normal(a.sqrt() * x0, (1 - a).sqrt())
    expected = torch.distributions.kl_divergence(p, torch.distributions.Normal(torch.zeros_like(x0), 1.0))
    torch.testing.assert_close(prior_term(schedule, x0), expected / math.log(2), rtol=1e-9, atol=0)


@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_bound_of_gaussian_pixels_stays_above_their_entropy_and_comes_close(paper, variance):
    """2048 pixels at the quantiles of N(0, 0.3²), rounded to 8 bits."""
    std = 0.3
    quantiles = torch.special.ndtri((torch.arange(2048, dtype=torch.float64) + 0.5) / 2048) * std
    images = ((quantiles + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).view(2, 1, 32, 32)
    p = discretised_log_likelihood(LEVELS, torch.zeros_like(LEVELS), torch.full_like(LEVELS, 2 * math.log(std)))
    entropy = -(p.exp() * p).sum().item() / math.log(2)
    assert entropy == pytest.approx(0.5 * math.log2(2 * math.pi * math.e * std**2) - math.log2(BIN), abs=0.01)
    model, options = gaussian(paper, 0.0, std), {"variance": variance, "clip": False, "times_per_image": 250}
    bits = bound_of(model, paper, images, **options).mean
    assert entropy < bits < entropy + {"posterior": 0.8, "beta": 0.15}[variance]  # beta suits wide data better


def test_bound_of_three_points_falls_to_their_entropy_as_steps_are_added():
    """The decoder's share shrinks with its variance; what is left is log2(3), within the error of 240 draws."""
    points, totals = torch.tensor([[0, 0], [255, 60], [100, 200]], dtype=torch.uint8).view(3, 1, 1, 2), []
    for T in (10, 30, 100, 300, 1000, 4000):
        schedule = cosine_schedule(Settings(T=T))
        model = ideal_denoiser(schedule, to_float(points))
        bound = bound_of(model, schedule, points.repeat(80, 1, 1, 1), times_per_image=min(T, 100))
        totals.append(2 * bound.mean)
        assert totals[-1] > math.log2(3)
    assert totals == sorted(totals, reverse=True)
    decoder, error = 2 * bound.terms[0].item(), 2 * bound.standard_error
    assert error < 0.04 and decoder < 0.2
    assert totals[-1] - decoder == pytest.approx(math.log2(3), abs=4 * error)


def test_terms_and_prior_sum_to_the_bound():
    """On a schedule that is too short to reach pure noise, so that the prior counts."""
    bound = bound_of(silent, make_schedule(Settings(T=20)), random_images(6))
    assert bound.terms.shape == (20,) and bound.bits.shape == (6,) and bound.prior > 0.1
    assert bound.mean == pytest.approx(bound.terms.sum().item() + bound.prior, rel=1e-6)


def test_mean_and_standard_error_by_hand():
    bound = Likelihood(torch.tensor([1.0, 2.0, 6.0]), torch.zeros(1), 0.0)
    assert bound.mean == 3
    assert bound.standard_error == pytest.approx(math.sqrt((4 + 1 + 9) / 2 / 3))


@pytest.mark.parametrize("T", [1, 2, 3, 10, 57, 1000])
def test_strata_are_neighbours_from_1_to_T(T):
    for count in sorted({1, 2, 3, T // 2, T - 1, T} & set(range(1, T + 1))):
        ranges = list(strata(T, count))
        assert len(ranges) == count
        assert [t for first, last in ranges for t in range(first, last + 1)] == list(range(1, T + 1))


def test_strata_are_short_where_t_is_small():
    sizes = [last - first + 1 for first, last in strata(1000, 20)]
    assert sizes[0] == 1 and sizes[:-1] == sorted(sizes[:-1]) and sizes[-1] > 80


@pytest.mark.parametrize(("count", "precision"), [(1, 0.06), (5, 0.005)])
def test_drawing_some_times_for_each_image_is_unbiased(count, precision):
    schedule, images = cosine_schedule(Settings(T=20)), random_images(1, size=8).repeat(2000, 1, 1, 1)
    model = gaussian(schedule, 0.1, 0.4)
    whole = bound_of(model, schedule, images[:200], seed=1)
    some = bound_of(model, schedule, images, times_per_image=count)
    error = math.hypot(whole.standard_error, some.standard_error)
    assert error < precision * whole.mean
    assert abs(some.mean - whole.mean) < 4 * error


def test_terms_of_times_never_drawn_are_nan():
    terms = bound_of(silent, cosine_schedule(Settings(T=100)), random_images(3), times_per_image=5).terms
    assert terms[0].isfinite() and 3 <= terms.isfinite().sum() <= 15


@pytest.mark.parametrize("times", [None, 4])
def test_bound_of_an_image_does_not_depend_on_the_batch_size(times):
    schedule, images = cosine_schedule(Settings(T=12)), random_images(7)
    whole = bound_of(silent, schedule, images, times_per_image=times)
    for batch_size in (1, 3):
        parts = bound_of(silent, schedule, images, times_per_image=times, batch_size=batch_size)
        torch.testing.assert_close(parts.bits, whole.bits)
        torch.testing.assert_close(parts.terms, whole.terms, equal_nan=True)
        assert parts.prior == pytest.approx(whole.prior)


def test_seeds_decide_the_noise():
    run = partial(bound_of, silent, cosine_schedule(Settings(T=12)), random_images(2), times_per_image=4)
    assert torch.equal(run(seed=3).bits, run(seed=3).bits) and not torch.equal(run(seed=3).bits, run(seed=4).bits)


def test_margin_leaves_out_the_edge():
    """A model that knows the inner pixels and errs at the edge; a schedule short enough for the prior to count."""
    schedule = make_schedule(Settings(T=30))
    images = random_images(3, size=6)
    images[..., 1:-1, 1:-1] = 128
    x0 = to_float(images)

    def model(xt, t):
        wrong = torch.zeros_like(xt)
        wrong[..., 1:-1, 1:-1] = x0[..., 1:-1, 1:-1]
        return Prediction(wrong, xt)

    inner, whole = (bound_of(model, schedule, images, margin=margin) for margin in (1, 0))
    assert inner.terms[1:].abs().max() < 1e-6 and whole.terms[1:].min() > 0.01
    assert inner.prior == pytest.approx(prior_term(schedule, x0[..., 1:-1, 1:-1]).mean().item(), rel=1e-5)
    assert whole.prior == pytest.approx(prior_term(schedule, x0).mean().item(), rel=1e-5)


def test_learned_variance_at_its_ends_is_the_posteriors_and_beta():
    schedule, images = cosine_schedule(Settings(T=12)), random_images(3)

    def told(v):
        return lambda xt, t: torch.cat([0.5 * xt, torch.full_like(xt, v)], dim=1)

    for variance, v in (("posterior", -1.0), ("beta", 1.0)):
        fixed = bound_of(told(0.3), schedule, images, variance=variance)
        learned = bound_of(told(v), schedule, images, variance="learned")
        torch.testing.assert_close(learned.terms[1:], fixed.terms[1:])
        assert torch.isclose(learned.terms[0], fixed.terms[0]) == (variance == "posterior")


def test_clip_bounds_the_expected_image():
    schedule, images = cosine_schedule(Settings(T=12)), random_images(3)
    run = partial(bound_of, lambda xt, t: -3 * torch.ones_like(xt), schedule, images)
    assert run().mean < run(clip=False).mean


def test_variance_that_was_not_learned_is_refused(paper):
    with pytest.raises(ValueError, match="has learned no variance"):
        bound_of(silent, paper, random_images(1), variance="learned")


@pytest.mark.parametrize("count", [-1, 0, 13])
def test_impossible_numbers_of_times_are_refused(count):
    with pytest.raises(ValueError, match="from 1 to T = 12"):
        bound_of(silent, cosine_schedule(Settings(T=12)), random_images(1), times_per_image=count)


def test_batches_without_images_are_refused(paper):
    with pytest.raises(ValueError, match="batch_size is -1: it must be at least 1"):
        bound_of(silent, paper, random_images(1), batch_size=-1)


def test_a_margin_that_leaves_nothing_is_refused(paper):
    with pytest.raises(ValueError, match="margin is 1: nothing would be left of images of 2 pixels"):
        bits_per_dim(lambda xt, t: xt, paper, torch.zeros(1, 1, 2, 2, dtype=torch.uint8), margin=1, progress=False)


def test_dropout_is_off_while_the_bound_is_measured(paper):
    model = restless(UNet(base_channels=8, channel_mults=(1,), image_size=8, dropout=0.5))
    images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    a, b = (bits_per_dim(model.train(), paper, images, times_per_image=5, progress=False).bits for _ in range(2))
    assert torch.equal(a, b)
