"""Consistency models, on data that are one Gaussian: where the ODE leads is known."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from helpers import PAPER, PATHS, STRAIGHT
from training_helpers import TINY, squares, train

from mnist_ddpm import catalogue
from mnist_ddpm.ddpm import predict_eps, q_sample, random_generator
from mnist_ddpm.method import Batch
from mnist_ddpm.methods.consistency import Consistency, consistency_sampler, ect_times
from mnist_ddpm.methods.distillation import Distilled
from mnist_ddpm.methods.edm import EDM, edm_weight
from mnist_ddpm.methods.flow import VELOCITY, flow
from mnist_ddpm.methods.predictions import EPS, V, denoiser

MEAN = torch.tensor([-0.5, 0.3, 0.0], dtype=torch.float64).view(1, 1, 1, 3)
STD = torch.tensor([0.2, 0.7, 1.5], dtype=torch.float64).view(1, 1, 1, 3)


def spread(schedule, t):
    a_t, b_t = (value.view(-1, 1, 1, 1) for value in schedule.at(t))
    return a_t, b_t, (a_t**2 * STD**2 + b_t**2).sqrt()


def perfect(schedule):
    """The consistency function: each quantile of x_t becomes that of x_0."""

    def denoise(xt, t):
        a_t, _, deviation = spread(schedule, t)
        x0 = MEAN + STD * (xt - a_t * MEAN) / deviation
        return x0, predict_eps(schedule, xt, t, x0)

    return denoise


def exact(schedule):
    """The exact E[x_0 | x_t]."""

    def denoise(xt, t):
        a_t, _, deviation = spread(schedule, t)
        x0 = MEAN + a_t * STD**2 * (xt - a_t * MEAN) / deviation**2
        return x0, predict_eps(schedule, xt, t, x0)

    return denoise


def example(schedule, t):
    generator = random_generator(0)
    x0, eps = torch.randn(2, len(t), 1, 1, 3, generator=generator, dtype=torch.float64)
    return MEAN + STD * x0, eps


@pytest.mark.parametrize("times", [[1000], [1000, 400], [1000, 800, 500, 30]], ids=len)
def test_samples_of_a_perfect_function_are_the_data_in_any_number_of_steps(times):
    """A sample is linear in each of its noises, so its mean and deviation are exact."""
    n = len(times)  # of noises: image 0 has none, image k the k-th alone
    each = torch.eye(n + 1, dtype=torch.float64)[1:].view(n, n + 1, 1, 1, 1)
    xT, *later = each.expand(-1, -1, 1, 1, 3)
    calls = iter(later)
    states = consistency_sampler(perfect(STRAIGHT), STRAIGHT, times, xT, lambda: next(calls))
    *_, (t, x, x0_hat) = states
    assert t == 0 and torch.equal(x, x0_hat) and next(calls, None) is None
    torch.testing.assert_close(x[:1], MEAN, rtol=0, atol=1e-9)
    deviation = (x[1:] - x[:1]).square().sum(dim=0, keepdim=True).sqrt()
    torch.testing.assert_close(deviation, STD, rtol=1e-9, atol=0)


@PATHS
@pytest.mark.parametrize("conversion", [EPS, V, VELOCITY, EDM], ids=["eps", "v", "velocity", "edm"])
def test_without_noise_the_function_is_the_identity(path, conversion):
    x, output = torch.randn(2, 3, 1, 4, 4, generator=random_generator(0))
    assert torch.equal(conversion.to_x0(path, x, torch.zeros(3, dtype=torch.long), output), x)


@pytest.mark.parametrize("path", [PAPER, flow(4000)], ids=["paper", "flow"])
def test_earlier_times_come_closer_as_training_goes_on(path):
    """ECT's mapping, written anew with its a = stage + 1, q = 2, k = 8, b = 1."""
    t, before = torch.arange(1, path.T + 1), torch.zeros(path.T, dtype=torch.long) - 1
    sigma = path.b / path.a
    for done, stage in ((0.0, 0), (0.3, 2), (0.99, 7), (1.0, 7)):
        r = ect_times(path, t, done)
        assert (r >= before).all() and (r < t).all() and (r >= 0).all()
        own = sigma[1:].clamp(max=80)
        ratio = 1 - (1 + 8 / (1 + torch.exp(own))) / 2 ** (stage + 1)
        wanted = (own * ratio).clamp(min=0)
        assert (sigma[r] <= wanted).all() and (sigma[r + 1] > wanted).all()
        before = r
    assert ect_times(path, t, 0.0)[: path.T // 10].eq(0).all(), "which is a diffusion model's loss"


@PATHS
def test_to_agree_with_the_image_is_the_loss_of_a_diffusion_model(path):
    t = torch.tensor([1, 40, 700, 1000])
    x0, eps = example(path, t)
    network = lambda x, t: 0.4 * x  # noqa: E731
    earlier = lambda schedule, t, done: torch.zeros_like(t)  # noqa: E731
    losses = Consistency(EDM, earlier, c=0.0).loss(network, path, Batch(x0, t, eps))
    error = denoiser(network, path, EDM)(q_sample(path, x0, t, eps), t)[0] - x0
    torch.testing.assert_close(
        losses, error.square().mean(dim=(1, 2, 3)).sqrt() * edm_weight(path, t)
    )


def test_a_perfect_function_agrees_with_itself_along_the_teacher_s_ode():
    """To the second order of the step, which is Euler's. With the data's noise it does not."""
    path, t = flow(8000), torch.tensor([800, 2400, 6400])
    x0, eps = example(path, t)
    network, found = lambda x, t: V.from_x0(path, x, t, perfect(path)(x, t)[0]), {}
    for teacher in (True, False):
        for step in (80, 40):
            earlier = lambda schedule, t, done, step=step: t - step  # noqa: E731
            method = Consistency(V, earlier, c=0.0)
            method = Distilled(method, lambda labels: exact(path)) if teacher else method
            found[teacher, step] = method.loss(network, path, Batch(x0, t, eps))
    ratio = found[True, 80] / found[True, 40]
    assert ((ratio > 3.5) & (ratio < 4.5)).all()
    assert (found[False, 40] > 3 * found[True, 40]).all()


def test_what_is_agreed_with_learns_nothing():
    x0, eps, t = *example(PAPER, torch.tensor([300, 900])), torch.tensor([300, 900])
    factor, frozen = (torch.tensor(0.4, requires_grad=True) for _ in range(2))
    network = lambda x, t: (factor if torch.equal(t, asked) else frozen) * x  # noqa: E731
    asked = t
    Consistency(V).loss(network, PAPER, Batch(x0, t, eps)).sum().backward()
    assert frozen.grad is None and factor.grad.abs() > 0


def test_both_evaluations_share_one_dropout_mask():
    x0, eps, t = *example(PAPER, torch.tensor([300, 900])), torch.tensor([300, 900])
    network = lambda x, t: torch.nn.functional.dropout(x, 0.5)  # noqa: E731
    same_time = Consistency(V, earlier=lambda schedule, t, done: t)
    assert same_time.loss(network, PAPER, Batch(x0, t, eps)).abs().max() == 0


@pytest.mark.parametrize("prediction", ["x0", "mu"])
def test_what_need_not_be_the_image_without_noise_is_refused(prediction):
    """All networks agree where they say nothing but 0."""
    with pytest.raises(ValueError, match="prediction"):
        catalogue.make_method(replace(TINY, objective="consistency", prediction=prediction))


def test_training_tells_how_far_it_is(tmp_path, monkeypatch):
    told = []

    def earlier(schedule, t, part):
        told.append(part)
        return ect_times(schedule, t, part)

    entry = catalogue.plain_entry(partial(Consistency, earlier=earlier))
    monkeypatch.setitem(catalogue.OBJECTIVES, "consistency", entry)
    names = {"objective": "consistency", "prediction": "edm", "times": "log-normal"}
    recipe = replace(TINY, **names)
    run = train(recipe, squares(32), tmp_path)
    assert told == [0, 0.25, 0.5, 0.75] and run.step == 4
    assert all(loss < 100 for loss in run.losses)


def test_a_prediction_is_agreed_with_down_to_the_first_time():
    t, r = torch.tensor([2, 3]), torch.tensor([1, 1])
    x0, eps = example(PAPER, t)
    network = lambda x, t: 0.4 * x  # noqa: E731
    losses = Consistency(V, lambda *_: r, c=0.0).loss(network, PAPER, Batch(x0, t, eps))
    f = denoiser(network, PAPER, V)
    left = [f(q_sample(PAPER, x0, each, eps), each)[0] for each in (t, r)]
    distance = (left[0] - left[1]).square().mean(dim=(1, 2, 3)).sqrt()
    torch.testing.assert_close(losses, distance * edm_weight(PAPER, t))
