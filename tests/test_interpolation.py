"""Ways between images."""

import torch

from mnist_ddpm.methods.inpainting import slerp


def test_slerp_ends_in_its_ends_and_keeps_the_norm():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 3, 1, 4, 4, generator=generator, dtype=torch.float64)
    b = b * (a.flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)).view(3, 1, 1, 1)
    torch.testing.assert_close(slerp(a, b, 0.0), a, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(slerp(a, b, 1.0), b, rtol=1e-12, atol=1e-12)
    for weight in (0.1, 0.5, 0.8):
        between = slerp(a, b, weight)
        norms = (x.flatten(1).norm(dim=1) for x in (between, a))
        torch.testing.assert_close(*norms, rtol=1e-12, atol=0)
        assert between.dtype == a.dtype and between.shape == a.shape
        for k in range(3):
            alone = slerp(a[k : k + 1], b[k : k + 1], weight)
            torch.testing.assert_close(alone, between[k : k + 1])


def test_slerp_shares_a_right_angle():
    a, b = torch.eye(2).view(2, 1, 1, 1, 2)
    expected = torch.tensor([3**0.5 / 2, 0.5]).view(1, 1, 1, 2)  # a third of it
    torch.testing.assert_close(slerp(a, b, 1 / 3), expected)


def test_slerp_between_parallel_images_is_a_straight_line():
    a, other = torch.tensor([[1.0, 2.0], [-2.0, 1.0]]).view(2, 1, 1, 1, 2)
    batch = slerp(torch.cat([a, a, a]), torch.cat([3 * a, -a, other]), 0.25)
    torch.testing.assert_close(batch[:2], torch.cat([1.5 * a, 0.5 * a]))
    torch.testing.assert_close(batch[2:].norm(), a.norm())
