"""Given parts and given beginnings, on denoisers whose answers are known exactly."""

import pytest
import torch
from helpers import PAPER, PATHS

from mnist_ddpm import ddpm
from mnist_ddpm.methods.inpainting import repaint_sampler, sdedit
from mnist_ddpm.methods.learned_variance import learned_step_variance

PAIRS = torch.tensor([[-0.8, -0.8], [0.8, 0.8]]).view(2, 1, 1, 2)  # one pixel decides the other
LEFT = torch.tensor([1, 0]).view(1, 1, 1, 2)


def fill(schedule=PAPER, n=1, known=PAIRS[:1], mask=LEFT, steps=10, denoise=None, **options):
    draw_noise = ddpm.noise_source(0, range(n), (1, 1, 2))
    denoise = denoise or ddpm.ideal_denoiser(schedule, PAIRS)
    times = steps if isinstance(steps, list) else ddpm.timesteps(1000, steps)
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
    denoise, steps = ddpm.ideal_denoiser(path, point), [1000, 350, 300, 200, 100]
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


@pytest.mark.parametrize(("steps", "jump"), [(250, 10), (50, 2), (63, 3), (12, 1), (1, 1)])
def test_a_jump_is_the_papers_share_of_the_steps_unless_told(steps, jump):
    options = {"n": 2, "steps": steps, "resamples": 2}
    given, default = (fill(**options, **more)[-1][1] for more in ({"jump": jump}, {}))
    assert torch.equal(given, default)


@pytest.mark.parametrize("resamples, jump", [(1, 3), (4, 10), (4, 3), (3, 1), (2, 100)])
def test_cost_and_states(resamples, jump):
    exact, asked = ddpm.ideal_denoiser(PAPER, PAIRS), []
    denoise = lambda xt, t: asked.append(t) or exact(xt, t)  # noqa: E731
    states = fill(steps=11, denoise=denoise, resamples=resamples, jump=jump)
    assert len(asked) == 11 * resamples
    assert [t for t, _, _ in states] == [*ddpm.timesteps(1000, 11), 0]
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


def test_inpainting_works_in_colour_with_one_mask_for_all():
    known, draw_noise = torch.ones(1, 3, 1, 2), ddpm.noise_source(0, range(3), (3, 1, 2))
    denoise = ddpm.eps_denoiser(lambda xt, t: xt / 3, PAPER)
    arguments = denoise, PAPER, ddpm.timesteps(1000, 5), draw_noise(), draw_noise
    *_, (_, x, _) = repaint_sampler(*arguments, known=known, mask=LEFT, resamples=2)
    assert x.shape == (3, 3, 1, 2) and (x[..., 0] == 1).all() and (x[..., 1] < 1).any()


def only_the_start(denoise, schedule, times, xT, draw_noise):
    """A sampler that returns what it is given."""
    yield 0, xT, xT


@pytest.mark.parametrize(
    "image", [torch.full((1, 1, 2, 2), 200, dtype=torch.uint8), torch.zeros(3, 1, 2, 2)]
)
def test_beginnings_that_do_not_fit_are_refused(image):
    with pytest.raises(ValueError):
        ddpm.generate(None, PAPER, 2, (1, 2, 2), sampler=sdedit(image, only_the_start))


def test_a_given_beginning_is_noised_as_far_as_the_first_time_says():
    images = torch.linspace(-1, 1, 5).view(5, 1, 1, 1).expand(5, 1, 2, 2)
    xT = ddpm.noise_source(3, range(5), (1, 2, 2))()
    for image in (images, images[:1]):
        sampler = sdedit(image, only_the_start)
        for times in ([300, 20], [50], ddpm.timesteps(1000, 4)):
            ((_, x, _),) = sampler(None, PAPER, times, xT, None)
            assert torch.equal(x, ddpm.q_sample(PAPER, image, times[0], xT))
