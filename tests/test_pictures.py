import imageio.v3 as imageio
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torchvision.utils import make_grid

from mnist_ddpm.ddpm import draw_strip, generate, ideal_denoiser, save_gif, tile
from mnist_ddpm.slider import film_slider


@pytest.fixture
def film():
    """11 moments of 3 images that brighten evenly from black to white."""
    levels = [25 * k for k in range(11)]
    return [(10 - k, *2 * [torch.full((3, 1, 8, 8), v, dtype=torch.uint8)]) for k, v in enumerate(levels)]


@pytest.mark.parametrize(("n", "columns"), [(1, 1), (2, 8), (5, 3), (6, 3), (7, 1)])
def test_tile_is_torchvisions_grid(n, columns):
    images = torch.randint(0, 256, (n, 3, 9, 5), generator=torch.Generator().manual_seed(n), dtype=torch.uint8)
    grid = make_grid(images, nrow=columns, padding=2, pad_value=64)
    assert np.array_equal(tile(images, columns), grid.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("channels", [1, 3])
def test_tile_keeps_grey_levels_and_order(channels):
    images = torch.arange(6, dtype=torch.uint8).mul(10).view(6, 1, 1, 1).expand(6, channels, 4, 4)
    picture = tile(images, 3)
    assert picture.shape == (2 + 2 * 6, 2 + 3 * 6, 3) and picture.dtype == np.uint8
    centres = picture[4::6, 4::6, 0]
    assert centres.tolist() == [[0, 10, 20], [30, 40, 50]]


def test_tile_makes_squares_of_pixels():
    alone = torch.tensor([[[[1, 2]]]], dtype=torch.uint8)
    assert tile(alone, 1, scale=2)[..., 0].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2]]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("predicted", [False, True])
def test_gif_has_every_frame_in_order_and_true_levels(film, tmp_path, predicted, channels):
    film = [(t, x.repeat(1, channels, 1, 1), y.repeat(1, channels, 1, 1)) for t, x, y in film]
    save_gif(tmp_path / "film.gif", film, predicted, columns=3)
    frames = imageio.imread(tmp_path / "film.gif", index=None)
    assert len(frames) == 11 and frames.shape[1:3] == (2 * (2 + 10), 2 * (2 + 3 * 10))
    middle = frames[:, 10, 10, 0].astype(int)
    assert np.abs(middle - [25 * k for k in range(11)]).max() <= 8 and (np.diff(middle) > 0).all()
    meta = imageio.immeta(tmp_path / "film.gif", index=10)
    assert meta["duration"] == 2000


def test_gifs_of_large_images_are_not_enlarged(film, tmp_path):
    large = [(t, x.repeat(1, 1, 5, 5), y.repeat(1, 1, 5, 5)) for t, x, y in film[:2]]
    for name, frames, side in (("small", film[:2], 2 * (2 + 10)), ("large", large, 2 + 42)):
        save_gif(tmp_path / f"{name}.gif", frames, columns=6)
        assert imageio.imread(tmp_path / f"{name}.gif", index=0).shape[0] == side


def test_strip_shows_state_above_prediction(film):
    film = [(t, x, 255 - y) for t, x, y in film]
    figure = draw_strip(film, images=2, columns=5)
    (ax,) = figure.axes
    assert [label.get_text() for label in ax.get_xticklabels()] == ["t = 10", "8", "5", "2", "0"]
    assert [label.get_text() for label in ax.get_yticklabels()] == [r"$x_t$", r"$\hat{x}_0$"] * 2
    levels = np.array([0, 50, 125, 200, 250])
    shown = ax.images[0].get_array()[np.ix_(np.rint(ax.get_yticks()).astype(int), np.rint(ax.get_xticks()).astype(int))]
    assert np.array_equal(shown[..., 0], [levels, 255 - levels] * 2)
    plt.close(figure)


def test_strip_of_a_single_image_and_few_moments(film):
    figure = draw_strip([(t, x[:1], y[:1]) for t, x, y in film[:2]], images=4)
    assert figure.axes[0].images[0].get_array().shape[:2] == (2 + 2 * 10, 2 + 2 * 10)
    plt.close(figure)


def test_a_film_that_was_not_asked_for_is_told(paper, tmp_path):
    model = ideal_denoiser(paper, torch.zeros(1, 1, 8, 8))
    _, film = generate(model, paper, 2, (1, 8, 8), steps=2, progress=False)
    for picture in (draw_strip, film_slider, lambda film: save_gif(tmp_path / "a.gif", film)):
        with pytest.raises(ValueError, match="the film is empty: generate keeps as many images .* film says"):
            picture(film)
