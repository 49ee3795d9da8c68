"""Distribution matching: what is drawn moves to where the teacher believes it, and stays there."""

from dataclasses import replace

import pytest
import torch
from command_helpers import NETWORK, blobs, error_of, run, save_network
from helpers import PAPER, equal
from torch import nn

from mnist_ddpm import catalogue, ddpm
from mnist_ddpm.data import loading
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.method import Batch
from mnist_ddpm.methods.distribution_matching import (
    CRITIC_RATE,
    FAKE_RATE_FACTOR,
    DistributionMatching,
    chains_of,
)
from mnist_ddpm.methods.predictions import X0
from mnist_ddpm.methods.schedules import even_signal
from mnist_ddpm.recipe import Recipe
from mnist_ddpm.training import first_weights, loop

SNR = float((PAPER.a[100] / PAPER.b[100]) ** 2)
SMALL = Recipe(**NETWORK | {"T": 60}, prediction="v", classes=3)


def normal(mean, std):
    """What is known of x_0 by x_t, where pixels are normal and independent."""

    def denoise(xt, t):
        a_t, b_t = (ddpm.per_image(value, xt) for value in PAPER.at(t))
        gain = a_t * std**2 / (a_t**2 * std**2 + b_t**2)
        x0 = mean + gain * (xt - a_t * mean)
        return x0, ddpm.predict_eps(PAPER, xt, t, x0)

    return denoise


class Generator(nn.Module):
    """Draws pixels of this mean and deviation from noise at T; keeps what it is shown later."""

    def __init__(self, mean, std):
        super().__init__()
        self.mean, self.std = (nn.Parameter(torch.tensor(value)) for value in (mean, std))

    def forward(self, xt, t, labels=None):
        first = (t == 1000).view(-1, 1, 1, 1)
        return torch.where(first, self.mean + self.std * xt, xt.clamp(-1, 1) + 0 * self.mean)


class Fake(nn.Module):
    """A function as a second network."""

    def __init__(self, forward):
        super().__init__()
        self.forward = forward


def gradients(generator, teacher):
    """Of mean and deviation, with a second network that knows what is drawn in one step."""
    drawn = normal(generator.mean.item(), generator.std.item())
    fake = Fake(lambda xt, t, s: drawn(xt, t)[0])
    torch.manual_seed(0)
    eps = torch.randn(600, 1, 4, 4)
    t = torch.randint(1, 1001, (600,))
    _, count = chains_of(600, PAPER)
    method = DistributionMatching(X0, fake, lambda labels: teacher)
    losses = method.loss(generator, PAPER, Batch(eps, t, eps))
    losses[count == 1].mean().backward()
    return generator.mean.grad.item(), generator.std.grad.item()


def test_what_is_drawn_moves_to_where_the_teacher_is():
    teacher = normal(0.1, 0.2)
    for mean, std, wanted in (
        (0.1, 0.2, (0, 0)), (-0.2, 0.2, (-1, 0)), (0.4, 0.2, (1, 0)),
        (0.1, 0.1, (0, -1)), (0.1, 0.3, (0, 1)),
    ):  # fmt: skip
        found = gradients(Generator(mean, std), teacher)
        for slope, sign in zip(found, wanted):
            assert slope * sign > 0.04 if sign else abs(slope) < 0.035


class Constant(nn.Module):
    """Predicts that all pixels are alike."""

    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, xt, t, s):
        return 0 * xt + self.value


@pytest.mark.parametrize(("t", "weight"), [(900, 1.0), (100, SNR)])
def test_the_second_network_learns_what_is_drawn(t, weight):
    generator, second, teacher = Generator(0.3, 0.0), Constant(0.0), normal(0.3, 0.1)
    eps, t = torch.randn(20, 1, 4, 4), torch.full((20,), t)
    method = DistributionMatching(X0, second, lambda labels: teacher)
    losses = method.loss(generator, PAPER, Batch(eps, t, eps))
    losses[:6].sum().backward()  # drawn in one step
    torch.testing.assert_close(second.value.grad, torch.tensor(-2 * 6 * 0.3 * weight))


def test_it_learns_at_the_times_that_are_drawn_at_from_its_own_images():
    seen, own = [], torch.arange(20)

    def network(xt, t, labels):
        seen.append((t.tolist(), labels.tolist(), torch.is_grad_enabled()))
        return 0 * xt + labels.view(-1, 1, 1, 1) / 100

    known = []

    def teacher(labels):
        known.append(labels.tolist())
        return normal(0.0, 0.1)

    def fake(xt, t, labels, s):
        assert labels.tolist() == own.tolist() and s.tolist() == seen[-1][0]
        assert t.unique().tolist() == [500]
        return xt

    eps, t = torch.randn(20, 1, 4, 4), torch.full((20,), 500)
    method = DistributionMatching(X0, Fake(fake), teacher)
    method.loss(network, PAPER, Batch(eps, t, eps, own))
    two, four = even_signal(PAPER, 2), even_signal(PAPER, 4)
    last = [1000] * 6 + [two[1]] * 4 + [four[1]] * 2 + [four[2]] * 3 + [four[3]] * 5
    assert seen[-1] == (last, [*range(20)], True) and known == [[*range(20)]]
    assert seen[:-1] == [
        ([1000] * 14, [*range(6, 20)], False),
        ([four[1]] * 8, [*range(12, 20)], False),
        ([four[2]] * 5, [*range(15, 20)], False),
    ]


def test_it_learns_equally_often_at_each_of_the_timesteps_that_are_named():
    seen = []

    def network(xt, t):
        seen.append((t.tolist(), torch.is_grad_enabled()))
        return 0 * xt

    eps, t = torch.randn(6, 1, 4, 4), torch.full((6,), 500)
    fake = Fake(lambda xt, t, s: xt)
    named = {"student_timesteps": (1000, 750, 600)}
    method = DistributionMatching(X0, fake, lambda labels: normal(0.0, 0.1), **named)
    method.loss(network, PAPER, Batch(eps, t, eps))
    learning = [1000] * 2 + [750] * 2 + [600] * 2
    assert seen == [([1000] * 4, False), ([750] * 2, False), (learning, True)]


def test_times_of_even_signal():
    assert even_signal(PAPER, 1) == [1000]
    for n in (2, 4, 10):
        T, *times = even_signal(PAPER, n)
        assert T == 1000
        apart = PAPER.a[times] - torch.linspace(0, 1, n + 1)[1:-1]
        assert apart.abs().max() < 2e-3
    assert even_signal(PAPER, 1000) == [*range(1000, 0, -1)]


def test_train_and_sample_by_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "load_images", lambda *_: blobs(64))
    monkeypatch.setattr(loading, "load_labels", lambda *_: torch.arange(64) % 3)
    monkeypatch.setattr(loading, "check_labelled", lambda *_: None)
    for name, seed in (("few", 1), ("known", 2)):
        save_network(tmp_path / name, SMALL, seed=seed)
    objective = "--objective distribution-matching --optimizer adam --batch-size 32"
    flags = f"--init-from few --teacher known {objective}"
    whole, half = (["train", *flags.split(), "--out", name] for name in ("whole", "half"))
    assert run(*whole, "--epochs", 1) == 0
    found = checkpoints.load("whole")
    assert not any(name.startswith("fake") for name in found.network.state_dict())
    assert not equal(found.network.state_dict(), checkpoints.load("few").network.state_dict())
    assert checkpoints.sampling_defaults("whole")["spacing"] == "signal"
    assert run("sample", "--checkpoint", "whole", "--n", 2, "--steps", 2, "--out", "out") == 0
    assert "--spacing signal" in capsys.readouterr().out
    assert run(*half, "--critic", 0.1, "--student-timesteps", 60, 45, "--epochs", 1) == 0
    assert run("train", "--resume", "--epochs", 2, "--out", "half") == 0
    assert checkpoints.load("half").recipe.student_timesteps == (60, 45)
    draw = {"sampler": "consistency", "steps": 2, "spacing": "signal", "timesteps": [60, 45]}
    assert checkpoints.sampling_defaults("half") == draw


@pytest.mark.parametrize(
    ("teacher", "unlabelled", "who"),
    [
        ({}, "", "known"), ({}, "plain", "known"), ({"prediction": "eps"}, "", "few"),
        ({"base_channels": 4}, "plain", "plain"),
    ],
    ids=["alike", "alike, and another", "another prediction", "another width, and another"],
)  # fmt: skip
def test_the_second_network_begins_as_a_teacher(teacher, unlabelled, who, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes = ("few", {}), ("known", teacher), ("plain", {"classes": 0})
    for std, (name, changed) in enumerate(changes, 1):
        save_network(tmp_path / name, SMALL, 0.1 * std, **changed)
    names = {"teacher": "known", "teacher_unlabelled": unlabelled, "init_from": "few"}
    recipe = replace(SMALL, objective="distribution-matching", **names)
    wanted = checkpoints.load(who).network
    fake = catalogue.make_method(recipe).networks["fake"]
    fake.load_state_dict(first_weights.first_weights(recipe, fake))
    x, t, s = torch.randn(2, *SMALL.shape), torch.tensor([60, 7]), torch.tensor([1, 60])
    for labels in (None,) if who == "plain" else (None, torch.tensor([0, 2])):
        told = () if labels is None else (labels,)
        torch.testing.assert_close(fake(x, t, labels, s), wanted(x, t, *told))


def test_each_network_has_its_rate_and_momentum():
    names = {"teacher": "known", "init_from": "few", "optimizer": "adam"}
    recipe = replace(SMALL, objective="distribution-matching", critic=0.1, **names)
    begun = loop.start_run(recipe, method=catalogue.make_method(recipe), is_resumed=True)
    begun.set_learning_rate(begun.settings.learning_rate)
    own, fake, critic = (
        optimizer.param_groups[0] for _, optimizer in begun.networks_and_optimizers
    )
    assert fake["lr"] == FAKE_RATE_FACTOR * own["lr"] > 0
    assert critic["lr"] == pytest.approx(CRITIC_RATE)
    assert own["betas"][0] == critic["betas"][0] == 0 < fake["betas"][0]
    for network, optimizer in begun.networks_and_optimizers:
        assert [*map(id, network.parameters())] == [*map(id, optimizer.param_groups[0]["params"])]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--optimizer adam", "teacher"),
        ("--teacher known --optimizer muon", "adam"),
        ("--teacher known --optimizer adam --network shortcut", "network"),
        ("--teacher known --optimizer adam --student-timesteps 50 20", "student_timesteps"),
        ("--teacher known --optimizer adam --student-timesteps 60 60", "student_timesteps"),
        ("--teacher known --optimizer adam --batch-size 1 --student-timesteps 60 9", "batch_size"),
        ("--objective simple --student-timesteps 1000", "student_timesteps"),
    ],
)
def test_what_does_not_fit_is_refused(flags, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_network(tmp_path / "known", SMALL, classes=0)
    flags = ["--objective", "distribution-matching", "--init-from", "known", *flags.split()]
    assert named in error_of(capsys, "train", *flags, "--out", "out")
