"""The doctor on samplers: correct code is never called wrong, and each bug is named first."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from diffusion_doctor.bugs import BUGS
from diffusion_doctor.report import Report
from diffusion_doctor.sampler_checks import sampler_checks
from diffusion_doctor.subject import Conventions, Subject
from diffusion_doctor.subject_building import build_subject

from mnist_ddpm import catalogue, ddpm
from mnist_ddpm.methods import flow, predictions, schedules, solvers

# As tutorials write them
TABLES = """
import torch
T = 20
betas = torch.linspace(0.01, 0.7, T)
alphas = 1 - betas
alphas_cumprod = torch.cumprod(alphas, 0)
alphas_cumprod_prev = torch.cat([torch.ones(1), alphas_cumprod[:-1]])
posterior_variance = betas * (1 - alphas_cumprod_prev) / (1 - alphas_cumprod)
"""
DDPM = """
def sample(model, shape):
    x = torch.randn(shape)
    for i in reversed(range(T)):
        t = torch.full((shape[0],), i)
        eps = model(x, t)
        x0 = (x - (1 - alphas_cumprod[i]).sqrt() * eps) / alphas_cumprod[i].sqrt()
        x0 = x0.clamp(-1, 1)
        c0 = betas[i] * alphas_cumprod_prev[i].sqrt() / (1 - alphas_cumprod[i])
        ct = (1 - alphas_cumprod_prev[i]) * alphas[i].sqrt() / (1 - alphas_cumprod[i])
        noise = torch.randn_like(x) if i > 0 else 0
        x = c0 * x0 + ct * x + posterior_variance[i].sqrt() * noise
    return x
"""
ALGORITHM_2 = """
def sample(model, shape):
    x = torch.randn(shape)
    for i in reversed(range(T)):
        eps = model(x, torch.full((shape[0],), i))
        mean = (x - betas[i] / (1 - alphas_cumprod[i]).sqrt() * eps) / alphas[i].sqrt()
        x = mean + betas[i].sqrt() * (torch.randn_like(x) if i > 0 else 0)
    return x
"""
DDIM = """
def sample(model, shape):
    x = torch.randn(shape)
    times = list(range(T - 1, -1, -4))
    for k, i in enumerate(times):
        t = torch.full((shape[0],), i)
        eps = model(x, t)
        ab = alphas_cumprod[i]
        ab_s = alphas_cumprod[times[k + 1]] if k + 1 < len(times) else torch.tensor(1.0)
        x0 = (x - (1 - ab).sqrt() * eps) / ab.sqrt()
        x0 = x0.clamp(-1, 1)
        eps = (x - ab.sqrt() * x0) / (1 - ab).sqrt()
        x = ab_s.sqrt() * x0 + (1 - ab_s).sqrt() * eps
    return x
"""
CODES = {"ddpm": TABLES + DDPM, "algorithm 2": TABLES + ALGORITHM_2, "ddim": TABLES + DDIM}
MISTAKES = [  # the code, the bug, a correct piece, and what stands there instead
    (
        "ddpm",
        "neighbour-padding",
        "[torch.ones(1), alphas_cumprod[:-1]]",
        "[alphas_cumprod[1:], torch.ones(1)]",
    ),
    ("ddpm", "network-time", "model(x, t)", "model(x, (t - 1).clamp(min=0))"),
    ("ddpm", "early-end", "reversed(range(T))", "reversed(range(1, T))"),
    ("ddpm", "no-clipping", "x0 = x0.clamp(-1, 1)", "pass"),
    ("ddpm", "missing-sqrt", "alphas_cumprod_prev[i].sqrt() /", "alphas_cumprod_prev[i] /"),
    ("ddpm", "alpha-for-alpha-bar", "/ alphas_cumprod[i].sqrt()", "/ alphas[i].sqrt()"),
    ("ddpm", "uniform-noise", "torch.randn_like(x)", "torch.rand_like(x)"),
    ("ddpm", "uniform-noise", "x = torch.randn(shape)", "x = torch.rand(shape)"),
    (
        "ddpm",
        "repeated-noise",
        "torch.randn_like(x)",
        "torch.randn(x.shape, generator=torch.Generator().manual_seed(0))",
    ),
    ("ddpm", "no-noise", "torch.randn_like(x)", "0"),
    ("ddpm", "shared-noise", "torch.randn_like(x)", "torch.randn(1, *shape[1:])"),
    (
        "ddpm",
        "shared-noise",
        "x = torch.randn(shape)",
        "x = torch.randn(1, *shape[1:]).expand(shape)",
    ),
    ("algorithm 2", "clamped-state", "    return x", "        x = x.clamp(-1, 1)\n    return x"),
    ("ddpm", "posterior-variance", "posterior_variance[i]", "posterior_variance[i - 1]"),
    ("ddpm", "one-time", "model(x, t)", "model(x, torch.full_like(t, 10))"),
    ("algorithm 2", "last-noise", " if i > 0 else 0", ""),
    ("algorithm 2", "respacing", "reversed(range(T))", "range(T - 1, -1, -4)"),
    ("ddim", "respacing", "alphas_cumprod[times[k + 1]] if", "alphas_cumprod[i - 1] if"),
    ("ddim", "ddim-alpha", "(1 - ab_s).sqrt() * eps", "(1 - ab).sqrt() * eps"),
    ("ddim", "stale-eps", "eps = (x - ab.sqrt() * x0) / (1 - ab).sqrt()", "pass"),
]


def subject_of(code: str, **fields) -> Subject:
    """Code whose conventions are known: times from 0, eps."""
    names: dict = {}
    exec(code, names)
    beta = torch.nn.functional.pad(names["betas"].double(), (1, 0))
    schedule = ddpm.beta_schedule(beta)
    return Subject(schedule=schedule, sampler=names["sample"], shape=(1, 8, 8), **fields)


@pytest.mark.parametrize(("name", "bug", "right", "wrong"), MISTAKES)
def test_a_bug_is_the_likeliest_cause(name, bug, right, wrong):
    code = CODES[name]
    assert right in code and bug in BUGS
    report = Report(sampler_checks(subject_of(code.replace(right, wrong), clips=True), 0))
    assert not report.is_ok
    assert bug in [cause for cause, _ in report.causes()][:2]


@pytest.mark.parametrize("name", CODES)
def test_correct_code_is_ok(name):
    clips = None if name == "algorithm 2" else True
    report = Report(sampler_checks(subject_of(CODES[name], clips=clips), 0))
    assert report.is_ok and report.checks[2].verdict == "ok"


SAMPLERS = {
    "ddpm": ddpm.ddpm_sampler,
    "ddpm, beta": partial(ddpm.ddpm_sampler, variance=ddpm.step_variance),
    "ddim": ddpm.ddim_sampler,
    "ddim, eta 0.3": partial(ddpm.ddim_sampler, eta=0.3),
    "dpmpp": solvers.dpmpp_2m_sampler,
    "dpmpp, eta 1": partial(solvers.dpmpp_2m_sampler, eta=1.0),
    "heun": solvers.heun_sampler,
}
OWN = [  # each sampler, schedule, prediction and spacing at least once
    ("ddpm", schedules.linear(), "eps", ddpm.timesteps),
    ("ddpm, beta", schedules.cosine(), "x0", schedules.leading),
    ("ddim", schedules.quadratic(), "v", schedules.linspace),
    ("ddim, eta 0.3", schedules.sigmoid(), "eps", schedules.quadratic_times),
    ("ddim", flow.flow(), "velocity", ddpm.timesteps),
    ("ddpm", flow.flow(), "x0", ddpm.timesteps),
    ("dpmpp", schedules.log_snr(), "eps", ddpm.timesteps),
    ("dpmpp, eta 1", schedules.cosine(), "v", ddpm.timesteps),
    ("heun", schedules.linear(), "x0", ddpm.timesteps),
    ("ddim", schedules.zero_terminal_snr(schedules.linear()), "v", ddpm.timesteps),
]


def own_sampler(name, schedule, prediction, spacing, steps=14):
    """One of the package's samplers as a function of (network, shape)."""

    def sample(network, shape):
        denoise = predictions.denoiser(network, schedule, catalogue.PREDICTIONS[prediction])
        denoise = ddpm.clipped(denoise, schedule)
        start = torch.randn(shape)
        states = SAMPLERS[name](
            denoise, schedule, spacing(schedule.T, steps), start, lambda: torch.randn(shape)
        )
        *_, (_, x, _) = states
        return x

    return sample


@pytest.mark.parametrize(("name", "schedule", "prediction", "spacing"), OWN)
def test_the_package_s_own_samplers_are_ok(name, schedule, prediction, spacing):
    sampler = own_sampler(name, schedule, prediction, spacing)
    conventions = Conventions(first_time=1, prediction=prediction)
    subject = Subject(
        schedule=schedule, sampler=sampler, shape=(1, 8, 8), clips=True, conventions=conventions
    )
    verdicts = {check.verdict for check in sampler_checks(subject, 0)}
    assert verdicts == {"ok"}


def test_conventions_are_found_out():
    """Times from 1, as fractions, v, and images in [0, 1]; what is fixed stays."""
    schedule = schedules.cosine(20)
    sample = own_sampler("ddim", schedule, "v", ddpm.timesteps)

    def fractions(network, shape):
        return (sample(lambda x, t: network(x, t / 20), shape) + 1) / 2

    given = {"schedule": schedule.a[1:].square(), "sampler": fractions}
    found = build_subject(None, given, shape=(1, 6, 6)).conventions
    wanted = Conventions(first_time=1, time="fraction", prediction="v", output_range=(0.0, 1.0))
    assert found == wanted
    fixed = {"first_time": 1, "prediction": "x0"}
    told = build_subject(None, given, shape=(1, 6, 6), **fixed).conventions
    assert told == replace(wanted, prediction="x0")


def test_a_solver_that_is_not_known_is_judged_by_what_it_draws():
    schedule = schedules.linear(100, 1e-3, 0.2)

    def midpoint(network, shape, twice=2.0):
        """Second-order steps, each over two times of the schedule."""
        denoise = ddpm.eps_denoiser(network, schedule)
        sigma = schedule.b / schedule.a
        x = torch.randn(shape)
        for t in range(100, 0, -2):
            _, eps = denoise(x, t)
            half = schedule.a[t - 1] * (x / schedule.a[t] + (sigma[t - 1] - sigma[t]) * eps)
            _, eps = denoise(half.float(), t - 1)
            step = twice / 2 * (sigma[t - 2] - sigma[t])
            x = (schedule.a[t - 2] * (x / schedule.a[t] + step * eps)).float()
        return x

    def verdicts(sampler):
        subject = Subject(
            schedule=schedule,
            sampler=sampler,
            shape=(1, 4, 4),
            conventions=Conventions(first_time=1),
        )
        return {check.name.split(": ")[1]: check.verdict for check in sampler_checks(subject, 0)}

    assert verdicts(midpoint)["the formula of its steps"] == "not checked"
    assert verdicts(partial(midpoint, twice=1.6))["the distribution it draws"] == "wrong"
