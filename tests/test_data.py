import gzip
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from torchvision import datasets

from mnist_ddpm.ddpm import load_images


def save(folder, name, colour, size=(40, 40), mode="RGB"):
    folder.mkdir(exist_ok=True, parents=True)
    Image.new(mode, size, colour).save(folder / name)


def test_mnist_is_padded_not_resized(tiny):
    images = load_images(tiny, ROOT / "data")
    assert images.shape == (60000, 1, 32, 32) and images.dtype == torch.uint8
    with gzip.open(ROOT / "data/MNIST/raw/train-images-idx3-ubyte.gz") as file:
        raw = np.frombuffer(file.read(), np.uint8, offset=16).reshape(60000, 28, 28)
    assert np.array_equal(images[:, 0, 2:30, 2:30], raw)
    assert images.sum() == int(raw.sum(dtype=np.int64)), "the border must be black"


def test_test_split_is_another_set(tiny):
    train, test = load_images(tiny, ROOT / "data"), load_images(tiny, ROOT / "data", "test")
    assert test.shape == (10000, 1, 32, 32) and not torch.equal(test[0], train[0])


@pytest.mark.parametrize("size", [26, 29])
def test_sizes_that_mnist_cannot_be_padded_to_are_refused(tiny, size):
    with pytest.raises(ValueError, match=f"must be even and >= 28, not {size}"):
        load_images(replace(tiny, image_size=size), ROOT / "data")


@pytest.mark.parametrize("damage", ["archive", "unpacked", "missing"])
def test_damaged_mnist_says_what_to_do(tiny, tmp_path, monkeypatch, damage):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for path in (ROOT / "data/MNIST/raw").glob("*.gz"):
        shutil.copy(path, raw)
    if damage == "archive":
        (raw / "train-images-idx3-ubyte.gz").write_bytes(b"not what it was")
    elif damage == "missing":
        (raw / "train-images-idx3-ubyte.gz").unlink()
    else:
        load_images(tiny, tmp_path)
        path = raw / "train-images-idx3-ubyte"
        path.write_bytes(path.read_bytes()[:1000])
    monkeypatch.setattr(datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])  # no network in tests
    with pytest.raises(ValueError, match="is missing or damaged .* restore the four .gz archives") as caught:
        load_images(tiny, tmp_path)
    assert "\n" not in str(caught.value)


def test_folder_of_images_in_any_mode_and_format(tiny, tmp_path):
    save(tmp_path, "a.png", (255, 0, 0))
    save(tmp_path, "b.jpg", (0, 255, 0))
    save(tmp_path / "deeper", "c.PNG", (0, 0, 255, 255), mode="RGBA")
    save(tmp_path, "d.gif", 3, mode="P")
    save(tmp_path, "e.png", 200, mode="L")
    (tmp_path / "notes.txt").write_text("not an image, and not named like one")
    (tmp_path / "._a.png").write_text("left behind by a file manager")
    colour = load_images(replace(tiny, dataset=str(tmp_path), channels=3, image_size=16))
    assert colour.shape == (5, 3, 16, 16) and colour.dtype == torch.uint8
    assert colour[0].flatten(1).float().mean(1).tolist() == [255, 0, 0]
    grey = load_images(replace(tiny, dataset=str(tmp_path), image_size=16))
    assert grey.shape == (5, 1, 16, 16) and (grey[-1] == 200).all()


def test_folder_images_are_cropped_to_their_centre(tiny, tmp_path):
    image = Image.new("L", (60, 20), 0)
    image.paste(255, (20, 0, 40, 20))
    image.save(tmp_path / "wide.png")
    assert (load_images(replace(tiny, dataset=str(tmp_path), image_size=20)) == 255).all()


def test_rotation_flags_of_cameras_are_honoured(tiny, tmp_path):
    image = Image.new("L", (20, 20), 0)
    image.paste(255, (0, 0, 20, 10))  # bright above
    exif = image.getexif()
    exif[0x0112] = 3  # taken upside down
    image.save(tmp_path / "turned.png", exif=exif)
    loaded = load_images(replace(tiny, dataset=str(tmp_path), image_size=20))[0, 0]
    assert loaded[0, 0] == 0 and loaded[-1, 0] == 255


def test_file_that_is_no_image_is_named(tiny, tmp_path):
    save(tmp_path, "good.png", (1, 2, 3))
    (tmp_path / "bad.png").write_text("I am text")
    with pytest.raises(ValueError, match=r"bad\.png is not a readable image"):
        load_images(replace(tiny, dataset=str(tmp_path)))


def test_truncated_image_is_named(tiny, tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8)
    Image.fromarray(noise).save(tmp_path / "half.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "half.png").read_bytes()[:1500])
    with pytest.raises(ValueError, match=r"half\.png is not a readable image"):
        load_images(replace(tiny, dataset=str(tmp_path)))


def test_unknown_missing_and_empty_data_sets_are_refused(tiny, tmp_path):
    for name in ("minst", str(tmp_path / "missing")):
        with pytest.raises(ValueError, match=f'"{name}" is neither a data set .mnist. nor an existing folder'):
            load_images(replace(tiny, dataset=name))
    with pytest.raises(ValueError, match="holds no images"):
        load_images(replace(tiny, dataset=str(tmp_path)))


def test_wrong_number_of_channels_is_refused(tiny):
    with pytest.raises(ValueError, match=r"mnist has 1 channel\(s\): set channels to that, not to 3"):
        load_images(replace(tiny, channels=3), ROOT / "data")


def test_a_folder_has_no_test_split(tiny, tmp_path):
    save(tmp_path, "a.png", (255, 0, 0))
    with pytest.raises(ValueError, match="has no test split"):
        load_images(replace(tiny, dataset=str(tmp_path)), split="test")
