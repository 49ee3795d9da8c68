"""The variational bound, on data whose entropy and whose best denoiser are known exactly."""

import math
from functools import partial

import pytest
import torch
from helpers import PAPER, STRAIGHT
from test_solvers import gaussian

from mnist_ddpm import ddpm
from mnist_ddpm.methods.likelihood import (
    Bound,
    bits_per_dim,
    bound_term,
    discretised_log_likelihood,
    gaussian_kl,
    prior_term,
    step_log_variance,
    strata,
)
from mnist_ddpm.methods.schedules import cosine, linear, log_snr

LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1
BIN = 2 / 255


def silent(schedule):
    """A denoiser that never sees any noise."""
    denoise = lambda xt, t: (xt / ddpm.per_image(schedule.at(t)[0], xt), 0 * xt)  # noqa: E731
    return ddpm.clipped(denoise, schedule)


def random_images(n, size=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 1, size, size), generator=generator, dtype=torch.uint8)


def test_gaussian_kl_by_numerical_integration():
    (m1, s1), (m2, s2) = (0.3, 0.5), (-0.2, 0.8)
    x = torch.linspace(-6, 6, 20001, dtype=torch.float64)
    p, q = torch.distributions.Normal(m1, s1), torch.distributions.Normal(m2, s2)
    density = p.log_prob(x).exp()
    expected = torch.trapezoid(density * (p.log_prob(x) - q.log_prob(x)), x)
    m1, v1, m2, v2 = torch.tensor([m1, 2 * math.log(s1), m2, 2 * math.log(s2)]).double()
    torch.testing.assert_close(gaussian_kl(m1, v1, m2, v2), expected, rtol=1e-6, atol=0)
    assert gaussian_kl(m1, v1, m1, v1) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("deviation", [0.004, 0.05, 0.6])
@pytest.mark.parametrize("mean", [-1.2, -0.3, 0.5])
def test_each_level_has_the_gaussians_mass_between_its_neighbours(mean, deviation, dtype):
    """Simpson's rule over each bin; the outer ones reach 12 deviations further."""
    edges = torch.cat([LEVELS - BIN / 2, LEVELS[-1:] + BIN / 2])
    edges[0] = edges[0].clamp(max=mean) - 12 * deviation
    edges[-1] = edges[-1].clamp(min=mean) + 12 * deviation
    low, high = edges[:-1], edges[1:]
    position = torch.linspace(0, 1, 2001, dtype=torch.float64)[:, None]
    weight = torch.full_like(position, 2).index_fill_(0, torch.arange(1, 2000, 2), 4)
    weight[0] = weight[-1] = 1
    z = (low + position * (high - low) - mean) / deviation
    density = torch.exp(-z.square() / 2) / (deviation * math.sqrt(2 * math.pi))
    expected = (weight * density).sum(0) * (high - low) / 6000
    given = torch.tensor([mean, 2 * math.log(deviation)], dtype=dtype)[:, None].expand(2, 256)
    log_p = discretised_log_likelihood(LEVELS.to(dtype), *given)
    torch.testing.assert_close(log_p.double().exp(), expected, rtol=0, atol=1e-5)
    if dtype == torch.float64:
        likely = expected > 1e-250
        torch.testing.assert_close(log_p[likely], expected[likely].log(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("deviation", [1e-2, 0.2, 5.0])
def test_likelihood_has_finite_values_and_right_gradients_far_in_the_tails(deviation):
    far = torch.linspace(-6, 6, 41).double()
    x0, mean = (v.flatten() for v in torch.meshgrid(LEVELS[::51], far, indexing="ij"))
    log_variance, gradients = torch.full_like(mean, 2 * math.log(deviation)), []
    for dtype in (torch.float32, torch.float64):
        point = [v.to(dtype).requires_grad_() for v in (mean, log_variance)]
        log_p = discretised_log_likelihood(x0.to(dtype), *point)
        assert torch.isfinite(log_p).all()
        gradients.append(torch.autograd.grad(log_p.sum(), point))
    for single, double in zip(*gradients):
        assert torch.isfinite(double).all()
        torch.testing.assert_close(single.double(), double, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("schedule", [PAPER, STRAIGHT], ids=["paper", "straight"])
def test_step_variance_lies_between_the_posteriors_and_beta(schedule):
    t = torch.tensor([2, 500, 1000])
    low, high = (f(schedule, t, t - 1) for f in (ddpm.posterior_variance, ddpm.step_variance))
    for e, expected in ((0.0, low), (1.0, high), (0.25, low**0.75 * high**0.25)):
        exponent = torch.full((3, 1, 1, 1), e, dtype=torch.float64)
        got = step_log_variance(schedule, t, exponent).exp().flatten()
        torch.testing.assert_close(got, expected)
    zero = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    first = step_log_variance(schedule, torch.tensor([1]), zero)  # where the posterior has none
    torch.testing.assert_close(first.exp().flatten(), low[:1])
    finest = log_snr(1000)  # whose beta_2 is far below beta_1
    floor = step_log_variance(finest, torch.tensor([1]), zero).exp().item()
    assert floor == pytest.approx(finest.b[1].item() ** 2 / 2)
    alone = step_log_variance(linear(1, 0.3, 0.3), torch.tensor([1]), zero)
    assert alone.exp().item() == pytest.approx(0.3)


@pytest.mark.parametrize("schedule", [PAPER, STRAIGHT], ids=["paper", "straight"])
@pytest.mark.parametrize("exponent", [0.0, 1.0, 0.3])
def test_terms_have_their_expected_values_for_gaussian_data(schedule, exponent):
    """The KL is quadratic in the normal variates of x_0 and eps: four points give its mean exactly.

    By hand: the means differ by the factor of x_0 times its error, whose variance is that of
    q(x_0 | x_t).
    """
    mean, std, t = 0.2, 0.4, torch.arange(2, 1001)
    (a_t, b_t), (a_s, b_s) = schedule.at(t), schedule.at(t - 1)
    beta = b_t**2 - (a_t / a_s * b_s) ** 2
    error = std**2 * b_t**2 / (a_t**2 * std**2 + b_t**2)
    posterior = beta * b_s**2 / b_t**2
    variance = posterior ** (1 - exponent) * beta**exponent
    factor = a_s * beta / b_t**2
    expected = (variance / posterior).log() + posterior / variance - 1
    expected += factor**2 * error / variance

    got, root = torch.zeros_like(expected), 2**0.5
    for z, e in ((root, 0), (-root, 0), (0, root), (0, -root)):
        options = {"dtype": torch.float64}
        x0, eps = (torch.full((999, 1, 1, 1), v, **options) for v in (mean + std * z, float(e)))
        xt = ddpm.q_sample(schedule, x0, t, eps)
        x0_hat, _ = gaussian(schedule, mean, std)(xt, t)
        for given in (exponent, torch.full_like(xt, exponent)):
            got += bound_term(schedule, x0, xt, t, x0_hat, given).flatten() / 8
    torch.testing.assert_close(got, expected / 2 / math.log(2), rtol=1e-8, atol=1e-12)


def test_the_last_term_is_the_decoder_with_the_second_posteriors_variance():
    x0 = ddpm.to_float(torch.tensor([[[[0, 100, 255]]]], dtype=torch.uint8)).double()
    xt, t = x0 + 0.01, torch.tensor([1])
    # the mean of the step from t = 1 is x0_hat
    x0_hat = x0 + torch.tensor([0.001, -0.003, 0.0]).double()
    log_variance = ddpm.posterior_variance(PAPER, 2, 1).log()
    expected = -discretised_log_likelihood(x0, x0_hat, log_variance) / math.log(2)
    for exponent in (0.0, 1.0, torch.zeros_like(xt)):
        torch.testing.assert_close(bound_term(PAPER, x0, xt, t, x0_hat, exponent), expected)
    log_variance = ddpm.step_variance(PAPER, 1, 0).log()
    expected = -discretised_log_likelihood(x0, x0_hat, log_variance) / math.log(2)
    learned = bound_term(PAPER, x0, xt, t, x0_hat, torch.ones_like(xt))
    torch.testing.assert_close(learned, expected)


def test_prior_term_is_the_divergence_of_x_T_from_pure_noise():
    schedule = linear(30)  # far from reaching it
    x0, (a_t, b_t) = torch.tensor([-1.0, 0.5]).double().view(2, 1, 1, 1), schedule.at(30)
    p = torch.distributions.Normal(a_t * x0, b_t)
    pure = torch.distributions.Normal(torch.zeros_like(x0), 1.0)
    expected = torch.distributions.kl_divergence(p, pure) / math.log(2)
    torch.testing.assert_close(prior_term(schedule, x0), expected, rtol=1e-9, atol=0)


def test_bound_of_three_points_falls_to_their_entropy_as_steps_are_added():
    """The decoder's share shrinks with its variance; what is left is log2(3), within 4 errors."""
    points = torch.tensor([[0, 0], [255, 60], [100, 200]], dtype=torch.uint8).view(3, 1, 1, 2)
    images, totals = points.repeat(80, 1, 1, 1), []
    for T in (10, 30, 100, 300, 1000, 4000):
        schedule = cosine(T)
        denoise = ddpm.ideal_denoiser(schedule, ddpm.to_float(points))
        bound = bits_per_dim(denoise, schedule, images, times_per_image=min(T, 100))
        totals.append(2 * bound.mean)
        assert totals[-1] > math.log2(3)
    assert totals == sorted(totals, reverse=True)
    decoder, error = 2 * bound.terms[0].item(), 2 * bound.standard_error
    assert error < 0.04 and decoder < 0.2
    assert totals[-1] - decoder == pytest.approx(math.log2(3), abs=4 * error)


def test_terms_and_prior_sum_to_the_bound():
    """On a schedule that is too short to reach pure noise, so that the prior counts."""
    schedule = linear(20)
    bound = bits_per_dim(silent(schedule), schedule, random_images(6))
    assert bound.terms.shape == (20,) and bound.bits.shape == (6,) and bound.prior > 0.1
    assert bound.mean == pytest.approx(bound.terms.sum().item() + bound.prior, rel=1e-6)


def test_mean_and_standard_error_by_hand():
    bound = Bound(torch.tensor([1.0, 2.0, 6.0]), torch.zeros(1), 0.0)
    assert bound.mean == 3
    assert bound.standard_error == pytest.approx(math.sqrt((4 + 1 + 9) / 2 / 3))


@pytest.mark.parametrize("T", [1, 2, 3, 10, 57, 1000])
def test_strata_are_neighbours_from_1_to_T(T):
    for count in sorted({1, 2, 3, T // 2, T - 1, T} & set(range(1, T + 1))):
        ranges = list(strata(T, count))
        assert len(ranges) == count
        times = [t for first, last in ranges for t in range(first, last + 1)]
        assert times == list(range(1, T + 1))
    if T == 1000:
        sizes = [last - first + 1 for first, last in strata(T, 20)]
        assert sizes[0] == 1 and sizes[:-1] == sorted(sizes[:-1]) and sizes[-1] > 80


@pytest.mark.parametrize(("count", "precision"), [(1, 0.06), (5, 0.005)])
def test_drawing_some_times_for_each_image_is_unbiased(count, precision):
    schedule, images = cosine(20), random_images(1, size=8).repeat(2000, 1, 1, 1)
    denoise = gaussian(schedule, 0.1, 0.4)
    whole = bits_per_dim(denoise, schedule, images[:200], seed=1)
    some = bits_per_dim(denoise, schedule, images, times_per_image=count)
    error = math.hypot(whole.standard_error, some.standard_error)
    assert error < precision * whole.mean
    assert abs(some.mean - whole.mean) < 4 * error


def test_terms_of_times_never_drawn_are_nan():
    schedule = cosine(100)
    bound = bits_per_dim(silent(schedule), schedule, random_images(3), times_per_image=5)
    assert bound.terms[0].isfinite() and 3 <= bound.terms.isfinite().sum() <= 15


def test_a_bound_that_is_no_number_stops_the_first_batch():
    schedule, asked = cosine(12), []

    def broken(xt, t):
        asked.extend(t.tolist())
        return xt * math.nan, xt

    with pytest.raises(FloatingPointError):
        bits_per_dim(broken, schedule, random_images(6), batch_size=2)
    assert len(asked) == 2 * schedule.T


@pytest.mark.parametrize("times", [None, 4])
def test_bound_of_an_image_depends_on_the_seed_and_not_on_the_batch_size(times):
    schedule, images = cosine(12), random_images(7)
    run = partial(bits_per_dim, silent(schedule), schedule, images, times_per_image=times)
    whole = run()
    for batch_size in (1, 3):
        parts = run(batch_size=batch_size)
        torch.testing.assert_close(parts.bits, whole.bits)
        torch.testing.assert_close(parts.terms, whole.terms, equal_nan=True)
        assert parts.prior == pytest.approx(whole.prior)
    assert not torch.equal(run(seed=4).bits, whole.bits)


def test_margin_leaves_out_the_edge():
    """A denoiser that knows the inner pixels and errs at the edge; a prior that counts."""
    schedule = linear(30)
    images = random_images(3, size=6)
    images[..., 1:-1, 1:-1] = 128
    x0 = ddpm.to_float(images)
    guess = torch.zeros_like(x0)
    guess[..., 1:-1, 1:-1] = x0[..., 1:-1, 1:-1]
    denoise = lambda xt, t: (guess, xt)  # noqa: E731
    inner, whole = (bits_per_dim(denoise, schedule, images, margin=margin) for margin in (1, 0))
    assert inner.terms[1:].abs().max() < 1e-6 and whole.terms[1:].min() > 0.01
    prior = prior_term(schedule, x0)
    assert inner.prior == pytest.approx(prior[..., 1:-1, 1:-1].mean().item(), rel=1e-5)
    assert whole.prior == pytest.approx(prior.mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"times_per_image": -1},
        {"times_per_image": 0},
        {"times_per_image": 13},
        {"batch_size": 0},
        {"margin": 2},
        {"seed": 2**32},
    ],
    ids=str,
)
def test_what_cannot_be_measured_is_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        bits_per_dim(silent(PAPER), cosine(12), random_images(1), **wrong)
