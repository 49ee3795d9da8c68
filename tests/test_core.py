"""The notebook's core: settings, forward process and network, against brute force."""

import numpy as np
import pytest
import torch
from helpers import PAPER, PATHS, with_random_weights

from mnist_ddpm import ddpm


def small(**options):
    options = {"base_channels": 8, "channel_mults": (1, 2), "attention": (1,)} | options
    return ddpm.UNet(**options)


def test_uint8_round_trip():
    levels = torch.arange(256, dtype=torch.uint8)
    x = ddpm.to_float(levels)
    assert x.min() == -1 and x.max() == 1 and torch.equal(ddpm.to_uint8(x), levels)
    assert ddpm.to_uint8(torch.tensor([-7.0, 7.0])).tolist() == [0, 255]
    with pytest.raises(ValueError, match="float32"):
        ddpm.to_float(levels.float())


def test_linear_schedule_has_the_papers_values():
    beta = [1e-4 + (0.02 - 1e-4) * (t - 1) / 999 for t in range(1, 1001)]
    alpha_bar = np.cumprod(1 - np.array(beta))
    assert PAPER.T == 1000 and PAPER.a.dtype == PAPER.b.dtype == torch.float64
    np.testing.assert_allclose(ddpm.linear_beta()[1:], beta, rtol=1e-12)
    np.testing.assert_allclose(PAPER.a[1:] ** 2, alpha_bar, rtol=1e-12)
    np.testing.assert_allclose(PAPER.b[1:] ** 2, 1 - alpha_bar, rtol=1e-10)
    assert PAPER.a[0] == 1 and PAPER.b[0] == ddpm.linear_beta()[0] == 0
    assert PAPER.a[-1].item() ** 2 == pytest.approx(4.0358e-5, rel=1e-4)


def test_closed_form_equals_the_chain():
    """The mean and variance that single steps carry on, Eq. 2, are those of Eq. 4."""
    x0, t = torch.full((1, 1, 1, 1), 0.7, dtype=torch.float64), torch.arange(1, 1001)
    torch.testing.assert_close(ddpm.step_variance(PAPER, t, t - 1), ddpm.linear_beta()[1:])
    mean, variance = x0.clone(), torch.zeros_like(x0)
    for t, beta in enumerate(ddpm.linear_beta()[1:], start=1):
        mean, variance = (1 - beta).sqrt() * mean, (1 - beta) * variance + beta
        torch.testing.assert_close(ddpm.q_sample(PAPER, x0, t, 0 * x0), mean)
        torch.testing.assert_close(ddpm.q_sample(PAPER, 0 * x0, t, 0 * x0 + 1), variance.sqrt())


@PATHS
def test_each_image_has_its_own_time_and_what_was_mixed_is_found_again(path):
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 3, 2, 4, 4, generator=generator, dtype=torch.float64)
    times = torch.tensor([1, 500, 990])
    together = ddpm.q_sample(path, x0, times, eps)
    torch.testing.assert_close(ddpm.predict_x0(path, together, times, eps), x0)
    torch.testing.assert_close(ddpm.predict_eps(path, together, times, x0), eps)
    for k, t in enumerate(times.tolist()):
        alone = ddpm.q_sample(path, x0[k : k + 1], t, eps[k : k + 1])
        torch.testing.assert_close(alone, together[k : k + 1])
        expected = path.a[t] * x0[k] + path.b[t] * eps[k]
        torch.testing.assert_close(together[k], expected)


@PATHS
@pytest.mark.parametrize(("t", "s"), [(999, 998), (500, 499), (2, 1), (700, 300), (50, 20)])
def test_posterior_is_the_product_of_two_gaussians(path, t, s):
    """q(x_s | x_t, x_0) is proportional to q(x_t | x_s) q(x_s | x_0): summed on a fine grid."""
    x0, xt, grid = 0.4, -0.3, np.linspace(-12, 12, 1_000_001)
    (a_t, b_t), (a_s, b_s) = ([v.item() for v in path.at(time)] for time in (t, s))
    ratio = a_t / a_s
    log = -((xt - ratio * grid) ** 2) / (2 * (b_t**2 - ratio**2 * b_s**2))
    log -= (grid - a_s * x0) ** 2 / (2 * b_s**2)
    weight = np.exp(log - log.max())
    mean = np.average(grid, weights=weight)
    variance = np.average((grid - mean) ** 2, weights=weight)
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    got = ddpm.posterior_mean(path, x0 * one, xt * one, t, s).item()
    assert got == pytest.approx(mean, rel=1e-6)
    assert ddpm.posterior_variance(path, t, s).item() == pytest.approx(variance, rel=1e-5)


def test_posterior_by_hand_and_for_a_batch():
    """beta = (0.5, 0.5): alpha_bar = (0.5, 0.25). The weights at t = 2 are both sqrt(0.5) / 1.5."""
    schedule = ddpm.beta_schedule(torch.tensor([0, 0.5, 0.5], dtype=torch.float64))
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    for x0, xt in ((3, 0), (0, 3)):
        mean = ddpm.posterior_mean(schedule, x0 * one, xt * one, 2, 1)
        assert mean.item() == pytest.approx(3 * 0.5**0.5 * 0.5 / 0.75)
    assert ddpm.posterior_variance(schedule, 2, 1).item() == pytest.approx(0.5 * 0.5 / 0.75)
    x0, xt = torch.randn(2, 2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    t, s = torch.tensor([10, 900]), torch.tensor([9, 400])
    together = ddpm.posterior_mean(PAPER, x0, xt, t, s)
    variances = ddpm.posterior_variance(PAPER, t, s)
    for k in range(2):
        alone = ddpm.posterior_mean(PAPER, x0[k : k + 1], xt[k : k + 1], t[k].item(), s[k].item())
        torch.testing.assert_close(together[k : k + 1], alone)
        assert variances[k] == ddpm.posterior_variance(PAPER, t[k].item(), s[k].item())
    assert together.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, (1, 16, 16)),
        ({"channels": 3}, (3, 8, 24)),
        ({"patch_size": 4}, (1, 32, 32)),
        ({"patch_size": 1, "attention": ()}, (1, 14, 14)),
        ({"channel_mults": (2,), "attention": (0,)}, (1, 6, 6)),
        ({"channel_mults": (1, 2, 2), "attention": (0, 2)}, (1, 16, 16)),
        ({"base_channels": 7, "blocks": 2}, (1, 16, 16)),
        ({"base_channels": 1}, (1, 16, 16)),
        ({"out_channels": 2}, (1, 16, 16)),
    ],
    ids=str,
)
def test_shape_in_is_shape_out(options, shape):
    x = torch.zeros(2, *shape)
    out = small(**options)(x, torch.tensor([1, 1000]))
    assert out.shape == (2, options.get("out_channels", shape[0]), *shape[1:])


def test_attention_is_where_it_is_asked_for():
    for attention, expected in (((), [4]), ((1,), [4, 4, 4, 4]), ((0,), [8, 4, 8, 8])):
        network, sides = small(attention=attention), []
        for module in network.modules():
            if isinstance(module, ddpm.SelfAttention):
                hook = lambda module, given, out, sides=sides: sides.append(out.shape[-1])  # noqa: E731
                module.register_forward_hook(hook)
        network(torch.zeros(1, 1, 16, 16), torch.tensor([1]))
        assert sides == expected


def test_a_fresh_network_says_zero_and_a_restless_one_minds_its_time_and_no_other_image():
    x = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([5, 50, 500])
    assert (small()(x, t) == 0).all()
    network = with_random_weights(small())
    together = network(x, t)
    for k in range(3):
        alone = network(x[k : k + 1], t[k : k + 1])
        torch.testing.assert_close(together[k : k + 1], alone, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(together, network(x, t + 1), atol=1e-4)


def test_a_block_sees_its_time_through_silu():
    block = with_random_weights(ddpm.ResidualBlock(4, 4, 8, dropout=0.0))
    x = torch.randn(1, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    zero, large = block(x, torch.zeros(1, 8)), torch.full((1, 8), 50.0)
    torch.testing.assert_close(block(x, -large), zero)
    assert not torch.allclose(block(x, large), zero, atol=1e-2)


def test_every_parameter_takes_part_and_gradients_are_those_of_finite_differences():
    """Nothing on the way, such as a detached skip connection, may cut them."""
    network = with_random_weights(small().double())
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 1, 16, 16, generator=generator, dtype=torch.float64)
    loss = lambda: network(x, torch.tensor([300])).square().mean()  # noqa: E731
    loss().backward()
    assert all(p.grad.abs().sum() > 0 for p in network.parameters())
    first = network.down[0].residual.conv1.weight
    with torch.no_grad():
        for p in (network.conv_in.weight, first, network.time[0].weight):
            way, h = torch.randn(p.shape, generator=generator, dtype=p.dtype), 1e-5
            p.add_(h * way)
            above = loss()
            p.sub_(2 * h * way)
            slope = (above - loss()) / (2 * h)
            p.add_(h * way)
            assert slope.item() == pytest.approx((p.grad * way).sum().item(), rel=1e-4)


def test_downsampling_pads_below_and_right_as_the_papers_weights_need():
    layer, x = ddpm.Downsample(1), torch.arange(36.0).view(1, 1, 6, 6)
    layer.conv.weight.data = torch.eye(3)[0].outer(torch.eye(3)[0]).view(1, 1, 3, 3)
    layer.conv.bias.data.zero_()
    assert torch.equal(layer(x, None), x[:, :, ::2, ::2])


def test_weights_depend_on_the_seed_alone_and_leave_other_chance_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a, b, c = (ddpm.make_network(ddpm.Settings(base_channels=8, seed=seed)) for seed in (0, 0, 1))
    assert all(map(torch.equal, a.parameters(), b.parameters()))
    assert not torch.equal(a.conv_in.weight, c.conv_in.weight)
    assert torch.equal(torch.get_rng_state(), before)


def test_time_embedding_tells_all_times_apart():
    e = ddpm.time_embedding(torch.arange(1, 1001), 32)
    assert e.shape == (1000, 32) and e.abs().max() <= 1
    assert torch.equal(e[0], torch.tensor([0.0] * 16 + [1.0] * 16))
    assert torch.cdist(e, e).fill_diagonal_(9).min() > 0.1
    assert ddpm.time_embedding(torch.tensor([4]), 7).shape == (1, 7)


@pytest.mark.parametrize(("channels", "groups"), [(128, 32), (32, 8), (10, 2), (9, 1), (1, 1)])
def test_group_norm_works_for_any_channel_count(channels, groups):
    assert ddpm.group_norm(channels).num_groups == groups


def test_dropout_changes_training_only():
    network = with_random_weights(small(dropout=0.5))
    x, t = torch.ones(1, 1, 16, 16), torch.tensor([5])
    assert torch.equal(network(x, t), network(x, t))
    network.train()
    assert not torch.equal(network(x, t), network(x, t))
