"""Solvers, on data that are one Gaussian: the best denoiser is linear, the ODE's solution known."""

import math
from functools import partial

import pytest
import torch
from helpers import PAPER, STRAIGHT, no_noise

from mnist_ddpm import ddpm
from mnist_ddpm.methods import schedules
from mnist_ddpm.methods.solvers import ddim_encoder, dpmpp_2m_sampler, heun_sampler, thresholded

MEAN = torch.tensor([-0.5, 0.3, 0.0], dtype=torch.float64).view(1, 1, 1, 3)
STD = torch.tensor([0.2, 0.7, 1.5], dtype=torch.float64).view(1, 1, 1, 3)  # of the three pixels
FINE = schedules.linear(4000, 1e-4 / 4, 0.02 / 4)  # the paper's, in steps a quarter as large
SPACINGS = ddpm.timesteps, schedules.leading, schedules.linspace, schedules.quadratic_times


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
    [(ddpm.ddim_sampler, 1.7, 2.4), (heun_sampler, 3.2, 5), (dpmpp_2m_sampler, 3.2, 5)],
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


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [5, 10, 20, 50])
def test_second_order_is_no_worse_than_first_for_any_spacing(spacing, steps):
    """The last two steps of leading and linspace are far longer, in lambda, than those before."""
    times, x, errors = spacing(1000, steps), start(), []
    for sampler in (dpmpp_2m_sampler, ddpm.ddim_sampler):
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
        (ddpm.ddpm_sampler, True, 0.02),
        (partial(ddpm.ddpm_sampler, variance=ddpm.step_variance), True, 0.006),
        (ddpm.ddim_sampler, False, 0.01),
        (partial(ddpm.ddim_sampler, eta=0.5), True, 0.012),
        (partial(ddpm.ddim_sampler, eta=1.0), True, 0.02),
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
    ("schedule", "steps"),
    [(PAPER, 1000), (schedules.zero_terminal_snr(schedules.cosine()), 500), (STRAIGHT, 500)],
    ids=["paper", "cosine-zero-snr", "straight"],
)
def test_samples_have_the_mean_and_the_deviation_of_the_data(
    schedule, steps, sampler, noisy, error
):
    mean, std = moments(sampler, schedule, ddpm.timesteps(1000, steps), steps - 1 if noisy else 0)
    torch.testing.assert_close(mean, MEAN.flatten(), rtol=0, atol=0.002)
    torch.testing.assert_close(std, STD.flatten(), rtol=error, atol=0)


def test_heun_costs_two_evaluations_a_step_but_the_last_and_dpmpp_one():
    for sampler, evaluations in ((heun_sampler, 2 * 20 - 1), (dpmpp_2m_sampler, 20)):
        asked, denoise = [], gaussian(FINE)
        counted = lambda xt, t: asked.append(t) or denoise(xt, t)  # noqa: E731, B023
        list(sampler(counted, FINE, ddpm.timesteps(4000, 20), start()[:1], no_noise))
        assert len(asked) == evaluations


def test_heun_does_not_magnify_an_error_where_sigma_falls_steeply():
    """A cosine schedule's first step: an x0_hat off by 0.1 must not throw x_t off by hundreds."""
    schedule = schedules.cosine()
    exact = gaussian(schedule)

    def denoise(xt, t):
        x0_hat = exact(xt, t)[0] + 0.1 * (t > 950)
        return x0_hat, ddpm.predict_eps(schedule, xt, t, x0_hat)

    *_, (_, x0, _) = heun_sampler(denoise, schedule, ddpm.timesteps(1000, 10), start(), no_noise)
    assert (x0 - flow(schedule, start(), 1000, 0)).abs().max() < 0.3


def test_encoder_finds_the_noise_of_an_image_and_ddim_the_image_again():
    image, denoise, there, back = start() / 2, gaussian(FINE), [], []
    for steps in (100, 200, 400):
        times = ddpm.timesteps(4000, steps)
        states = list(ddim_encoder(denoise, FINE, times, image))
        assert [t for t, _, _ in states] == [0, *times[::-1]] and torch.equal(states[0][1], image)
        x = states[-1][1]
        there.append((x - flow(FINE, image, 0, 4000)).abs().max().item())
        again = state_at(ddpm.ddim_sampler(denoise, FINE, times, x, no_noise), 0)
        back.append((again - image).abs().max().item())
    for errors in (there, back):
        assert errors[-1] < 0.15
        assert all(1.7 < coarse / finer < 2.4 for coarse, finer in zip(errors, errors[1:])), errors


@pytest.mark.parametrize("schedule", [FINE, STRAIGHT], ids=["fine", "straight"])
def test_encoder_expects_the_image_that_it_came_from(schedule):
    """A denoiser that knows the image has no error: x_t is q_sample of one and the same noise."""
    image, eps = start() / 2, torch.full((3, 1, 1, 3), 0.7, dtype=torch.float64)
    times = ddpm.timesteps(schedule.T, 9)
    for t, x, x0_hat in ddim_encoder(lambda xt, t: (image, eps), schedule, times, image):
        a_t, b_t = schedule.at(t)
        torch.testing.assert_close(x, a_t * image + b_t * eps)
        assert torch.equal(x0_hat, image)


def test_noise_and_quantiles_out_of_range_are_refused():
    for eta in (-0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"eta is {eta}"):
            next(dpmpp_2m_sampler(gaussian(FINE), FINE, [4000], start(), no_noise, eta=eta))
    for quantile in (0, -0.1, 1.1):
        with pytest.raises(ValueError, match=f"quantile is {quantile}"):
            thresholded(gaussian(FINE), FINE, quantile)


def test_heun_corrects_a_step_to_a_fifth_of_sigma_and_not_to_a_twentieth():
    sigma = PAPER.b / PAPER.a
    for share, evaluations in ((5, 3), (20, 2)):
        s = int((sigma - sigma[500] / share).abs().argmin())
        asked, denoise = [], gaussian(PAPER)
        counted = lambda xt, t: asked.append(t) or denoise(xt, t)  # noqa: E731, B023
        list(heun_sampler(counted, PAPER, [500, s], start()[:1], no_noise))
        assert len(asked) == evaluations
