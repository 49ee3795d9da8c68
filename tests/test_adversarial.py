"""A critic beside an objective: both learn, each its own, and few evaluations become sharp."""

from dataclasses import replace

import pytest
import torch
from command_helpers import DIGITS
from helpers import PAPER, equal, in_processes, with_random_weights
from torch import nn
from training_helpers import TINY, squares, train

from mnist_ddpm import catalogue
from mnist_ddpm.catalogue import make_network
from mnist_ddpm.ddpm import q_sample, random_generator
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.method import Batch, PlainMethod
from mnist_ddpm.methods.adversarial import Adversarial, Critic, adversarial_losses
from mnist_ddpm.methods.edm import EDM
from mnist_ddpm.methods.predictions import X0, denoiser, weighted
from mnist_ddpm.networks import make_critic
from mnist_ddpm.training import loop
from mnist_ddpm.training.first_weights import initial_weights

JUDGED = replace(TINY, critic=0.5, prediction="v", objective="consistency", classes=3)


class Points(nn.Module):
    """x0_hat of single numbers, as a function of x_t alone."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, xt, t):
        return self.layers(xt.flatten(1)).view_as(xt)


def rms(x):
    return x.square().mean().sqrt().item()


@pytest.mark.parametrize("weight", [0, 3])
def test_from_noise_alone_the_mean_is_predicted_unless_a_critic_says_that_none_looks_so(weight):
    """The data are 0.5 and -0.5, of which x_T tells nothing."""
    torch.manual_seed(0)
    network = Points()
    critic = Critic(1, 1, 1)
    method = Adversarial(PlainMethod(weighted(X0)), X0, critic, weight)
    both = [*network.parameters(), *critic.parameters()]
    optimizer = torch.optim.Adam(both, 2e-3, betas=(0.0, 0.99))
    t = torch.full((128,), 1000)
    for _ in range(500):
        x0, eps = torch.randn(128, 1, 1, 1).sign() / 2, torch.randn(128, 1, 1, 1)
        optimizer.zero_grad()
        method.loss(network, PAPER, Batch(x0, t, eps)).mean().backward()
        optimizer.step()
    drawn = network(torch.randn(1000, 1, 1, 1), t)
    assert rms(drawn) < 0.1 if weight == 0 else rms(drawn.abs() - 0.5) < 0.2


def test_the_critic_learns_to_tell_and_the_network_to_pass():
    """Each by steps of its own gradient: neither learns from what the other is to do."""
    torch.manual_seed(0)
    network, critic = Points(), Critic(1, 1, 1)
    x0, eps = 2 + torch.randn(2, 256, 1, 1, 1)
    t = torch.full((256,), 900)
    nothing = PlainMethod(lambda network, schedule, x0, t, eps: 0 * network(x0, t).flatten())
    method = Adversarial(nothing, X0, critic, 1.0)

    def lead():
        fake = network(PAPER.a[900] * x0 + PAPER.b[900] * eps, t)
        return (critic(x0, t) - critic(fake, t)).mean().item()

    for module, wanted in ((critic, 1), (network, -1)):
        before = lead()
        for _ in range(20):
            nn.ModuleList([network, critic]).zero_grad()
            method.loss(network, PAPER, Batch(x0, t, eps)).mean().backward()
            for p in module.parameters():
                p.data -= 0.02 * p.grad
        assert wanted * (lead() - before) > 0.01


def test_in_bfloat16_the_critic_computes_in_float32_and_is_given_each_image_s_time():
    network, critic = Points(), Critic(1, 1, 1)
    x0, eps, t = *torch.randn(2, 4, 1, 1, 1), torch.tensor([500, 20, 1000, 1])
    dtypes, times = set(), []
    critic.register_forward_hook(lambda module, inputs, score: dtypes.add(score.dtype))
    critic.register_forward_pre_hook(lambda module, inputs: times.append(inputs[1]))
    with torch.autocast("cpu", torch.bfloat16):
        method = Adversarial(PlainMethod(weighted(X0)), X0, critic, 1.0)
        method.loss(network, PAPER, Batch(x0, t, eps)).sum().backward()
    assert dtypes == {torch.float32} and all(torch.equal(each, t) for each in times)


def test_a_critic_is_told_labels_and_times():
    critic = with_random_weights(Critic(1, 16, 24, classes=3))
    x, t = torch.randn(2, 1, 16, 24), torch.tensor([7, 8])
    known, other = (critic(x, t, torch.tensor(labels)) for labels in ([0, 1], [0, 2]))
    assert known[0] == other[0] and known[1] != other[1]
    assert torch.equal(critic(x, t), critic(x, t, torch.tensor([3, 3])))
    early, late = critic(x, t), critic(x, torch.tensor([7, 9]))
    assert early[0] == late[0] and early[1] != late[1]


def test_a_run_with_a_critic_goes_on_bit_for_bit_and_is_saved_without_it(tmp_path):
    labels = torch.arange(96) % 3
    whole = train(replace(JUDGED, epochs=1.0), squares(), tmp_path / "a", labels)
    critic = whole.method.networks["critic"]
    assert all(torch.isfinite(p).all() for p in critic.parameters())
    assert not equal(critic.state_dict(), make_critic(JUDGED).state_dict())
    # stopped by a deadline that has passed: after a step
    train(replace(JUDGED, epochs=1.0), squares(), tmp_path / "b", labels, deadline=0.0)
    again = train(replace(JUDGED, epochs=1.0), squares(), tmp_path / "b", labels, resume=True)
    assert equal(again.network.state_dict(), whole.network.state_dict())
    assert equal(again.method.networks.state_dict(), whole.method.networks.state_dict())
    network, _, recipe = checkpoints.load(tmp_path / "a")
    assert recipe.critic == 0.5 and equal(network.state_dict(), whole.ema.state_dict())
    assert network.state_dict().keys() == make_network(JUDGED).state_dict().keys()


def test_several_processes_are_refused(tmp_path):
    def begin(world):
        recipe = replace(JUDGED, classes=0)
        with pytest.raises(ValueError, match="critic"):
            train(recipe, squares(), tmp_path, world=world)

    in_processes(2, begin)


def test_a_network_without_labels_begins_some_as_it_was(tmp_path):
    plain = replace(DIGITS, classes=0, objective="simple")
    checkpoints.save_checkpoint(
        tmp_path, with_random_weights(catalogue.make_network(plain)), plain, {}
    )
    decided, _ = initial_weights(tmp_path, classes=10)
    started = loop.start_run(replace(plain, **decided)).network
    x, t = torch.randn(2, *plain.shape, generator=random_generator(0)), torch.tensor([1, 20])
    expected = checkpoints.load(tmp_path).network(x, t)
    for labels in (None, torch.tensor([10, 10])):
        torch.testing.assert_close(started(x, t, labels), expected)
    assert not torch.allclose(started(x, t, torch.tensor([0, 9])), expected, atol=1e-3)


@pytest.mark.parametrize("label_dropout", [0.1, 0.0])
def test_a_network_with_labels_begins_without_as_if_they_were_unknown(tmp_path, label_dropout):
    """Where it never trained without, "unknown" is random: it is their mean."""
    recipe = replace(DIGITS, objective="simple", label_dropout=label_dropout)
    network = with_random_weights(catalogue.make_network(recipe))
    checkpoints.save_checkpoint(tmp_path, network, recipe, {})
    decided, _ = initial_weights(tmp_path, labels=False)
    started = loop.start_run(replace(recipe, **decided)).network
    if not label_dropout:
        *known, unknown = network.label.weight.data
        unknown.copy_(torch.stack(known).mean(dim=0))
    x, t = torch.randn(2, *recipe.shape, generator=random_generator(0)), torch.tensor([1, 20])
    torch.testing.assert_close(started(x, t), network(x, t))


def test_the_critic_s_own_loss_sees_fakes_as_they_are_drawn():
    critic, t = with_random_weights(Critic(1, 8, 8)), torch.tensor([500, 20])
    real = torch.rand(2, 1, 8, 8)
    losses = []
    for fake in (torch.full_like(real, 3.0), torch.ones_like(real)):
        torch.manual_seed(0)
        losses.append(adversarial_losses(critic, real, fake, t, None))
    (far, clipped), (near, same) = losses
    assert torch.equal(clipped, same) and not torch.equal(far, near)


def test_the_critic_sees_the_image_that_a_network_with_scaled_inputs_predicts():
    network, critic, seen = Points(), Critic(1, 1, 1), []
    critic.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    x0, eps, t = *torch.randn(2, 4, 1, 1, 1), torch.tensor([500, 20, 900, 1])
    method = Adversarial(PlainMethod(weighted(EDM)), EDM, critic, 1.0)
    method.loss(network, PAPER, Batch(x0, t, eps))
    predicted = denoiser(network, PAPER, EDM)(q_sample(PAPER, x0, t, eps), t)[0]
    torch.testing.assert_close(seen[1], predicted.detach(), rtol=1e-4, atol=1e-5)
