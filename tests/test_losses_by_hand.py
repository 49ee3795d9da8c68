"""Losses of the few-step methods against their papers' formulas, written out here once more.

Fresh noise is replaced by a constant, so that no order of random numbers matters.
"""

from functools import partial

import pytest
import torch
from helpers import PAPER
from torch import nn

from experiments.methods.shortcuts import Shortcuts
from mnist_ddpm.method import Batch, Method
from mnist_ddpm.methods import distribution_matching
from mnist_ddpm.methods.adversarial import GAMMA, SIGMA, Adversarial
from mnist_ddpm.methods.consistency import Consistency
from mnist_ddpm.methods.distribution_matching import DistributionMatching
from mnist_ddpm.methods.edm import EDM
from mnist_ddpm.methods.predictions import V, network_output, truncated_snr, weighted
from mnist_ddpm.methods.schedules import even_signal

T = PAPER.T
double = torch.float64


def images(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 1, 2, 2, generator=generator, dtype=double) * 2 - 1


class Linear(nn.Module):
    """Two weights: of x_t and of t, or where it is given, of s."""

    def __init__(self, of_x, of_time):
        super().__init__()
        self.of_x = nn.Parameter(torch.tensor(of_x, dtype=double))
        self.of_time = nn.Parameter(torch.tensor(of_time, dtype=double))

    def forward(self, x, t, labels=None, s=None):
        time = (t if s is None else s).view(-1, 1, 1, 1) / T
        return self.of_x * x + self.of_time * time


def constant_noise(monkeypatch, value):
    monkeypatch.setattr(torch, "randn_like", lambda x: torch.full_like(x, value))


@pytest.mark.parametrize("error", [1e-4, 0.3])  # near the default c, and far above
def test_consistency_is_a_pseudo_huber_distance_whose_target_has_no_gradient(error):
    t, r = torch.tensor([900, 300]), torch.tensor([700, 200])
    x0, eps = images(2), images(2, seed=1)
    factor = nn.Parameter(torch.tensor(error, dtype=double))

    def network(xt, t):  # x0_hat = x_0 - b_t factor t / T
        a_t, b_t = (value.view(-1, 1, 1, 1) for value in PAPER.at(t))
        return a_t * eps - b_t * x0 + factor * t.view(-1, 1, 1, 1) / T

    method = Consistency(V, earlier=lambda schedule, t, done: r, weight=lambda schedule, t: t / T)
    losses = method.loss(network, PAPER, Batch(x0, t, eps))
    (got,) = torch.autograd.grad(losses.sum(), factor)
    near, far = PAPER.b[r] * r / T, PAPER.b[t] * t / T
    difference = error * (far - near)
    root = (difference**2 + 0.00054**2).sqrt()
    torch.testing.assert_close(losses, (root - 0.00054) * t / T)
    torch.testing.assert_close(got, (difference / root * far * t / T).sum())


def test_distribution_matching_is_its_formula(monkeypatch):
    """x_t is noised at a time away from 0 and T, after a chain of fresh noise."""
    constant_noise(monkeypatch, 0.25)
    chains = distribution_matching.CHAINS
    n = sum(share for _, _, share in chains)
    student, fake = Linear(0.4, 0.3), Linear(0.2, -0.5)
    eps = images(n, seed=2) * 3

    def x0_hat(network, xt, t, **options):
        a_t, b_t = PAPER.at(t)
        return a_t * xt - b_t * network(xt, torch.tensor([t]), **options)

    def teacher(labels):
        return lambda xt, t: (0.7 * xt, None)

    late = T - T // distribution_matching.MARGIN  # the nearest to T
    batch = Batch(images(n), torch.full((n,), T), eps)
    losses = DistributionMatching(V, fake, teacher).loss(student, PAPER, batch)
    got = torch.autograd.grad(losses.sum(), [*student.parameters(), *fake.parameters()])

    expected = []
    for k, (steps, last) in enumerate(
        (steps, last) for steps, last, share in chains for _ in range(share)
    ):
        times = even_signal(PAPER, steps)[:last]
        xt = eps[k : k + 1]
        for t, s in zip(times, times[1:]):
            drawn = x0_hat(student, xt, t).clamp(-1, 1).detach()
            xt = PAPER.a[s] * drawn + PAPER.b[s] * 0.25
        image = x0_hat(student, xt, times[-1])
        drawn = image.detach().clamp(-1, 1)
        noisy = PAPER.a[late] * drawn + PAPER.b[late] * 0.25
        believed = (0.7 * noisy).clamp(-1, 1)
        s = torch.tensor([times[-1]])
        difference = x0_hat(fake, noisy, late, s=s).clamp(-1, 1) - believed
        target = drawn - difference / (drawn - believed).abs().mean().clamp(min=1e-3)
        time, noise = torch.tensor([late]), torch.full_like(drawn, 0.25)
        own = weighted(V, truncated_snr)(partial(fake, s=s), PAPER, drawn, time, noise)
        expected.append((image - target.detach()).square().mean() / 2 + own)
    expected = torch.cat(expected)
    torch.testing.assert_close(losses, expected)
    wanted = torch.autograd.grad(expected.sum(), [*student.parameters(), *fake.parameters()])
    torch.testing.assert_close(got, wanted)


class Critic(nn.Module):
    """Scores by squares, times factors of the time and the label."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.8, dtype=double))

    def forward(self, x, t, labels):
        return self.weight * (1 + labels / 10) * (1 + t / T) * x.square().sum(dim=(1, 2, 3))


def test_a_critic_s_loss_has_r1_at_real_images_and_the_labels_that_the_network_has(monkeypatch):
    constant_noise(monkeypatch, 1.0)
    x0, eps = images(3), images(3, seed=1) * 2
    t, labels = torch.tensor([100, 500, 900]), torch.tensor([1, 10, 2])
    network, critic = Linear(3.0, 2.0), Critic()

    class Silent(Method):
        """No loss of its own, from a network that is asked as EDM asks it."""

        def loss(self, network, schedule, batch):
            xt = schedule.a[t].view(-1, 1, 1, 1) * x0 + schedule.b[t].view(-1, 1, 1, 1) * eps
            return 0 * network_output(network, EDM, schedule, xt, t).sum(dim=(1, 2, 3))

    batch = Batch(x0, t, eps, labels, true_labels=torch.tensor([1, 7, 2]))
    losses = Adversarial(Silent(), EDM, critic, weight=2.0).loss(network, PAPER, batch)

    a_t, b_t = (value.view(-1, 1, 1, 1) for value in PAPER.at(t))
    xt = a_t * x0 + b_t * eps
    scale = 1 / (b_t**2 + 0.25 * a_t**2).sqrt()
    output = network(scale * xt, t)
    fake = a_t * 0.25 * scale**2 * xt + b_t * 0.5 * scale * output
    real_score, fake_score = critic(x0, t, labels), critic(fake, t, labels)
    slope = (critic(x0 + SIGMA, t, labels) - real_score) / SIGMA
    penalty = GAMMA * 4 / 1024 / 2 * slope**2
    clipped_score = critic(fake.clamp(-1, 1), t, labels)
    passing = torch.log1p((real_score - fake_score).exp())
    distinguishing = torch.log1p((clipped_score - real_score).exp())
    assert fake.abs().max() > 1, "else clipping cannot be seen"
    torch.testing.assert_close(losses, 2 * passing + distinguishing + penalty)

    of_network, of_critic = torch.autograd.grad(losses.sum(), [network.of_x, critic.weight])
    torch.testing.assert_close(
        of_network, torch.autograd.grad(2 * passing.sum(), network.of_x, retain_graph=True)[0]
    )
    real_score, clipped_score = critic(x0, t, labels), critic(fake.detach().clamp(-1, 1), t, labels)
    slope = (critic(x0 + SIGMA, t, labels) - real_score) / SIGMA
    own = torch.log1p((clipped_score - real_score).exp()) + GAMMA * 4 / 1024 / 2 * slope**2
    torch.testing.assert_close(of_critic, torch.autograd.grad(own.sum(), critic.weight)[0])


def test_what_a_shortcut_learns_has_no_gradient():
    class Recording(Method):
        """Keeps the batch that it is given."""

        def loss(self, network, schedule, batch):
            self.batch = batch
            return network(batch.x0, batch.t).mean(dim=(1, 2, 3))

    method = Recording()
    batch = Batch(images(32), torch.full((32,), 600), images(32, seed=1))
    Shortcuts(method, V).loss(Linear(0.3, 0.5), PAPER, batch)
    assert not torch.equal(method.batch.x0, batch.x0)
    assert not (method.batch.x0.requires_grad or method.batch.eps.requires_grad)
