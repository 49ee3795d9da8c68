"""Solvers, on data that are one Gaussian: the best denoiser is linear, and the ODE's solution is known."""

from functools import partial

import pytest
import torch
from conftest import no_noise

from mnist_ddpm.ddpm import (
    Prediction,
    Schedule,
    Settings,
    at,
    ddim_sampler,
    ddpm_sampler,
    make_schedule,
    predict_eps,
    timesteps,
)
from mnist_ddpm.resumable import Counted
from mnist_ddpm.solvers import ddim_encoder, dpmpp_2m_sampler, dynamic_threshold, heun_sampler

MEAN = torch.tensor([-0.5, 0.3, 0.0], dtype=torch.float64).view(1, 1, 1, 3)
STD = torch.tensor([0.2, 0.7, 1.5], dtype=torch.float64).view(1, 1, 1, 3)  # of the three pixels

ddim = partial(ddim_sampler, clip=False)
heun = partial(heun_sampler, clip=False)
dpmpp = partial(dpmpp_2m_sampler, clip=False)


@pytest.fixture(scope="module")
def fine() -> Schedule:
    """The paper's schedule in steps a quarter as large."""
    return make_schedule(Settings(T=4000, beta_1=1e-4 / 4, beta_T=0.02 / 4))


def gaussian(schedule, mean=MEAN, std=STD):
    """The exact E[x_0 | x_t] and E[eps | x_t] for pixels N(mean, std²)."""

    def model(xt, t):
        a = at(schedule.alpha_bar, t)
        scaled = (xt - a.sqrt() * mean) / (a * std**2 + 1 - a)
        x0_hat, eps_hat = mean + a.sqrt() * std**2 * scaled, (1 - a).sqrt() * scaled
        return Prediction(x0_hat.to(xt.dtype), eps_hat.to(xt.dtype))

    return model


def flow(schedule, x, t, s):
    """Where the probability-flow ODE leads x_t at time s: each quantile stays a quantile."""
    a, b = schedule.alpha_bar[t], schedule.alpha_bar[s]
    score = (x - a.sqrt() * MEAN) / (a * STD**2 + 1 - a).sqrt()
    return b.sqrt() * MEAN + (b * STD**2 + 1 - b).sqrt() * score


def state_at(states, time):
    return next(x for t, x, _ in states if t == time)


def start():
    return torch.tensor([-1.3, 0.4, 2.0], dtype=torch.float64).view(3, 1, 1, 1).expand(3, 1, 1, 3)


@pytest.mark.parametrize(
    ("sampler", "low", "high"), [(ddim, 1.7, 2.4), (heun, 3.2, 5), (dpmpp, 3.2, 5)], ids=["ddim", "heun", "dpmpp"]
)
def test_errors_fall_at_the_solvers_order(fine, sampler, low, high):
    """Measured at t = 160, on evenly spaced times: the step from there to 0 is one of first order for all."""
    x, end, errors = start(), 160, []
    for steps in (60, 120, 240):
        times = list(range(4000, end - 1, -(4000 - end) // steps))
        got = state_at(sampler(gaussian(fine), fine, times, x, no_noise), end)
        errors.append((got - flow(fine, x, 4000, end)).square().mean().sqrt().item())
    assert errors[-1] < 0.03
    assert all(low < coarse / finer < high for coarse, finer in zip(errors, errors[1:])), errors


@pytest.mark.parametrize(
    ("sampler", "steps", "error"),
    [(ddim, 4000, 3e-3), (heun, 250, 3e-3), (dpmpp, 250, 3e-3)],
    ids=["ddim", "heun", "dpmpp"],
)
def test_many_steps_follow_the_flow_to_the_image(fine, sampler, steps, error):
    x = start()
    got = state_at(sampler(gaussian(fine), fine, timesteps(4000, steps), x, no_noise), 0)
    torch.testing.assert_close(got, flow(fine, x, 4000, 0), rtol=0, atol=error)


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace", "quadratic"])
@pytest.mark.parametrize("steps", [5, 10, 20, 50])
def test_second_order_is_no_worse_than_first_for_any_spacing(paper, spacing, steps):
    """The last two steps of leading and linspace are far longer, in lambda, than those before."""
    times, x, errors = timesteps(1000, steps, spacing), start(), []
    for sampler in (dpmpp, ddim):
        got = state_at(sampler(gaussian(paper), paper, times, x, no_noise), 0)
        errors.append((got - flow(paper, x, times[0], 0)).square().mean().sqrt().item())
    assert errors[0] < errors[1]


def moments(sampler, schedule, times, draws):
    """Mean and deviation of the samples, exact: with a linear denoiser, a sample is linear in each of its noises."""
    unit = torch.eye(draws + 2, dtype=torch.float64).view(-1, draws + 2, 1, 1, 1)
    calls = iter(unit[:, 2:].unbind(1))
    x = unit[:, 1].expand(-1, 1, 1, 3)  # image 0 has no noise, image 1 that of x_T, image k + 2 that of draw k
    out = state_at(sampler(gaussian(schedule), schedule, times, x, lambda: next(calls)), 0)
    assert next(calls, None) is None
    return out[0, 0, 0], (out[1:] - out[0]).square().sum(0)[0, 0].sqrt()


@pytest.mark.parametrize(
    ("sampler", "noisy", "error"),
    [
        (partial(ddpm_sampler, clip=False), True, 0.02),
        (partial(ddpm_sampler, clip=False, variance="beta"), True, 0.006),
        (ddim, False, 0.01),
        (partial(ddim, eta=0.5), True, 0.012),
        (partial(ddim, eta=1.0), True, 0.02),
        (heun, False, 0.002),
        (dpmpp, False, 0.002),
        (partial(dpmpp, eta=0.5), True, 0.002),
        (partial(dpmpp, eta=1.0), True, 0.002),
        (partial(dpmpp, eta=1.5), True, 0.003),
    ],
    ids=["posterior", "beta", "ddim", "ddim-0.5", "ddim-1", "heun", "dpmpp", "dpmpp-0.5", "dpmpp-1", "dpmpp-1.5"],
)
@pytest.mark.parametrize("schedule", ["linear", "cosine-zero-snr"])
def test_samples_have_the_mean_and_the_deviation_of_the_data(schedule, sampler, noisy, error):
    schedule = make_schedule(Settings(schedule=schedule, prediction="v"))
    mean, std = moments(sampler, schedule, timesteps(1000, 1000), 999 if noisy else 0)
    torch.testing.assert_close(mean, MEAN.flatten(), rtol=0, atol=0.002)
    torch.testing.assert_close(std, STD.flatten(), rtol=error, atol=0)


def test_heun_costs_two_evaluations_a_step_but_the_last_and_dpmpp_one(fine):
    for sampler, evaluations in ((heun, 2 * 20 - 1), (dpmpp, 20)):
        model = Counted(gaussian(fine))
        list(sampler(model, fine, timesteps(4000, 20), start()[:1]))
        assert model.evaluations == evaluations


def test_heun_does_not_magnify_an_error_where_sigma_falls_steeply():
    """A cosine schedule's first step: an x0_hat that is off by 0.1 must not throw x_t off by hundreds."""
    schedule = make_schedule(Settings(schedule="cosine"))
    exact = gaussian(schedule)

    def model(xt, t):
        x0_hat = exact(xt, t).x0_hat + 0.1 * (t > 950).view(-1, 1, 1, 1)
        return Prediction(x0_hat, predict_eps(schedule, xt, t, x0_hat))

    *_, (_, x0, _) = heun(model, schedule, timesteps(1000, 10), start())
    assert (x0 - flow(schedule, start(), 1000, 0)).abs().max() < 0.3


def test_encoder_finds_the_noise_of_an_image_and_ddim_the_image_again(fine):
    image, there, back = start() / 2, [], []
    for steps in (100, 200, 400):
        times = timesteps(4000, steps)
        states = list(ddim_encoder(gaussian(fine), fine, times, image, clip=False))
        assert [t for t, _, _ in states] == [0, *times[::-1]] and torch.equal(states[0][1], image)
        x = states[-1][1]
        there.append((x - flow(fine, image, 0, 4000)).abs().max().item())
        back.append((state_at(ddim(gaussian(fine), fine, times, x, no_noise), 0) - image).abs().max().item())
    for errors in (there, back):
        assert errors[-1] < 0.15 and all(1.7 < coarse / finer < 2.4 for coarse, finer in zip(errors, errors[1:])), (
            errors
        )


def test_encoder_clips_as_samplers_do_unless_told(fine):
    """A network whose x0_hat leaves [-1, 1] takes an image to one noise with clipping, to another without."""

    def overshoots(x, t):
        x0_hat = (3 - 2 * at(fine.alpha_bar, t)) * gaussian(fine)(x, t).x0_hat
        return Prediction(x0_hat, predict_eps(fine, x, t, x0_hat))

    image = torch.linspace(-0.9, 0.9, 9, dtype=torch.float64).view(3, 1, 1, 3)
    for options, expected in (({}, 0.5), ({"clip": False}, 1.0)):  # of the error is left with twice the steps
        lost = []
        for steps in (200, 400):
            *_, (_, code, _) = ddim_encoder(overshoots, fine, timesteps(4000, steps), image, **options)
            again = state_at(ddim_sampler(overshoots, fine, timesteps(4000, steps), code, no_noise), 0)
            lost.append((again - image).abs().max().item())
        assert lost[1] / lost[0] == pytest.approx(expected, abs=0.1)


def test_encoder_expects_the_image_that_it_came_from(fine):
    """A denoiser that knows the image has no error at all: x_t is q_sample of one and the same noise."""
    image, eps = start() / 2, torch.full((3, 1, 1, 3), 0.7, dtype=torch.float64)
    for t, x, x0_hat in ddim_encoder(lambda xt, t: eps, fine, timesteps(4000, 9), image, clip=False):
        a = fine.alpha_bar[t]
        torch.testing.assert_close(x, a.sqrt() * image + (1 - a).sqrt() * eps)
        if t:
            torch.testing.assert_close(x0_hat, image)


def test_dynamic_threshold_by_hand():
    x0_hat = torch.tensor([[-4.0, 1.0, 2.0, 0.0, 0.5], [-0.5, 0.25, 0.0, 0.1, 0.2]]).view(2, 1, 1, 5)
    expected = torch.tensor([[-1.0, 0.5, 1.0, 0.0, 0.25], [-0.5, 0.25, 0.0, 0.1, 0.2]]).view(2, 1, 1, 5)
    torch.testing.assert_close(dynamic_threshold(0.75)(x0_hat), expected)
    torch.testing.assert_close(dynamic_threshold(1.0)(x0_hat)[0], x0_hat[0] / 4)


def test_samplers_take_a_threshold_for_clip(fine):
    states = list(
        ddim_sampler(
            lambda xt, t: -50 * torch.ones_like(xt), fine, [4000, 2000], start(), no_noise, clip=dynamic_threshold()
        )
    )
    assert states[0][2].abs().max() == 1


@pytest.mark.parametrize("eta", [-0.1, float("inf"), float("nan")])
def test_noise_that_is_negative_or_without_end_is_refused(fine, eta):
    with pytest.raises(ValueError, match=f"eta is {eta}: it must be at least 0"):
        next(dpmpp(gaussian(fine), fine, [4000], start(), no_noise, eta=eta))


@pytest.mark.parametrize("quantile", [0, -0.1, 1.1])
def test_quantiles_out_of_range_are_refused(quantile):
    with pytest.raises(ValueError, match=f"quantile is {quantile}: it must be in"):
        dynamic_threshold(quantile)
