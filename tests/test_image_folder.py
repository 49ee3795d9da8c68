import errno
import multiprocessing
import os
import signal
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from mnist_ddpm import image_folder
from mnist_ddpm.ddpm import load_images, make_schedule, start_run, training_loop
from mnist_ddpm.guidance import label_names, load_labels
from mnist_ddpm.image_folder import celeba_attributes, fitted, load_celeba, load_ffhq, load_folder, open_image

NAMES = [f"{k:06d}.jpg" for k in range(1, 8)]
ORIGINAL, HALF = (178, 218), (89, 109)


@pytest.fixture
def colour(tiny):
    return replace(tiny, channels=3, image_size=16, batch_size=3, attention_resolutions=(4,), epochs=1)


def plain(k, size=ORIGINAL):
    """An image of one colour that tells its number."""
    return Image.new("RGB", size, (10 * k, 5 * k, 250 - 10 * k))


def ramp(width, height):
    """Red is the column, green the row."""
    row, column = np.mgrid[:height, :width].astype(np.uint8)
    return Image.fromarray(np.stack([column, row, 0 * row], axis=2))


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "PNG")  # whatever its name: without loss, so that pixels can be compared


def save_celeba(folder, names=NAMES, size=ORIGINAL):
    for name in names:
        save(folder / name, plain(int(Path(name).stem[-2:]), size))


def save_some(folder, n=6):
    for k in range(n):
        save(folder / f"{k}.png", plain(k, (20, 20)))


def numbers(images):
    """What plain told."""
    assert images.dtype == torch.uint8 and images.shape[1:] == (3, 16, 16)
    assert torch.equal(images, images[:, :, :1, :1].expand_as(images))
    return (images[:, 0, 0, 0] // 10).tolist()


def listing(cache, suffix=""):
    return sorted(path.name for path in Path(cache).glob(f"*{suffix}"))


@pytest.fixture
def blind(monkeypatch):
    """After calling this, no image can be opened."""

    def close_eyes():
        monkeypatch.setattr(image_folder.Image, "open", lambda *_: pytest.fail("an image was read"))

    return close_eyes


# --- pixels


@pytest.mark.parametrize(
    "given, size, left, top, side",
    [
        (ORIGINAL, 140, 19, 39, 140),
        (ORIGINAL, 64, 19, 39, 140),
        (HALF, 70, 9.5, 19.5, 70),
        (HALF, 64, 9.5, 19.5, 70),
        (HALF, 16, 9.5, 19.5, 70),
    ],
)
def test_celeba_crop_to_the_pixel(colour, tmp_path, given, size, left, top, side):
    save(tmp_path / "celeba" / "000001.jpg", ramp(*given))
    image = load_celeba(replace(colour, image_size=size), tmp_path)[0].double()
    centres = (torch.arange(size) + 0.5) * side / size - 0.5
    assert (image[0] - (left + centres)).abs().max() <= 0.51
    assert (image[1] - (top + centres)[:, None]).abs().max() <= 0.51


def test_celeba_crop_of_the_whole_width_fits_copies_of_any_size():
    """178 * (46 / 178) is a little more than 46."""
    for width in range(8, 200):
        assert fitted(Image.new("RGB", (width, round(width * 218 / 178))), 16, crop=178).size == (16, 16)


def test_a_folder_may_have_a_name_as_long_as_names_may_be(colour, tmp_path):
    for name in ("a" * 249 + "first", "a" * 249 + "other"):
        save_some(tmp_path / name, 3)
        save(tmp_path / name / "name.png", plain(5 if name.endswith("first") else 7, (20, 20)))
    drawn = [numbers(load_folder(colour, folder, tmp_path / "cache")) for folder in sorted(tmp_path.glob("a*"))]
    assert drawn == [[0, 1, 2, 5], [0, 1, 2, 7]], "and another cache than one that begins alike"


def test_celeba_crop_is_an_argument_and_part_of_the_cache_key(colour, tmp_path):
    save(tmp_path / "celeba" / "000001.jpg", ramp(*ORIGINAL))
    settings = replace(colour, image_size=64)
    narrow, wide = load_celeba(settings, tmp_path, crop=64), load_celeba(settings, tmp_path, crop=178)
    assert (narrow[0, 0, 0, 0], narrow[0, 1, 0, 0]) == (57, 77) and wide[0, 0, 0, 0] <= 1
    assert torch.equal(load_celeba(settings, tmp_path, crop=64), narrow)
    for crop in (0, 179):
        with pytest.raises(ValueError, match=f"crop is {crop}"):
            load_celeba(settings, tmp_path, crop=crop)


def test_copies_that_are_square_already_are_not_cropped_again(colour, tmp_path):
    save(tmp_path / "celeba" / "000001.jpg", ramp(64, 64))
    assert torch.equal(load_celeba(replace(colour, image_size=64), tmp_path)[0, 0, 0], torch.arange(64))


def test_resizing_is_antialiased_and_agrees_with_pillow(colour, tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (218, 178, 3), np.uint8))
    save(tmp_path / "celeba" / "000001.jpg", noise)
    image = load_celeba(replace(colour, image_size=35), tmp_path)[0].permute(1, 2, 0).numpy()
    expected = np.asarray(noise.crop((19, 39, 159, 179)).resize((35, 35), Image.Resampling.LANCZOS))
    assert np.array_equal(image[3:-3, 3:-3], expected[3:-3, 3:-3])  # further out, Pillow sees less


def test_folders_are_read_as_pillow_fits_them_in_the_order_of_their_paths(colour, tmp_path):
    rng, sizes = np.random.default_rng(0), [(20, 33), (16, 16), (50, 17), (31, 31)]
    names = ["b/z.png", "b.png", "a/10.png", "a-1.png"]
    for (width, height), name in zip(sizes, names):
        save(tmp_path / name, Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)))
    images = load_folder(colour, tmp_path, tmp_path / "cache")
    for image, path in zip(images, sorted(tmp_path.rglob("*.png"))):
        expected = ImageOps.fit(Image.open(path), (16, 16), Image.Resampling.LANCZOS)
        assert np.array_equal(image.permute(1, 2, 0), expected)
    assert images.shape == (4, 3, 16, 16) and images.dtype == torch.uint8 and images.is_contiguous()


def modes():
    rgb = Image.new("RGB", (20, 20), (200, 100, 50))
    clear = Image.new("RGBA", (20, 20), (200, 100, 50, 0))
    half = Image.new("RGBA", (20, 20), (0, 0, 0, 51))
    palette = Image.new("P", (20, 20), 1)
    palette.putpalette([0, 0, 0, 200, 100, 50])
    # 2770 / 65535 * 255 = 10.8
    deep = Image.fromarray(np.full((20, 20), 2770, np.uint16))
    integers = Image.fromarray(np.full((20, 20), 2770, np.int32))
    return {
        "rgb.png": (rgb, (200, 100, 50)), "opaque.png": (rgb.convert("RGBA"), (200, 100, 50)),
        "clear.png": (clear, (255, 255, 255)), "half.png": (half, (204, 204, 204)),
        "grey.png": (Image.new("L", (20, 20), 77), (77, 77, 77)),
        "grey_alpha.png": (Image.new("LA", (20, 20), (0, 0)), (255, 255, 255)),
        "palette.gif": (palette, (200, 100, 50)), "deep.png": (deep, (11, 11, 11)),
        "deep.tif": (deep, (11, 11, 11)), "deep.pgm": (integers, (11, 11, 11)),
        "ink.tif": (Image.new("CMYK", (20, 20), (55, 155, 205, 0)), (200, 100, 50)),
        "bits.png": (Image.new("1", (20, 20), 1), (255, 255, 255)),
    }  # fmt: skip


@pytest.mark.parametrize("name", modes())
def test_every_mode_ends_as_colour_or_grey(colour, tmp_path, name):
    image, expected = modes()[name]
    image.save(tmp_path / name)
    pixels = load_folder(colour, tmp_path, tmp_path / "cache")[0]
    assert pixels.shape == (3, 16, 16) and pixels.flatten(1).unique(dim=1).T.tolist() == [list(expected)]
    grey = load_folder(replace(colour, channels=1), tmp_path, tmp_path / "cache")[0]
    luma = round(0.299 * expected[0] + 0.587 * expected[1] + 0.114 * expected[2])
    assert grey.shape == (1, 16, 16) and grey.unique().tolist() == [luma]


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_whose_range_nothing_tells_are_refused(tmp_path, dtype):
    Image.fromarray(np.full((20, 20), 200, dtype)).save(tmp_path / "a.tif")
    with pytest.raises(ValueError, match=r"a.tif is not a readable image \(floating-point or 32-bit .* 8 or 16 bits\)"):
        open_image(tmp_path / "a.tif", "RGB")


@pytest.mark.parametrize("tag", [0x0111, 0x011A])
def test_malformed_exif_costs_no_image(tmp_path, tag):
    """Nor does it hide which way is up."""
    entries = [struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0), struct.pack("<HHI4s", tag, 2, 4, b"abc")]  # text, no number
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + b"".join(sorted(entries)) + bytes(4)
    Image.new("RGB", (20, 10), "red").save(tmp_path / "a.jpg", exif=exif)
    with Image.open(tmp_path / "a.jpg") as image, pytest.raises((TypeError, struct.error)):
        ImageOps.exif_transpose(image)
    assert open_image(tmp_path / "a.jpg", "RGB").size == (10, 20)


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), FileNotFoundError(2, "gone")], ids=repr)
def test_a_passing_failure_is_no_damaged_image(colour, tmp_path, monkeypatch, error):
    """It would be cached: the folder has not changed when the file can be opened again."""
    for k in range(40):
        Image.new("RGB", (20, 20), (k, 0, 0)).save(tmp_path / f"{k}.png")
    real = Path.read_bytes

    def read_bytes(path):
        if path.name == "7.png":
            raise error
        return real(path)

    with monkeypatch.context() as patched, pytest.raises(ValueError, match="7.png cannot be read now .* run again"):
        patched.setattr(Path, "read_bytes", read_bytes)
        load_folder(colour, tmp_path, tmp_path / "cache")
    assert len(load_folder(colour, tmp_path, tmp_path / "cache")) == 40


def test_too_little_memory_is_no_damaged_image(colour, tmp_path, monkeypatch):
    save_some(tmp_path / "in")

    def read_picture(*_):
        raise MemoryError

    monkeypatch.setattr(image_folder, "read_picture", read_picture)
    with pytest.raises(MemoryError):
        load_folder(colour, tmp_path / "in", tmp_path / "cache")
    assert listing(tmp_path / "cache") == []


def test_transparent_colour_of_sixteen_bits_is_white(colour, tmp_path):
    Image.fromarray(np.full((20, 20), 2770, np.uint16)).save(tmp_path / "a.png", transparency=2770)
    assert (load_folder(colour, tmp_path, tmp_path / "cache") == 255).all()


def test_transparent_palette_colour_is_white(colour, tmp_path):
    palette = Image.new("P", (20, 20), 1)
    palette.putpalette([0, 0, 0, 200, 100, 50])
    palette.save(tmp_path / "a.png", transparency=1)
    assert (load_folder(colour, tmp_path, tmp_path / "cache") == 255).all()


@pytest.mark.parametrize("mode", ["RGB", "L", "I;16"])
def test_rotation_flags_are_honoured(colour, tmp_path, mode):
    pixels = np.zeros((20, 20), np.uint16 if mode == "I;16" else np.uint8)
    pixels[:, :10] = np.iinfo(pixels.dtype).max  # bright on the left
    image = Image.fromarray(pixels)
    image = image if mode == "I;16" else image.convert(mode)
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned clockwise
    image.save(tmp_path / "a.png", exif=exif)
    pixels = load_folder(replace(colour, image_size=20), tmp_path, tmp_path / "cache")[0, 0]
    assert (pixels[0] == 255).all() and (pixels[-1] == 0).all()


@pytest.mark.parametrize("name", ["a.png", "a.tif"])  # of which Pillow turns the second itself
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_pillow_turns_them(tmp_path, orientation, name):
    image = ramp(20, 30)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / name, exif=exif)
    with Image.open(tmp_path / name) as saved:
        saved.load()
        assert np.array_equal(open_image(tmp_path / name, "RGB"), ImageOps.exif_transpose(saved))


# --- CelebA


@pytest.mark.parametrize(
    "where",
    [
        "celeba/img_align_celeba", "img_align_celeba", "celeba/celeba/img_align_celeba/img_align_celeba", "celeba",
        "mirrors/CelebA/images", "faces/deep/below/img_align_celeba", ".",
    ],
)  # fmt: skip
def test_celeba_is_found(colour, tmp_path, where):
    save_celeba(tmp_path / "data" / where)
    save(tmp_path / "data" / "other" / "000009.jpg", plain(9))
    save(tmp_path / "data" / "ffhq" / "00000" / "00000.png", plain(9))
    assert numbers(load_celeba(colour, tmp_path / "data")) == [1, 2, 3, 4, 5, 6, 7]


def test_celeba_is_found_in_its_own_folder_and_through_a_link(colour, tmp_path, monkeypatch):
    save_celeba(tmp_path / "disk" / "celeba" / "img_89x109", size=HALF)
    assert numbers(load_celeba(colour, tmp_path / "disk" / "celeba")) == [1, 2, 3, 4, 5, 6, 7]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "celeba").symlink_to(tmp_path / "disk" / "celeba")
    (tmp_path / "disk" / "celeba" / "loop").symlink_to(tmp_path / "disk")
    assert numbers(load_celeba(colour, tmp_path / "data")) == [1, 2, 3, 4, 5, 6, 7]
    monkeypatch.chdir(tmp_path / "disk" / "celeba")
    assert numbers(load_celeba(colour, ".")) == [1, 2, 3, 4, 5, 6, 7]


def zipped(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, image in files.items():
            with archive.open(name, "w") as file:
                image.save(file, "PNG")


def test_celeba_is_read_from_its_zip(colour, tmp_path, blind):
    files = {f"img_align_celeba/{name}": plain(k) for k, name in enumerate(NAMES, 1)}
    path = tmp_path / "celeba" / "img_align_celeba.zip"
    zipped(path, files | {"__MACOSX/._000001.jpg": plain(9)})
    assert numbers(load_celeba(colour, tmp_path)) == [1, 2, 3, 4, 5, 6, 7]
    zipped(path, {"img_align_celeba/000005.jpg": plain(5)})
    assert numbers(load_celeba(colour, tmp_path)) == [5]
    blind()
    assert numbers(load_celeba(colour, tmp_path)) == [5]
    assert listing(tmp_path / "celeba") == ["img_align_celeba.zip"]


def test_of_several_celebas_the_official_one_is_taken_else_the_fullest(colour, tmp_path):
    save_celeba(tmp_path / "celeba" / "img_178x218", NAMES[:2])
    save_celeba(tmp_path / "celeba" / "img_89x109", NAMES[:4], HALF)
    assert numbers(load_celeba(colour, tmp_path)) == [1, 2, 3, 4]
    save_celeba(tmp_path / "celeba" / "img_align_celeba", NAMES[:3])
    assert numbers(load_celeba(colour, tmp_path)) == [1, 2, 3]


def test_celeba_half_unzipped_gives_way_to_its_zip(colour, tmp_path):
    save_celeba(tmp_path / "celeba" / "img_align_celeba", NAMES[:2])
    names = {f"img_align_celeba/{name}": plain(k) for k, name in enumerate(NAMES, 1)}
    zipped(tmp_path / "celeba" / "img_align_celeba.zip", names)
    assert numbers(load_celeba(colour, tmp_path)) == [1, 2, 3, 4, 5, 6, 7]


PARTITION = {"000001.jpg": 1, "000002.jpg": 0, "000003.jpg": 2, "000004.jpg": 0, "000006.jpg": 1, "000099.jpg": 0}


@pytest.mark.parametrize("suffix, place", [("txt", "celeba"), ("csv", "."), ("txt", "celeba/Eval")])
def test_partition_file_decides_the_splits(colour, tmp_path, suffix, place):
    save_celeba(tmp_path / "celeba" / "img_align_celeba")
    lines = [f"{name}{' ' if suffix == 'txt' else ','}{part}" for name, part in PARTITION.items()]
    (tmp_path / place).mkdir(exist_ok=True)
    path = tmp_path / place / f"list_eval_partition.{suffix}"
    path.write_text("\n".join(["image_id,partition"] * (suffix == "csv") + lines))
    assert numbers(load_celeba(colour, tmp_path)) == [2, 4]  # 5 and 7 are in no split, 99 is not there
    assert numbers(load_celeba(colour, tmp_path, "valid")) == [1, 6]
    assert numbers(load_celeba(colour, tmp_path, "test")) == [3]
    assert len(listing(tmp_path / "cache")) == 3, "one split's cache must not push out another's"


def test_without_partition_file_the_official_numbers_decide(colour, tmp_path):
    save_celeba(
        tmp_path / "celeba", ["162770.jpg", "162771.jpg", "182637.jpg", "182638.jpg", "202599.png", "000001.jpg"]
    )
    assert [len(load_celeba(colour, tmp_path, split)) for split in ("train", "valid", "test")] == [2, 2, 2]


def test_empty_and_unknown_splits_are_refused(colour, tmp_path):
    save_celeba(tmp_path / "celeba" / "img_align_celeba")
    with pytest.raises(ValueError, match="no image of CelebA's test split: download"):
        load_celeba(colour, tmp_path, "test")
    with pytest.raises(ValueError, match='no split "trian": take one of train, valid, test'):
        load_celeba(colour, tmp_path, "trian")


COLUMNS = [f"Attribute_{k}" for k in range(40)]


def write_attributes(path, names, csv=False):
    rows = [[name, *(1 if k == int(name[:6]) else 0 if csv else -1 for k in range(40))] for name in names]
    if csv:
        lines = [",".join(["image_id", *COLUMNS]), *(",".join(map(str, row)) for row in rows)]
    else:
        lines = [
            str(len(rows)),
            " ".join(COLUMNS) + " ",
            *(row[0] + "".join(f"{v:3d}" for v in row[1:]) for row in rows),
        ]
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("csv", [False, True])
def test_attributes_come_in_the_order_of_the_images(colour, tmp_path, csv):
    save_celeba(tmp_path / "celeba" / "img_align_celeba")
    (tmp_path / "celeba" / "list_eval_partition.txt").write_text("".join(f"{n} {p}\n" for n, p in PARTITION.items()))
    write_attributes(tmp_path / "celeba" / f"list_attr_celeba.{'csv' if csv else 'txt'}", NAMES[::-1], csv)
    load_celeba(colour, tmp_path)
    names, attributes = celeba_attributes(colour, tmp_path, "train")
    assert names == COLUMNS and attributes.dtype == torch.bool and attributes.shape == (2, 40)
    assert attributes.nonzero()[:, 1].tolist() == numbers(load_celeba(colour, tmp_path)) == [2, 4]


@pytest.mark.parametrize("cache", [True, False])
def test_attributes_leave_out_the_images_that_were_skipped(colour, tmp_path, cache):
    if not cache:
        (tmp_path / "cache").write_text("a file where the folder should be, since root may write anywhere")
    names = [f"{k:06d}.jpg" for k in range(1, 21)]
    save_celeba(tmp_path / "celeba", names)
    (tmp_path / "celeba" / "000003.jpg").write_text("no image")
    write_attributes(tmp_path / "celeba" / "list_attr_celeba.txt", names)
    loaded = numbers(load_celeba(colour, tmp_path))
    assert len(loaded) == 19 and celeba_attributes(colour, tmp_path)[1].nonzero()[:, 1].tolist() == loaded


def test_attributes_are_those_of_the_cache_that_is_used(colour, tmp_path, monkeypatch):
    names, real = [f"{k:06d}.jpg" for k in range(1, 21)], image_folder.fitted
    save_celeba(tmp_path / "celeba", names)
    write_attributes(tmp_path / "celeba" / "list_attr_celeba.txt", names)
    failures = iter([True])

    def fitted(*arguments):
        if next(failures, False):
            raise ValueError
        return real(*arguments)

    monkeypatch.setattr(image_folder, "fitted", fitted)
    larger = replace(colour, image_size=24)
    assert [len(load_celeba(settings, tmp_path)) for settings in (larger, colour)] == [19, 20]
    assert [len(celeba_attributes(settings, tmp_path)[1]) for settings in (larger, colour)] == [19, 20]


def test_attributes_become_labels(colour, tmp_path):
    save_celeba(tmp_path / "celeba" / "img_align_celeba", NAMES)
    write_attributes(tmp_path / "celeba" / "list_attr_celeba.txt", NAMES)
    settings = replace(colour, dataset="celeba", attributes=("Attribute_3", "Attribute_1", "Attribute_7"), classes=0)
    assert settings.classes == 8
    found = dict(zip(numbers(load_images(settings, tmp_path)), load_labels(settings, tmp_path).tolist()))
    assert found == {1: 2, 2: 0, 3: 1, 4: 0, 5: 0, 6: 0, 7: 4}, "the i-th attribute counts 2^i"
    assert label_names(settings)[:4] == ["none of them", "Attribute_3", "Attribute_1", "Attribute_3 + Attribute_1"]
    for wrong, message in (
        ({"attributes": ()}, "0 attribute.s. of CelebA make 1 label.s., not 8: name some in attributes"),
        ({"classes": 10}, "3 attribute.s. of CelebA make 8 label.s., not 10"),
        ({"attributes": ("Nice",), "classes": 0}, "must be different ones of CelebA's: Attribute_0, Attribute_1"),
        ({"attributes": ("Attribute_1",) * 2, "classes": 0}, "must be different ones"),
    ):
        with pytest.raises(ValueError, match=message):
            load_labels(replace(settings, **wrong), tmp_path)


def test_missing_and_damaged_lists_are_named(colour, tmp_path):
    save_celeba(tmp_path / "celeba" / "img_align_celeba")
    with pytest.raises(ValueError, match="no list_attr_celeba.txt or .csv below .*: download"):
        celeba_attributes(colour, tmp_path)
    path = tmp_path / "celeba" / "list_attr_celeba.txt"
    write_attributes(path, NAMES[:-2])
    with pytest.raises(ValueError, match="no line for 2 images, such as 000006"):
        celeba_attributes(colour, tmp_path)
    write_attributes(path, NAMES)
    path.write_text(path.read_text()[:-10])
    with pytest.raises(ValueError, match=r"list_attr_celeba\.txt is damaged"):
        celeba_attributes(colour, tmp_path)


def test_missing_celeba_says_what_to_do(colour, tmp_path, capsys):
    advice = (
        "no CelebA below .*: download img_align_celeba.zip, .* from CelebA's page, https.* non-commercial.* into the"
    )
    for root in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ValueError, match=advice):
            load_celeba(colour, root)
    (tmp_path / "img_align_celeba.zip").write_text("<html>quota exceeded</html>")
    with pytest.raises(ValueError, match=advice):
        load_celeba(colour, tmp_path)
    assert "img_align_celeba.zip is damaged or no zip archive" in capsys.readouterr().out
    assert not (tmp_path / "cache").exists()


def test_download_is_tried_when_asked_and_nothing_is_there(colour, tmp_path, monkeypatch):
    asked = []

    def download(root, split, download):
        asked.append(root)
        if len(asked) == 1:
            raise RuntimeError("the quota\nis used up")
        save_celeba(Path(root) / "celeba" / "img_align_celeba")

    monkeypatch.setattr("torchvision.datasets.CelebA", download)
    with pytest.raises(ValueError, match="no CelebA below"):
        load_celeba(colour, tmp_path)
    assert not asked
    with pytest.raises(ValueError, match=r"cannot download CelebA \(the quota is used up\): download img_align"):
        load_celeba(colour, tmp_path, download=True)
    for _ in range(2):
        assert numbers(load_celeba(colour, tmp_path, download=True)) == [1, 2, 3, 4, 5, 6, 7]
    assert len(asked) == 2
    assert len(load_images(replace(colour, dataset="celeba"), tmp_path / "empty")) == 7 and len(asked) == 3, "by name"


# --- FFHQ


@pytest.mark.parametrize("where", ["ffhq/thumbnails128x128", "images1024x1024", "ffhq256", "a/FFHQ-dataset", "."])
@pytest.mark.parametrize("flat", [True, False])
def test_ffhq_is_found(colour, tmp_path, where, flat):
    for k in (999, 1000, 1, 69999):
        name = f"{k:05d}.png" if flat else f"{k // 1000 * 1000:05d}/{k:05d}.png"
        save(tmp_path / "data" / where / name, plain(k % 7, (32, 32)))
    save_celeba(tmp_path / "data" / "celeba" / "img_align_celeba")
    save(tmp_path / "data" / "ffhq" / "in-the-wild-images" / "00000.png", plain(9))
    assert numbers(load_ffhq(colour, tmp_path / "data")) == [1, 999 % 7, 1000 % 7, 69999 % 7]


def test_ffhq_is_read_from_stylegans_zip(colour, tmp_path):
    files = {f"{k // 1000:05d}/img{k:08d}.png": plain(k % 7, (32, 32)) for k in (0, 2500, 999)}
    zipped(tmp_path / "ffhq-32x32.zip", files)
    assert numbers(load_ffhq(colour, tmp_path)) == [0, 999 % 7, 2500 % 7]


@pytest.mark.parametrize("size, taken", [(16, 1), (128, 1), (129, 2), (256, 2), (512, 3), (2048, 3)])
def test_of_several_ffhqs_the_smallest_that_need_not_be_enlarged(colour, tmp_path, size, taken, monkeypatch):
    for k, where in enumerate(("ffhq/thumbnails128x128", "ffhq256", "ffhq/images1024x1024"), 1):
        save(tmp_path / where / "00000.png", plain(k, (8, 8)))
    monkeypatch.setattr(image_folder, "load_files", lambda files, *_: files.root)
    expected = ["thumbnails128x128", "ffhq256", "images1024x1024"][taken - 1]
    assert load_ffhq(replace(colour, image_size=size), tmp_path).name == expected


def test_ffhq_has_a_test_split_only_when_complete(colour, tmp_path, monkeypatch):
    for k in range(7):
        save(tmp_path / "ffhq" / f"{k:05d}.png", plain(k, (32, 32)))
    assert numbers(load_ffhq(colour, tmp_path)) == [0, 1, 2, 3, 4, 5, 6]
    with pytest.raises(ValueError, match="7 images, not FFHQ's 70,000: none are held out"):
        load_ffhq(colour, tmp_path, "test")
    with pytest.raises(ValueError, match='FFHQ has no split "valid"'):
        load_ffhq(colour, tmp_path, "valid")
    monkeypatch.setattr(image_folder, "FFHQ_TRAIN", 5)
    monkeypatch.setattr(image_folder, "FFHQ_TEST", 2)
    assert numbers(load_ffhq(colour, tmp_path)) == [0, 1, 2, 3, 4]
    assert numbers(load_ffhq(colour, tmp_path, "test")) == [5, 6]


def test_missing_ffhq_says_what_to_do(colour, tmp_path):
    save(tmp_path / "ffhq" / "in-the-wild-images" / "00000.png", plain(9))  # the same faces, not cut out
    with pytest.raises(
        ValueError, match="no FFHQ below .*: download .*github.com/NVlabs/ffhq-dataset .CC BY-NC-SA 4.0."
    ):
        load_ffhq(colour, tmp_path)


# --- the cache


def test_second_start_reads_no_image(colour, tmp_path, blind):
    save_some(tmp_path / "in")
    first = load_folder(colour, tmp_path / "in", tmp_path / "cache")
    blind()
    second = load_folder(colour, tmp_path / "in", tmp_path / "cache")
    assert torch.equal(first, second) and numbers(second) == [0, 1, 2, 3, 4, 5]
    assert len(listing(tmp_path / "cache", ".npy")) == len(listing(tmp_path / "cache")) == 1


def test_cache_is_a_file_that_numpy_reads_and_that_no_tensor_changes(colour, tmp_path):
    save_some(tmp_path / "in")
    images = load_folder(colour, tmp_path / "in", tmp_path / "cache")
    images[0] = 123
    path = tmp_path / "cache" / listing(tmp_path / "cache")[0]
    assert numbers(torch.from_numpy(np.load(path))) == [0, 1, 2, 3, 4, 5]


@pytest.mark.filterwarnings("error")
def test_cache_larger_than_memory_is_mapped_for_reading_only(colour, tmp_path, monkeypatch):
    save_some(tmp_path / "in")
    load, used = np.load, []

    def small_memory(path, mmap_mode):
        used.append(mmap_mode)
        if mmap_mode != "r":
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        return load(path, mmap_mode=mmap_mode)

    monkeypatch.setattr(np, "load", small_memory)
    images = load_folder(colour, tmp_path / "in", tmp_path / "cache")
    assert numbers(images) == [0, 1, 2, 3, 4, 5] and used == ["c", "r"]


@pytest.mark.parametrize("change", ["changed", "touched", "added", "removed", "renamed"])
def test_cache_is_made_anew_when_files_change(colour, tmp_path, change):
    folder = tmp_path / "in"
    save_some(folder)
    for path in folder.iterdir():
        os.utime(path, (1, 1))
    load_folder(colour, folder, tmp_path / "cache")
    old = listing(tmp_path / "cache")
    if change == "changed":
        save(folder / "2.png", plain(9, (20, 21)))
    elif change == "touched":
        stat = (folder / "2.png").stat()
        save(folder / "2.png", plain(9, (20, 20)))
        os.utime(folder / "2.png", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1000))
    elif change == "added":
        save(folder / "3a.png", plain(9, (20, 20)))
    elif change == "removed":
        (folder / "2.png").unlink()
    else:
        (folder / "2.png").rename(folder / "9.png")
    expected = {"added": [0, 1, 2, 3, 9, 4, 5], "removed": [0, 1, 3, 4, 5], "renamed": [0, 1, 3, 4, 5, 2]}
    assert numbers(load_folder(colour, folder, tmp_path / "cache")) == expected.get(change, [0, 1, 9, 3, 4, 5])
    assert len(listing(tmp_path / "cache")) == 1 and listing(tmp_path / "cache") != old, "the old one is removed"


def test_sizes_channels_and_folders_have_caches_of_their_own(colour, tmp_path, blind):
    for k, folder in enumerate((tmp_path / "one" / "in", tmp_path / "two" / "in")):
        save(folder / "a.png", plain(k, (20, 20)))
        os.utime(folder / "a.png", (1, 1))
    cache = tmp_path / "cache"
    variants = [colour, replace(colour, image_size=8), replace(colour, channels=1)]

    def load():
        return [load_folder(s, tmp_path / folder / "in", cache) for folder in ("one", "two") for s in variants]

    first = load()
    assert [tuple(images.shape) for images in first] == 2 * [(1, 3, 16, 16), (1, 3, 8, 8), (1, 1, 16, 16)]
    assert numbers(first[0]) == [0] and numbers(first[3]) == [1]
    blind()
    assert all(torch.equal(a, b) for a, b in zip(first, load())) and len(listing(cache)) == 6


def fail_at(monkeypatch, action, k=4):
    """At the k-th image that is read, action is done instead."""
    original, count = image_folder.read_picture, []

    def read_picture(*arguments):
        count.append(1)
        if len(count) == k:
            action()
        return original(*arguments)

    monkeypatch.setattr(image_folder, "read_picture", read_picture)


def interrupt():
    raise KeyboardInterrupt


def test_interrupted_start_leaves_nothing(colour, tmp_path, monkeypatch):
    save_some(tmp_path / "in")
    fail_at(monkeypatch, interrupt)
    with pytest.raises(KeyboardInterrupt):
        load_folder(colour, tmp_path / "in", tmp_path / "cache")
    assert listing(tmp_path / "cache") == []
    assert numbers(load_folder(colour, tmp_path / "in", tmp_path / "cache")) == [0, 1, 2, 3, 4, 5]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_start_leaves_nothing_that_looks_complete(colour, tmp_path, monkeypatch):
    folder, cache = tmp_path / "in", tmp_path / "cache"
    save_some(folder, 300)
    with monkeypatch.context() as patch:
        fail_at(patch, lambda: os.kill(os.getpid(), signal.SIGKILL), 290)
        process = multiprocessing.get_context("fork").Process(target=load_folder, args=(colour, folder, cache))
        process.start()
        process.join()
    assert process.exitcode == -signal.SIGKILL
    (partial,) = listing(cache)
    assert partial.endswith(".partial") and (cache / partial).stat().st_size > 0
    assert len(load_folder(colour, folder, cache)) == 300
    assert partial in listing(cache), "another run may be at work on it"
    os.utime(cache / partial, (1, 1))  # long ago
    assert len(load_folder(colour, folder, cache)) == 300
    assert len(listing(cache)) == 1 and listing(cache, ".partial") == [], "what the killed run left is removed"


def test_two_starts_at_once_do_not_disturb_each_other(colour, tmp_path, monkeypatch):
    save_some(tmp_path / "in")
    other = []
    fail_at(monkeypatch, lambda: other.append(load_folder(colour, tmp_path / "in", tmp_path / "cache")))
    images = load_folder(colour, tmp_path / "in", tmp_path / "cache")
    assert numbers(images) == numbers(other[0]) == [0, 1, 2, 3, 4, 5] and len(listing(tmp_path / "cache")) == 1


def test_a_cache_that_another_start_made_and_uses_is_used_too(colour, tmp_path, monkeypatch):
    """Windows does not let a mapped file be replaced."""
    save_some(tmp_path / "in")
    real = os.replace

    def replace_mapped(source, target):
        real(source, target)
        raise PermissionError(13, "Access is denied")

    monkeypatch.setattr(os, "replace", replace_mapped)
    assert numbers(load_folder(colour, tmp_path / "in", tmp_path / "cache")) == [0, 1, 2, 3, 4, 5]

    def denied(source, target):
        raise PermissionError(13, "Access is denied")

    monkeypatch.setattr(os, "replace", denied)
    with pytest.raises(OSError, match="cannot write"):
        load_folder(replace(colour, channels=1), tmp_path / "in", tmp_path / "cache")


def test_cache_is_made_anew_when_decoding_changes(colour, tmp_path, monkeypatch):
    save_some(tmp_path / "in")
    load_folder(colour, tmp_path / "in", tmp_path / "cache")
    before = listing(tmp_path / "cache")
    monkeypatch.setattr(image_folder, "DECODING", 99)
    load_folder(colour, tmp_path / "in", tmp_path / "cache")
    assert len(before) == 1 and listing(tmp_path / "cache") != before


@pytest.mark.parametrize("damage", ["empty", "header", "short", "text"])
def test_damaged_cache_is_made_anew(colour, tmp_path, damage):
    save_some(tmp_path / "in")
    load_folder(colour, tmp_path / "in", tmp_path / "cache")
    path = tmp_path / "cache" / listing(tmp_path / "cache")[0]
    content = path.read_bytes()
    path.write_bytes({"empty": b"", "header": content[:50], "short": content[:1000], "text": b"x" * 9000}[damage])
    assert numbers(load_folder(colour, tmp_path / "in", tmp_path / "cache")) == [0, 1, 2, 3, 4, 5]
    assert path.read_bytes() == content


def test_cache_that_cannot_be_written_stays_in_memory_if_small(colour, tmp_path, monkeypatch, capsys):
    save_celeba(tmp_path / "celeba")
    (tmp_path / "cache").write_text("a file where the folder should be, since root may write anywhere")
    images = load_celeba(colour, tmp_path)
    assert numbers(images) == [1, 2, 3, 4, 5, 6, 7]
    images[0] = 0  # ordinary memory
    printed = capsys.readouterr().out.strip().splitlines()[-1]
    assert printed.startswith(f"cannot write to the folder {tmp_path / 'cache'}") and "decoded into memory" in printed
    monkeypatch.setattr(image_folder, "MEMORY", 5000)
    with pytest.raises(OSError, match="cannot write to the folder .*: the decoded images, .* GB, have no other place"):
        load_celeba(colour, tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder(colour, tmp_path, capsys):
    save_some(tmp_path / "in")
    (tmp_path / "cache").mkdir(mode=0o555)
    assert numbers(load_folder(colour, tmp_path / "in", tmp_path / "cache")) == [0, 1, 2, 3, 4, 5]
    assert "decoded into memory" in capsys.readouterr().out


def test_disk_too_full_is_told_before_the_work(colour, tmp_path, monkeypatch):
    save_some(tmp_path / "in")
    usage = type("Usage", (), {"free": 4607})  # of 6 x 3 x 16 x 16 = 4608
    monkeypatch.setattr(image_folder.shutil, "disk_usage", lambda _: usage)
    with monkeypatch.context() as patch:
        patch.setattr(image_folder, "read_picture", lambda *_: pytest.fail("an image was read"))
        with pytest.raises(OSError, match="too full: the decoded images take 4,608 bytes, and 4,607 are free"):
            load_folder(colour, tmp_path / "in", tmp_path / "cache")
    usage.free = 4608
    assert len(load_folder(colour, tmp_path / "in", tmp_path / "cache")) == 6


def test_disk_that_fills_while_writing_leaves_nothing(colour, tmp_path):
    resource = pytest.importorskip("resource")
    save_some(tmp_path / "in", 60)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # no file may grow beyond, as on a full disk
    try:
        with pytest.raises(OSError, match="cannot write .*of 46,080 bytes .*: make room"):
            load_folder(colour, tmp_path / "in", tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert listing(tmp_path / "cache") == []
    assert len(load_folder(colour, tmp_path / "in", tmp_path / "cache")) == 60


# --- files that are no images


@pytest.mark.parametrize("n, allowed", [(1, 0), (9, 0), (10, 1), (29, 2), (299, 3), (400, 4)])
def test_a_few_damaged_images_are_skipped_and_named(colour, tmp_path, capsys, n, allowed):
    save_some(tmp_path / "in", n)
    half = (tmp_path / "in" / "0.png").read_bytes()[:60]
    bad = [f"{k}.png" for k in range(allowed + 1)]
    for name in bad[:-1]:
        (tmp_path / "in" / name).write_bytes(half)
    images = load_folder(colour, tmp_path / "in", tmp_path / "cache")
    assert len(images) == n - allowed
    printed = [line for line in capsys.readouterr().out.splitlines() if "skipped" in line]
    assert len(printed) == (allowed > 0)
    if printed:
        assert f"skipped {allowed} of {n} images" in printed[0] and all(name in printed[0] for name in bad[:-1][:3])
    (tmp_path / "in" / bad[-1]).write_text("not an image at all")
    with pytest.raises(ValueError, match=rf"no known format.*of {n} images, {allowed} may be skipped") as caught:
        load_folder(colour, tmp_path / "in", tmp_path / "cache")
    assert all(f"{tmp_path / 'in' / name} is not a readable image" in str(caught.value) for name in bad)
    assert len(listing(tmp_path / "cache")) == 1, "the cache of the state before is left, and no partial file"


def test_skipped_images_leave_no_gap(colour, tmp_path, blind):
    save_some(tmp_path / "in", 10)
    (tmp_path / "in" / "4.png").unlink()
    (tmp_path / "in" / "4.png").symlink_to(tmp_path / "nowhere")
    for _ in range(2):
        assert numbers(load_folder(colour, tmp_path / "in", tmp_path / "cache")) == [0, 1, 2, 3, 5, 6, 7, 8, 9]
        blind()


def test_damaged_image_in_a_zip_is_named(colour, tmp_path):
    zipped(tmp_path / "celeba.zip", {"000001.jpg": plain(1)})
    with zipfile.ZipFile(tmp_path / "celeba.zip", "a") as archive:
        archive.writestr("000002.jpg", "text")
    with pytest.raises(ValueError, match=r"celeba\.zip/000002\.jpg is not a readable image \(no known format\)"):
        load_celeba(colour, tmp_path)


def test_hidden_files_and_other_files_do_not_count(colour, tmp_path):
    save_some(tmp_path / "in", 2)
    for name in (".ipynb_checkpoints/0.png", ".thumbnail.png", "lost+found/0.png"):
        save(tmp_path / "in" / name, plain(9))
    for name in ("notes.txt", "paper.pdf", "._0.png"):
        (tmp_path / "in" / name).write_text("no image")
    (tmp_path / "in" / "folder.png").mkdir()
    assert numbers(load_folder(colour, tmp_path / "in", tmp_path / "cache")) == [0, 1]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no images"):
        load_folder(colour, tmp_path / "empty", tmp_path / "cache")


def test_a_folder_that_cannot_be_read_is_told(colour, tmp_path, monkeypatch):
    """Or the rest would be taken for the whole."""
    save_some(tmp_path / "in")
    save(tmp_path / "in" / "below" / "9.png", plain(9))
    real = os.scandir

    def scandir(path):
        if Path(path).name == "below":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError, match="below"):
        load_folder(colour, tmp_path / "in", tmp_path / "cache")


# --- training


@pytest.mark.parametrize("name", ["celeba", "ffhq", "own"])
def test_a_data_set_is_known_by_name_and_a_colour_network_trains_on_its_map(colour, tmp_path, name):
    save_celeba(tmp_path / "celeba")
    for k in range(4):
        save(tmp_path / "ffhq" / f"0000{k}.png", plain(k, (20, 20)))
        save(tmp_path / "own" / f"{k}.png", plain(k, (20, 20)))
    settings = replace(colour, dataset=name if name != "own" else str(tmp_path / name))
    images, run = load_images(settings, tmp_path), start_run(settings)
    assert numbers(images) == (list(range(1, 8)) if name == "celeba" else list(range(4)))
    steps = list(training_loop(run, images, make_schedule(settings)))
    assert len(steps) == len(images) // 3 and all(np.isfinite(step.loss) for step in steps)


@pytest.mark.parametrize(("name", "flips"), [("celeba", True), ("ffhq", True), ("own", False)])
def test_faces_are_mirrored_in_training_by_chance_and_nothing_else_is(colour, name, flips):
    left = torch.zeros(24, 3, 16, 16, dtype=torch.uint8)
    left[..., :8] = 255
    settings, seen = replace(colour, dataset=name, batch_size=24), []

    def objective(model, schedule, x0, t, eps):
        seen.append(x0)
        return model(x0, t).mean(dim=(1, 2, 3))

    list(training_loop(start_run(settings), left, make_schedule(settings), objective))
    bright_left = seen[0][:, 0, 0, 0] == 1
    assert torch.equal(seen[0][:, 0, 0, -1] == 1, ~bright_left)
    assert 4 < bright_left.sum() < 20 if flips else bright_left.all()


def test_of_training_images_alone_the_last_are_held_out(colour, tmp_path, monkeypatch):
    monkeypatch.setattr(image_folder, "HELD_OUT", 2)
    names = [f"{k:06d}.jpg" for k in range(1, 22)]
    save_celeba(tmp_path / "celeba", names[:20])
    assert numbers(load_celeba(colour, tmp_path)) == list(range(1, 21)), "20 are too few"
    save_celeba(tmp_path / "celeba", names[20:])
    assert numbers(load_celeba(colour, tmp_path)) == list(range(1, 20))
    assert numbers(load_celeba(colour, tmp_path, "valid")) == [20, 21]
    with pytest.raises(ValueError, match="no image of CelebA's test split"):
        load_celeba(colour, tmp_path, "test")
