"""The last digits of a pixel, and the schedule along which the plain error is the bound."""

import math
from dataclasses import replace

import pytest
import torch
from training_helpers import TINY

from mnist_ddpm import ddpm
from mnist_ddpm.catalogue import make_network
from mnist_ddpm.methods.fourier import FourierUNet, fourier_features
from mnist_ddpm.methods.likelihood import bound_term
from mnist_ddpm.methods.schedules import log_snr
from mnist_ddpm.training.cost import count_parameters


def test_waves_repeat_after_1_2_4_to_64_levels():
    levels = torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1)
    seen = fourier_features(ddpm.to_float(levels)).view(256, 7, 2)
    for octave, period in enumerate((1, 2, 4, 8, 16, 32, 64)):
        angle = 2 * math.pi * torch.arange(256) / period
        expected = torch.stack([angle.sin(), angle.cos()], dim=1)
        torch.testing.assert_close(seen[:, octave], expected, rtol=0, atol=1e-3)
    quarter = fourier_features(ddpm.to_float(levels[:1]) + 0.25 / 127.5).flatten()[:4]
    slant = math.sqrt(0.5)
    expected = torch.tensor([1.0, 0, slant, slant])
    torch.testing.assert_close(quarter, expected, rtol=0, atol=1e-3)


def test_the_network_sees_them_beside_x_and_is_no_wider_otherwise():
    recipe = replace(TINY, network="fourier", channels=3, patch_size=1)
    network, seen = make_network(recipe), []
    network.conv_in.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    x = torch.rand(2, *recipe.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert network(x, torch.tensor([1, 9])).shape == x.shape
    torch.testing.assert_close(seen[0], torch.cat([x, fourier_features(x)], dim=1))
    torch.testing.assert_close(fourier_features(x)[:, 1::3], fourier_features(x[:, 1:2]))
    plain = make_network(replace(recipe, network="unet"))
    extra = count_parameters(network) - count_parameters(plain)
    assert isinstance(network, FourierUNet) and extra == 14 * 3 * 9 * recipe.base_channels
    with pytest.raises(ValueError, match="FourierUNet"):
        make_network(replace(recipe, classes=10))


@pytest.mark.parametrize("T", [20, 1000])
def test_along_log_snr_the_plain_error_of_eps_is_the_bound(T):
    """With g = -log SNR, a step costs (e^(g_t - g_s) - 1) / 2 times the squared error, in nats."""
    schedule, generator = log_snr(T), torch.Generator().manual_seed(0)
    snr = (schedule.a / schedule.b).square().log()[1:]
    assert snr[0].item() == pytest.approx(13.3) and snr[-1].item() == pytest.approx(-5)
    torch.testing.assert_close(snr.diff(), torch.full((T - 1,), -18.3 / (T - 1)).double())
    t = torch.arange(2, T + 1)
    x0, eps, other = torch.randn(3, T - 1, 1, 2, 2, generator=generator, dtype=torch.float64)
    xt = ddpm.q_sample(schedule, x0, t, eps)
    found = bound_term(schedule, x0, xt, t, ddpm.predict_x0(schedule, xt, t, other), 0.0)
    factor = math.expm1(18.3 / (T - 1)) / 2 / math.log(2)
    torch.testing.assert_close(found, factor * (eps - other).square(), rtol=1e-6, atol=1e-12)
