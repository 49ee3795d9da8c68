"""Images that are not square: what is asked for, read, trained, drawn and judged."""

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from command_helpers import run
from conftest import ROOT
from helpers import PAPER, equal, untrained_judge, with_random_weights
from picture_helpers import ORIGINAL, image_recipe, ramp, save
from PIL import Image, ImageOps

from mnist_ddpm import catalogue, ddpm
from mnist_ddpm.data import celeba, mnist
from mnist_ddpm.data.folders import load_folder
from mnist_ddpm.data.pictures import margin
from mnist_ddpm.evaluation.extractors import save_extractor
from mnist_ddpm.methods import likelihood
from mnist_ddpm.recipe import Recipe, format_size, parse_size
from mnist_ddpm.training import loop
from mnist_ddpm.training.cost import least_maps

TINY = Recipe(
    dataset="pictures", image_size=(16, 24), base_channels=4, channel_mults=(1, 2), T=8, epochs=2,
    batch_size=4, warmup_steps=2,
)  # fmt: skip
SMALL = "--base-channels 4 --channel-mults 1 2 --T 8 --batch-size 8".split()


def test_a_size_is_read_as_it_is_written():
    for size, text in ((64, "64"), ((64, 96), "64x96"), ((96, 64), "96x64")):
        assert parse_size(text) == size and format_size(size) == text
    assert parse_size("32x32") == 32
    for text in ("5x", "x5", "1x2x3", "-8", "8 x 8", "", "8x8.0", "9" * 5000):
        with pytest.raises(ValueError, match="image_size"):
            parse_size(text)


def test_a_recipe_has_a_height_and_a_width():
    recipe = Recipe(dataset="pictures", image_size=[64, 96])
    assert recipe == replace(recipe, image_size=(64, 96)) and recipe.shape == (3, 64, 96)
    assert recipe.positions == [(32, 48), (16, 24), (8, 12)] and recipe.attention == (2,)
    upright = replace(recipe, image_size=(96, 64), attention_resolutions=(16, 8))
    assert upright.attention == (1, 2), "levels are named by the shorter side"
    assert Recipe(image_size=(32, 32)) == Recipe() and Recipe(image_size=(32, 32)).image_size == 32


@pytest.mark.parametrize(
    "size",
    [(64, 97), (97, 64), (0, 64), (64, 0), (8, 2**14), (64,), (64, 64, 64), (64, 96.0), ("a", "b")],
    ids=str,
)
def test_a_size_that_cannot_work_is_named(size):
    with pytest.raises(ValueError, match="^image_size "):
        Recipe(dataset="pictures", image_size=size)


def test_digits_do_not_fit_into_less_than_their_28_rows_and_columns():
    assert Recipe(image_size=(32, 40)).shape == (1, 32, 40)
    with pytest.raises(ValueError, match="^image_size is 24x40"):
        Recipe(image_size=(24, 40))


def test_as_many_pixels_take_as_much_memory():
    needed = [least_maps(replace(TINY, image_size=size)) for size in (16, (8, 32), (32, 8))]
    assert len({*needed}) == 1 and least_maps(replace(TINY, image_size=(8, 64))) == 2 * needed[0]


def transposed(network, patch_size: int):
    """The same network for images whose rows and columns have changed places."""
    weights = {}
    for name, weight in network.state_dict().items():
        axis = {"conv_in.weight": 1, "conv_out.weight": 0, "conv_out.bias": 0}.get(name)
        if axis is not None:  # channels count the pixels of a patch, row by row
            weight = weight.unflatten(axis, (-1, patch_size, patch_size))
            weight = weight.transpose(axis + 1, axis + 2).flatten(axis, axis + 2)
        weights[name] = weight.mT.contiguous() if weight.ndim == 4 else weight
    network.load_state_dict(weights)
    return network


@pytest.mark.parametrize("patch_size", [1, 2])
def test_the_network_of_transposed_images_is_the_transposed_network(patch_size):
    recipe = replace(TINY, patch_size=patch_size, attention_resolutions=(8,))
    turned = replace(recipe, image_size=(24, 16))
    networks = map(catalogue.make_network, (recipe, turned))
    network, other = map(with_random_weights, networks)
    x, t = torch.randn(3, *recipe.shape, generator=torch.Generator().manual_seed(0)), torch.ones(3)
    output = network(x, t)
    assert output.shape == x.shape and output.std() > 0.1
    torch.testing.assert_close(transposed(other, patch_size)(x.mT, t).mT, output)


def as_in_the_notebook(image: Image.Image, size: tuple[int, int], bleed: float) -> torch.Tensor:
    """Pillow's own way: (3, *size)."""
    fitted = ImageOps.fit(image, size[::-1], Image.Resampling.LANCZOS, bleed)
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1)


@pytest.mark.parametrize("size", [(8, 12), (24, 4), (16, 15)], ids=format_size)
@pytest.mark.parametrize("given", [(48, 32), (60, 32), (48, 72)], ids=format_size)
def test_pictures_are_cropped_to_the_shape_around_their_centre(tmp_path, given, size):
    save(tmp_path / "a.png", ramp(*given))
    (image,) = load_folder(image_recipe("x", size), tmp_path, tmp_path / "cache")
    expected = as_in_the_notebook(ramp(*given), size, 0)
    assert (image.int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize("size", [(70, 140), (140, 70), (109, 89)], ids=format_size)
def test_faces_are_taken_from_the_columns_of_their_square_and_as_many_rows(tmp_path, size):
    save(tmp_path / "celeba" / "000001.jpg", ramp(*ORIGINAL))
    image = celeba.load_celeba(image_recipe(image_size=size), tmp_path)[0]
    expected = as_in_the_notebook(ramp(*ORIGINAL), size, 19 / 178)
    assert (image.int() - expected.int()).abs().max() <= 1


def test_digits_get_a_margin_of_their_own_above_and_beside(tmp_path):
    asked = image_recipe("mnist", (28, 36), 1)
    plain = mnist.load_mnist(replace(asked, image_size=28), ROOT / "data", "test")
    wide = mnist.load_mnist(asked, ROOT / "data", "test")
    assert margin(asked) == (0, 4) and wide.shape == (10_000, 1, 28, 36)
    assert torch.equal(wide[..., 4:-4], plain) and not wide[..., :4].any()
    save(tmp_path / "0.png", Image.fromarray(plain[0, 0].numpy()))
    assert torch.equal(load_folder(asked, tmp_path, tmp_path / "cache")[0], wide[0])


def test_a_judge_of_faces_sees_a_square():
    faces = untrained_judge("celeba")
    upright = torch.randint(256, (2, 3, 96, 64), dtype=torch.uint8)
    scaled = torch.nn.functional.interpolate(
        ddpm.to_float(upright), (64, 64), mode="bilinear", antialias=True
    )
    expected = faces.network.body(scaled).mean(dim=(2, 3)).double()
    torch.testing.assert_close(faces.features(upright), expected)


def test_the_bound_within_a_margin_is_that_of_the_inner_pixels():
    """Of a denoiser that sees each pixel alone, on the same noise."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (3, 1, 8, 10), generator=generator, dtype=torch.uint8)
    eps = torch.randn(images.shape, generator=generator)

    def denoise(xt, t):
        return 0.5 * xt, xt

    def bits(images, eps, margin):
        options = {"exponent": 0.0, "margin": margin, "fractions": torch.full((3, 4), 0.5)}
        options |= {"draw_noise": lambda: eps, "advance": lambda: None}
        return likelihood.batch_bound(denoise, PAPER, images, **options)["bits"]

    inner = (..., slice(1, -1), slice(3, -3))
    alone = bits(images[inner], eps[inner], (0, 0))
    torch.testing.assert_close(bits(images, eps, (1, 3)), alone, rtol=1e-5, atol=0)
    for border in ((4, 0), (0, 5)):
        with pytest.raises(ValueError, match="margin"):
            likelihood.bits_per_dim(denoise, PAPER, images, margin=border)


def rectangles(n: int = 12) -> torch.Tensor:
    """Coloured noise: uint8 (n, 3, 16, 24)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (n, 3, 16, 24), generator=generator, dtype=torch.uint8)


def steps(run, count):
    """Some steps of a training."""
    recipe = run.settings
    taken = islice(loop.training_loop(run, rectangles(), catalogue.make_schedule(recipe)), count)
    assert len([*taken]) == count


@pytest.mark.parametrize("changes", [{"network": "dit"}, {"condition": "small"}], ids=str)
def test_other_networks_and_conditions_take_rectangles(changes):
    run = loop.start_run(replace(TINY, **changes))
    before = [weight.clone() for weight in run.network.parameters()]
    steps(run, 1)
    assert not equal([*run.network.parameters()], before) and np.isfinite(run.losses).all()


def save_pictures(folder: Path, n: int, width: int, height: int) -> Path:
    """Photographs of no format in particular: a bright square somewhere."""
    for k in range(n):
        pixels = np.full((height, width, 3), 40 + 2 * k, np.uint8)
        pixels[k : k + 8, 2 * k : 2 * k + 8] = 255 - k, 200, 2 * k
        save(folder / f"{k:02d}.png", Image.fromarray(pixels))
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder of pictures, and a network of 16 x 24 pixels trained on them, in two goes."""
    folder = tmp_path_factory.mktemp("rectangles")
    pictures = save_pictures(folder / "pictures", 16, 36, 24)
    places = "--out", folder / "trained", "--data", folder, "--device", "cpu"
    sizes = "--dataset", pictures, "--image-size", "16x24", *SMALL
    assert run("train", *sizes, "--epochs", 1, *places) == 0
    assert run("train", "--resume", "--epochs", 2, *places) == 0
    return folder


def test_a_folder_is_trained_on_and_drawn_from(home, tmp_path):
    assert Image.open(home / "trained" / "previews" / "epoch_002.png").size == (316, 220)
    flags = ["--checkpoint", home / "trained", "--n", 12, "--steps", 3]
    assert run("sample", *flags, "--out", tmp_path) == 0
    images = np.load(tmp_path / "samples.npz")["images"]
    assert images.shape == (12, 16, 24, 3)
    grid = imageio.imread(tmp_path / "samples.png")
    assert grid.shape == (112, 212, 3)
    tiles = grid[::2, ::2][2:, 2:].reshape(3, 18, 4, 26, 3).transpose(0, 2, 1, 3, 4)
    assert np.array_equal(tiles[:, :, :16, :24].reshape(12, 16, 24, 3), images)
    for name in ("generation.gif", "predicted_x0.gif"):
        film = Image.open(tmp_path / name)
        assert film.size == (316, 76) and film.n_frames > 1


def test_a_folder_is_judged(home, tmp_path):
    save_extractor(home / "judge.safetensors", untrained_judge("celeba").network, {})
    flags = ["--checkpoint", home / "trained", "--extractor", home / "judge.safetensors"]
    flags += ["--data", home, "--steps", 2, "--n", 8, "--device", "cpu"]
    assert run("evaluate", *flags, "--out", tmp_path / "card.json") == 0
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["reference"].endswith("16 training images of 16x24 pixels")
    assert Image.open(tmp_path / "card-closest.png").size == ((8 * 26 + 2) * 2, (2 * 18 + 2) * 2)
    flags = [each if each != 2 else 50 for each in flags[:-6]] + ["--n", 16, "--device", "cpu"]
    own = ["--images", home / "pictures", "--out", tmp_path / "own.json"]
    assert run("evaluate", *flags, *own) == 0
    found = json.loads((tmp_path / "own.json").read_text())
    assert found["nearest_training_image_in_pixels"]["exact"] == 1, "they are cropped alike"


def test_a_picture_is_filled_in_around_what_is_kept(home, tmp_path):
    image = Image.open(home / "pictures" / "03.png").resize((24, 16))
    mask = Image.new("L", (24, 16), 255)
    mask.paste(0, (0, 0, 9, 16))
    image.save(tmp_path / "image.png")
    mask.save(tmp_path / "mask.png")
    flags = ["--checkpoint", home / "trained", "--n", 2, "--steps", 2, "--resamples", 1]
    flags += ["--init-image", tmp_path / "image.png", "--mask", tmp_path / "mask.png"]
    assert run("sample", *flags, "--out", tmp_path / "out") == 0
    images = np.load(tmp_path / "out" / "samples.npz")["images"]
    assert images.shape == (2, 16, 24, 3)
    assert (images[:, :, 9:] == np.asarray(image)[:, 9:]).all()
    assert (images[:, :, :9] != np.asarray(image)[:, :9]).any()
