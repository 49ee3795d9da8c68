"""Images in arrays of one's own: shapes, ranges, labels beside them, and files that are a trap."""

import io
import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from command_helpers import SMALL, error_of, run
from picture_helpers import image_recipe
from safetensors.numpy import save_file

from mnist_ddpm.data import loading
from mnist_ddpm.data.own_files import read_array
from mnist_ddpm.machine import devices

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (12, 16, 16, 3), np.uint8)
GREY = COLOUR[..., 0]


def own_recipe(path, channels=3, **settings):
    return image_recipe(str(path), 16, channels, **settings)


def save_array(path, array):
    """Writes an array in the format that the name says."""
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".npz":
        np.savez(path, images=array)
    else:
        save_file({"images": np.ascontiguousarray(array)}, path)
    return path


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors"])
@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (COLOUR, COLOUR),
        (COLOUR.transpose(0, 3, 1, 2), COLOUR),
        (GREY, GREY[..., None]),
        ((COLOUR / 255).astype(np.float32), COLOUR),
        ((COLOUR / 127.5 - 1).astype(np.float32), COLOUR),
        ((GREY / 127.5 - 1)[..., None], GREY[..., None]),
    ],
    ids=["nhwc", "nchw", "grey", "zero to one", "minus one to one", "grey floats"],
)
def test_arrays_of_any_layout_and_range_are_the_same_images(tmp_path, suffix, array, expected):
    path = save_array(tmp_path / f"mine{suffix}", array)
    settings = loading.data_settings(str(path), tmp_path, 0)
    assert settings == {"channels": expected.shape[-1]}
    images = loading.load_images(own_recipe(path, **settings), tmp_path)
    assert np.array_equal(images, expected.transpose(0, 3, 1, 2))
    assert loading.held_out(own_recipe(path, **settings), tmp_path) is None


def test_images_of_another_size_are_cropped_and_resized(tmp_path):
    path = save_array(
        tmp_path / "mine.npy", np.full((3, 20, 40, 3), 77, np.uint8) + COLOUR[:3, :1, :1]
    )
    assert loading.load_images(own_recipe(path), tmp_path).shape == (3, 3, 16, 16)


def test_splits_and_labels_lie_beside_the_images(tmp_path):
    path = tmp_path / "mine.npz"
    labels = np.array([9, 3, 5] * 4)
    np.savez(path, x_train=COLOUR, y_train=labels, x_test=COLOUR[:3], y_test=labels[:3, None])
    settings = loading.data_settings(str(path), tmp_path, "auto")
    assert settings["label_names"] == ("3", "5", "9") and settings["classes"] == 3
    recipe = own_recipe(path, **{key: settings[key] for key in ("classes", "label_names")})
    assert loading.load_labels(recipe, tmp_path).tolist() == [2, 0, 1] * 4
    assert loading.load_labels(recipe, tmp_path, "test").tolist() == [2, 0, 1]
    assert len(loading.held_out(recipe, tmp_path)) == 3
    np.savez(path, images=COLOUR, y=np.array(["dog", "cat"] * 6))
    assert loading.data_settings(str(path), tmp_path, "auto")["label_names"] == ("cat", "dog")


def test_a_changed_file_is_read_again(tmp_path):
    path = save_array(tmp_path / "mine.npy", COLOUR)
    loading.load_images(own_recipe(path), tmp_path)
    save_array(path, 255 - COLOUR)
    images = loading.load_images(own_recipe(path), tmp_path)
    assert np.array_equal(images, 255 - COLOUR.transpose(0, 3, 1, 2))
    assert len([*(tmp_path / "cache").glob("*.npy")]) == 1


def changed(array, index, value):
    array = array.copy()
    array[index] = value
    return array


FLOATS = (COLOUR / 255).astype(np.float32)
BAD_ARRAYS = {
    "beyond": (FLOATS * 255, "0 to 255"),
    "nan": (changed(FLOATS, (1, 2, 3, 0), np.nan), "NaN"),
    "infinite": (changed(FLOATS, (1, 2, 3, 0), np.inf), "infinite"),
    "signals": (np.zeros((9, 1, 100), np.uint8), "1 high and 100 wide"),
    "signals of two": (np.zeros((9, 100, 2)), "100 high and 2 wide"),
    "signals of twelve": (np.zeros((9, 12, 1000)), "12 high and 1000 wide"),
    "either layout": (np.zeros((9, 3, 32, 3)), "(9, 3, 32, 3)"),
    "sixteen levels": (COLOUR // 16, "uint8 from 0 to 15"),
    "twelve bits": (COLOUR.astype(np.uint16) * 16, "uint16"),
    "constant": (np.full((4, 16, 16), 7, np.uint8), "7"),
    "constant floats": (np.zeros((4, 16, 16, 3)), "0"),
    "integers": (COLOUR.astype(np.int64), "int64"),
    "one image": (COLOUR[0], "(16, 16, 3)"),
    "one of many": (COLOUR[:1], "1 image"),
    "no image": (COLOUR[:0], "(0, 16, 16, 3)"),
    "one number": (np.zeros(5), "(5,)"),
    "four channels": (np.zeros((3, 16, 16, 4), np.uint8), "(3, 16, 16, 4)"),
    "five dimensions": (np.zeros((2, 2, 8, 8, 3), np.uint8), "(2, 2, 8, 8, 3)"),
}


@pytest.mark.parametrize("kind", BAD_ARRAYS)
def test_arrays_that_are_no_images_are_refused_in_one_line(tmp_path, capsys, kind):
    array, named = BAD_ARRAYS[kind]
    path = save_array(tmp_path / "mine.npy", array)
    data = ["--dataset", path, "--data", tmp_path / "data", "--out", tmp_path / "run"]
    line = error_of(capsys, "train", *data, *SMALL, "--device", "cpu")
    assert named in line and "mine.npy" in line
    assert not (tmp_path / "run" / "config.json").exists()


def npy_bytes(header_shape, content=b"", dtype="|u1"):
    """A .npy file whose header says what it likes."""
    file = io.BytesIO()
    header = {"descr": dtype, "fortran_order": False, "shape": header_shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + content


def object_array():
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}, None]), allow_pickle=True)
    return file.getvalue()


BAD_FILES = {
    "empty": b"",
    "huge": npy_bytes((2**40, 32, 32, 3), b"12345"),
    "beyond any integer": npy_bytes((2**62, 2**62), b"12345"),
    "cut": npy_bytes((4, 16, 16), bytes(100)),
    "longer": npy_bytes((1, 16, 16), bytes(300)),
    "objects": object_array(),
    "text": b"no array at all",
    "half a header": npy_bytes((4, 16, 16))[:20],
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", BAD_FILES)
def test_files_that_lie_are_refused_before_memory_is_taken(tmp_path, monkeypatch, kind, packed):
    path = tmp_path / "mine.npy"
    path.write_bytes(BAD_FILES[kind])
    if packed:
        path = tmp_path / "mine.npz"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("images.npy", BAD_FILES[kind])
    monkeypatch.setattr(np, "empty", lambda *arguments, **options: pytest.fail("allocated"))
    monkeypatch.setattr(np, "load", lambda *arguments, **options: pytest.fail("loaded"))
    with pytest.raises(ValueError, match="mine") as caught:
        read_array(path, "images" if packed else "")
    assert "\n" not in str(caught.value)


def test_an_encrypted_archive_is_refused_in_one_line(tmp_path, capsys):
    path = save_array(tmp_path / "mine.npz", COLOUR)
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + offset] |= 1  # the flag "encrypted"
    path.write_bytes(content)
    assert "encrypted" in error_of(capsys, "train", "--dataset", path)


def test_pixels_are_read_once_and_what_is_beyond_memory_never(tmp_path, monkeypatch):
    path = tmp_path / "mine.npz"
    np.savez(path, images=COLOUR, labels=np.arange(12) % 2)
    settings = loading.data_settings(str(path), tmp_path, "auto")
    recipe = own_recipe(path, classes=2)
    read = np.lib.format.read_array
    shapes = []

    def counted(*arguments, **options):
        array = read(*arguments, **options)
        shapes.append(array.shape)
        return array

    monkeypatch.setattr(np.lib.format, "read_array", counted)
    loading.load_images(recipe, tmp_path)
    loading.load_labels(recipe, tmp_path)
    assert shapes.count(COLOUR.shape) == 1 and settings["classes"] == 2
    monkeypatch.setattr(devices, "total_memory", lambda: 1000)
    with pytest.raises(ValueError, match="images"):
        loading.data_settings(str(path), tmp_path, 0)
    assert len(shapes) == 3


def test_damaged_archives_are_refused_in_one_line(tmp_path, capsys):
    for name in ("a.npz", "a.safetensors"):
        for content in (b"", b"PK", bytes(100)):
            (tmp_path / name).write_bytes(content)
            assert name in error_of(capsys, "train", "--dataset", tmp_path / name)
    np.savez(tmp_path / "a.npz", first=COLOUR, second=COLOUR)
    assert "images" in error_of(capsys, "train", "--dataset", tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        (np.arange(5), "(5,)"),
        (np.linspace(0, 1, 12), "whole"),
        (np.full(12, np.nan), "whole"),
        (np.zeros((12, 2), int), "(12, 2)"),
        (np.array([None] * 12), "objects"),
        (np.array(3), "()"),
        (np.full(12, "2020-02-02", "datetime64[D]"), "whole"),
        (np.full(12, 1 + 2j), "whole"),
        (np.array(["é".encode("latin-1")] * 12), "UTF-8"),
    ],
)
def test_labels_that_are_none_are_refused(tmp_path, labels, named):
    path = tmp_path / "mine.npz"
    np.savez(path, images=COLOUR, labels=labels)
    with pytest.raises(ValueError, match="mine") as caught:
        loading.data_settings(str(path), tmp_path, "auto")
    assert named in str(caught.value) and "labels" in str(caught.value)
    assert loading.data_settings(str(path), tmp_path, 0) == {"channels": 3}, (
        "they are not asked for"
    )
    assert len(loading.load_images(own_recipe(path), tmp_path)) == 12


def test_an_array_is_trained_drawn_and_goes_on(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, images=GREY, labels=np.arange(12) % 2)
    data = ["--dataset", path, "--data", tmp_path / "data", "--device", "cpu"]
    training = [*SMALL, "--batch-size", 4, "--epochs", 1, "--classes", "auto"]
    assert run("train", *data, *training, "--out", tmp_path / "run") == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["settings"]["channels"] == 1 and config["settings"]["classes"] == 2
    moved = path.rename(tmp_path / "moved.npz")
    again = ["--resume", "--dataset", moved, "--data", tmp_path / "data", "--epochs", 2]
    assert run("train", *again, "--out", tmp_path / "run", "--device", "cpu") == 0


def test_a_recipe_without_names_gets_them_from_the_file(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, images=COLOUR, labels=np.arange(12) % 3 * 10)
    recipe = own_recipe(path, classes=3)
    assert torch.equal(loading.load_labels(recipe, tmp_path), torch.arange(12) % 3)
    with pytest.raises(ValueError, match="3 labels"):
        loading.load_labels(replace(recipe, classes=2), tmp_path)


@pytest.mark.parametrize("command", ["train", "plan"])
def test_help_names_each_kind_of_data(capsys, command):
    with pytest.raises(SystemExit):
        run(command, "--help")
    printed = "".join(capsys.readouterr().out.replace("│", "").split())
    for kind in ("torchvision:NAME", "hub:NAME", ".npz", ".npy", ".safetensors"):
        assert kind in printed
