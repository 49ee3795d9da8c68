import gzip
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT
from torchvision import datasets

from mnist_ddpm.ddpm import load_images


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


def test_mnist_has_no_third_split(tiny):
    with pytest.raises(ValueError, match='MNIST has no split "valid": take train or test'):
        load_images(tiny, ROOT / "data", "valid")


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


def test_unknown_missing_and_empty_data_sets_are_refused(tiny, tmp_path):
    for name in ("minst", str(tmp_path / "missing")):
        with pytest.raises(ValueError, match=f'data set "{name}" is unknown: take one of mnist, .*a folder of images'):
            load_images(replace(tiny, dataset=name))
    with pytest.raises(ValueError, match="holds no images"):
        load_images(replace(tiny, dataset=str(tmp_path)), tmp_path)


def test_wrong_number_of_channels_is_refused(tiny):
    with pytest.raises(ValueError, match=r"mnist has 1 channel\(s\): set channels to that, not to 3"):
        load_images(replace(tiny, channels=3), ROOT / "data")
