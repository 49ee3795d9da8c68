"""The one formula of the benchmarks that nothing else proves."""

import sys

import pytest
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
from samplers import frechet, moments


def test_frechet_distance_of_gaussians_with_a_common_basis():
    """tr((A^½ - B^½)²) and the distance of the means, where the covariances share their axes."""
    basis, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    a, b = torch.tensor([1.0, 4, 9, 16]).double(), torch.tensor([4.0, 1, 25, 16]).double()
    mean = torch.tensor([1.0, 0, 2, 0]).double()
    covariances = [basis * variance @ basis.T for variance in (a, b)]
    expected = (a.sqrt() - b.sqrt()).square().sum() + 5
    got = frechet((mean, covariances[0]), (torch.zeros(4).double(), covariances[1]))
    assert got == pytest.approx(expected.item())


def test_equal_images_are_at_no_distance_and_a_shift_is_seen_in_full():
    images = torch.randint(0, 200, (50, 1, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert frechet(moments(images), moments(images)) == pytest.approx(0, abs=1e-6)
    assert frechet(moments(images), moments(images + 51)) == pytest.approx(196 * 0.2**2, abs=1e-6)


def test_the_margin_does_not_count():
    images = torch.zeros(5, 1, 32, 32, dtype=torch.uint8)
    framed = images.clone()
    framed[..., :2, :] = framed[..., -2:] = 255
    assert torch.equal(moments(images)[0], moments(framed)[0]) and moments(images)[0].shape == (196,)
