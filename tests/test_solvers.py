"""Solvers, on data that are one Gaussian: the best denoiser is linear, the ODE's solution known."""

import math
from functools import partial

import pytest
import torch
from helpers import no_noise

from mnist_ddpm.ddpm import (
    Schedule,
    clipped,
    ddim_sampler,
    ddpm_sampler,
    ideal_denoiser,
    noise_source,
    predict_eps,
    step_variance,
    timesteps,
)
from mnist_ddpm.methods.schedules import (
    cosine,
    leading,
    linear,
    linspace,
    quadratic_times,
    zero_terminal_snr,
)
from mnist_ddpm.methods.solvers import ddim_encoder, dpmpp_2m_sampler, heun_sampler, thresholded

MEAN = torch.tensor([-0.5, 0.3, 0.0], dtype=torch.float64).view(1, 1, 1, 3)
STD = torch.tensor([0.2, 0.7, 1.5], dtype=torch.float64).view(1, 1, 1, 3)  # of the three pixels

PAPER = linear()
FINE = linear(4000, 1e-4 / 4, 0.02 / 4)  # the paper's, in steps a quarter as large
t_linear = torch.arange(1001, dtype=torch.float64) / 1000
STRAIGHT = Schedule(1 - t_linear, t_linear)  # of flow matching


def gaussian(schedule, mean=MEAN, std=STD):
    """The exact E[x_0 | x_t] and E[eps | x_t] for pixels N(mean, std²)."""

    def denoise(xt, t):
        a_t, b_t = (value.view(-1, 1, 1, 1) for value in schedule.at(t))
        scaled = (xt - a_t * mean) / (a_t**2 * std**2 + b_t**2)
        x0_hat, eps_hat = mean + a_t * std**2 * scaled, b_t * scaled
        return x0_hat.to(xt.dtype), eps_hat.to(xt.dtype)

    return denoise


def flow(schedule, x, t, s):
    """Where the probability-flow ODE leads x_t at time s: each quantile stays a quantile."""
    (a_t, b_t), (a_s, b_s) = schedule.at(t), schedule.at(s)
    score = (x - a_t * MEAN) / (a_t**2 * STD**2 + b_t**2).sqrt()
    return a_s * MEAN + (a_s**2 * STD**2 + b_s**2).sqrt() * score


def state_at(states, time):
    return next(x for t, x, _ in states if t == time)


def start():
    return torch.tensor([-1.3, 0.4, 2.0], dtype=torch.float64).view(3, 1, 1, 1).expand(3, 1, 1, 3)


@pytest.mark.parametrize(
    ("sampler", "low", "high"),
    [(ddim_sampler, 1.7, 2.4), (heun_sampler, 3.2, 5), (dpmpp_2m_sampler, 3.2, 5)],
)
def test_errors_fall_at_the_solvers_order(sampler, low, high):
    """Measured at t = 160: the step from there to 0 is one of first order for all."""
    x, end, errors = start(), 160, []
    for steps in (60, 120, 240):
        times = list(range(4000, end - 1, -(4000 - end) // steps))
        got = state_at(sampler(gaussian(FINE), FINE, times, x, no_noise), end)
        errors.append((got - flow(FINE, x, 4000, end)).square().mean().sqrt().item())
    assert errors[-1] < 0.03
    assert all(low < coarse / finer < high for coarse, finer in zip(errors, errors[1:])), errors


@pytest.mark.parametrize(
    ("sampler", "steps"), [(ddim_sampler, 4000), (heun_sampler, 250), (dpmpp_2m_sampler, 250)]
)
def test_many_steps_follow_the_flow_to_the_image(sampler, steps):
    x = start()
    got = state_at(sampler(gaussian(FINE), FINE, timesteps(4000, steps), x, no_noise), 0)
    torch.testing.assert_close(got, flow(FINE, x, 4000, 0), rtol=0, atol=3e-3)


@pytest.mark.parametrize("spacing", [timesteps, leading, linspace, quadratic_times])
@pytest.mark.parametrize("steps", [5, 10, 20, 50])
def test_second_order_is_no_worse_than_first_for_any_spacing(spacing, steps):
    """The last two steps of leading and linspace are far longer, in lambda, than those before."""
    times, x, errors = spacing(1000, steps), start(), []
    for sampler in (dpmpp_2m_sampler, ddim_sampler):
        got = state_at(sampler(gaussian(PAPER), PAPER, times, x, no_noise), 0)
        errors.append((got - flow(PAPER, x, times[0], 0)).square().mean().sqrt().item())
    assert errors[0] < errors[1]


def moments(sampler, schedule, times, draws):
    """Mean and deviation of the samples, exact.

    With a linear denoiser, a sample is linear in each of its noises.
    """
    unit = torch.eye(draws + 2, dtype=torch.float64).view(-1, draws + 2, 1, 1, 1)
    calls = iter(unit[:, 2:].unbind(1))
    # image 0 has no noise, image 1 that of x_T, image k + 2 that of draw k
    x = unit[:, 1].expand(-1, 1, 1, 3)
    out = state_at(sampler(gaussian(schedule), schedule, times, x, lambda: next(calls)), 0)
    assert next(calls, None) is None
    return out[0, 0, 0], (out[1:] - out[0]).square().sum(0)[0, 0].sqrt()


@pytest.mark.parametrize(
    ("sampler", "noisy", "error"),
    [
        (ddpm_sampler, True, 0.02),
        (partial(ddpm_sampler, variance=step_variance), True, 0.006),
        (ddim_sampler, False, 0.01),
        (partial(ddim_sampler, eta=0.5), True, 0.012),
        (partial(ddim_sampler, eta=1.0), True, 0.02),
        (heun_sampler, False, 0.002),
        (dpmpp_2m_sampler, False, 0.002),
        (partial(dpmpp_2m_sampler, eta=0.5), True, 0.002),
        (partial(dpmpp_2m_sampler, eta=1.0), True, 0.002),
        (partial(dpmpp_2m_sampler, eta=1.5), True, 0.003),
    ],
    ids=["posterior", "beta", "ddim", "ddim-0.5", "ddim-1", "heun", "dpmpp", "dpmpp-0.5", "dpmpp-1",
         "dpmpp-1.5"],
)  # fmt: skip
@pytest.mark.parametrize(
    "schedule",
    [PAPER, zero_terminal_snr(cosine()), STRAIGHT],
    ids=["paper", "cosine-zero-snr", "straight"],
)
def test_samples_have_the_mean_and_the_deviation_of_the_data(schedule, sampler, noisy, error):
    mean, std = moments(sampler, schedule, timesteps(1000, 1000), 999 if noisy else 0)
    torch.testing.assert_close(mean, MEAN.flatten(), rtol=0, atol=0.002)
    torch.testing.assert_close(std, STD.flatten(), rtol=error, atol=0)


@pytest.mark.parametrize(
    "sampler",
    [
        ddpm_sampler,
        ddim_sampler,
        partial(ddim_sampler, eta=1.0),
        heun_sampler,
        dpmpp_2m_sampler,
        partial(dpmpp_2m_sampler, eta=1.0),
    ],
    ids=["ddpm", "ddim", "ddim-1", "heun", "dpmpp", "dpmpp-1"],
)
def test_every_sampler_carries_noise_to_the_data_on_the_straight_path(sampler):
    """Flow matching's, where signal and noise do not share a circle."""
    points = torch.tensor([-0.8, 0.6]).view(2, 1, 1, 1)
    draw_noise, denoise = noise_source(0, range(400), (1, 1, 1)), ideal_denoiser(STRAIGHT, points)
    x = state_at(sampler(denoise, STRAIGHT, timesteps(1000, 100), draw_noise(), draw_noise), 0)
    assert torch.minimum((x + 0.8).abs(), (x - 0.6).abs()).max() < 0.01
    assert (x > 0).float().mean().item() == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(400))


def test_ddim_without_noise_is_eulers_step_on_the_straight_path():
    x, (t, s) = start(), (700, 400)
    x0_hat, eps_hat = gaussian(STRAIGHT)(x, t)
    _, (_, got, _), *_ = ddim_sampler(gaussian(STRAIGHT), STRAIGHT, [t, s], x, no_noise)
    torch.testing.assert_close(got, x - 0.3 * (eps_hat - x0_hat))


def test_heun_costs_two_evaluations_a_step_but_the_last_and_dpmpp_one():
    for sampler, evaluations in ((heun_sampler, 2 * 20 - 1), (dpmpp_2m_sampler, 20)):
        asked, denoise = [], gaussian(FINE)
        counted = lambda xt, t: asked.append(t) or denoise(xt, t)  # noqa: E731, B023
        list(sampler(counted, FINE, timesteps(4000, 20), start()[:1], no_noise))
        assert len(asked) == evaluations


def test_heun_does_not_magnify_an_error_where_sigma_falls_steeply():
    """A cosine schedule's first step: an x0_hat off by 0.1 must not throw x_t off by hundreds."""
    schedule = cosine()
    exact = gaussian(schedule)

    def denoise(xt, t):
        x0_hat = exact(xt, t)[0] + 0.1 * (t > 950)
        return x0_hat, predict_eps(schedule, xt, t, x0_hat)

    *_, (_, x0, _) = heun_sampler(denoise, schedule, timesteps(1000, 10), start(), no_noise)
    assert (x0 - flow(schedule, start(), 1000, 0)).abs().max() < 0.3


def test_encoder_finds_the_noise_of_an_image_and_ddim_the_image_again():
    image, denoise, there, back = start() / 2, gaussian(FINE), [], []
    for steps in (100, 200, 400):
        times = timesteps(4000, steps)
        states = list(ddim_encoder(denoise, FINE, times, image))
        assert [t for t, _, _ in states] == [0, *times[::-1]] and torch.equal(states[0][1], image)
        x = states[-1][1]
        there.append((x - flow(FINE, image, 0, 4000)).abs().max().item())
        again = state_at(ddim_sampler(denoise, FINE, times, x, no_noise), 0)
        back.append((again - image).abs().max().item())
    for errors in (there, back):
        assert errors[-1] < 0.15
        assert all(1.7 < coarse / finer < 2.4 for coarse, finer in zip(errors, errors[1:])), errors


def test_an_image_comes_back_only_if_the_encoder_clips_as_the_sampler_does():
    """A denoiser whose x0_hat leaves [-1, 1] finds one noise clipped, another not."""

    def overshoots(x, t):
        x0_hat = (3 - 2 * FINE.at(t)[0] ** 2) * gaussian(FINE)(x, t)[0]
        return x0_hat, predict_eps(FINE, x, t, x0_hat)

    image = torch.linspace(-0.9, 0.9, 9, dtype=torch.float64).view(3, 1, 1, 3)
    sampled = clipped(overshoots, FINE)
    for denoise, expected in (
        (sampled, 0.5),
        (overshoots, 1.0),
    ):  # of the error with twice the steps
        lost = []
        for steps in (200, 400):
            times = timesteps(4000, steps)
            *_, (_, code, _) = ddim_encoder(denoise, FINE, times, image)
            again = state_at(ddim_sampler(sampled, FINE, times, code, no_noise), 0)
            lost.append((again - image).abs().max().item())
        assert lost[1] / lost[0] == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("schedule", [FINE, STRAIGHT], ids=["fine", "straight"])
def test_encoder_expects_the_image_that_it_came_from(schedule):
    """A denoiser that knows the image has no error: x_t is q_sample of one and the same noise."""
    image, eps = start() / 2, torch.full((3, 1, 1, 3), 0.7, dtype=torch.float64)
    times = timesteps(schedule.T, 9)
    for t, x, x0_hat in ddim_encoder(lambda xt, t: (image, eps), schedule, times, image):
        a_t, b_t = schedule.at(t)
        torch.testing.assert_close(x, a_t * image + b_t * eps)
        assert torch.equal(x0_hat, image)


def test_dynamic_threshold_by_hand():
    x0_hat = torch.tensor([[-4.0, 1.0, 2.0, 0.0, 0.5], [-0.5, 0.25, 0.0, 0.1, 0.2]])
    x0_hat, xt = x0_hat.view(2, 1, 1, 5), torch.ones(2, 1, 1, 5)
    expected = torch.tensor([[-1.0, 0.5, 1.0, 0.0, 0.25], [-0.5, 0.25, 0.0, 0.1, 0.2]])
    denoise = lambda xt, t: (x0_hat, None)  # noqa: E731
    got, eps_hat = thresholded(denoise, PAPER, 0.75)(xt, 300)
    torch.testing.assert_close(got, expected.view(2, 1, 1, 5))
    torch.testing.assert_close(eps_hat, predict_eps(PAPER, xt, 300, got))
    torch.testing.assert_close(thresholded(denoise, PAPER, 1.0)(xt, 300)[0][0], x0_hat[0] / 4)


@pytest.mark.parametrize("eta", [-0.1, math.inf, math.nan])
def test_noise_that_is_negative_or_without_end_is_refused(eta):
    with pytest.raises(ValueError, match=f"eta is {eta}"):
        next(dpmpp_2m_sampler(gaussian(FINE), FINE, [4000], start(), no_noise, eta=eta))


@pytest.mark.parametrize("quantile", [0, -0.1, 1.1])
def test_quantiles_out_of_range_are_refused(quantile):
    with pytest.raises(ValueError, match=f"quantile is {quantile}"):
        thresholded(gaussian(FINE), FINE, quantile)
