"""The straight path, networks along other paths, pairs for reflow, and times of training."""

import math
import re
from functools import partial
from statistics import NormalDist

import pytest
import torch
from conftest import ROOT
from diffusers import FlowMatchEulerDiscreteScheduler
from helpers import PAPER, STRAIGHT, no_noise

from mnist_ddpm import catalogue, ddpm
from mnist_ddpm.formats.checkpoints import Checkpoint
from mnist_ddpm.generation import Drawing
from mnist_ddpm.methods.edm import EDM
from mnist_ddpm.methods.flow import VELOCITY, flow, reflow, velocity_weight
from mnist_ddpm.methods.paths import denoiser_along, match_snr
from mnist_ddpm.methods.predictions import EPS, X0, V, denoiser, weighted
from mnist_ddpm.methods.schedules import cosine, linear, zero_terminal_snr
from mnist_ddpm.methods.solvers import dpmpp_2m_sampler, heun_sampler
from mnist_ddpm.methods.times import NormalTimes
from mnist_ddpm.recipe import Recipe
from mnist_ddpm.sampling import Sampling

SHARE, MEAN, STD = (
    torch.tensor(numbers, dtype=torch.float64) for numbers in ([0.3, 0.7], [-0.8, 0.5], [0.1, 0.3])
)
PREDICTIONS = {"eps": EPS, "x0": X0, "v": V, "velocity": VELOCITY, "edm": EDM}


def tables(schedule, t):
    """Signal and noise at times, fractions too, where the tables run straight between."""
    t = torch.as_tensor(t, dtype=torch.float64)
    low = t.long().clamp(max=schedule.T - 1)
    both = schedule.a, schedule.b
    return (torch.lerp(x[low], x[low + 1], t - low).view(-1, 1, 1, 1) for x in both)


def mixture_x0(a_t, b_t, xt):
    """The exact E[x_0 | x_t] of a pixel from the mixture."""
    variance = a_t**2 * STD**2 + b_t**2  # (N, 1, 1, K), as all that follows
    miss = xt - a_t * MEAN
    logits = SHARE.log() - variance.log() / 2 - miss**2 / (2 * variance)
    x0 = MEAN + a_t * STD**2 / variance * miss
    return (logits.softmax(dim=-1) * x0).sum(dim=-1, keepdim=True)


def mixture(schedule):
    """The exact denoiser of that mixture."""

    def denoise(xt, t):
        x0_hat = mixture_x0(*tables(schedule, t), xt)
        return x0_hat, ddpm.predict_eps(schedule, xt, t, x0_hat)

    return denoise


def mixture_network(schedule, conversion):
    """A network that is right, also at fractions of t."""

    def network(xt, t):
        a_t, b_t = tables(schedule, t)
        here = ddpm.Schedule(*(table.flatten() for table in (a_t, b_t)))
        place = torch.arange(len(here.a)).expand(len(xt))
        if conversion.scale is not None:
            xt = xt / conversion.scale(here, place).view(-1, 1, 1, 1)
        return conversion.from_x0(here, xt, place, mixture_x0(a_t, b_t, xt))

    return network


def last(states):
    *_, (t, x, _) = states
    assert t == 0
    return x


def quantiles(n):
    return torch.special.ndtri((torch.arange(n).double() + 0.5) / n).view(-1, 1, 1, 1)


def test_velocity_is_the_path_s_slope():
    generator = ddpm.random_generator(0)
    x0, eps = torch.randn(2, 3, 1, 2, 2, generator=generator, dtype=torch.float64)
    t = torch.tensor([1, 500, 999])
    slope = (ddpm.q_sample(STRAIGHT, x0, t + 1, eps) - ddpm.q_sample(STRAIGHT, x0, t, eps)) * 1000
    xt = ddpm.q_sample(flow(), x0, t, eps)
    torch.testing.assert_close(VELOCITY.from_x0(STRAIGHT, xt, t, x0), slope)
    torch.testing.assert_close(VELOCITY.to_x0(STRAIGHT, xt, t, slope), x0)


def test_ddim_is_the_euler_step_of_another_implementation():
    def network(x, t):
        return torch.tanh(x) * (t.view(-1, 1, 1, 1) / 1000) - 0.3

    theirs = FlowMatchEulerDiscreteScheduler()
    theirs.set_timesteps(sigmas=[t / 1000 for t in ddpm.timesteps(1000, 7)])
    draw_noise = ddpm.noise_source(0, range(3), (1, 4, 4))
    x = xT = draw_noise()
    for t in theirs.timesteps:
        x = theirs.step(network(x, t.expand(3)), t, x).prev_sample
    denoise = denoiser(network, STRAIGHT, VELOCITY)
    ours = last(ddpm.ddim_sampler(denoise, STRAIGHT, ddpm.timesteps(1000, 7), xT, no_noise))
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-5)


def test_times_are_matched_by_snr():
    """On the straight path t/T = noise / (signal + noise), whatever lies between two times."""
    times, own = match_snr(STRAIGHT, PAPER)
    exact = 1000 * PAPER.b / (PAPER.a + PAPER.b)
    torch.testing.assert_close(times[1:], exact[1:], rtol=0, atol=1e-9)
    for table, wanted in ((own.a, 1 - exact / 1000), (own.b, exact / 1000)):
        torch.testing.assert_close(table[1:], wanted[1:], rtol=0, atol=1e-12)
    times, own = match_snr(PAPER, STRAIGHT)
    inside = slice(10, 990)  # PAPER's SNR, at both ends, is that of 9.9 and 993.7
    torch.testing.assert_close((own.b / own.a)[inside], (STRAIGHT.b / STRAIGHT.a)[inside])
    assert times[:10].eq(1).all() and times[-6:].eq(1000).all() and (times.diff() >= 0).all()
    assert own.at(1000) == PAPER.at(1000)
    whole, _ = match_snr(STRAIGHT, flow(250))
    torch.testing.assert_close(whole[1:], 4.0 * torch.arange(1, 251).double(), rtol=0, atol=1e-9)
    alone, _ = match_snr(flow(1), flow(3))
    assert alone.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize(("schedule", "path"), [(STRAIGHT, PAPER), (PAPER, STRAIGHT)])
def test_a_network_that_is_right_is_right_along_another_path(kind, schedule, path):
    network = mixture_network(schedule, PREDICTIONS[kind])
    make = partial(denoiser, conversion=PREDICTIONS[kind])
    denoise, t = denoiser_along(path, network, schedule, make), torch.tensor([15, 300, 700, 985])
    xt = torch.tensor([-0.5, 0.1, 0.4, 2.0], dtype=torch.float64).view(4, 1, 1, 1)
    wanted = mixture(path)(xt, t)
    torch.testing.assert_close(denoise(xt, t), wanted, rtol=0, atol=1e-9)
    one = denoise(xt[1:2], 300)
    torch.testing.assert_close(one, tuple(each[1:2] for each in wanted), rtol=0, atol=1e-9)


@pytest.mark.parametrize("sampler", [ddpm.ddim_sampler, heun_sampler, dpmpp_2m_sampler])
def test_along_either_path_the_same_noise_becomes_the_same_image(sampler):
    ddpms, x = zero_terminal_snr(cosine()), quantiles(50)
    make = partial(denoiser, conversion=V)
    network, differences = mixture_network(ddpms, V), []
    for steps in (50, 200):
        images = []
        for path in (ddpms, STRAIGHT):
            denoise = denoiser_along(path, network, ddpms, make)
            images.append(last(sampler(denoise, path, ddpm.timesteps(1000, steps), x, no_noise)))
        differences.append((images[0] - images[1]).abs().max().item())
    assert differences[1] < 0.05 and differences[1] < 0.5 * differences[0], differences


@pytest.mark.parametrize("path", [None, "flow"])
def test_a_path_is_that_of_the_sampler_and_of_its_network(path):
    """Of Gaussian pixels the image is the noise, times their deviation."""
    schedule, deviation = catalogue.make_schedule(Recipe()), 0.3

    def network(xt, t):
        a_t, b_t = tables(schedule, t)
        return b_t * xt / (a_t**2 * deviation**2 + b_t**2)

    sampling = Sampling(path=path, steps=400)
    checkpoint = Checkpoint(network, schedule, Recipe())
    drawing = Drawing(checkpoint, sampling, sampling.choice(Recipe()))
    images, _ = drawing.images(2, device=torch.device("cpu"))
    noise = ddpm.noise_source(0, range(2), Recipe().shape)()
    assert (images.int() - ddpm.to_uint8(deviation * noise).int()).abs().max() < 4


def test_in_the_notebook_digits_along_both_paths_come_together():
    notebook = (ROOT / "further" / "2_flow_matching.ipynb").read_text(encoding="utf-8")
    ends = re.search(r"same place: at most ([\d.]+) apart", notebook)
    assert float(ends[1]) < 0.02
    found = re.findall(r"(\d+) steps: ([\d.]+) of 255 grey levels apart; .* (\d+)\\n", notebook)
    steps, apart, others = zip(*(map(float, row) for row in found))
    assert steps == (10, 50, 200) and apart[0] > 2 * apart[1] > 2 * apart[2]
    assert apart[2] < 1 < 20 < min(others)


def test_each_image_is_trained_with_the_noise_that_it_came_from():
    points = torch.tensor([-0.8, 0.1, 0.6]).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    options = {"sampler": ddpm.ddim_sampler, "steps": 9, "seed": 3}
    denoise = ddpm.ideal_denoiser(STRAIGHT, points)
    images, _ = ddpm.generate(denoise, STRAIGHT, 9, (1, 2, 2), **options)
    images = images + torch.arange(9, dtype=torch.uint8).view(9, 1, 1, 1)  # so that none is twice
    objective = reflow(lambda network, schedule, x0, t, eps: eps.flatten(1), images, seed=3)
    batch = [7, 2, 5]
    told = objective(None, STRAIGHT, ddpm.to_float(images[batch]), None, torch.zeros(3, 1, 2, 2))
    assert torch.equal(told, ddpm.noise_source(3, range(9), (1, 2, 2))()[batch].flatten(1))
    with pytest.raises(ValueError, match="unknown"):
        objective(None, STRAIGHT, ddpm.to_float(images[:1] + 20), None, torch.zeros(1, 1, 2, 2))


def test_times_have_the_density_of_the_paper():
    """arXiv 2403.03206, Eq. 19; EDM's Table 1."""
    for mean, std in ((0.0, 1.0), (0.5, 0.6)):
        middle = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
        density = torch.exp(-((middle.logit() - mean) ** 2) / (2 * std**2))
        density = density / (std * math.sqrt(2 * math.pi) * middle * (1 - middle))
        found = NormalTimes(STRAIGHT, mean, std).probability()
        torch.testing.assert_close(found, density / 1000, rtol=0.01, atol=1e-6)
    found, log_sigma = NormalTimes(PAPER, -1.2, 1.2).probability(), NormalDist(-1.2, 1.2)
    for t in (2, 300, 900):
        ends = [math.log(PAPER.b[s] / PAPER.a[s]) for s in (t - 1, t)]
        assert found[t - 1].item() == pytest.approx(log_sigma.cdf(ends[1]) - log_sigma.cdf(ends[0]))
    assert found.sum().item() == pytest.approx(1)


@pytest.mark.parametrize("schedule", [flow(20), linear(20), flow(1)], ids=["flow", "ddpm", "one"])
def test_times_are_drawn_as_often_as_their_probability_says(schedule):
    times, n = NormalTimes(schedule, -0.4, 1.0), 40_000
    t, weights = times.draw(n, ddpm.random_generator(0))
    counts, wanted = t.bincount(minlength=schedule.T + 1), n * times.probability()
    assert counts[0] == 0 and len(counts) == schedule.T + 1 and weights.eq(1).all()
    likely = wanted > 5
    assert ((counts[1:] - wanted)[likely] / wanted[likely].sqrt()).abs().max() < 4.5
    assert times.state_dict() == {}


def test_the_velocity_s_weight_makes_the_error_of_x0_the_velocity_s():
    generator = ddpm.random_generator(0)
    x0, eps, guess = (torch.randn(4, 1, 2, 2, generator=generator) for _ in range(3))
    t = torch.tensor([51, 400, 999, 1000])
    losses = weighted(X0, velocity_weight)(lambda xt, t: guess, STRAIGHT, x0, t, eps)
    xt = ddpm.q_sample(STRAIGHT, x0, t, eps)
    share = (t / 1000).view(-1, 1, 1, 1)
    wanted = ((xt - guess) / share - (xt - x0) / share).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(losses, wanted)
    assert velocity_weight(STRAIGHT, torch.tensor([1, 50])).tolist() == pytest.approx([400, 400])
