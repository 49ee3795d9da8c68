"""The notebook's samplers, on denoisers whose answers are known; its pictures."""

import math

import imageio.v3 as imageio
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from helpers import PAPER, PATHS, no_noise, with_random_weights
from torchvision.utils import make_grid

from mnist_ddpm import ddpm

POINTS = torch.tensor([-0.8, 0.6]).view(2, 1, 1, 1)


@pytest.mark.parametrize("T, steps", [(1000, 1), (1000, 7), (1000, 1000), (10, 3), (1, 1)])
def test_timesteps_start_at_T_and_are_evenly_spaced(T, steps):
    times = ddpm.timesteps(T, steps)
    assert times[0] == T and len(set(times)) == steps
    gaps = [t - s for t, s in ddpm.transitions(times, T)]
    assert sum(gaps) == T and max(gaps) - min(gaps) <= 1


def test_times_that_cannot_be_are_refused():
    for steps in (0, -1, 1001):
        with pytest.raises(ValueError, match="1000"):
            ddpm.timesteps(1000, steps)
    for times in ([], [5, 5], [3, 4], [11], [4, 0], [4, -1]):
        with pytest.raises(ValueError):
            ddpm.transitions(times, 10)


def last(states):
    *_, (t, x, _) = states
    assert t == 0
    return x


@pytest.mark.parametrize("steps", [1000, 50])
@pytest.mark.parametrize("sampler", [ddpm.ddpm_sampler, ddpm.ddim_sampler])
def test_a_perfect_denoiser_lands_on_the_data_in_the_right_shares(sampler, steps):
    draw_noise = ddpm.noise_source(0, range(200), (1, 1, 1))
    denoise = ddpm.ideal_denoiser(PAPER, POINTS)
    x = last(sampler(denoise, PAPER, ddpm.timesteps(1000, steps), draw_noise(), draw_noise))
    assert torch.cdist(x.view(-1, 1), POINTS.view(-1, 1)).min(dim=1).values.max() < 0.01
    assert (x > 0).float().mean().item() == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(200))


def test_the_ideal_denoiser_weighs_points_by_their_distance():
    """By Bayes: x_t = 0.1 at t = 300, for the points -0.8 and 0.6, and for a batch of times."""
    xt, times = torch.full((2, 1, 1, 1), 0.1), torch.tensor([300, 700])
    together, _ = ddpm.ideal_denoiser(PAPER, POINTS)(xt, times)
    for k, t in enumerate(times.tolist()):
        a_t, b_t = (v.item() for v in PAPER.at(t))
        weights = np.exp([-((0.1 - a_t * x) ** 2) / (2 * b_t**2) for x in (-0.8, 0.6)])
        expected = np.average([-0.8, 0.6], weights=weights)
        assert together[k].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("sampler", [ddpm.ddpm_sampler, ddpm.ddim_sampler])
def test_states_are_yielded_at_every_time_and_end_in_x0(sampler):
    start = torch.ones(2, 1, 1, 1)
    denoise = ddpm.ideal_denoiser(PAPER, POINTS)
    states = list(sampler(denoise, PAPER, [1000, 300, 7], start, lambda: 0 * start))
    assert [t for t, _, _ in states] == [1000, 300, 7, 0]
    assert torch.equal(states[0][1], start) and torch.equal(states[-1][1], states[-1][2])
    torch.testing.assert_close(states[-1][1], states[-2][2])  # the last step returns x0_hat


@pytest.mark.parametrize(
    ("sampler", "option"),
    [
        (ddpm.ddpm_sampler, {}),
        (ddpm.ddpm_sampler, {"variance": ddpm.step_variance}),
        (ddpm.ddim_sampler, {"eta": 1.0}),
    ],
    ids=["posterior", "beta", "ddim"],
)
def test_the_last_step_adds_no_noise(sampler, option):
    start = torch.ones(2, 1, 1, 1)
    last(sampler(ddpm.ideal_denoiser(PAPER, POINTS), PAPER, [9], start, no_noise, **option))


@PATHS
@pytest.mark.parametrize("steps", [500, 37])
@pytest.mark.parametrize("perfect", [True, False])
def test_ddim_with_eta_1_is_ancestral_sampling(path, steps, perfect):
    # the other one's x0_hat is often clipped
    rough = ddpm.clipped(lambda xt, t: (xt * (1 + path.at(t)[1].item()), None), path)
    denoise = ddpm.ideal_denoiser(path, POINTS) if perfect else rough

    def run(sampler, **options):
        draw_noise = ddpm.noise_source(3, range(8), (1, 1, 1))
        times = ddpm.timesteps(1000, steps)
        return last(sampler(denoise, path, times, draw_noise(), draw_noise, **options))

    got, expected = run(ddpm.ddim_sampler, eta=1.0), run(ddpm.ddpm_sampler)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


def test_one_step_of_each_sampler_by_hand():
    """With eps_hat = x_t / 2, Eq. 11 gives the mean of Algorithm 2; then DDIM's Eq. 12."""
    x, denoise = torch.full((1, 1, 1, 1), 0.9), ddpm.eps_denoiser(lambda xt, t: xt / 2, PAPER)
    beta, alpha_bar = ddpm.linear_beta()[1000].item(), PAPER.a[1000].item() ** 2
    options = {"draw_noise": lambda: torch.ones_like(x), "variance": ddpm.step_variance}
    _, (_, got, _), *_ = ddpm.ddpm_sampler(denoise, PAPER, [1000, 999], x, **options)
    mean = (0.9 - beta / math.sqrt(1 - alpha_bar) * 0.45) / math.sqrt(1 - beta)
    assert got.item() == pytest.approx(mean + math.sqrt(beta), rel=1e-5)
    _, (_, got, _), *_ = ddpm.ddim_sampler(denoise, PAPER, [600, 200], x, no_noise)
    (a_t, b_t), (a_s, b_s) = PAPER.at(600), PAPER.at(200)
    x0 = (0.9 - b_t * 0.45) / a_t
    assert got.item() == pytest.approx((a_s * x0 + b_s * 0.45).item(), rel=1e-5)


def test_clipping_bounds_the_image_and_keeps_the_noise_in_step():
    xt = torch.ones(2, 1, 2, 2)
    x0_hat, eps_hat = ddpm.clipped(lambda xt, t: (5 * xt, 0 * xt), PAPER)(xt, 300)
    assert (x0_hat == 1).all()
    torch.testing.assert_close(ddpm.q_sample(PAPER, x0_hat, 300, eps_hat), xt)


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
def test_eta_out_of_range_is_refused(eta):
    with pytest.raises(ValueError, match=f"eta is {eta}"):
        next(ddpm.ddim_sampler(None, PAPER, [10], torch.zeros(1, 1, 1, 1), no_noise, eta=eta))


def test_noise_is_normal_and_no_two_images_share_any():
    draw_noise = ddpm.noise_source(0, range(500), (10, 10))
    noise = torch.cat([draw_noise(), draw_noise()])
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    assert abs((noise[:500] * noise[500:]).mean()) < 0.02
    streams = [ddpm.noise_source(seed, range(3), (4, 4))() for seed in (0, 1, 2)]
    assert len(torch.cat(streams).unique(dim=0)) == 9
    assert torch.equal(ddpm.noise_source(0, range(2, 3), (4, 4))()[0], streams[0][2])


@pytest.mark.parametrize("sampler", [ddpm.ddpm_sampler, ddpm.ddim_sampler])
def test_image_k_does_not_depend_on_how_many_are_drawn(sampler):
    sizes = {"base_channels": 8, "channel_mults": (1, 2), "attention": (1,)}
    network = with_random_weights(ddpm.UNet(**sizes), 0.05)
    denoise = ddpm.clipped(ddpm.eps_denoiser(network, PAPER), PAPER)
    options = {"sampler": sampler, "steps": 10, "seed": 4}
    with torch.no_grad():
        whole, _ = ddpm.generate(denoise, PAPER, 7, (1, 16, 16), **options)
        part, _ = ddpm.generate(denoise, PAPER, 2, (1, 16, 16), **options)
    assert (part.int() - whole[:2].int()).abs().max() <= 1, "but for rounding"
    assert len(whole.unique(dim=0)) == 7


def test_a_film_holds_the_first_images_from_noise_to_the_result():
    options = {"steps": 1000, "film_images": 2}
    images, film = ddpm.generate(ddpm.ideal_denoiser(PAPER, POINTS), PAPER, 5, (1, 1, 1), **options)
    times = [t for t, _, _ in film]
    assert times == sorted(set(times), reverse=True) and times[0] == 1000 and times[-1] == 0
    assert 20 < len(film) < 60
    assert all(xt.shape == x0_hat.shape == (2, 1, 1, 1) for _, xt, x0_hat in film)
    assert torch.equal(film[-1][1], images[:2])
    assert images.shape == (5, 1, 1, 1) and images.dtype == torch.uint8


@pytest.mark.parametrize(("n", "columns", "channels"), [(2, 8, 1), (5, 3, 3), (6, 3, 1), (7, 1, 3)])
def test_tile_is_torchvisions_grid(n, columns, channels):
    generator = torch.Generator().manual_seed(n)
    images = torch.randint(0, 256, (n, channels, 9, 5), generator=generator, dtype=torch.uint8)
    grid = make_grid(images, nrow=columns, padding=2, pad_value=64).permute(1, 2, 0).numpy()
    assert np.array_equal(ddpm.tile(images, columns), grid)
    doubled = grid.repeat(2, axis=0).repeat(2, axis=1)
    assert np.array_equal(ddpm.tile(images, columns, scale=2), doubled)


def brightening(channels=1):
    """11 moments of 3 images that brighten evenly; what is predicted darkens."""
    levels = [torch.full((3, channels, 32, 32), 25 * k, dtype=torch.uint8) for k in range(11)]
    return [(10 - k, x, 255 - x) for k, x in enumerate(levels)]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("predicted", [False, True])
def test_gif_has_every_frame_in_order_and_true_levels(tmp_path, predicted, channels):
    ddpm.save_gif(tmp_path / "film.gif", brightening(channels), predicted, columns=3)
    frames = imageio.imread(tmp_path / "film.gif", index=None)
    assert len(frames) == 11 and frames.shape[1:3] == (2 * (2 + 34), 2 * (2 + 3 * 34))
    middle, levels = frames[:, 30, 30, 0].astype(int), np.arange(0, 275, 25)
    expected = 255 - levels if predicted else levels
    assert np.abs(middle - expected).max() <= 16 and len(set(middle)) == 11
    assert imageio.immeta(tmp_path / "film.gif", index=10)["duration"] == 2000


def test_strip_shows_state_above_prediction():
    figure = ddpm.show_strip(brightening(), images=2, moments=5)
    (ax,), levels = figure.axes, np.array([0, 50, 125, 200, 250])
    names = [label.get_text() for label in ax.get_xticklabels()]
    assert [name.split()[-1] for name in names] == ["10", "8", "5", "2", "0"]
    y, x = (np.rint(ticks).astype(int) for ticks in (ax.get_yticks(), ax.get_xticks()))
    shown = ax.images[0].get_array()[np.ix_(y, x)]
    assert np.array_equal(shown[..., 0], [levels, 255 - levels] * 2)
    plt.close(figure)
