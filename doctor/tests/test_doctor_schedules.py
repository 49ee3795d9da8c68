"""The doctor on schedules, forward processes, guidance, and objects of other libraries."""

from types import SimpleNamespace

import diffusion_doctor
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusion_doctor.bugs import BUGS
from diffusion_doctor.schedule_checks import known_tables
from diffusion_doctor.subject_building import build_subject
from torch import nn

from mnist_ddpm import ddpm
from mnist_ddpm.methods import flow, schedules

BETAS = torch.linspace(1e-4, 0.02, 1000)
ALPHA_BAR = torch.cumprod(1 - BETAS, 0)


def causes_of(report) -> list[str]:
    """The bugs that a report names."""
    return [bug for bug, _ in report.causes()]


OWN = {
    "linear": schedules.linear,
    "cosine": schedules.cosine,
    "quadratic": schedules.quadratic,
    "sigmoid": schedules.sigmoid,
    "log-snr": schedules.log_snr,
    "flow": flow.flow,
    "zero SNR": schedules.with_zero_snr(schedules.linear),
}


@pytest.mark.parametrize("name", OWN)
def test_own_schedules_and_their_forward_processes_are_ok(name):
    schedule = OWN[name](1000, 1e-4, 0.02)

    def forward(x0, t, noise):
        return ddpm.q_sample(schedule, x0, t, noise)

    report = diffusion_doctor.examine(schedule, forward=forward)
    assert report.is_ok and report.conventions["first time"] == "t counts from 1"


def half(table):
    return table.half().float()


@pytest.mark.parametrize(
    ("table", "bug"),
    [
        (torch.linspace(1e-4, 0.02, 100), "weak-end"),
        (ALPHA_BAR.flip(0), "reversed-schedule"),
        (half(BETAS), "half-schedule"),
        (ALPHA_BAR.bfloat16(), "half-schedule"),
    ],
)
def test_a_schedule_s_bug_is_named(table, bug):
    name = "betas" if table.max() < 0.1 else "alphas_cumprod"
    report = diffusion_doctor.examine(schedule=table, places={"schedule": name})
    assert causes_of(report)[0] == bug and bug in BUGS


@pytest.mark.parametrize("T", [256, 1024])
def test_an_even_table_whose_values_halves_hold_exactly_is_ok(T):
    table = 1 - torch.arange(1, T + 1) / T
    assert "half-schedule" not in causes_of(diffusion_doctor.examine(schedule=table))


def test_the_cosine_schedule_s_last_beta_is_wrong_for_eps_alone():
    t = torch.arange(1001, dtype=torch.float64)
    f = torch.cos((t / 1000 + 0.008) / 1.008 * torch.pi / 2).square()
    table = f[1:] / f[0]
    assert diffusion_doctor.examine(schedule=table).is_ok, "it may be for v"
    assert diffusion_doctor.examine(schedule=table, prediction="v").is_ok
    report = diffusion_doctor.examine(schedule=table, prediction="eps")
    assert causes_of(report) == ["cosine-end"]


def test_levels_that_are_not_finite_stop_what_needs_them():
    report = diffusion_doctor.examine(
        schedule=torch.linspace(0.1, 2, 10), places={"schedule": "betas"}
    )
    verdicts = {check.name: check.verdict for check in report.checks}
    assert verdicts["schedule: noise grows with t"] == "wrong"
    assert verdicts["sampler"] == "not checked"


KINDS = {
    "betas": BETAS,
    "alphas": 1 - BETAS,
    "alphas_cumprod": ALPHA_BAR,
    "sqrt_alphas_cumprod": ALPHA_BAR.sqrt(),
    "sqrt_one_minus_alphas_cumprod": (1 - ALPHA_BAR).sqrt(),
    "x": F.pad(ALPHA_BAR, (1, 0), value=1.0),  # with the clean image
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("kind", [torch.as_tensor, np.asarray, list])
def test_any_table_is_understood(name, kind):
    values = KINDS[name].tolist() if kind is list else KINDS[name]
    subject = build_subject(None, {"schedule": kind(values)}, places={"schedule": name})
    wanted = schedules.linear()
    assert subject.schedule.T == 1000
    assert torch.allclose(subject.schedule.a, wanted.a, atol=2e-4)


PREVIOUS = F.pad(ALPHA_BAR[1:], (0, 1), value=1.0)
POSTERIOR = BETAS * (1 - F.pad(ALPHA_BAR[:-1], (1, 0), value=1.0)) / (1 - ALPHA_BAR)


@pytest.mark.parametrize(
    ("name", "table", "bug"),
    [
        ("alphas_cumprod_prev", PREVIOUS, "neighbour-padding"),
        ("posterior_variance", BETAS * (1 - PREVIOUS) / (1 - ALPHA_BAR), "neighbour-padding"),
        ("posterior_variance", POSTERIOR.roll(1), "posterior-variance"),
        ("sqrt_alphas_cumprod", ALPHA_BAR, "missing-sqrt"),
        ("sqrt_one_minus_alphas_cumprod", BETAS.sqrt(), "alpha-for-alpha-bar"),
    ],
)
def test_a_derived_table_s_bug_is_named(name, table, bug):
    tables = {"betas": BETAS, "alphas_cumprod": ALPHA_BAR}
    assert (
        causes_of(diffusion_doctor.examine(schedule=SimpleNamespace(**tables, **{name: table})))[0]
        == bug
    )
    right, _ = known_tables(schedules.linear())[name]
    assert diffusion_doctor.examine(
        schedule=SimpleNamespace(**tables, **{name: right.float()})
    ).is_ok


def per_image(values, t, x):
    return values[t].view(-1, *[1] * (x.ndim - 1))


def right(x0, t, noise):
    alpha_bar = per_image(ALPHA_BAR, t, x0)
    return alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * noise


def without_roots(x0, t, noise):
    alpha_bar = per_image(ALPHA_BAR, t, x0)
    return alpha_bar * x0 + (1 - alpha_bar) * noise


def of_alpha(x0, t, noise):
    beta = per_image(BETAS, t, x0)
    return (1 - beta).sqrt() * x0 + beta.sqrt() * noise


def swapped(x0, t, noise):
    return right(noise, t, x0)


def first_time_for_all(x0, t, noise):
    return right(x0, t[:1].expand_as(t), noise)


def own_uniform_noise(x0, t):
    return right(x0, t, torch.rand_like(x0))


@pytest.mark.parametrize(
    ("forward", "bug"),
    [
        (without_roots, "missing-sqrt"),
        (of_alpha, "alpha-for-alpha-bar"),
        (swapped, "swapped-factors"),
        (first_time_for_all, "one-time"),
        (own_uniform_noise, "uniform-noise"),
    ],
)
def test_a_forward_process_s_bug_is_named(forward, bug):
    report = diffusion_doctor.examine(schedule=BETAS, forward=forward)
    assert causes_of(report)[0] == bug and bug in BUGS


def other_order(timestep, eps, clean):
    return right(clean, timestep, eps)


def own_noise(x_start, t):
    return right(x_start, t, torch.randn_like(x_start))


def noise_beside(x, t):
    noise = torch.randn_like(x)
    return right(x, t, noise), noise


@pytest.mark.parametrize("forward", [right, other_order, own_noise, noise_beside])
@pytest.mark.parametrize("shape", [(1, 8, 8), (12,)])
def test_a_right_forward_process_is_ok_in_any_order_of_arguments(forward, shape):
    report = diffusion_doctor.examine(schedule=BETAS, forward=forward, shape=shape)
    verdicts = {check.name: check.verdict for check in report.checks}
    assert report.is_ok
    assert verdicts["forward: factors of x_0 and noise"] == "ok"


def test_noise_that_is_returned_shows_the_factors():
    report = diffusion_doctor.examine(
        schedule=BETAS, forward=lambda x, t: (without_roots(x, t, x * 0 + 1), x * 0 + 1)
    )
    assert causes_of(report)[0] == "missing-sqrt"


def guidance_with(weights, null=10):
    def guided(network, x, t, y, w):
        cond = network(x, t, y)
        uncond = network(x, t, None if null is None else torch.full_like(y, null))
        first, second = weights(w)
        return first * cond + second * uncond

    return guided


GUIDANCE = {
    "uncond first": (lambda w: (w, 1 - w), 10, None),
    "as the paper": (lambda w: (1 + w, -w), None, None),
    "cond first": (lambda w: (1 - w, w), 10, "guidance-sign"),
    "plus": (lambda w: (1 + w, w), 10, "guidance-sign"),
    "the difference alone": (lambda w: (w, -w), 10, "guidance-scale"),
    "always three": (lambda w: (3.0, -2.0), 10, "guidance-scale"),
    "no null label": (lambda w: (w, 1 - w), 3, "no-null-label"),
}


@pytest.mark.parametrize("name", GUIDANCE)
def test_guidance_s_bug_is_named(name):
    weights, null, bug = GUIDANCE[name]
    report = diffusion_doctor.examine(guidance=guidance_with(weights, null))
    assert causes_of(report) == ([] if bug is None else [bug])
    assert any(check.verdict == "ok" for check in report.checks) or bug


def test_guidance_in_one_batch_is_understood():
    def guided(model, x, t, labels, cfg_scale):
        both = model(torch.cat([x, x]), torch.cat([t, t]), torch.cat([labels, labels * 0 + 10]))
        cond, uncond = both.chunk(2)
        return uncond + cfg_scale * (cond - uncond)

    assert diffusion_doctor.examine(guidance=guided).is_ok


class Scheduler:
    """The attributes of a scheduler of diffusers; its step is DDIM's."""

    def __init__(self, stride_error=0):
        self.config = SimpleNamespace(
            num_train_timesteps=1000, prediction_type="epsilon", clip_sample=False
        )
        self.alphas_cumprod = ALPHA_BAR
        self.stride_error = stride_error

    def set_timesteps(self, steps):
        self.timesteps = torch.arange(0, 1000, 1000 // steps).flip(0)
        self.stride = 1000 // steps - self.stride_error

    def step(self, output, t, x):
        ab = ALPHA_BAR[t]
        ab_s = ALPHA_BAR[t - self.stride] if t >= self.stride else torch.tensor(1.0)
        x0 = (x - (1 - ab).sqrt() * output) / ab.sqrt()
        return SimpleNamespace(prev_sample=ab_s.sqrt() * x0 + (1 - ab_s).sqrt() * output)

    def add_noise(self, original_samples, noise, timesteps):
        return right(original_samples, timesteps, noise)


def test_a_scheduler_of_diffusers_is_understood():
    report = diffusion_doctor.examine(Scheduler(), steps=20)
    verdicts = {check.name: check.verdict for check in report.checks}
    assert report.is_ok and verdicts["sampler: the distribution it draws"] == "ok"
    assert (
        causes_of(diffusion_doctor.examine(Scheduler(stride_error=49), steps=20))[0] == "respacing"
    )


class Dimmer(nn.Module):
    """A network."""

    def forward(self, x, t, x_self_cond=None):
        return x * (1 + t.view(-1, 1, 1, 1) / 1000)


class GaussianDiffusion(nn.Module):
    """The attributes of denoising-diffusion-pytorch's class."""

    def __init__(self):
        super().__init__()
        self.model = Dimmer()
        self.objective = "pred_v"
        self.channels = 1
        self.betas = torch.linspace(1e-3, 0.2, 100)
        self.alphas_cumprod = torch.cumprod(1 - self.betas, 0)

    def p_sample_loop(self, shape):
        schedule = ddpm.beta_schedule(F.pad(self.betas.double(), (1, 0)))
        x = torch.randn(shape)
        for i in reversed(range(100)):
            v = self.model(x, torch.full((shape[0],), i), None)
            x0 = schedule.a[i + 1] * x - schedule.b[i + 1] * v
            x = ddpm.posterior_mean(schedule, x0.clamp(-1, 1), x, i + 1, i).float()
            if i > 0:
                noise = torch.randn_like(x)
                x = x + (ddpm.posterior_variance(schedule, i + 1, i).sqrt() * noise).float()
        return (x + 1) / 2

    def q_sample(self, x_start, t, noise):
        alpha_bar = per_image(self.alphas_cumprod, t, x_start)
        return alpha_bar.sqrt() * x_start + (1 - alpha_bar).sqrt() * noise


def test_gaussian_diffusion_is_understood():
    diffusion = GaussianDiffusion()
    own = diffusion.model
    report = diffusion_doctor.examine(diffusion)
    assert report.is_ok and diffusion.model is own
    assert "v" in report.conventions["prediction"] and "0 … 1" in report.conventions["range"]
    names = {check.name for check in report.checks if check.verdict == "ok"}
    assert "sampler: the formula of its steps" in names and "sampler: clipping of x0_hat" in names


def samples(model, sigmas, batchsize):
    """As smalldiffusion's: it looks it up in the module of the schedule."""
    xt = model.rand_input(batchsize) * sigmas[0]
    for sigma, smaller in zip(sigmas, sigmas[1:]):
        xt = xt - (sigma - smaller) * model.predict_eps_cfg(xt, sigma, None, 0.0)
        yield xt


class SigmaSchedule:
    """The attributes of smalldiffusion's Schedule."""

    sigmas = torch.logspace(-2, 1, 100)

    def sample_sigmas(self, steps):
        indices = (100 * (1 - np.arange(0, steps) / steps)).round().astype(int) - 1
        return self.sigmas[[*indices, 0]]


def test_a_schedule_of_smalldiffusion_is_understood():
    report = diffusion_doctor.examine(SigmaSchedule(), steps=20)
    assert report.is_ok and "sigma" in report.conventions["time"]


def test_nothing_and_unknown_things_are_refused_with_one_sentence():
    for arguments, named in (((), "nothing"), ((3,), "int"), (("/nowhere",), "/nowhere")):
        with pytest.raises(ValueError, match=named):
            diffusion_doctor.examine(*arguments)
    with pytest.raises(ValueError, match="predicts"):
        diffusion_doctor.examine(schedule=BETAS, predicts="v")


def test_the_random_numbers_of_whoever_calls_it_go_on():
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    diffusion_doctor.examine(schedule=BETAS, sampler=lambda network, shape: torch.randn(shape))
    assert torch.equal(torch.rand(3), wanted)
