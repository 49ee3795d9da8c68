"""Schedules, conversions and samplers, against diffusers': by others, from the same papers.

diffusers' t is ours minus 1. Samplers are compared step by step: its step() gets the x_t of each of
our states, our noise and what the network says there, and must arrive at our next state. A list of
such steps is the whole run.

diffusers keeps its tables in float32, where 1 - alpha_bar_1 = 1e-4 has an error of 2e-4 of itself.
So the tables are compared on their own (first part), and the steps on our table, in float64 as well
as in float32.
"""

from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from helpers import PAPER

from mnist_ddpm import ddpm
from mnist_ddpm.methods import schedules
from mnist_ddpm.methods.learned_variance import (
    ancestral_sampler,
    keeping_exponent,
    learned_denoiser,
    learned_step_variance,
)
from mnist_ddpm.methods.likelihood import step_log_variance
from mnist_ddpm.methods.predictions import EPS, X0, V, denoiser
from mnist_ddpm.methods.solvers import dpmpp_2m_sampler, thresholded

SHAPE = 2, 3, 8, 8
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
CONVERSIONS = {"eps": EPS, "x0": X0, "v": V}
PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
BOTH = pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "float64"])

THEIRS = {
    "linear": "linear",
    "cosine": "squaredcos_cap_v2",
    "quadratic": "scaled_linear",
    "sigmoid": "sigmoid",
}
OURS = {name: getattr(schedules, name) for name in THEIRS}
SPACINGS = {
    "trailing": ddpm.timesteps,
    "leading": schedules.leading,
    "linspace": schedules.linspace,
    "quadratic": schedules.quadratic_times,
}


def alpha_bar(schedule):
    return schedule.a**2


def network(channels, prediction="eps"):
    """Random, but like a network: its output depends on each pixel's surroundings and on t."""
    weight = 0.15 * torch.randn(channels, 3, 3, 3, generator=torch.Generator().manual_seed(0))

    def output(xt, t):
        time = torch.sin(t / 100).to(xt.dtype).view(-1, 1, 1, 1)
        pattern = F.conv2d(xt, weight.to(xt.dtype), padding=1) + time
        return pattern.tanh() + (F.pad(xt, [0] * 5 + [channels - 3]) if prediction == "eps" else 0)

    return output


def walk(sampler, denoise, schedule, times, dtype, **options):
    """Our run: x_t at each time and 0 (S + 1, *SHAPE), each x0_hat (S, *SHAPE), the noise drawn."""
    source, drawn = ddpm.noise_source(0, range(SHAPE[0]), SHAPE[1:]), []

    def draw_noise():
        drawn.append(source().to(dtype))
        return drawn[-1]

    states = list(sampler(denoise, schedule, times, draw_noise(), draw_noise, **options))
    assert [t for t, _, _ in states] == [*times, 0]
    xs, x0_hats = (torch.stack([state[k] for state in states]) for k in (1, 2))
    return xs, x0_hats[:-1], drawn


def outputs(net, xs, times):
    """What the network says at each of our states: (S, N, …)."""
    t = torch.tensor(times).repeat_interleave(SHAPE[0])
    return net(xs[:-1].flatten(0, 1), t).unflatten(0, (len(times), SHAPE[0]))


def error(got, expected):
    """Each step's largest error, relative to its largest value: (S,)."""
    return (got - expected).flatten(1).abs().amax(1) / expected.flatten(1).abs().amax(1)


def on_our_table(scheduler, schedule):
    scheduler.alphas_cumprod = alpha_bar(schedule)[1:]
    return scheduler


def steps_of(scheduler, out, xs, times, **options):
    """What diffusers makes of each of our x_t; an option may be a list with an entry for each."""
    for k, t in enumerate(times):
        now = {name: v[k] if isinstance(v, list) else v for name, v in options.items()}
        yield scheduler.step(out[k], t - 1, xs[k], **now)


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize(("T", "beta_1", "beta_T"), [(1000, 1e-4, 0.02), (50, 1e-3, 0.3)])
def test_schedule_is_that_of_diffusers(name, T, beta_1, beta_T):
    ours, t = OURS[name](T, beta_1, beta_T), torch.arange(1, T + 1)
    theirs = DDPMScheduler(T, beta_1, beta_T, THEIRS[name])
    beta = ddpm.step_variance(ours, t, t - 1)
    torch.testing.assert_close(theirs.betas.double(), beta, rtol=1e-6, atol=0)
    # cosine's last alpha is 1 - 0.999, which float32 knows to 6e-8 / 0.001
    got, expected = theirs.alphas_cumprod.double(), alpha_bar(ours)[1:]
    last = 6e-5 if name == "cosine" else 1e-5
    torch.testing.assert_close(got[:-1], expected[:-1], rtol=1e-5, atol=0)
    torch.testing.assert_close(got[-1], expected[-1], rtol=last, atol=0)


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("T", [1000, 50])
def test_zero_terminal_snr_is_that_of_diffusers(name, T):
    """Their function in float64 on the betas before it; then their table, which is in float32."""
    plain, t = OURS[name](T), torch.arange(1, T + 1)
    ours = schedules.zero_terminal_snr(plain)
    theirs = rescale_zero_terminal_snr(ddpm.step_variance(plain, t, t - 1))
    torch.testing.assert_close(ddpm.step_variance(ours, t, t - 1), theirs, rtol=1e-10, atol=1e-15)
    scheduler = DDPMScheduler(T, beta_schedule=THEIRS[name], rescale_betas_zero_snr=True)
    theirs = scheduler.alphas_cumprod.double()
    assert ours.a[-1] == theirs[-1] == 0
    # near T theirs is the square of a difference of float32 roots, each of which may be off by 6e-8
    torch.testing.assert_close(theirs.sqrt(), ours.a[1:], rtol=1e-5, atol=2e-7)


@BOTH
def test_dynamic_threshold_is_theirs(dtype):
    """Its quantile is each image's, not the batch's; images within [-1, 1] stay as they are."""
    generator = torch.Generator().manual_seed(0)
    x0_hat = torch.randn(5, *SHAPE[1:], dtype=dtype, generator=generator)
    x0_hat *= torch.tensor([0.01, 0.2, 1, 3, 50]).view(-1, 1, 1, 1)
    options = {"dynamic_thresholding_ratio": 0.995, "sample_max_value": 1e9}
    theirs = DDIMScheduler(thresholding=True, **options)._threshold_sample(x0_hat)
    ours, eps_hat = thresholded(lambda xt, t: (x0_hat, None), PAPER, 0.995)(x0_hat, 5)
    torch.testing.assert_close(ours, theirs, rtol=TOLERANCE[dtype], atol=0)
    torch.testing.assert_close(eps_hat, ddpm.predict_eps(PAPER, x0_hat, 5, ours))


def test_learned_log_variance_is_theirs():
    """At t = 1 diffusers bounds beta-tilde_1 = 0 by 1e-20; Improved DDPM and we take the next."""
    scheduler, t = on_our_table(DDPMScheduler(), PAPER), torch.arange(2, 1001)
    v = torch.linspace(-1.2, 1.2, len(t), dtype=torch.float64)
    theirs = [scheduler._get_variance(i - 1, v[i - 2], "learned_range") for i in t.tolist()]
    exponent = ((v + 1) / 2).view(-1, 1, 1, 1)
    for ours in (
        step_log_variance(PAPER, t, exponent),
        learned_step_variance(PAPER, t, t - 1, exponent).log(),
    ):
        torch.testing.assert_close(ours.flatten(), torch.stack(theirs), rtol=1e-10, atol=0)


THEIR_TIMES = {name: DDIMScheduler(timestep_spacing=name) for name in list(SPACINGS)[:3]}


def theirs_of(spacing, steps):
    scheduler = THEIR_TIMES[spacing]
    scheduler.set_timesteps(steps)
    return (scheduler.timesteps + 1).tolist()


@pytest.mark.parametrize("steps", [steps for steps in range(1, 1001) if 1000 % steps == 0])
def test_leading_times_are_those_of_diffusers_where_the_number_of_steps_divides_T(steps):
    """Elsewhere diffusers rounds T / S down before it multiplies, and misses the largest times."""
    assert schedules.leading(1000, steps) == theirs_of("leading", steps)


@pytest.mark.parametrize(("spacing", "first"), [("trailing", 1), ("linspace", 2)])
def test_times_are_those_of_diffusers_but_for_ties(spacing, first):
    """A time halfway between two whole numbers goes to either.

    With linspace and one step diffusers takes t = 1. Its trailing times can be one too many: for 61
    steps, and others, rounding in np.arange lets a 62nd in, below the first time there is.
    """
    for steps in [*range(first, 100), *range(100, 1001, 9)]:
        k = np.arange(steps)
        trails = spacing == "trailing"
        rise, count = (1000 * (k + 1), steps) if trails else (999 * k, steps - 1)
        tie = (2 * rise % (2 * count) == count)[::-1]
        ours, theirs = SPACINGS[spacing](1000, steps), np.array(theirs_of(spacing, steps))
        assert len(ours) == steps
        assert (np.abs(np.array(ours) - theirs[:steps]) <= tie).all(), steps
        assert (theirs[steps:] == 0).all(), steps


# Ancestral sampling

VARIANCES = {
    "fixed_small": ddpm.posterior_variance,
    "fixed_large": ddpm.step_variance,
    "learned_range": learned_step_variance,
}
SCHEDULES = PAPER, schedules.cosine(), schedules.zero_terminal_snr(schedules.sigmoid())
ANCESTRAL = [
    *product([PAPER], (1, 7, 20), ("trailing", "quadratic"), VARIANCES, (True, False), ["eps"]),
    *product(SCHEDULES, [10], ["trailing"], ["learned_range"], [True], ("x0", "v")),
    (schedules.linear(50, 1e-3, 0.3), 50, "trailing", "fixed_large", False, "eps"),
]


@BOTH
@pytest.mark.parametrize("schedule, steps, spacing, variance, clip, prediction", ANCESTRAL)
def test_ancestral_steps(monkeypatch, schedule, steps, spacing, variance, clip, prediction, dtype):
    times = SPACINGS[spacing](schedule.T, steps)
    two = variance == "learned_range"
    net, make = network(6 if two else 3, prediction), learned_denoiser if two else denoiser
    denoise = make(net, schedule, CONVERSIONS[prediction])
    clipper = keeping_exponent(ddpm.clipped) if two else ddpm.clipped
    given = clipper(denoise, schedule) if clip else denoise
    options = {"variance": VARIANCES[variance]}
    sampler = ancestral_sampler if two else ddpm.ddpm_sampler
    xs, x0_hats, drawn = walk(sampler, given, schedule, times, dtype, **options)
    assert len(drawn) == len(times)  # x_T, and for every step but the last
    options = {"variance_type": variance, "clip_sample": clip}
    scheduler = DDPMScheduler(schedule.T, prediction_type=PREDICTIONS[prediction], **options)
    on_our_table(scheduler, schedule)
    if len(times) < schedule.T:  # untold, it takes every time
        scheduler.set_timesteps(timesteps=[t - 1 for t in times])
    # none in the last step, where diffusers adds noise if the list does not end at its 0
    feed = iter([*drawn[1:], torch.zeros(SHAPE, dtype=dtype)])
    draw = lambda *_, **__: next(feed)  # noqa: E731
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", draw)
    theirs = list(steps_of(scheduler, outputs(net, xs, times), xs, times))
    expected = torch.stack([step.pred_original_sample for step in theirs])
    assert error(x0_hats, expected).max() < TOLERANCE[dtype]
    expected = torch.stack([step.prev_sample for step in theirs])
    assert error(xs[1:], expected).max() < TOLERANCE[dtype]


def paper_ddim(out, xs, times, eta, clip, noise):
    """DDIM's Eq. 12 and 16 in float64, from every x_t of a run at once: x_s, s the next entry."""
    alpha_bar = np.concatenate([[1], np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))])
    a_t, a_s = torch.tensor(alpha_bar[[times, [*times[1:], 0]]]).view(2, -1, 1, 1, 1, 1)
    eps = out.double()
    predicted_x0 = (xs[:-1].double() - (1 - a_t) ** 0.5 * eps) / a_t**0.5
    if clip:  # the eps that goes with the clipped x_0
        predicted_x0 = predicted_x0.clip(-1, 1)
        eps = (xs[:-1].double() - a_t**0.5 * predicted_x0) / (1 - a_t) ** 0.5
    sigma = eta * ((1 - a_s) / (1 - a_t)) ** 0.5 * (1 - a_t / a_s) ** 0.5
    return a_s**0.5 * predicted_x0 + (1 - a_s - sigma**2) ** 0.5 * eps + sigma * noise


DDIM = [
    *product((1, 7, 20), SPACINGS, ((0, True), (0, False), (0.3, True), (1, False))),
    (200, "quadratic", (0.3, True)),
]


@BOTH
@pytest.mark.parametrize(("steps", "spacing", "eta_and_clip"), DDIM)
def test_ddim_steps_are_those_of_the_paper(steps, spacing, eta_and_clip, dtype):
    """Those of diffusers would go to t - T // S, whatever the next time of the list."""
    eta, clip = eta_and_clip
    net, times = network(3), SPACINGS[spacing](1000, steps)
    denoise = ddpm.eps_denoiser(net, PAPER)
    denoise = ddpm.clipped(denoise, PAPER) if clip else denoise
    xs, _, drawn = walk(ddpm.ddim_sampler, denoise, PAPER, times, dtype, eta=eta)
    assert len(drawn) == (steps if eta else 1)  # x_T, and for every step but the last
    zeros = torch.zeros(SHAPE, dtype=dtype)
    noise = torch.stack([*drawn[1:], zeros] if eta else [zeros] * steps)
    expected = paper_ddim(outputs(net, xs, times), xs, times, eta, clip, noise)
    assert error(xs[1:], expected).max() < TOLERANCE[dtype]


# DPM-Solver++(2M)

LIMITS = {"free": 1.0, "clipped": 1.0, "thresholded": 1e9}


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # numpy's to diffusers
@pytest.mark.parametrize(("eta", "algorithm"), [(0, "dpmsolver++"), (1, "sde-dpmsolver++")])
@pytest.mark.parametrize(
    ("steps", "spacing", "bound"),
    [*product((1, 2, 7, 25), SPACINGS, LIMITS), (150, "trailing", "clipped")],
)
def test_dpm_solver_steps_are_those_of_diffusers(steps, spacing, bound, eta, algorithm):
    """Its step() works in float32 whatever it is given, so that there is no float64 here.

    After a step less than half as long ours is of first order, and theirs is told to be.
    """
    net, times = network(3), SPACINGS[spacing](1000, steps)
    free = ddpm.eps_denoiser(net, PAPER)
    limited = {"clipped": ddpm.clipped, "thresholded": thresholded}
    denoise = limited[bound](free, PAPER) if bound in limited else free
    xs, x0_hats, drawn = walk(dpmpp_2m_sampler, denoise, PAPER, times, torch.float32, eta=eta)
    assert len(drawn) == (steps if eta else 1)  # x_T, and for every step but the last
    noise = [*drawn[1:], torch.zeros(SHAPE)] if eta else None
    # thresholding with a largest threshold of 1 is clipping to [-1, 1]
    options = {"thresholding": bound != "free", "sample_max_value": LIMITS[bound]}
    options |= {"algorithm_type": algorithm, "solver_order": 2, "solver_type": "midpoint"}
    options |= {"final_sigmas_type": "zero", "lower_order_final": True}
    scheduler = on_our_table(DPMSolverMultistepScheduler(**options), PAPER)
    scheduler.set_timesteps(timesteps=[t - 1 for t in times])
    assert (scheduler.timesteps + 1).tolist() == times
    scheduler.sigmas = (PAPER.b / PAPER.a)[[*times, 0]]
    h = -scheduler.sigmas.log().diff()
    leaps, their_x0_hats, their_xs = [False, *(h[1:] > 2 * h[:-1])], [], []
    theirs = steps_of(scheduler, outputs(net, xs, times), xs, times, variance_noise=noise)
    for leap in leaps:
        if leap:
            scheduler.lower_order_nums = 0
        step = next(theirs)
        their_x0_hats.append(scheduler.model_outputs[-1])
        their_xs.append(step.prev_sample)
    assert error(x0_hats, torch.stack(their_x0_hats)).max() < 1e-5
    assert error(xs[1:], torch.stack(their_xs)).max() < 1e-5


def test_ddim_with_eta_1_starts_from_zero_terminal_snr_with_fresh_noise():
    """x_T says nothing of x_s then: whatever s, the first step noises x0_hat as q_sample does.

    The factor of eps is the root of 0, and of nothing below it by rounding.
    """
    schedule, start = schedules.zero_terminal_snr(PAPER), torch.ones(SHAPE)
    denoise = denoiser(network(3, "v"), schedule, V)
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    for s in [*range(1, 10), *range(10, 990, 20), *range(990, 1000)]:
        states = ddpm.ddim_sampler(denoise, schedule, [1000, s], start, lambda: noise, eta=1)
        (_, _, x0_hat), (_, got, _) = next(states), next(states)
        torch.testing.assert_close(
            got, ddpm.q_sample(schedule, x0_hat, s, noise), rtol=1e-5, atol=1e-5
        )
