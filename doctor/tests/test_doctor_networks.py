"""The doctor's checks of networks: each bug put into a small network shows, and health stays ok."""

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from diffusion_doctor import module_checks, network_checks
from diffusion_doctor.modules import find_module
from torch import nn

from mnist_ddpm import catalogue, ddpm
from mnist_ddpm.recipe import Recipe

SHAPE = 2, 8, 8
T = 100


def small_unet():
    torch.manual_seed(0)
    return ddpm.UNet(2, base_channels=16, channel_mults=(1, 2), patch_size=1, attention=(1,))


def checks_of(network, T=T, shape=SHAPE, seed=0):
    """All checks of a network alone, by the bug that each can name."""
    module = find_module(network)
    x = torch.randn(2, *shape)
    t = torch.tensor([1, T])
    return {
        "channel-groups": module_checks.check_channel_groups(module),
        "attention-reshape": module_checks.check_attention(module, lambda: network(x, t)),
        "batch-leak": network_checks.check_batch_leak(network, T, shape, seed),
        "time-ignored": network_checks.check_time_use(network, T, shape, seed),
        "unit-time": network_checks.check_time_unit(network, T, shape),
    }


def wrong(checks):
    """The bugs of all wrong checks."""
    return {bug for check in checks.values() if check.verdict == "wrong" for bug in check.evidence}


@pytest.mark.parametrize("kind", ["unet", "dit", "fourier", "shortcut"])
@pytest.mark.parametrize("seed", [0, 1])
def test_untrained_networks_are_ok(kind, seed):
    recipe = Recipe(
        network=kind,
        base_channels=16,
        channel_mults=(1, 2),
        image_size=28,
        seed=seed,
        dropout=0.1,
        classes=0 if kind == "fourier" else 10,
    )
    checks = checks_of(catalogue.make_network(recipe), recipe.T, recipe.shape, seed)
    has_no_norm = {"dit": {"not checked"}}.get(kind, set())
    assert {check.verdict for check in checks.values()} <= {"ok"} | has_no_norm
    assert wrong(checks) == set()


def test_a_trained_network_is_ok_and_unchanged_afterwards():
    network, schedule, settings = ddpm.load_checkpoint(ROOT / "checkpoints" / "lessons" / "right")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    checks = checks_of(lambda x, t: network(x, t), schedule.T, settings.shape)  # inside a function
    assert {check.verdict for check in checks.values()} == {"ok"}
    assert not network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def with_norm(network, make):
    """The network with each normalisation replaced by make(channels)."""
    for layer in [*network.modules()]:
        for name, part in [*layer.named_children()]:
            if isinstance(part, nn.GroupNorm):
                setattr(layer, name, make(part.num_channels))
    return network


@pytest.mark.parametrize("make", [lambda c: nn.GroupNorm(c, c), nn.InstanceNorm2d])
def test_a_channel_alone_in_its_group(make):
    # such a layer also removes what t adds to a channel
    assert wrong(checks_of(with_norm(small_unet(), make))) == {"channel-groups", "time-ignored"}


def test_batch_norm_is_advice_and_its_statistics_stay():
    network = with_norm(small_unet(), nn.BatchNorm2d)
    found = checks_of(network)["batch-leak"]
    assert (found.verdict, {*found.evidence}) == ("undecided", {"batch-leak"})
    assert network.norm_out.num_batches_tracked == 0


class Mixed(nn.Module):
    """A network whose inputs are changed before another gets them."""

    def __init__(self, network, change):
        super().__init__()
        self.network = network
        self.change = change

    def forward(self, x, t):
        return self.network(*self.change(x, t))


@pytest.mark.parametrize(
    "bug, change",
    [
        ("batch-leak", lambda x, t: (x + 0.1 * x.mean(dim=0, keepdim=True), t)),
        ("batch-leak", lambda x, t: (x, t[:1].expand(len(t)))),
        ("time-ignored", lambda x, t: (x, torch.ones_like(t))),
        ("unit-time", lambda x, t: (x, 1 + t / T)),
    ],
)
def test_what_a_network_does_with_its_batch_and_times(bug, change):
    assert wrong(checks_of(Mixed(small_unet(), change))) >= {bug}


def test_edm_s_times_are_not_called_wrong():
    sigma = torch.linspace(math.log(0.002), math.log(80), T)
    network = Mixed(small_unet(), lambda x, t: (x, sigma[t - 1] / 4))
    assert network_checks.check_time_unit(network, T, SHAPE).verdict == "undecided"


def test_zeros_throughout_are_undecided():
    def nothing(x, t):
        return torch.zeros_like(x)

    for check in (network_checks.check_batch_leak, network_checks.check_time_use):
        assert check(nothing, T, SHAPE).verdict == "undecided"


class Attention(nn.Module):
    """One head of attention, whose rows and whose result are made by functions."""

    def __init__(self, channels, rows, image, position=None):
        super().__init__()
        self.norm = nn.GroupNorm(1, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        self.rows = rows
        self.image = image
        self.position = position or (lambda q, k: (q, k, None))

    def forward(self, x):
        q, k, v = (self.rows(part) for part in self.qkv(self.norm(x)).chunk(3, dim=1))
        q, k, mask = self.position(q, k)
        h = F.scaled_dot_product_attention(q, k, v, mask)
        return x + self.out(self.image(h, x.shape))


def right_rows(x):
    return x.flatten(2).mT


def right_image(h, shape):
    return h.mT.reshape(shape)


def reshaped_rows(x):
    n, c, height, width = x.shape
    return x.reshape(n, height * width, c)


def reshaped_image(h, shape):
    return h.reshape(shape)


def attention_verdict(layer):
    x = torch.randn(2, 16, 4, 4)
    return module_checks.check_attention(nn.Sequential(layer), lambda: layer(x)).verdict


@pytest.mark.parametrize(
    "rows, image, verdict",
    [
        (right_rows, right_image, "ok"),
        (reshaped_rows, reshaped_image, "wrong"),
        (reshaped_rows, right_image, "wrong"),
        (right_rows, reshaped_image, "wrong"),
    ],
)
def test_attention_that_is_reshaped_instead_of_permuted(rows, image, verdict):
    assert attention_verdict(Attention(16, rows, image)) == verdict


def relative_bias(q, k):
    place = torch.arange(q.shape[1])
    return q, k, -(place[:, None] - place).abs().to(q) / 4


def rotary(q, k):
    angle = torch.arange(q.shape[1])[:, None] * torch.ones(q.shape[2] // 2)
    wave = torch.polar(torch.ones_like(angle), angle)

    def turn(x):
        return torch.view_as_real(
            torch.view_as_complex(x.unflatten(2, (-1, 2)).contiguous()) * wave
        ).flatten(2)

    return turn(q), turn(k), None


@pytest.mark.parametrize("position", [relative_bias, rotary])
def test_attention_that_knows_positions_is_ok(position):
    assert attention_verdict(Attention(16, right_rows, right_image, position)) == "ok"


def test_attention_with_learned_positions_is_ok():
    layer = Attention(16, right_rows, right_image)
    layer.place = nn.Parameter(torch.randn(16, 16))
    layer.rows = lambda x: right_rows(x) + layer.place
    assert attention_verdict(layer) == "ok"


class Heads(nn.Module):
    """Self-attention of four heads over a sequence (N, L, C)."""

    def __init__(self, is_permuted):
        super().__init__()
        self.qkv = nn.Linear(16, 48)
        self.is_permuted = is_permuted

    def forward(self, x):
        parts = self.qkv(x).chunk(3, dim=2)
        if self.is_permuted:
            q, k, v = (part.unflatten(2, (4, -1)).transpose(1, 2) for part in parts)
            return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        q, k, v = (part.reshape(len(x), 4, -1, 4) for part in parts)
        return F.scaled_dot_product_attention(q, k, v).reshape(x.shape)


@pytest.mark.parametrize("is_permuted", [True, False])
def test_heads_of_a_sequence(is_permuted):
    layer = Heads(is_permuted)
    x = torch.randn(2, 9, 16)
    verdict = module_checks.check_attention(nn.Sequential(layer), lambda: layer(x)).verdict
    assert verdict == ("ok" if is_permuted else "wrong")


class Tables(nn.Module):
    """A network's buffers: a table and statistics."""

    def __init__(self):
        super().__init__()
        self.register_buffer("alpha_bar", torch.linspace(0.9, 0.1, 20))
        self.norm = nn.BatchNorm1d(9)


@pytest.mark.parametrize(
    "change, verdict",
    [
        (lambda table: table, "ok"),
        (lambda table: table * (1 + 2e-6 * torch.rand(20)), "wrong"),  # rounding that adds up
        (lambda table: 0.3 * table, "wrong"),  # an average that began at 0
        (lambda table: torch.rand(20), "undecided"),
    ],
)
def test_buffers_of_the_averaged_network(change, verdict):
    own, averaged = Tables(), Tables()
    averaged.alpha_bar = change(own.alpha_bar)
    averaged.norm.running_mean += 0.1
    assert module_checks.check_averaged_buffers(own, averaged).verdict == verdict
