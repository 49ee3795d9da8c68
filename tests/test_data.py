"""Pictures to the pixel, folders, MNIST, and what labels mean."""

import errno
import gzip
import hashlib
import os
import shutil
import struct
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import torch
from conftest import ROOT
from helpers import raising, with_flipped_bit
from picture_helpers import image_recipe, numbers, plain, ramp, save, save_celeba, save_some
from PIL import EpsImagePlugin, Image, ImageOps
from torchvision import datasets

from mnist_ddpm import ddpm
from mnist_ddpm.data import cache, pictures
from mnist_ddpm.data.celeba import load_celeba
from mnist_ddpm.data.folders import load_folder, load_own_folder
from mnist_ddpm.data.labels import needs_labels
from mnist_ddpm.data.loading import check_labelled
from mnist_ddpm.data.mnist import load_mnist, mnist_labels
from mnist_ddpm.data.pictures import find_image_files, margin, open_image

COLOUR, DIGITS = image_recipe(), image_recipe("mnist", 32, 1)
LOADERS = load_mnist, mnist_labels
# The passes of an interlaced PNG: first column, first row, and the distances to the next
ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)]
ADAM7 += [(0, 1, 1, 2)]


def test_folders_are_read_as_pillow_fits_them_in_the_order_of_their_paths(tmp_path):
    rng, sizes = np.random.default_rng(0), [(20, 33), (16, 16), (50, 17), (31, 31)]
    names = ["b/z.png", "b.png", "a/10.png", "a-1.png"]
    for (width, height), name in zip(sizes, names):
        save(tmp_path / name, Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)))
    images = load_folder(COLOUR, tmp_path, tmp_path / "cache")
    for image, path in zip(images, sorted(tmp_path.rglob("*.png"))):
        expected = ImageOps.fit(Image.open(path), (16, 16), Image.Resampling.LANCZOS)
        assert np.array_equal(image.permute(1, 2, 0), expected)
    assert images.shape == (4, 3, 16, 16) and images.is_contiguous()


def files_of_all_modes():
    """Each file's image, how it is saved, and the colour that it is."""
    rgb, bronze, white = Image.new("RGB", (20, 20), (200, 100, 50)), (200, 100, 50), (255,) * 3
    palette = Image.new("P", (20, 20), 1)
    palette.putpalette([0, 0, 0, *bronze])
    deep = Image.fromarray(np.full((20, 20), 2770, np.uint16))  # 2770 / 65535 * 255 = 10.8
    integers = Image.fromarray(np.full((20, 20), 2770, np.int32))
    return {
        "rgb.png": (rgb, {}, bronze),
        "opaque.png": (rgb.convert("RGBA"), {}, bronze),
        "clear.png": (Image.new("RGBA", (20, 20), (*bronze, 0)), {}, white),
        "half.png": (Image.new("RGBA", (20, 20), (0, 0, 0, 51)), {}, (204,) * 3),
        "grey.png": (Image.new("L", (20, 20), 77), {}, (77,) * 3),
        "grey_alpha.png": (Image.new("LA", (20, 20), (0, 0)), {}, white),
        "palette.gif": (palette, {}, bronze),
        "palette_clear.png": (palette, {"transparency": 1}, white),
        "deep.png": (deep, {}, (11,) * 3),
        "deep.tif": (deep, {}, (11,) * 3),
        "deep.pgm": (integers, {}, (11,) * 3),
        "deep_clear.png": (deep, {"transparency": 2770}, white),
        "ink.tif": (Image.new("CMYK", (20, 20), (55, 155, 205, 0)), {}, bronze),
        "bits.png": (Image.new("1", (20, 20), 1), {}, white),
    }


def test_every_mode_ends_as_colour_or_grey(tmp_path):
    files = files_of_all_modes()
    for name, (image, options, _) in files.items():
        image.save(tmp_path / name, **options)
    colour = load_folder(COLOUR, tmp_path, tmp_path / "cache")
    grey = load_folder(replace(COLOUR, channels=1), tmp_path, tmp_path / "cache")
    assert len(colour) == len(grey) == len(files)
    for k, name in enumerate(sorted(files)):
        red, green, blue = files[name][2]
        assert colour[k].flatten(1).unique(dim=1).T.tolist() == [[red, green, blue]], name
        luma = round(0.299 * red + 0.587 * green + 0.114 * blue)
        assert grey[k].unique().tolist() == [luma], name


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_whose_range_nothing_tells_are_refused(tmp_path, dtype):
    Image.fromarray(np.full((20, 20), 200, dtype)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match="a.tif"):
        open_image(tmp_path / "a.tif", "RGB")


@pytest.mark.parametrize("tag", [0x0111, 0x011A])
def test_malformed_exif_costs_no_image(tmp_path, tag):
    """Nor does it hide which way is up."""
    orientation = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    text = struct.pack("<HHI4s", tag, 2, 4, b"abc")
    entries = b"".join(sorted([orientation, text]))
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4)
    Image.new("RGB", (20, 10), "red").save(tmp_path / "a.jpg", exif=exif)
    with Image.open(tmp_path / "a.jpg") as image, pytest.raises((TypeError, struct.error)):
        ImageOps.exif_transpose(image)
    assert open_image(tmp_path / "a.jpg", "RGB").size == (10, 20)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])  # the second is turned by Pillow itself
@pytest.mark.parametrize("mode", ["RGB", "L", "I;16"])
def test_pictures_are_turned_as_pillow_turns_them(tmp_path, mode, name):
    for orientation in range(1, 9):
        deep = Image.fromarray((np.arange(600) % 256 * 257).astype(np.uint16).reshape(30, 20))
        image = deep if mode == "I;16" else ramp(20, 30).convert(mode)
        exif = image.getexif()
        exif[0x0112] = orientation
        image.save(tmp_path / name, exif=exif)
        with Image.open(tmp_path / name) as saved:
            saved.load()
            expected = np.asarray(ImageOps.exif_transpose(saved))
        expected = expected // 257 if mode == "I;16" else expected
        opened = open_image(tmp_path / name, "RGB" if mode == "RGB" else "L")
        assert np.array_equal(opened, expected)


def test_hidden_files_and_other_files_do_not_count(tmp_path):
    save_some(tmp_path / "in", 2)
    for name in (".ipynb_checkpoints/0.png", ".thumbnail.png", "lost+found/0.png"):
        save(tmp_path / "in" / name, plain(9))
    for name in ("notes.txt", "paper.pdf", "._0.png"):
        (tmp_path / "in" / name).write_text("no image")
    (tmp_path / "in" / "folder.png").mkdir()
    asked = replace(COLOUR, dataset=str(tmp_path / "in"))
    assert numbers(load_own_folder(asked, tmp_path)) == [0, 1]
    with pytest.raises(ValueError, match="test"):
        load_own_folder(asked, tmp_path, "test")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty"):
        load_folder(COLOUR, tmp_path / "empty", tmp_path / "cache")


def test_a_folder_that_cannot_be_read_is_told(tmp_path, monkeypatch):
    """Without that the rest would be taken for the whole."""
    save_some(tmp_path / "in")
    save(tmp_path / "in" / "below" / "9.png", plain(9))
    real = os.scandir

    def scandir(path):
        if Path(path).name == "below":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError, match="below"):
        load_folder(COLOUR, tmp_path / "in", tmp_path / "cache")


def test_folders_that_are_nested_too_deep_are_refused(tmp_path):
    save(tmp_path.joinpath(*["d"] * 101, "1.png"), plain(1))
    with pytest.raises(ValueError, match="100"):
        load_folder(COLOUR, tmp_path)


def test_a_folder_may_have_a_name_as_long_as_names_may_be(tmp_path):
    for name in ("a" * 249 + "first", "a" * 249 + "other"):
        save_some(tmp_path / name, 3)
        save(tmp_path / name / "name.png", plain(5 if name.endswith("first") else 7, (20, 20)))
    folders = sorted(tmp_path.glob("a*"))
    drawn = [numbers(load_folder(COLOUR, folder, tmp_path / "cache")) for folder in folders]
    assert drawn == [[0, 1, 2, 5], [0, 1, 2, 7]], "and another cache than one that begins alike"


def test_mnist_is_the_notebooks():
    images = load_mnist(DIGITS, ROOT / "data", "test")
    assert torch.equal(images, ddpm.load_mnist(32, ROOT / "data", train=False))


def test_mnists_labels_are_those_of_its_splits():
    asked = replace(DIGITS, classes=10)
    for split, name in (("train", "train"), ("test", "t10k")):
        with gzip.open(ROOT / f"data/MNIST/raw/{name}-labels-idx1-ubyte.gz") as file:
            raw = np.frombuffer(file.read(), np.uint8, offset=8)
        labels = mnist_labels(asked, ROOT / "data", split)
        assert labels.dtype == torch.int64 and np.array_equal(labels, raw)
        assert len(load_mnist(asked, ROOT / "data", split)) == len(raw)
    for load in LOADERS:
        with pytest.raises(ValueError, match="valid"):
            load(asked, ROOT / "data", "valid")
    for wrong in ({"classes": 4}, {"attributes": ("Smiling",)}):
        with pytest.raises(ValueError, match="mnist"):
            mnist_labels(replace(asked, **wrong), ROOT / "data")


@pytest.mark.parametrize("size", [26, 29])
def test_sizes_that_mnist_cannot_be_padded_to_are_refused(size):
    with pytest.raises(ValueError, match=str(size)):
        load_mnist(replace(DIGITS, image_size=size), ROOT / "data")


@pytest.fixture
def archives(tmp_path, monkeypatch):
    """The folder of MNIST's archives of test digits, and no network."""
    monkeypatch.setattr(datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for path in (ROOT / "data/MNIST/raw").glob("t10k*.gz"):
        shutil.copy(path, raw)
    return raw


@pytest.mark.parametrize("kind", ["pipe", "endless", "huge", "short"])
def test_an_archive_that_would_never_end_or_fill_the_memory_is_refused(archives, tmp_path, kind):
    path = archives / "t10k-images-idx3-ubyte.gz"
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    else:
        path.write_bytes(gzip.compress(bytes(2**26 if kind == "huge" else 3), 1))
    with pytest.raises(FileNotFoundError, match="IDX" if kind == "short" else path.name):
        load_mnist(DIGITS, tmp_path, "test")


def test_a_picture_that_would_start_a_program_is_refused(tmp_path, monkeypatch):
    """Pillow draws PostScript by Ghostscript, whatever the name of the file is."""
    path = tmp_path / "a.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **options: pytest.fail("run"))
    with pytest.raises(ValueError, match=path.name):
        open_image(path, "RGB")


@pytest.mark.parametrize("damage", ["header", "middle", "checksum", "half", "missing"])
def test_damaged_mnist_is_told_in_one_line(archives, tmp_path, damage):
    path = archives / "t10k-images-idx3-ubyte.gz"
    good = path.read_bytes()
    places = {"header": 1, "middle": len(good) // 2, "checksum": len(good) - 6}
    if damage == "missing":
        path.unlink()
    else:
        bad = good[: len(good) // 2] if damage == "half" else with_flipped_bit(good, places[damage])
        path.write_bytes(bad)
    with pytest.raises(FileNotFoundError, match=path.name) as caught:
        load_mnist(DIGITS, tmp_path, "test")
    assert "\n" not in str(caught.value)


def test_nothing_is_unpacked_beside_mnists_archives_nor_read_there(archives, tmp_path):
    names = {path.name for path in archives.iterdir()}
    images, labels = (f(replace(DIGITS, classes=10), tmp_path, "test") for f in LOADERS)
    assert {path.name for path in archives.iterdir()} == names
    for name in names:
        (archives / name).with_suffix("").write_bytes(b"damaged")
    again = [f(replace(DIGITS, classes=10), tmp_path, "test") for f in LOADERS]
    assert torch.equal(images, again[0]) and torch.equal(labels, again[1])


def test_a_damaged_archive_is_fetched_anew(archives, tmp_path, monkeypatch):
    path = archives / "t10k-labels-idx1-ubyte.gz"
    good = path.read_bytes()
    path.write_bytes(good[:1000])

    def download_url(url, folder, md5):
        assert url.endswith(path.name) and md5 == hashlib.md5(good).hexdigest()
        Path(folder, path.name).write_bytes(good)

    monkeypatch.setattr(datasets.utils, "download_url", download_url)
    assert len(mnist_labels(replace(DIGITS, classes=10), tmp_path, "test")) == 10_000
    assert path.read_bytes() == good


def test_a_full_disk_is_not_taken_for_damaged_archives(tmp_path, monkeypatch):
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(datasets.utils, "download_url", raising(full))
    with pytest.raises(OSError, match="No space left on device") as caught:
        load_mnist(DIGITS, tmp_path)
    assert caught.value.errno == errno.ENOSPC


def test_digits_without_their_margin_are_padded_like_those_of_training(tmp_path):
    digits = load_mnist(DIGITS, ROOT / "data", "test")[:5]
    for k, image in enumerate(digits[:, 0].numpy()):
        save(tmp_path / f"{k}.png", Image.fromarray(image[2:-2, 2:-2] if k < 4 else image))
    assert torch.equal(load_folder(DIGITS, tmp_path, tmp_path / "cache"), digits)
    own = replace(DIGITS, dataset=str(tmp_path))
    resized = load_folder(own, tmp_path, tmp_path / "cache")
    assert resized[:4].ne(digits[:4]).any(), "those of another data set are not"
    assert torch.equal(resized[4], digits[4])
    assert (margin(DIGITS), margin(own)) == ((2, 2), (0, 0))


def test_labels_are_looked_at_before_images_unless_celeba_is_still_to_be_downloaded(tmp_path):
    labelled = replace(COLOUR, attributes=("Smiling",), classes=2)
    check_labelled(COLOUR, tmp_path)
    check_labelled(labelled, tmp_path)
    save_celeba(tmp_path / "celeba")
    check_labelled(COLOUR, tmp_path)
    for asked, missing in ((labelled, "list_attr_celeba"), (replace(DIGITS, classes=9), "10")):
        with pytest.raises(ValueError, match=missing):
            check_labelled(asked, tmp_path)


@pytest.mark.parametrize(
    ("classes", "label_dropout", "told"), [(10, 0.0, True), (10, 0.1, False), (0, 0.0, False)]
)
def test_a_network_that_never_missed_a_label_is_always_told(classes, label_dropout, told):
    asked = type("Recipe", (), {"classes": classes, "label_dropout": label_dropout})
    assert needs_labels(asked) is told


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_among_pictures_is_told_and_not_waited_for(tmp_path):
    save_some(tmp_path / "mine")
    os.mkfifo(tmp_path / "mine" / "x.png")
    with pytest.raises(ValueError, match="x.png"):
        load_folder(COLOUR, tmp_path / "mine", tmp_path / "cache")
    with pytest.raises(ValueError, match="x.png"):
        open_image(tmp_path / "mine" / "x.png", "RGB")


def test_pictures_too_large_for_memory_are_refused_or_decoded_smaller(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "MAX_PIXELS", 150 * 100)
    for name in ("large.png", "large.jpg"):
        ramp(250, 200).save(tmp_path / name, quality=95)
    with pytest.raises(ValueError, match="large.png.*megapixels"):
        open_image(tmp_path / "large.png", "RGB")
    small = open_image(tmp_path / "large.jpg", "RGB")
    assert small.size == (125, 100)
    expected = ramp(250, 200).resize((125, 100)).convert("L")
    assert np.abs(np.asarray(small.convert("L"), int) - expected).max() < 9


def png(rows: bytes, interlace: int) -> bytes:
    """A PNG of 8 x 8 grey pixels, of which not all need be there, with right checksums."""
    header = struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, interlace)
    chunks = {b"IHDR": header, b"IDAT": zlib.compress(rows), b"IEND": b""}
    parts = [
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc32(name + content))
        for name, content in chunks.items()
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("end", [0, 200], ids=["black", "bright"])
@pytest.mark.parametrize("passes", [[(0, 0, 1, 1)], ADAM7], ids=["in order", "interlaced"])
def test_a_png_that_lacks_pixels_is_refused_and_one_that_ends_black_is_not(tmp_path, passes, end):
    """Pillow decodes the lacking ones as 0."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    pixels[-1] = end
    parts = [pixels[y::dy, x::dx] for x, y, dx, dy in passes]
    rows = b"".join(b"\0" + row.tobytes() for part in parts for row in part)
    path = tmp_path / "x.png"
    path.write_bytes(png(rows, len(passes) > 1))
    assert np.array_equal(open_image(path, "L"), pixels)
    for lacking in range(1, len(rows)):
        path.write_bytes(png(rows[:-lacking], len(passes) > 1))
        with pytest.raises(ValueError, match="x.png"):
            open_image(path, "L")


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_that_would_fill_memory_is_not_read(tmp_path, monkeypatch, packed):
    monkeypatch.setattr(cache, "MAX_FILE_SIZE", 5000)
    name, data = "celeba/000001.jpg", bytes(5001)
    if packed:
        with zipfile.ZipFile(tmp_path / "celeba.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, data)
    else:
        (tmp_path / "celeba").mkdir()
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match="000001.jpg.*5,001 bytes"):
        load_celeba(COLOUR, tmp_path, "train")


def test_a_damaged_archive_is_told_in_one_line_that_can_be_shown(tmp_path, capsys):
    (tmp_path / "celeba\x1b[2J.zip").write_bytes(b"PK")
    assert find_image_files(tmp_path, "celeba", r"\d+\.jpg") == []
    assert capsys.readouterr().out.rstrip("\n").isprintable()
