"""Schedules, conversions and samplers, against those of diffusers: written by others, from the same papers.

diffusers' t is ours minus 1. Samplers are compared step by step: its step() gets the x_t of each of our states, our
noise and what the model says there, and must arrive at our next state. A list of such steps is the whole run.

diffusers keeps its tables in float32, where 1 - alpha_bar_1 = 1e-4 has an error of 2e-4 of itself. So the tables are
compared on their own (first part), and the steps on our table, in float64 as well as in float32.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

from mnist_ddpm.ddpm import (
    SPACINGS,
    Settings,
    ddim_sampler,
    ddpm_sampler,
    linear_schedule,
    noise_source,
    predict_x0,
    q_sample,
    timesteps,
    transitions,
)
from mnist_ddpm.likelihood import step_log_variance
from mnist_ddpm.parameterisation import Denoiser, convert
from mnist_ddpm.schedules import SCHEDULES
from mnist_ddpm.solvers import dpmpp_2m_sampler, dynamic_threshold

SHAPE = 2, 3, 8, 8
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
BOTH = pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "float64"])

OURS = {"linear": linear_schedule, **SCHEDULES}
THEIRS = {"linear": "linear", "cosine": "squaredcos_cap_v2", "quadratic": "scaled_linear", "sigmoid": "sigmoid"}


def network(channels, prediction="eps"):
    """Random, but like a network: its output depends on each pixel's surroundings and on t."""
    weight = 0.15 * torch.randn(channels, 3, 3, 3, generator=torch.Generator().manual_seed(0))

    def output(xt, t):
        pattern = F.conv2d(xt, weight.to(xt.dtype), padding=1) + torch.sin(t / 100).to(xt.dtype).view(-1, 1, 1, 1)
        return pattern.tanh() + (F.pad(xt, [0] * 5 + [channels - 3]) if prediction == "eps" else 0)

    return output


def walk(sampler, model, schedule, times, dtype, **options):
    """Our run: x_t at each time and at 0 (S + 1, *SHAPE), x0_hat at each time (S, *SHAPE), and the noise it drew."""
    source, drawn = noise_source(0, range(SHAPE[0]), SHAPE[1:]), []

    def noise():
        drawn.append(source().to(dtype))
        return drawn[-1]

    states = list(sampler(model, schedule, times, noise(), noise, **options))
    assert [t for t, _, _ in states] == [*times, 0]
    return torch.stack([x for _, x, _ in states]), torch.stack([x0_hat for _, _, x0_hat in states[:-1]]), drawn


def outputs(net, xs, times):
    """What the network says at each of our states: (S, N, …)."""
    t = torch.tensor(times).repeat_interleave(SHAPE[0])
    return net(xs[:-1].flatten(0, 1), t).unflatten(0, (len(times), SHAPE[0]))


def error(got, expected):
    """Each step's largest error, relative to its largest value: (S,)."""
    return (got - expected).flatten(1).abs().amax(1) / expected.flatten(1).abs().amax(1)


def on_our_table(scheduler, schedule):
    scheduler.alphas_cumprod = schedule.alpha_bar[1:].clone()
    return scheduler


def steps_of(scheduler, out, xs, times, **options):
    """What diffusers makes of each of our x_t; an option that is a list has an entry for each step."""
    for k, t in enumerate(times):
        now = {name: value[k] if isinstance(value, list) else value for name, value in options.items()}
        yield scheduler.step(out[k], t - 1, xs[k], **now)


# Schedules


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize(("T", "beta_1", "beta_T"), [(1000, 1e-4, 0.02), (50, 1e-3, 0.3)])
def test_schedule_is_that_of_diffusers(name, T, beta_1, beta_T):
    ours = OURS[name](Settings(T=T, beta_1=beta_1, beta_T=beta_T))
    theirs = DDPMScheduler(T, beta_1, beta_T, THEIRS[name])
    torch.testing.assert_close(theirs.betas.double(), ours.beta[1:], rtol=1e-6, atol=0)
    # cosine's last alpha is 1 - 0.999, which float32 knows to 6e-8 / 0.001
    got, expected, last = theirs.alphas_cumprod.double(), ours.alpha_bar[1:], 6e-5 if name == "cosine" else 1e-5
    torch.testing.assert_close(got[:-1], expected[:-1], rtol=1e-5, atol=0)
    torch.testing.assert_close(got[-1], expected[-1], rtol=last, atol=0)


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("T", [1000, 50])
def test_zero_terminal_snr_is_that_of_diffusers(name, T):
    """Their function in float64 on the betas before it; then their scheduler's own table, which is in float32."""
    settings = Settings(T=T, prediction="v")
    ours = OURS[f"{name}-zero-snr"](settings)
    beta = rescale_zero_terminal_snr(OURS[name](settings).beta[1:])
    torch.testing.assert_close(ours.beta[1:], beta, rtol=1e-10, atol=1e-15)
    theirs = DDPMScheduler(T, beta_schedule=THEIRS[name], rescale_betas_zero_snr=True).alphas_cumprod.double()
    assert ours.alpha_bar[-1] == theirs[-1] == 0
    # near T theirs is the square of a difference of float32 roots, each of which may be off by 6e-8
    torch.testing.assert_close(theirs.sqrt(), ours.alpha_bar[1:].sqrt(), rtol=1e-5, atol=2e-7)


# Conversions


@BOTH
def test_q_sample_is_their_add_noise(paper, dtype):
    x0, eps = torch.randn(2, 1000, 1, 4, 4, dtype=dtype, generator=torch.Generator().manual_seed(0))
    t = torch.arange(1, 1001)
    theirs = on_our_table(DDPMScheduler(), paper).add_noise(x0, eps, t - 1)
    assert error(q_sample(paper, x0, t, eps), theirs).max() < TOLERANCE[dtype]


@BOTH
def test_v_is_their_velocity(paper, dtype):
    x0, eps = torch.randn(2, 1000, 1, 4, 4, dtype=dtype, generator=torch.Generator().manual_seed(0))
    t = torch.arange(1, 1001)
    xt, theirs = q_sample(paper, x0, t, eps), on_our_table(DDPMScheduler(), paper).get_velocity(x0, eps, t - 1)
    for given, value in (("x0", x0), ("eps", eps)):
        assert error(convert(paper, xt, t, value, given, "v"), theirs).max() < TOLERANCE[dtype]
    for wanted, value in (("x0", x0), ("eps", eps)):
        assert error(convert(paper, xt, t, theirs, "v", wanted), value).max() < TOLERANCE[dtype]


@BOTH
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("t", [1, 2, 10, 500, 999, 1000])
def test_predicted_x0_and_posterior_mean_are_theirs(paper, monkeypatch, prediction, t, dtype):
    xt, value = torch.randn(2, 4, 1, 4, 4, dtype=dtype, generator=torch.Generator().manual_seed(t))
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: torch.zeros_like(xt))
    scheduler = on_our_table(DDPMScheduler(prediction_type=PREDICTIONS[prediction], clip_sample=False), paper)
    theirs = scheduler.step(value, t - 1, xt)
    ddim = on_our_table(DDIMScheduler(prediction_type=PREDICTIONS[prediction], clip_sample=False), paper)
    ddim.set_timesteps(1000)
    x0 = convert(paper, xt, t, value, prediction, "x0")
    for step in (theirs, ddim.step(value, t - 1, xt)):
        assert error(x0, step.pred_original_sample).max() < TOLERANCE[dtype]
    if prediction == "eps":
        assert torch.equal(x0, predict_x0(paper, xt, t, value))
    mu = convert(paper, xt, t, value, prediction, "mu")
    assert error(mu, theirs.prev_sample).max() < TOLERANCE[dtype]


@BOTH
def test_dynamic_threshold_is_theirs(dtype):
    """Wrong quantile, or taken over the batch instead of each image; images within [-1, 1] must stay as they are."""
    x0_hat = torch.randn(5, *SHAPE[1:], dtype=dtype, generator=torch.Generator().manual_seed(0))
    x0_hat *= torch.tensor([0.01, 0.2, 1, 3, 50]).view(-1, 1, 1, 1)
    scheduler = DDIMScheduler(thresholding=True, dynamic_thresholding_ratio=0.995, sample_max_value=1e9)
    torch.testing.assert_close(
        dynamic_threshold(0.995)(x0_hat), scheduler._threshold_sample(x0_hat), rtol=TOLERANCE[dtype], atol=0
    )


def test_learned_log_variance_is_theirs(paper):
    """At t = 1 diffusers bounds beta-tilde_1 = 0 by 1e-20; Improved DDPM, and we, take beta-tilde_2."""
    scheduler, t = on_our_table(DDPMScheduler(), paper), torch.arange(2, 1001)
    v = torch.linspace(-1.2, 1.2, len(t), dtype=torch.float64)
    theirs = torch.stack([scheduler._get_variance(i - 1, v[i - 2], "learned_range") for i in t.tolist()])
    ours = step_log_variance(paper, t, ((v + 1) / 2).view(-1, 1, 1, 1)).flatten()
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=0)


# Times


def theirs_of(spacing, steps):
    scheduler = DDIMScheduler(timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    return (scheduler.timesteps + 1).tolist()


@pytest.mark.parametrize("steps", [steps for steps in range(1, 1001) if 1000 % steps == 0])
def test_leading_times_are_those_of_diffusers_where_the_number_of_steps_divides_T(steps):
    """Elsewhere diffusers rounds T / S down before it multiplies, which leaves out the largest times."""
    assert timesteps(1000, steps, "leading") == theirs_of("leading", steps)


@pytest.mark.parametrize(("spacing", "first"), [("trailing", 1), ("linspace", 2)])
def test_times_are_those_of_diffusers_but_for_ties(spacing, first):
    """A time halfway between two whole numbers goes to either. With linspace and one step diffusers takes t = 1."""
    for steps in range(first, 1001):
        k = np.arange(steps)
        rise, count = (1000 * (k + 1), steps) if spacing == "trailing" else (999 * k, steps - 1)
        tie = (2 * rise % (2 * count) == count)[::-1]
        ours, theirs = np.array(timesteps(1000, steps, spacing)), np.array(theirs_of(spacing, steps))
        assert (np.abs(ours - theirs[:steps]) <= tie).all(), steps
        assert (theirs[steps:] == 0).all(), steps  # see below


def test_diffusers_trailing_times_can_be_one_too_many():
    """For 61 steps, and others, rounding in np.arange lets a 62nd in, below the first time there is."""
    assert len(theirs_of("trailing", 61)) == 62 and theirs_of("trailing", 61)[-1] == 0
    assert len(timesteps(1000, 61)) == 61


# Ancestral sampling

VARIANCES = {"posterior": "fixed_small", "beta": "fixed_large", "learned": "learned_range"}
SHORT_LISTS = [(steps, spacing) for steps in (1, 7, 10, 50) for spacing in ("trailing", "quadratic")]


def check_ancestral_steps(monkeypatch, schedule, times, dtype, variance, clip, prediction="eps"):
    net = network(6 if variance == "learned" else 3, prediction)
    model = net if prediction == "eps" else Denoiser(net, schedule, prediction)
    xs, x0_hats, drawn = walk(ddpm_sampler, model, schedule, times, dtype, variance=variance, clip=clip)
    assert len(drawn) == len(times)  # x_T, and for every step but the last
    scheduler = DDPMScheduler(
        variance_type=VARIANCES[variance], clip_sample=clip, prediction_type=PREDICTIONS[prediction]
    )
    on_our_table(scheduler, schedule)
    if len(times) < schedule.T:  # untold, it takes every time
        scheduler.set_timesteps(timesteps=[t - 1 for t in times])
    feed = iter([*drawn[1:], torch.zeros(SHAPE, dtype=dtype)])  # none in the last step: see the test below
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: next(feed))
    theirs = list(steps_of(scheduler, outputs(net, xs, times), xs, times))
    assert error(x0_hats, torch.stack([step.pred_original_sample for step in theirs])).max() < TOLERANCE[dtype]
    assert error(xs[1:], torch.stack([step.prev_sample for step in theirs])).max() < TOLERANCE[dtype]


@BOTH
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize(("steps", "spacing"), SHORT_LISTS)
def test_ancestral_steps_are_those_of_diffusers(paper, monkeypatch, steps, spacing, clip, variance, dtype):
    check_ancestral_steps(monkeypatch, paper, timesteps(1000, steps, spacing), dtype, variance, clip)


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize(("steps", "clip"), [(999, True), (1000, False)])
def test_long_ancestral_runs_are_those_of_diffusers(paper, monkeypatch, steps, clip, variance):
    check_ancestral_steps(monkeypatch, paper, timesteps(1000, steps), torch.float32, variance, clip)


@BOTH
@pytest.mark.parametrize("prediction", ["x0", "v"])
@pytest.mark.parametrize("schedule", ["linear", "cosine", "sigmoid-zero-snr"])
def test_ancestral_steps_of_a_denoiser_are_those_of_diffusers(monkeypatch, schedule, prediction, dtype):
    schedule = OURS[schedule](Settings(prediction=prediction))
    check_ancestral_steps(monkeypatch, schedule, timesteps(1000, 10), dtype, "learned", True, prediction)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_diffusers_adds_noise_to_the_result_where_a_list_does_not_end_at_its_0(paper, monkeypatch, variance):
    """Why its last step is given zeros above. DDPM's Algorithm 2 adds none in the step to x_0, however long that is.

    With fixed_small it is 1e-10 of the noise, from a bound of the variance; with fixed_large it is seen.
    """
    zeros, ones = torch.zeros(SHAPE, dtype=torch.float64), torch.ones(SHAPE, dtype=torch.float64)
    scheduler = on_our_table(DDPMScheduler(variance_type=variance), paper)
    scheduler.set_timesteps(timesteps=[99])
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: ones)
    added = {"fixed_small": 1e-10, "fixed_large": (1 - paper.alpha_bar[100].item()) ** 0.5}[variance]
    torch.testing.assert_close(scheduler.step(zeros, 99, zeros).prev_sample, added * ones, rtol=1e-9, atol=0)


# DDIM

# diffusers takes t - T // S for the previous time (and x_0 where that is below its 0): right for these lists only
FOLLOWED = {(spacing, steps) for spacing in ("leading", "trailing") for steps in (1, 10, 50, 1000)} | {
    ("leading", 999), ("linspace", 1), ("linspace", 1000), ("quadratic", 1), ("quadratic", 1000)
}  # fmt: skip


def paper_ddim(out, xs, times, eta, clip, noise):
    """DDIM's Eq. 12 and 16 in float64, from every x_t of a run at once: x_s, with s the list's next entry."""
    alpha_bar = np.concatenate([[1], np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))])
    a_t, a_s = torch.tensor(alpha_bar[[times, [*times[1:], 0]]]).view(2, -1, 1, 1, 1, 1)
    eps = out.double()
    predicted_x0 = (xs[:-1].double() - (1 - a_t) ** 0.5 * eps) / a_t**0.5
    if clip:  # the eps that goes with the clipped x_0
        predicted_x0 = predicted_x0.clip(-1, 1)
        eps = (xs[:-1].double() - a_t**0.5 * predicted_x0) / (1 - a_t) ** 0.5
    sigma = eta * ((1 - a_s) / (1 - a_t)) ** 0.5 * (1 - a_t / a_s) ** 0.5
    return a_s**0.5 * predicted_x0 + (1 - a_s - sigma**2) ** 0.5 * eps + sigma * noise


def check_ddim_steps(schedule, steps, spacing, dtype, eta, clip):
    net, times = network(3), timesteps(1000, steps, spacing)
    xs, x0_hats, drawn = walk(ddim_sampler, net, schedule, times, dtype, eta=eta, clip=clip)
    assert len(drawn) == (steps if eta else 1)  # x_T, and for every step but the last
    out, zeros = outputs(net, xs, times), torch.zeros(SHAPE, dtype=dtype)
    noise = [*drawn[1:], zeros] if eta else [zeros] * steps
    expected = paper_ddim(out, xs, times, eta, clip, torch.stack(noise))
    assert error(xs[1:], expected).max() < TOLERANCE[dtype]

    scheduler = on_our_table(DDIMScheduler(clip_sample=clip), schedule)
    scheduler.set_timesteps(steps)
    theirs = list(steps_of(scheduler, out, xs, times, eta=eta, variance_noise=noise, use_clipped_model_output=clip))
    assert error(x0_hats, torch.stack([step.pred_original_sample for step in theirs])).max() < TOLERANCE[dtype]
    same = error(xs[1:], torch.stack([step.prev_sample for step in theirs])) < TOLERANCE[dtype]
    right = [s == max(t - 1000 // steps, 0) for t, s in transitions(times, 1000)]
    assert all(right) == ((spacing, steps) in FOLLOWED)
    assert same.tolist() == right


@BOTH
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("eta", [0, 0.3, 1])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 7, 10, 50])
def test_ddim_steps_are_those_of_the_paper_and_of_diffusers_where_it_follows_the_list(
    paper, steps, spacing, eta, clip, dtype
):
    """Each step is the paper's. It is diffusers' too exactly where the previous time that it takes is the list's."""
    check_ddim_steps(paper, steps, spacing, dtype, eta, clip)


@pytest.mark.parametrize(
    ("steps", "spacing", "eta", "clip"),
    [(999, spacing, 0.3, True) for spacing in SPACINGS] + [(1000, "trailing", eta, eta == 1) for eta in (0, 0.3, 1)],
)
def test_long_ddim_runs_are_those_of_the_paper_and_of_diffusers(paper, steps, spacing, eta, clip):
    check_ddim_steps(paper, steps, spacing, torch.float32, eta, clip)


def test_all_spacings_are_one_list_where_every_time_is_taken():
    """So that the run of 1000 steps above stands for all of them."""
    assert all(timesteps(1000, 1000, spacing) == list(range(1000, 0, -1)) for spacing in SPACINGS)


# DPM-Solver++(2M)


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # numpy's to diffusers
@pytest.mark.parametrize(("eta", "algorithm"), [(0, "dpmsolver++"), (1, "sde-dpmsolver++")])
@pytest.mark.parametrize("bound", [None, 1.0, 1e9], ids=["free", "clipped", "thresholded"])
@pytest.mark.parametrize(
    ("steps", "spacing"),
    [(steps, spacing) for steps in (1, 2, 7, 10, 50) for spacing in SPACINGS] + [(1000, "trailing")],
)
def test_dpm_solver_steps_are_those_of_diffusers(paper, steps, spacing, bound, eta, algorithm):
    """Its step() works in float32 whatever it is given, so that there is no float64 here. After a step less than half
    as long ours is of first order, and theirs is told to be."""
    net, times = network(3), timesteps(1000, steps, spacing)
    clip = {None: False, 1.0: True, 1e9: dynamic_threshold(0.995)}[bound]
    xs, x0_hats, drawn = walk(dpmpp_2m_sampler, net, paper, times, torch.float32, eta=eta, clip=clip)
    assert len(drawn) == (steps if eta else 1)  # x_T, and for every step but the last
    noise = [*drawn[1:], torch.zeros(SHAPE)] if eta else None
    # thresholding with a largest threshold of 1 is clipping to [-1, 1]
    threshold = {"thresholding": bound is not None, "sample_max_value": bound or 1.0}
    scheduler = on_our_table(DPMSolverMultistepScheduler(algorithm_type=algorithm, **threshold), paper)
    config = scheduler.config
    assert (config.algorithm_type, config.solver_order, config.solver_type) == (algorithm, 2, "midpoint")
    assert (config.final_sigmas_type, config.lower_order_final) == ("zero", True)
    scheduler.set_timesteps(timesteps=[t - 1 for t in times])
    assert (scheduler.timesteps + 1).tolist() == times
    a = paper.alpha_bar[[*times, 0]]
    scheduler.sigmas = ((1 - a) / a).sqrt()
    h = (a / (1 - a)).log().diff()
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


# A whole model


@pytest.mark.parametrize("name", ["linear", "cosine", "quadratic"])
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("eta", [0, 0.3])
@pytest.mark.parametrize("steps", [1, 10, 50])
def test_v_model_under_zero_terminal_snr_draws_the_images_of_diffusers(steps, eta, clip, name):
    """Each side on its own from the same noise, diffusers on its own table and times.

    Not with eta = 1, where the factor of eps in the first step is 0, but in diffusers' float32 can be the root of 6e-8.
    """
    net, schedule = network(3, "v"), OURS[f"{name}-zero-snr"](Settings(prediction="v"))
    model, times = Denoiser(net, schedule, "v"), timesteps(1000, steps)
    xs, _, drawn = walk(ddim_sampler, model, schedule, times, torch.float32, eta=eta, clip=clip)
    scheduler = DDIMScheduler(
        beta_schedule=THEIRS[name], rescale_betas_zero_snr=True, prediction_type="v_prediction",
        timestep_spacing="trailing", clip_sample=clip,
    )  # fmt: skip
    scheduler.set_timesteps(steps)
    x, feed = drawn[0], iter([*drawn[1:], torch.zeros(SHAPE)])
    for k, t in enumerate(scheduler.timesteps):
        assert error(x[None], xs[k][None]) < 1e-5
        noise = next(feed) if eta else None
        out = net(x, (t + 1).repeat(len(x)))
        x = scheduler.step(out, t, x, eta=eta, variance_noise=noise, use_clipped_model_output=clip).prev_sample
    assert error(x[None], xs[-1][None]) < 1e-5


def test_ddim_with_eta_1_starts_from_zero_terminal_snr_with_fresh_noise():
    """x_T says nothing of x_s then: whatever s, the first step noises x0_hat as q_sample does.

    The factor of eps is the root of 0, and of nothing below it by rounding.
    """
    schedule = OURS["linear-zero-snr"](Settings(prediction="v"))
    model, start = Denoiser(network(3, "v"), schedule, "v"), torch.ones(SHAPE)
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    for s in range(1, 1000):
        states = ddim_sampler(model, schedule, [1000, s], start, lambda: noise, eta=1)
        (_, _, x0_hat), (_, got, _) = next(states), next(states)
        torch.testing.assert_close(got, q_sample(schedule, x0_hat, s, noise), rtol=1e-5, atol=1e-5)
