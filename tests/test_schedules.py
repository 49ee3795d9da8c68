"""Further schedules by their formulas, spacings of times, and schedules on fewer steps."""

from functools import partial

import pytest
import torch
from helpers import PAPER

from mnist_ddpm.ddpm import posterior_variance, step_variance, timesteps
from mnist_ddpm.methods import learned_variance, schedules
from mnist_ddpm.methods.predictions import EPS

ALL = schedules.linear, schedules.cosine, schedules.quadratic, schedules.sigmoid, schedules.log_snr
TIMES = [1000, 700, 450, 449, 200, 30, 1]


@pytest.mark.parametrize("T", [1, 2, 10, 1000])
@pytest.mark.parametrize("make", ALL)
def test_every_schedule_adds_noise_at_every_step(make, T):
    plain = make(T)
    for schedule in [plain, schedules.zero_terminal_snr(plain)] if T > 1 else [plain]:
        assert schedule.T == T and schedule.a.dtype == schedule.b.dtype == torch.float64
        assert schedule.a[0] == 1 and schedule.b[0] == 0
        assert (schedule.a.diff() < 0).all() and (schedule.b.diff() > 0).all()
        total = schedule.a.square() + schedule.b.square()
        torch.testing.assert_close(total, torch.ones(T + 1, dtype=torch.float64))


def test_respaced_schedule_goes_through_its_times():
    for times in (TIMES, [999, 3], list(range(1000, 0, -1))):
        few = schedules.respaced_schedule(PAPER, times)
        for table, whole in ((few.a, PAPER.a), (few.b, PAPER.b)):
            assert torch.equal(table, whole[[0, *times[::-1]]])
    with pytest.raises(ValueError):
        schedules.respaced_schedule(PAPER, [3, 30])


def test_respaced_network_is_told_the_original_time():
    network = schedules.respaced_network(lambda xt, t: t, TIMES)
    assert network(None, torch.tensor([1, 2, 7])).tolist() == [1, 30, 1000]
    assert network(None, 4) == 449


def network(xt, t):
    """eps_hat and v, of no meaning but of t."""
    return torch.cat([0.9 * xt + 1e-4 * t.view(-1, 1, 1, 1), torch.sin(xt)], dim=1)


@pytest.mark.parametrize(
    "variance", [posterior_variance, step_variance, learned_variance.learned_step_variance]
)
def test_ancestral_sampling_is_the_same_on_the_respaced_schedule(variance):
    def states(network, schedule, times):
        generator = torch.Generator().manual_seed(0)
        options = {"generator": generator, "dtype": torch.float64}
        draw_noise = partial(torch.randn, 3, 1, 2, 2, **options)
        denoise = learned_variance.learned_denoiser(network, schedule, EPS)
        if variance is not learned_variance.learned_step_variance:
            denoise = learned_variance.without_exponent(denoise)
        sampler = partial(learned_variance.ancestral_sampler, variance=variance)
        found = sampler(denoise, schedule, times, draw_noise(), draw_noise)
        return [x for _, x, _ in found]

    few = schedules.respaced_schedule(PAPER, TIMES)
    got = states(schedules.respaced_network(network, TIMES), few, list(range(7, 0, -1)))
    torch.testing.assert_close(got, states(network, PAPER, TIMES), rtol=1e-9, atol=1e-9)


def test_spacings_by_hand():
    assert timesteps(1000, 4) == [1000, 750, 500, 250]
    assert schedules.leading(1000, 4) == [751, 501, 251, 1]
    assert schedules.linspace(1000, 4) == [1000, 667, 334, 1]
    assert schedules.quadratic_times(1000, 4) == [1000, 445, 112, 1]
    assert schedules.quadratic_times(20, 15)[-5:] == [5, 4, 3, 2, 1], "none twice"
