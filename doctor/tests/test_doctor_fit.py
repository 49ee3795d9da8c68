"""The doctor's checks of trained networks, and its trial of learning sixteen images by heart."""

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from diffusion_doctor import fit_checks

from mnist_ddpm import ddpm
from mnist_ddpm.data.mnist import load_mnist
from mnist_ddpm.methods import predictions
from mnist_ddpm.recipe import Recipe

LESSONS = ROOT / "checkpoints" / "lessons"
PAPER = ddpm.beta_schedule(ddpm.linear_beta())


@pytest.fixture(scope="module")
def digits():
    """64 digits of 16 × 16 pixels, in [-1, 1]."""
    images = load_mnist(Recipe(), ROOT / "data", "test")[:64]
    return ddpm.to_float(F.avg_pool2d(images.float(), 2).round().to(torch.uint8))


def denoiser_of(name):
    network, schedule, _ = ddpm.load_checkpoint(LESSONS / name)
    return ddpm.eps_denoiser(network, schedule)


@pytest.mark.parametrize(
    "name, verdict",
    [("right", "ok"), ("one-time", "ok"), ("restless-raw", "ok"), ("zero-to-one", "wrong")],
)
def test_what_small_networks_have_learned(name, verdict, digits):
    for data in (digits, (digits + 1) / 2):  # handed over in either range
        check = fit_checks.check_fit(denoiser_of(name), PAPER, data)
        assert check.verdict == verdict
        assert set(check.evidence) == ({"data-range"} if verdict == "wrong" else set())


@pytest.mark.parametrize("conversion", [predictions.EPS, predictions.V, predictions.X0])
@pytest.mark.parametrize("scale", [0.0, 0.1])
def test_an_untrained_network_is_undecided(conversion, scale, digits):
    network = ddpm.UNet(1, base_channels=8, channel_mults=(1,), patch_size=1)
    torch.nn.init.normal_(network.conv_out.weight, std=scale)
    denoise = predictions.denoiser(network, PAPER, conversion)
    assert fit_checks.check_fit(denoise, PAPER, digits).verdict == "undecided"


@pytest.mark.parametrize(
    "raw, averaged, verdict",
    [("restless-raw", "restless-averaged", "ok"), ("right", "restless-raw", "wrong")],
)
def test_the_average_of_the_weights(raw, averaged, verdict, digits):
    check = fit_checks.check_average(denoiser_of(raw), denoiser_of(averaged), PAPER, digits)
    assert check.verdict == verdict


@pytest.mark.parametrize("tint, verdict", [(0.0, "ok"), (0.1, "ok"), (0.8, "wrong")])
def test_samples_with_a_tint(tint, verdict):
    samples, data = torch.rand(2, 32, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    samples[:, 1] += tint
    assert fit_checks.check_tint(samples, data).verdict == verdict


class Gain(torch.nn.Module):
    """A network that multiplies by a number, which it is to learn to be 0."""

    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, x, t):
        return self.gain * x


def heart_loss(network, x0):
    return network(x0, torch.ones(len(x0))).square().mean()


@pytest.mark.parametrize(
    "loss, seconds, verdict",
    [
        (heart_loss, 60, "ok"),
        (heart_loss, 0, "undecided"),
        (lambda network, x0: heart_loss(network, x0).detach(), 60, "wrong"),
        (lambda network, x0: heart_loss(network, x0) / 0, 60, "wrong"),
    ],
)
def test_images_by_heart_and_the_weights_come_back(loss, seconds, verdict, digits):
    network = Gain()
    ignorant = 4.6 * digits[:16].square().mean().item()  # so that forty steps are enough
    check = fit_checks.check_learning(loss, network, digits[:16], ignorant, seconds)
    assert check.verdict == verdict
    assert network.gain == 1 and not network.gain.requires_grad
