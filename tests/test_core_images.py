"""The notebook's data: MNIST, faces and folders of images, from files made up here."""

import gzip
import shutil

import numpy as np
import pytest
import torch
from conftest import ROOT
from helpers import notebook
from PIL import Image, ImageOps

from mnist_ddpm.ddpm import load_mnist

load_images = notebook.load_images


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def plain(k, size=(20, 20)):
    """An image of one colour that tells its number."""
    return Image.new("RGB", size, (10 * k, 5 * k, 250 - 10 * k))


def numbers(images):
    """What plain told."""
    assert images.dtype == torch.uint8 and images.shape[1:] == (3, 16, 16)
    return [round(level / 10) for level in images[:, 0, 8, 8].tolist()]


def test_mnist_is_padded_not_resized(monkeypatch):
    monkeypatch.chdir(ROOT)
    training, unseen = load_images("mnist", 32)
    assert training.shape == (60_000, 1, 32, 32) and unseen.shape == (10_000, 1, 32, 32)
    raw = gzip.decompress((ROOT / "data/MNIST/raw/t10k-images-idx3-ubyte.gz").read_bytes())
    digits = np.frombuffer(raw, np.uint8, offset=16).reshape(10_000, 28, 28)
    assert np.array_equal(unseen[:, 0, 2:30, 2:30], digits)
    assert unseen.sum() == int(digits.sum(dtype=np.int64)), "the border must be black"


def test_folders_are_read_as_pillow_fits_them_in_the_order_of_their_paths(tmp_path):
    rng, sizes = np.random.default_rng(0), [(20, 33), (16, 16), (50, 17), (31, 31)]
    names = ["b/z.png", "b.PNG", "a/10.webp", "a-1.png"]
    for (width, height), name in zip(sizes, names):
        picture = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        save(tmp_path / name, picture, lossless=True)
    (tmp_path / "notes.txt").write_text("no image")
    images, unseen = load_images(str(tmp_path), 16)
    assert images.shape == (4, 3, 16, 16) and images.dtype == torch.uint8 and len(unseen) == 0
    for image, path in zip(images, sorted(tmp_path / name for name in names)):
        expected = ImageOps.fit(Image.open(path), (16, 16), Image.Resampling.LANCZOS)
        assert np.array_equal(image.permute(1, 2, 0), expected)


def test_hidden_files_do_not_count(tmp_path):
    folder = tmp_path / ".deep" / "mine"  # hidden itself, as it was named
    for k, path in enumerate(["a.png", ".hidden/b.png", ".c.png"]):
        save(folder / path, plain(k))
    assert numbers(load_images(str(folder), 16)[0]) == [0]


def modes():
    rgb, palette = plain(20), Image.new("P", (20, 20), 1)
    palette.putpalette([0, 0, 0, 200, 100, 50])
    return {
        "rgb": (rgb, (200, 100, 50)),
        "opaque": (rgb.convert("RGBA"), (200, 100, 50)),
        "clear": (Image.new("RGBA", (20, 20), (200, 100, 50, 0)), (255, 255, 255)),
        "half": (Image.new("RGBA", (20, 20), (0, 0, 0, 51)), (204, 204, 204)),
        "palette": (palette, (200, 100, 50)),
        "grey": (Image.new("L", (20, 20), 77), (77,)),
        "grey_alpha": (Image.new("LA", (20, 20), (0, 0)), (255,)),
        "bits": (Image.new("1", (20, 20), 1), (255,)),
    }


@pytest.mark.parametrize("name", modes())
def test_every_mode_ends_as_colour_or_grey(tmp_path, name):
    image, expected = modes()[name]
    save(tmp_path / "a.png", image)
    pixels, _ = load_images(str(tmp_path), 16)
    assert pixels.flatten(2).unique(dim=2).flatten().tolist() == list(expected)


def test_a_transparent_colour_of_a_palette_is_white(tmp_path):
    save(tmp_path / "a.png", modes()["palette"][0], transparency=1)
    assert (load_images(str(tmp_path), 16)[0] == 255).all()


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_rotation_flags_are_honoured(tmp_path, mode):
    pixels = np.zeros((20, 20), np.uint8)
    pixels[:, :10] = 255  # bright on the left
    image = Image.fromarray(pixels).convert(mode)
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned clockwise
    save(tmp_path / "a.png", image, exif=exif)
    turned = load_images(str(tmp_path), 20)[0][0, 0]
    assert (turned[0] == 255).all() and (turned[-1] == 0).all()


def test_celeba_is_cropped_to_the_pixel(tmp_path, monkeypatch):
    """The middle 140 of 178 columns: 19 from the left, 39 from the top."""
    monkeypatch.chdir(tmp_path)
    row, column = np.mgrid[:218, :178].astype(np.uint8)
    ramp = Image.fromarray(np.stack([column, row, 0 * row], axis=2))
    save(tmp_path / "data" / "celeba" / "000001.jpg", ramp, format="PNG")
    image = load_images("celeba", 70)[0][0].double()
    centres = (torch.arange(70) + 0.5) * 140 / 70 - 0.5
    assert (image[0] - (19 + centres)).abs().max() <= 0.51
    assert (image[1] - (39 + centres)[:, None]).abs().max() <= 0.51


def test_faces_beyond_the_official_training_images_are_unseen(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for k, number in enumerate([1, 162_770, 162_771, 202_599]):
        folder = tmp_path / "data" / "celeba" / "img_align_celeba"
        save(folder / f"{number:06d}.jpg", plain(k, (178, 218)), format="PNG")
    for k, number in enumerate([0, 59_999, 60_000, 69_999]):
        folder = tmp_path / "data" / "ffhq" / "thumbnails128x128"
        save(folder / f"{number // 1000 * 1000:05d}" / f"{number:05d}.png", plain(k, (128, 128)))
    for name in ("celeba", "ffhq"):
        training, unseen = load_images(name, 16)
        assert numbers(training) == [0, 1] and numbers(unseen) == [2, 3]


def test_folders_without_images_and_damaged_images_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        load_images(str(tmp_path / "missing"), 16)
    save(tmp_path / "a.png", plain(1))
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"b\.png"):
        load_images(str(tmp_path), 16)


def test_mnist_that_cannot_be_loaded_is_named(tmp_path, monkeypatch):
    from torchvision import datasets

    monkeypatch.setattr(datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])  # no network in tests
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        load_mnist(32, tmp_path)


def test_a_damaged_archive_is_named(tmp_path, monkeypatch):
    from torchvision import datasets

    monkeypatch.setattr(datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for path in (ROOT / "data" / "MNIST" / "raw").glob("*.gz"):
        shutil.copy(path, raw)
    archive = raw / "t10k-images-idx3-ubyte.gz"
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.write_bytes(content)
    with pytest.raises(FileNotFoundError, match=str(raw)):
        load_mnist(32, tmp_path, train=False)
