"""Mean flows on Gaussian data, whose average velocities are known, and in a training."""

from dataclasses import replace

import pytest
import torch
from helpers import STRAIGHT
from torch import nn
from training_helpers import TINY, squares

from experiments.methods import add_methods, mean_flow
from mnist_ddpm import catalogue, ddpm
from mnist_ddpm.ddpm import to_float
from mnist_ddpm.method import Batch
from mnist_ddpm.methods.flow import VELOCITY
from mnist_ddpm.methods.predictions import denoiser
from mnist_ddpm.methods.shortcuts import shortcut_sampler, with_next_times
from mnist_ddpm.training.loop import start_run, training_loop

VARIANCE = 0.09  # of the data


@pytest.fixture(autouse=True)
def added(monkeypatch):
    monkeypatch.setattr(catalogue, "OBJECTIVES", dict(catalogue.OBJECTIVES))
    add_methods()


def deviation(time):
    """The standard deviation of x_t, t / T being the time."""
    return ((1 - time) ** 2 * VARIANCE + time**2).sqrt()


def exact_average(xt, t, s):
    """The average velocity from t to s of the ODE that keeps x_t / deviation; at s = t, dx/dt."""
    start, end = ((each.double() / 1000).view(-1, 1, 1, 1) for each in (t, s))
    slope = (start - (1 - start) * VARIANCE) / deviation(start) ** 2
    length = torch.where(start > end, start - end, 1)
    moved = (1 - deviation(end) / deviation(start)) / length
    return torch.where(start > end, moved, slope) * xt


class Exact(nn.Module):
    """The exact average velocity, times a factor for steps that have a length."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor, dtype=torch.float64))

    def forward(self, xt, t, s):
        has_length = (s.to(t) < t).view(-1, 1, 1, 1)
        return exact_average(xt, t, s) * torch.where(has_length, self.factor, 1.0)


def example(n=6):
    generator = ddpm.random_generator(0)
    xt = torch.randn(n, 1, 2, 2, generator=generator, dtype=torch.float64)
    return xt, torch.tensor([1000, 900, 500, 300, 40, 700]), torch.tensor([0, 300, 400, 1, 39, 700])


def test_the_exact_average_implies_the_exact_velocity():
    xt, t, s = example()
    average, implied = mean_flow.average_velocity(Exact(), STRAIGHT, xt, t, s)
    torch.testing.assert_close(implied, exact_average(xt, t, t))
    assert (average - implied).abs()[:5].amax(dim=(1, 2, 3)).min() > 1e-4  # two different things


def test_the_loss_is_the_velocity_s_error_with_the_derivative_held_fixed(monkeypatch):
    monkeypatch.setattr(mean_flow, "pair_times", lambda t: example()[1:])
    xt, t, s = example()
    x0, eps = 0.3 * xt, xt.flip(0)
    network = Exact(1.1)
    losses = mean_flow.MeanFlow().loss(network, STRAIGHT, Batch(x0, t, eps))
    (gradient,) = torch.autograd.grad(losses.sum(), network.factor)
    # The same by finite differences along the path, and by hand
    xt = ddpm.q_sample(STRAIGHT, x0, t, eps)
    velocity = exact_average(xt, t, t)
    h = 1e-3
    ahead = network(xt + h / 1000 * velocity, t.double() + h, s)
    behind = network(xt - h / 1000 * velocity, t.double() - h, s)
    slope = (ahead - behind)[:5].detach() / (2 * h)
    span = (t - s)[:5].view(-1, 1, 1, 1)
    exact = exact_average(xt, t, s)
    error = (1.1 * exact[:5] + span * slope - (eps - x0)[:5]).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(losses[:5], error / (error + 1e-3), rtol=1e-5, atol=1e-9)
    residual = 1.1 * exact[:5] + span * slope - (eps - x0)[:5]
    by_hand = (2 * residual * exact[:5]).mean(dim=(1, 2, 3)) / (error + 1e-3)
    torch.testing.assert_close(gradient, by_hand.sum(), rtol=1e-5, atol=1e-9)


def test_labels_that_are_hidden_stay_hidden_from_the_network():
    xt, t, _ = example()
    seen = []

    def network(xt, t, labels, s):
        seen.append(labels.tolist())
        return exact_average(xt, t, s)

    given = torch.tensor([0, 6, 2, 6, 4, 5])
    batch = Batch(0.3 * xt, t, xt.flip(0), given, torch.arange(6))
    mean_flow.MeanFlow().loss(network, STRAIGHT, batch)
    assert seen == [given.tolist()] * 2, "the velocity's, and the average's"


def test_half_of_a_batch_has_two_times():
    torch.manual_seed(0)
    t = torch.arange(1, 65)
    start, end = mean_flow.pair_times(t)
    assert torch.equal(start[32:], t[32:]) and torch.equal(end[32:], t[32:])
    assert (end[:32] < start[:32]).sum() > 24
    assert all(t[k] in (start[k], end[k]) for k in range(64))


@torch.no_grad()
def test_one_step_of_the_sampler_goes_all_the_way():
    xT = torch.randn(4, 1, 2, 2, generator=ddpm.random_generator(1), dtype=torch.float64)
    for times in ([1000], [1000, 600, 200]):
        network = with_next_times(Exact(), times, 1000)
        sampler = shortcut_sampler(denoiser(network, STRAIGHT, VELOCITY), STRAIGHT, times, xT, None)
        *_, (_, _, x0) = sampler
        torch.testing.assert_close(x0, VARIANCE**0.5 * xT)


def test_a_small_network_learns_by_it():
    fitting = {"network": "shortcut", "schedule": "flow", "prediction": "velocity"}
    recipe = replace(TINY, objective="mean-flow", epochs=4, learning_rate=5e-3, **fitting)
    schedule, run, x0 = catalogue.make_schedule(recipe), start_run(recipe), to_float(squares(32))
    t = torch.arange(32) + 19
    eps = torch.randn(x0.shape, generator=ddpm.random_generator(0))

    def error():
        xt = ddpm.q_sample(schedule, x0, t, eps)
        _, implied = mean_flow.average_velocity(run.network, schedule, xt, t, t // 2)
        return (implied - (eps - x0)).square().mean().item()

    before = error()
    for _ in training_loop(run, squares(), schedule):
        pass
    assert error() < 0.8 * before


@pytest.mark.parametrize(
    "change", [{"network": "unet"}, {"schedule": "linear"}, {"prediction": "v"}, {"critic": 0.1}]
)
def test_a_recipe_that_does_not_fit_is_refused_by_name(change):
    fitting = {"network": "shortcut", "schedule": "flow", "prediction": "velocity"}
    recipe = replace(TINY, objective="mean-flow", **fitting | change)
    with pytest.raises(ValueError, match=next(iter(change))):
        catalogue.make_method(recipe)


def test_a_part_of_one_image_is_refused_since_it_has_no_second_time():
    x0, t, eps = example()
    with pytest.raises(ValueError, match="1: take 2"):
        mean_flow.MeanFlow().loss(Exact(), STRAIGHT, Batch(x0[:1], t[:1], eps[:1]))
