"""Samplers, on denoisers whose answers are known exactly."""

import math

import numpy as np
import pytest
import torch
from conftest import no_noise, restless

from mnist_ddpm.ddpm import (
    SAMPLERS,
    UNet,
    ddim_sampler,
    ddpm_sampler,
    generate,
    ideal_denoiser,
    noise_source,
    options_of,
    timesteps,
    transitions,
)

POINTS = torch.tensor([-0.8, 0.6]).view(2, 1, 1, 1)


def last(states):
    *_, (t, x, _) = states
    assert t == 0
    return x


@pytest.mark.parametrize(("T", "steps"), [(1000, 1), (1000, 7), (1000, 50), (1000, 999), (1000, 1000), (10, 3), (1, 1)])
def test_timesteps_start_at_T_and_are_evenly_spaced(T, steps):
    times = timesteps(T, steps)
    assert times[0] == T and len(set(times)) == steps and times == sorted(times, reverse=True) and times[-1] >= 1
    gaps = [t - s for t, s in transitions(times, T)]
    assert sum(gaps) == T and max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_numbers_of_steps_are_refused(steps):
    with pytest.raises(ValueError, match="from 1 to T = 1000"):
        timesteps(1000, steps)


@pytest.mark.parametrize("times", [[], [5, 5], [3, 4], [11], [4, 0]])
def test_lists_that_do_not_fall_are_refused(times):
    with pytest.raises(ValueError, match="fall strictly"):
        transitions(times, 10)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1000, 50])
def test_perfect_denoiser_lands_on_the_data_in_the_right_shares(paper, name, steps):
    n = 400
    noise = noise_source(0, range(n), (1, 1, 1))
    x = last(SAMPLERS[name](ideal_denoiser(paper, POINTS), paper, timesteps(1000, steps), noise(), noise))
    assert torch.cdist(x.view(-1, 1), POINTS.view(-1, 1)).min(dim=1).values.max() < 0.01
    assert (x > 0).float().mean().item() == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(n))


@pytest.mark.parametrize("sampler", [ddpm_sampler, ddim_sampler])
def test_states_are_yielded_at_every_time_and_end_in_x0(paper, sampler):
    start = torch.randn(2, 1, 1, 1)
    states = list(sampler(ideal_denoiser(paper, POINTS), paper, [1000, 300, 7], start, lambda: torch.zeros(2, 1, 1, 1)))
    assert [t for t, _, _ in states] == [1000, 300, 7, 0]
    assert torch.equal(states[0][1], start)
    assert torch.equal(states[-1][1], states[-1][2])
    torch.testing.assert_close(states[-1][1], states[-2][2])  # the step to t = 0 returns the predicted x_0


@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_last_step_adds_no_noise(paper, variance):
    start = torch.randn(2, 1, 1, 1)
    last(ddpm_sampler(ideal_denoiser(paper, POINTS), paper, [1], start, no_noise, variance=variance))
    last(ddim_sampler(ideal_denoiser(paper, POINTS), paper, [1], start, no_noise, eta=1.0))


@pytest.mark.parametrize("steps", [1000, 37])
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("perfect", [True, False])
def test_ddim_with_eta_1_is_ancestral_sampling(paper, steps, clip, perfect):
    model = ideal_denoiser(paper, POINTS) if perfect else lambda xt, t: 0.9 * xt  # whose x0_hat is often clipped

    def run(sampler, **options):
        noise = noise_source(3, range(8), (1, 1, 1))
        return last(sampler(model, paper, timesteps(1000, steps), noise(), noise, clip=clip, **options))

    torch.testing.assert_close(run(ddim_sampler, eta=1.0), run(ddpm_sampler), rtol=1e-3, atol=1e-4)


def test_one_reverse_step_by_hand(paper):
    """With eps_hat = x_t / 2 and no clipping the paper's Eq. 11 gives the mean; noise is scaled by sqrt(beta)."""
    t, x = 1000, torch.full((1, 1, 1, 1), 0.9)
    beta, alpha, alpha_bar = (float(v[t]) for v in (paper.beta, paper.alpha, paper.alpha_bar))
    states = ddpm_sampler(
        lambda xt, t: xt / 2, paper, [t, t - 1], x, lambda: torch.ones_like(x), variance="beta", clip=False
    )
    _, (_, got, _), *_ = states
    expected = (0.9 - beta / math.sqrt(1 - alpha_bar) * 0.45) / math.sqrt(alpha) + math.sqrt(beta)
    assert got.item() == pytest.approx(expected, rel=1e-5)


def test_one_ddim_step_by_hand(paper):
    t, s, x = 600, 200, torch.full((1, 1, 1, 1), 0.9)
    a_t, a_s = paper.alpha_bar[t].item(), paper.alpha_bar[s].item()
    states = ddim_sampler(lambda xt, t: xt / 2, paper, [t, s], x, no_noise, clip=False)
    _, (_, got, _), *_ = states
    x0 = (0.9 - math.sqrt(1 - a_t) * 0.45) / math.sqrt(a_t)
    assert got.item() == pytest.approx(math.sqrt(a_s) * x0 + math.sqrt(1 - a_s) * 0.45, rel=1e-5)


def test_clip_bounds_the_prediction(paper):
    bad = lambda xt, t: -5 * torch.ones_like(xt)  # noqa: E731
    start = torch.randn(1, 1, 1, 1)
    clipped = list(ddim_sampler(bad, paper, [1000, 500], start, no_noise))
    free = list(ddim_sampler(bad, paper, [1000, 500], start, no_noise, clip=False))
    assert clipped[0][2].abs().max() <= 1 < free[0][2].abs().max()


@pytest.mark.parametrize(("options", "message"), [({"eta": -0.1}, "eta is -0.1"), ({"eta": 1.1}, "eta is 1.1")])
def test_eta_out_of_range_is_refused(paper, options, message):
    with pytest.raises(ValueError, match=message):
        next(ddim_sampler(None, paper, [10], torch.zeros(1, 1, 1, 1), no_noise, **options))


def test_a_sampler_of_ones_own_is_told_what_it_takes():
    def mine(model, schedule, times, xT, noise, *, eta=0.0, order=1):
        yield 0, xT, xT

    given = {"eta": 0.5, "variance": "beta"}
    assert options_of(mine, **given) == options_of(ddim_sampler, **given) == {"eta": 0.5}
    assert options_of(ddpm_sampler, **given) == {"variance": "beta"}


@pytest.mark.parametrize("moments", [[], [(5, 1)], [(5, 1), (2, 0)]])
def test_a_sampler_that_does_not_end_at_the_image_is_refused(paper, moments):
    def mine(model, schedule, times, xT, noise):
        for t, _ in moments:
            yield t, xT, xT

    with pytest.raises(ValueError, match="it must also yield x_0, with t = 0"):
        generate(lambda xt, t: xt, paper, 1, (1, 2, 2), sampler=mine, steps=[5], progress=False)


def test_unknown_variance_is_refused(paper):
    with pytest.raises(ValueError, match='variance "small" is unknown'):
        next(ddpm_sampler(lambda xt, t: xt, paper, [10], torch.zeros(1, 1, 1, 1), no_noise, variance="small"))


@pytest.mark.parametrize("name", SAMPLERS)
def test_image_k_does_not_depend_on_the_batch_size(paper, name):
    model = restless(UNet(base_channels=8), 0.05)

    def run(n, batch_size):
        return generate(model, paper, n, (1, 32, 32), sampler=SAMPLERS[name], steps=10, batch_size=batch_size, seed=4)[
            0
        ]

    whole = run(7, 7).int()
    for n, batch_size in ((7, 3), (7, 1), (2, 256)):
        assert (run(n, batch_size).int() - whole[:n]).abs().max() <= 1  # one grey level, for rounding
    assert len(whole.unique(dim=0)) == 7


def test_seeds_share_no_image():
    streams = [noise_source(seed, range(3), (4, 4))() for seed in (0, 1, 2)]
    assert len(torch.cat(streams).unique(dim=0)) == 9
    torch.testing.assert_close(noise_source(0, range(2, 3), (4, 4))()[0], streams[0][2])


def test_noise_is_standard_normal():
    draw = noise_source(0, range(500), (10, 10))
    noise = torch.cat([draw(), draw()])
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    assert abs((noise[:500] * noise[500:]).mean()) < 0.02


def test_film_holds_the_first_images_from_noise_to_the_result(paper):
    images, film = generate(
        ideal_denoiser(paper, POINTS), paper, 5, (1, 1, 1), steps=100, film=2, frames=10, batch_size=3
    )
    assert [t for t, _, _ in film] == sorted({t for t, _, _ in film}, reverse=True)
    assert film[0][0] == 1000 and film[-1][0] == 0 and len(film) == 11
    assert all(xt.shape == x0_hat.shape == (2, 1, 1, 1) for _, xt, x0_hat in film)
    assert torch.equal(film[-1][1], images[:2]) and images.shape == (5, 1, 1, 1) and images.dtype == torch.uint8


def test_steps_may_be_of_any_kind_of_whole_numbers(paper):
    def drawn(steps):
        return generate(ideal_denoiser(paper, POINTS), paper, 2, (1, 1, 1), steps=steps, eta=1.0, progress=False)[0]

    expected = drawn([1000, 500])
    for steps in (2, np.int64(2), np.array([1000, 500]), torch.tensor([1000, 500]), (1000, 500)):
        assert torch.equal(drawn(steps), expected)
    with pytest.raises(TypeError, match="integer"):
        drawn([1000, 500.5])


@pytest.mark.parametrize("wrong", [{"n": 0}, {"n": -3}, {"batch_size": 0}, {"seed": -1}, {"seed": 2**32}], ids=str)
def test_impossible_requests_are_refused(paper, wrong):
    options = {"n": 1, **wrong}
    with pytest.raises(ValueError, match=r"must be (at least 1|from 0 to 2\^32 - 1)"):
        generate(ideal_denoiser(paper, POINTS), paper, shape=(1, 1, 1), **options)


def test_images_that_are_no_numbers_are_no_pictures(paper):
    with pytest.raises(FloatingPointError, match="NaN"):
        generate(lambda x, t: x * math.nan, paper, 2, (1, 2, 2), steps=2, progress=False)


def test_sampling_turns_dropout_off(paper):
    model = restless(UNet(base_channels=8, dropout=0.5), 0.05).train()
    a, b = (generate(model, paper, 2, (1, 32, 32), steps=3)[0] for _ in range(2))
    assert torch.equal(a, b)


def test_a_sampler_of_ones_own_keeps_nothing_for_gradients(paper):
    kept = []

    def mine(model, schedule, times, xT, noise):
        kept.append(model(xT, torch.tensor([1])).requires_grad)
        yield 0, xT, xT

    generate(UNet(base_channels=8), paper, 1, (1, 32, 32), sampler=mine, steps=1, progress=False)
    assert kept == [False]


def test_image_k_is_the_same_wherever_drawing_starts(paper):
    model, options = restless(UNet(base_channels=8), 0.05), {"sampler": ddpm_sampler, "steps": 3, "seed": 4}
    whole, _ = generate(model, paper, 5, (1, 32, 32), **options)
    part, _ = generate(model, paper, 2, (1, 32, 32), start=3, **options)
    assert (part.int() - whole[3:].int()).abs().max() <= 1 and (whole[0] != whole[3]).any()


def test_precision_is_that_of_the_network_alone(paper):
    seen = []

    def model(xt, t):
        product = xt.flatten(1) @ xt.flatten(1).T  # what autocast lowers
        seen.append((xt.dtype, product.dtype))
        return torch.zeros_like(xt)

    for precision in ("float32", "bfloat16"):
        images, _ = generate(model, paper, 2, (1, 8, 8), steps=2, precision=precision, progress=False)
        assert images.dtype == torch.uint8
    assert seen == 2 * [(torch.float32, torch.float32)] + 2 * [(torch.float32, torch.bfloat16)]
