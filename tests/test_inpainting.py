"""Given parts and given beginnings, on denoisers whose answers are known exactly."""

import pytest
import torch
from test_solvers import STRAIGHT

from mnist_ddpm.ddpm import (
    ddpm_sampler,
    eps_denoiser,
    generate,
    ideal_denoiser,
    noise_source,
    q_sample,
    timesteps,
    to_uint8,
)
from mnist_ddpm.methods.inpainting import repaint_sampler, sdedit
from mnist_ddpm.methods.learned_variance import learned_step_variance
from mnist_ddpm.methods.schedules import linear

PAPER = linear()
PAIRS = torch.tensor([[-0.8, -0.8], [0.8, 0.8]]).view(2, 1, 1, 2)  # one pixel decides the other
LEFT = torch.tensor([1, 0]).view(1, 1, 1, 2)
PATHS = pytest.mark.parametrize("path", [PAPER, STRAIGHT], ids=["paper", "straight"])


def shrinking(schedule):
    """A denoiser of a network that says x_t / 3."""
    return eps_denoiser(lambda xt, t: xt / 3, schedule)


def fill(schedule=PAPER, n=1, known=PAIRS[:1], mask=LEFT, steps=10, denoise=None, **options):
    draw_noise = noise_source(0, range(n), (1, 1, 2))
    denoise = denoise or ideal_denoiser(schedule, PAIRS)
    times = steps if isinstance(steps, list) else timesteps(1000, steps)
    options |= {"known": known, "mask": mask}
    return list(repaint_sampler(denoise, schedule, times, draw_noise(), draw_noise, **options))


@pytest.mark.parametrize("resamples", [1, 3])
def test_known_pixels_come_back_exactly_whatever_the_denoiser_says(resamples):
    known = torch.tensor([[0.1234, 5.0], [-0.7, 5.0]]).view(2, 1, 1, 2)
    options = {"resamples": resamples, "jump": 4}
    *_, (_, x, _) = fill(n=2, known=known, denoise=lambda xt, t: (xt.clamp(-1, 1), xt), **options)
    assert torch.equal(x[..., 0], known[..., 0]) and x[..., 1].abs().max() <= 1


@PATHS
def test_known_pixels_have_the_noise_of_their_time_on_the_way(path):
    known, steps = torch.full((1, 1, 1, 2), 0.5), [1000, 700, 400, 100]
    for t, x, _ in fill(path, 400, known=known, resamples=2, jump=3, steps=steps)[1:-1]:
        a_t, b_t = (value.item() for value in path.at(t))
        left = x[..., 0]
        assert left.mean().item() == pytest.approx(0.5 * a_t, abs=4 * b_t / 20)
        assert left.std().item() == pytest.approx(b_t, rel=0.15)


@PATHS
def test_going_back_up_restores_the_noise_of_the_time(path):
    """For data that are one point, x_t has its known moments, whatever the way there."""
    point, mask = torch.full((1, 1, 1, 2), 0.5), torch.zeros(1, 1, 1, 2)
    denoise, steps = ideal_denoiser(path, point), [1000, 350, 300, 200, 100]
    for jump in (1, 2, 10):
        options = {"mask": mask, "steps": steps, "resamples": 3, "jump": jump}
        for t, x, _ in fill(path, 1000, denoise=denoise, **options)[:-1]:
            a_t, b_t = (value.item() for value in path.at(t))
            assert x.mean().item() == pytest.approx(0.5 * a_t, abs=0.1 * b_t)
            assert x.std().item() == pytest.approx(b_t, rel=0.07)


@pytest.mark.parametrize("index", [0, 1])
def test_the_unknown_part_becomes_the_only_one_that_fits(index):
    *_, (_, x, _) = fill(n=40, known=PAIRS[index : index + 1], steps=50, resamples=5)
    torch.testing.assert_close(x, PAIRS[index].expand(40, 1, 1, 2), rtol=0, atol=0.02)


def test_resampling_fits_more_often_than_plain_replacement():
    def misfits(resamples):
        *_, (_, x, _) = fill(n=200, steps=10, resamples=resamples, jump=2)
        return ((x - PAIRS[0]).abs().amax(dim=(1, 2, 3)) > 0.1).sum().item()

    assert misfits(10) < misfits(1) / 3


def of_correlated_pixels(correlation=0.8):
    """The exact denoiser of pairs of pixels that are Gaussian, of variance 1."""
    covariance = torch.tensor([[1, correlation], [correlation, 1]])

    def denoise(xt, t):
        a_t, b_t = (value.item() for value in PAPER.at(t))
        gain = a_t * covariance @ torch.linalg.inv(a_t**2 * covariance + b_t**2 * torch.eye(2))
        x0_hat = (xt.flatten(1) @ gain.T).view_as(xt)
        return x0_hat, (xt - a_t * x0_hat) / b_t

    return denoise


def filled(steps, **options):
    """The unknown pixels of 3,000 pairs, where the known ones are 0.6."""
    generator = torch.Generator().manual_seed(0)
    draw_noise = lambda: torch.randn(3000, 1, 1, 2, generator=generator)  # noqa: E731
    denoise, times = of_correlated_pixels(), timesteps(1000, steps)
    options |= {"known": torch.full((1, 1, 1, 2), 0.6), "mask": LEFT}
    *_, (_, x, _) = repaint_sampler(denoise, PAPER, times, draw_noise(), draw_noise, **options)
    return x[..., 1]


def test_the_unknown_pixel_of_a_correlated_pair_has_about_its_mean():
    """0.8 · 0.6 = 0.48. The paper's 10 of 250 steps are 2 of 50; walking 10 of 50 falls short."""
    assert filled(50).mean() > 0.43 > 0.41 > filled(50, jump=10).mean()


@pytest.mark.parametrize(("steps", "jump"), [(250, 10), (50, 2), (63, 3), (12, 1), (1, 1)])
def test_a_jump_is_the_papers_share_of_the_steps_unless_told(steps, jump):
    options = {"n": 2, "steps": steps, "resamples": 2}
    told, untold = (fill(**options, **more)[-1][1] for more in ({"jump": jump}, {}))
    assert torch.equal(told, untold)


@pytest.mark.parametrize(
    ("resamples", "jump"), [(1, 10), (1, 3), (4, 10), (4, 3), (3, 1), (2, 100)]
)
def test_cost_and_states(resamples, jump):
    exact, asked = ideal_denoiser(PAPER, PAIRS), []
    denoise = lambda xt, t: asked.append(t) or exact(xt, t)  # noqa: E731
    states = fill(steps=11, denoise=denoise, resamples=resamples, jump=jump)
    assert len(asked) == 11 * resamples
    assert [t for t, _, _ in states] == [*timesteps(1000, 11), 0]
    assert torch.equal(states[-1][1], states[-1][2])


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"mask": torch.ones(1, 1, 1, 3)}, "mask"),
        ({"mask": torch.ones(1, 2)}, "mask"),
        ({"mask": torch.ones(3, 1, 1, 2)}, "mask"),
        ({"mask": torch.ones(1, 2, 1, 2)}, "mask"),
        ({"mask": torch.tensor([0.5, 1]).view(1, 1, 1, 2)}, "mask"),
        ({"known": torch.ones(1, 1, 2, 2)}, "image"),
        ({"known": torch.zeros(1, 1, 1, 2, dtype=torch.uint8)}, "to_float"),
        ({"resamples": 0}, "resamples"),
        ({"jump": 0}, "jump"),
        ({"variance": learned_step_variance}, "variance"),
    ],
)
def test_what_cannot_be_filled_in_is_refused(wrong, named):
    with pytest.raises(ValueError, match=named):
        fill(**wrong)


def test_filling_in_works_in_colour_with_one_mask_for_all():
    known, mask = torch.full((1, 3, 2, 2), 1.0), torch.zeros(1, 1, 2, 2)
    mask[..., 0] = 1
    draw_noise = noise_source(0, range(3), (3, 2, 2))
    options = {"known": known, "mask": mask, "resamples": 2}
    times = timesteps(1000, 5)
    denoise, xT = shrinking(PAPER), draw_noise()
    *_, (_, x, _) = repaint_sampler(denoise, PAPER, times, xT, draw_noise, **options)
    assert x.shape == (3, 3, 2, 2) and (x[..., 0] == 1).all() and (x[..., 1] < 1).any()


def only_the_start(denoise, schedule, times, xT, draw_noise):
    """A sampler that returns what it is given."""
    yield 0, xT, xT


@pytest.mark.parametrize(
    "image", [torch.full((1, 1, 2, 2), 200, dtype=torch.uint8), torch.zeros(3, 1, 2, 2)]
)
def test_beginnings_that_do_not_fit_are_refused(image):
    with pytest.raises(ValueError):
        generate(None, PAPER, 2, (1, 2, 2), sampler=sdedit(image, only_the_start))


def test_a_given_beginning_is_noised_as_far_as_the_first_time_says():
    images = torch.linspace(-1, 1, 5).view(5, 1, 1, 1).expand(5, 1, 2, 2)
    xT = noise_source(3, range(5), (1, 2, 2))()
    for image in (images, images[:1]):
        sampler = sdedit(image, only_the_start)
        for times in ([300, 20], [50], timesteps(1000, 4)):
            ((_, x, _),) = sampler(None, PAPER, times, xT, None)
            assert torch.equal(x, q_sample(PAPER, image, times[0], xT))


def test_little_noise_keeps_the_image_and_much_noise_does_not():
    points = torch.tensor([-0.9, -0.3, 0.4, 0.8]).view(4, 1, 1, 1)
    image, denoise = points[2:3], ideal_denoiser(PAPER, points)
    sampler = sdedit(image, ddpm_sampler)

    def kept(first):
        draw_noise = noise_source(0, range(100), (1, 1, 1))
        *_, (_, x, _) = sampler(denoise, PAPER, timesteps(first, 20), draw_noise(), draw_noise)
        return (to_uint8(x) == to_uint8(image)).float().mean().item()

    assert kept(20) > 0.95 and kept(1000) < 0.6
