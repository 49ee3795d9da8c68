"""Data sets of torchvision and of the hub, as files in their formats or stand-ins give them."""

import pickle
import struct
import sys
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType, ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from command_helpers import SMALL, error_of, run
from picture_helpers import image_recipe
from PIL import Image
from torchvision import datasets
from torchvision.datasets import cifar, utils

from mnist_ddpm.data import loading
from mnist_ddpm.data.picture_sets import open_split
from mnist_ddpm.datasets import dataset_named

SIZES = {"train": 20, "test": 10}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """No download, and files of any checksum are taken for the official ones."""

    def refuse(*arguments, **options):
        raise ConnectionError("no network")

    monkeypatch.setattr(utils, "_urlretrieve", refuse)
    monkeypatch.setattr(cifar, "check_integrity", lambda path, md5=None: Path(path).is_file())


def cifar_pixels(k: int) -> np.ndarray:
    """An image (3, 32, 32) that shows its number."""
    image = np.zeros((3, 32, 32), np.uint8)
    image[0] = 10 * k
    image[1, :16] = 200
    return image


def save_cifar(root):
    """CIFAR-10's files, python version, with 4 images in each of five batches, and 10 to test."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    names = "airplane automobile bird cat deer dog frog horse ship truck".split()

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))

    write("batches.meta", {"label_names": names, "num_cases_per_batch": 4})
    for batch in range(5):
        numbers = range(4 * batch, 4 * batch + 4)
        data = np.stack([cifar_pixels(k).reshape(-1) for k in numbers])
        write(f"data_batch_{batch + 1}", {"data": data, "labels": [k % 10 for k in numbers]})
    data = np.stack([cifar_pixels(k).reshape(-1) for k in range(10)])
    write("test_batch", {"data": data, "labels": [*range(10)][::-1]})


def save_mnist(root, kind, n=SIZES):
    """MNIST's files: a magic number, sizes, and bytes."""
    folder = root / kind / "raw"
    folder.mkdir(parents=True)
    for split, prefix in (("train", "train"), ("test", "t10k")):
        count = n[split]
        pixels = (np.arange(count * 784) % 251).astype(np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        header = struct.pack(">IIII", 2051, count, 28, 28)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        header = struct.pack(">II", 2049, count)
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())


def test_cifar_10_is_read_from_its_own_files(tmp_path):
    save_cifar(tmp_path)
    recipe = replace(image_recipe("torchvision:CIFAR10", 32), classes=10)
    images = loading.load_images(recipe, tmp_path)
    assert [*map(len, (images, loading.held_out(recipe, tmp_path)))] == [20, 10]
    for k in range(20):
        assert np.array_equal(images[k], cifar_pixels(k))
    assert loading.load_labels(recipe, tmp_path).tolist() == [k % 10 for k in range(20)]
    assert loading.load_labels(recipe, tmp_path, "test").tolist() == [*range(10)][::-1]
    names = loading.data_settings(recipe.dataset, tmp_path, "auto")["label_names"]
    assert names[:4] == ("airplane", "automobile", "bird", "cat") and len(names) == 10


def test_the_second_start_takes_images_from_the_cache(tmp_path, monkeypatch):
    save_cifar(tmp_path)
    recipe = image_recipe("torchvision:CIFAR10", 16)
    first = loading.load_images(recipe, tmp_path)
    count = []
    real = datasets.CIFAR10.__getitem__
    monkeypatch.setattr(
        datasets.CIFAR10, "__getitem__", lambda self, k: count.append(k) or real(self, k)
    )
    assert torch.equal(first, loading.load_images(recipe, tmp_path))
    assert len(count) < len(first)
    assert len([*(tmp_path / "cache").glob("*.npy")]) == 1


@pytest.mark.parametrize("kind", ["MNIST", "FashionMNIST", "KMNIST"])
def test_digits_and_their_like_get_a_margin(tmp_path, kind):
    save_mnist(tmp_path, kind)
    name = f"torchvision:{kind}"
    recipe = image_recipe(name, 32, dataset_named(name).channels, classes=10)
    images = loading.load_images(recipe, tmp_path)
    expected = (np.arange(20 * 784) % 251).reshape(20, 1, 28, 28)
    assert np.array_equal(images[:, :, 2:30, 2:30], expected)
    assert images[:, :, :2].max() == 0 and len(loading.held_out(recipe, tmp_path)) == 10
    names = loading.data_settings(name, tmp_path, "auto")["label_names"]
    assert names[0] == {"MNIST": "0", "FashionMNIST": "T-shirt/top", "KMNIST": "o"}[kind]


class Split(datasets.VisionDataset):
    """A set by splits, such as Flowers102: train, val and test, with labels that have gaps."""

    COUNTS = MappingProxyType({"train": 6, "val": 3, "test": 4})

    def __init__(self, root, split="train", download=False):
        super().__init__(root)
        if split not in self.COUNTS:
            raise ValueError(f"unknown split {split}")
        self.split = split

    def __len__(self):
        return self.COUNTS[self.split]

    def __getitem__(self, k):
        colour = {"train": 10, "val": 20, "test": 30}[self.split]
        return Image.new("RGBA", (24, 20), (colour, 0, 0, 255)), 5 * (k % 2)


class Synonyms(Split):
    """Whose classes have several names each, as Imagenette's."""

    classes = ("tench", "Tinca tinca"), ("church",), ("chain saw",), ("x",), ("x",), ("radio",)


class Validated(Split):
    """Without a test split."""

    COUNTS = MappingProxyType({"train": 6, "val": 3})


class Undivided(datasets.VisionDataset):
    """One set, whose labels are no numbers."""

    def __init__(self, root, download=False):
        super().__init__(root)

    def __len__(self):
        return 6

    def __getitem__(self, k):
        return Image.new("L", (20, 20), k), {"boxes": k}


@pytest.fixture
def stand_ins(monkeypatch):
    for kind in (Split, Synonyms, Validated, Undivided):
        monkeypatch.setattr(datasets, kind.__name__, kind, raising=False)
    monkeypatch.setattr(
        datasets, "__all__", (*datasets.__all__, "Split", "Synonyms", "Validated", "Undivided")
    )


def test_splits_are_found_by_the_names_that_a_set_has(stand_ins, tmp_path):
    for kind, unseen in (("Split", 30), ("Validated", 20)):
        recipe = image_recipe(f"torchvision:{kind}", classes=2)
        assert loading.load_images(recipe, tmp_path)[:, 0].unique().tolist() == [10]
        assert loading.held_out(recipe, tmp_path)[:, 0].unique().tolist() == [unseen]
        assert loading.load_labels(recipe, tmp_path).tolist() == [0, 1] * 3
        names = loading.data_settings(recipe.dataset, tmp_path, "auto")["label_names"]
        assert names == ("0", "5")
    names = loading.data_settings("torchvision:Synonyms", tmp_path, "auto")["label_names"]
    assert names == ("tench", "radio"), "the first name of each"
    undivided = image_recipe("torchvision:Undivided")
    assert len(loading.load_images(undivided, tmp_path)) == 6
    assert loading.held_out(undivided, tmp_path) is None
    with pytest.raises(ValueError, match="Undivided"):
        loading.load_labels(replace(undivided, classes=2), tmp_path)


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("torchvision:CIFAR1O", "CIFAR10"),
        ("torchvision:ImageFolder", "ImageFolder"),
        ("torchvision:SVHN", "SVHN"),
        ("hub:some/images", "datasets"),
    ],
)
def test_what_cannot_be_had_is_reported_in_one_line(tmp_path, capsys, monkeypatch, name, named):
    monkeypatch.setitem(sys.modules, "datasets", None)
    data = ["--data", tmp_path / "data", "--out", tmp_path / "run", "--device", "cpu"]
    assert named in error_of(capsys, "train", "--dataset", name, *SMALL, *data)
    assert not (tmp_path / "run" / "config.json").exists()


# --- the hub


class Rows:
    """A split, as the package datasets has it."""

    class Image:
        """The kind of a column of pictures."""

    class ClassLabel:
        """The kind of a column of labels."""

        names = ("cat", "dog", "eel")

    class Value:
        """The kind of any other column."""

        dtype = "string"

    def __init__(self, n, columns=("photo", "kind", "text")):
        kinds = {"photo": self.Image(), "kind": self.ClassLabel()}
        kinds |= {"text": self.Value(), "label": self.Value()}
        self.features = {name: kinds[name] for name in columns}
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, key):
        if key == "label":
            return ["eel", "cat"] * (self.n // 2)
        if key == "kind":
            return [2 * (k % 2) for k in range(self.n)]
        return {"photo": Image.new("RGB", (20, 20), (10 * key, 0, 0)), "kind": 2 * (key % 2)}


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the package, and what it was asked for."""
    asked = []

    def load_dataset(path, configuration, split):
        asked.append((path, configuration, split))
        return Rows({"train": 8, "validation": 4}[split])

    library = ModuleType("datasets")
    library.load_dataset = load_dataset
    library.get_dataset_split_names = lambda path, configuration: ["train", "validation"]
    monkeypatch.setitem(sys.modules, "datasets", library)
    return SimpleNamespace(asked=asked, library=library)


def test_a_set_of_the_hub_is_read_by_its_columns(hub, tmp_path):
    recipe = image_recipe("hub:me/pets:large", classes=2)
    images = loading.load_images(recipe, tmp_path)
    assert images[:, 0, 0, 0].tolist() == [10 * k for k in range(8)]
    assert len(loading.held_out(recipe, tmp_path)) == 4
    assert loading.load_labels(recipe, tmp_path).tolist() == [0, 1] * 4
    names = loading.data_settings(recipe.dataset, tmp_path, "auto")["label_names"]
    assert names == ("cat", "eel"), "a label without images is none"
    assert ("me/pets", "large", "validation") in hub.asked


def test_a_column_of_words_named_label_has_the_labels(hub, tmp_path, monkeypatch):
    rows = Rows(8, ("photo", "text", "label"))
    monkeypatch.setattr(hub.library, "load_dataset", lambda *_, **__: rows)
    assert loading.data_settings("hub:me/pets", tmp_path, "auto")["label_names"] == ("cat", "eel")
    recipe = image_recipe("hub:me/pets", classes=2)
    assert loading.load_labels(recipe, tmp_path).tolist() == [1, 0] * 4
    monkeypatch.setattr(Rows, "__getitem__", lambda self, key: ["cat", None] * 4)
    with pytest.raises(ValueError, match="4 images"):
        loading.load_labels(recipe, tmp_path)


def test_images_whose_label_is_missing_are_refused(hub, tmp_path, monkeypatch):
    """Minus one is no label, nor the last one."""
    monkeypatch.setattr(Rows.ClassLabel, "names", ("cat", "dog"))
    recipe = image_recipe("hub:me/pets", classes=2, label_names=("cat", "dog"))
    with pytest.raises(ValueError, match="4 images"):
        loading.load_labels(recipe, tmp_path)


def test_a_set_of_the_hub_without_pictures_or_splits_is_refused(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(
        hub.library, "load_dataset", lambda path, configuration, split: Rows(3, ["text"])
    )
    with pytest.raises(ValueError, match="text"):
        open_split("hub:me/words", tmp_path, "train")
    monkeypatch.setattr(hub.library, "get_dataset_split_names", lambda *arguments: ["train"])
    with pytest.raises(loading.NoSplit):
        open_split("hub:me/words", tmp_path, "test")


def test_labels_of_a_source_are_trained_with(hub, tmp_path):
    """And a plan knows it, too."""
    data = ["--dataset", "hub:me/pets", "--data", tmp_path / "data", "--device", "cpu"]
    training = [*SMALL, "--batch-size", 4, "--epochs", 1, "--classes", "auto"]
    assert run("train", *data, *training, "--out", tmp_path / "run") == 0
    drawing = ["--checkpoint", tmp_path / "run", "--n", 2, "--steps", 2, "--label", "eel", "cat"]
    assert run("sample", *drawing, "--out", tmp_path / "out", "--device", "cpu") == 0
