"""CelebA and FFHQ: where they are found, their splits, crops, attributes and labels."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from picture_helpers import (
    HALF,
    NAMES,
    ORIGINAL,
    image_recipe,
    listing,
    numbers,
    plain,
    ramp,
    save,
    save_celeba,
    zipped,
)
from torchvision import datasets

from mnist_ddpm.data import celeba, ffhq
from mnist_ddpm.data.celeba import celeba_attributes, celeba_labels, load_celeba
from mnist_ddpm.data.ffhq import load_ffhq
from mnist_ddpm.data.labels import label_names

COLOUR = image_recipe()


@pytest.mark.parametrize(
    "where",
    [
        "celeba/img_align_celeba",
        "celeba/celeba/img_align_celeba/img_align_celeba",
        "mirrors/CelebA/images",
        "faces/deep/below/img_align_celeba",
        ".",
    ],
)
def test_celeba_is_found(tmp_path, where):
    save_celeba(tmp_path / "data" / where)
    save(tmp_path / "data" / "other" / "000009.jpg", plain(9))
    save(tmp_path / "data" / "ffhq" / "00000" / "00000.png", plain(9))
    assert numbers(load_celeba(COLOUR, tmp_path / "data")) == [1, 2, 3, 4, 5, 6, 7]


def test_celeba_is_found_in_its_own_folder_and_through_a_link(tmp_path, monkeypatch):
    save_celeba(tmp_path / "disk" / "celeba" / "img_89x109", size=HALF)
    assert numbers(load_celeba(COLOUR, tmp_path / "disk" / "celeba")) == [1, 2, 3, 4, 5, 6, 7]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "celeba").symlink_to(tmp_path / "disk" / "celeba")
    (tmp_path / "disk" / "celeba" / "loop").symlink_to(tmp_path / "disk")
    assert numbers(load_celeba(COLOUR, tmp_path / "data")) == [1, 2, 3, 4, 5, 6, 7]
    monkeypatch.chdir(tmp_path / "disk" / "celeba")
    assert numbers(load_celeba(COLOUR, ".")) == [1, 2, 3, 4, 5, 6, 7]


def test_celeba_is_read_from_its_zip(tmp_path):
    names = [*enumerate(NAMES, 1)][::-1]  # an archive may have any order
    files = {f"img_align_celeba/{name}": plain(k) for k, name in names}
    path = tmp_path / "celeba" / "img_align_celeba.zip"
    zipped(path, files | {"__MACOSX/._000001.jpg": plain(9)})
    assert numbers(load_celeba(COLOUR, tmp_path)) == [1, 2, 3, 4, 5, 6, 7]
    zipped(path, {"img_align_celeba/000005.jpg": plain(5)})
    assert numbers(load_celeba(COLOUR, tmp_path)) == [5]
    assert listing(tmp_path / "celeba") == ["img_align_celeba.zip"]


def test_of_several_celebas_the_official_one_is_taken_else_the_fullest(tmp_path):
    save_celeba(tmp_path / "celeba" / "img_178x218", NAMES[:2])
    save_celeba(tmp_path / "celeba" / "img_89x109", NAMES[:4], HALF)
    assert numbers(load_celeba(COLOUR, tmp_path)) == [1, 2, 3, 4]
    save_celeba(tmp_path / "celeba" / "img_align_celeba", NAMES[:3])
    assert numbers(load_celeba(COLOUR, tmp_path)) == [1, 2, 3]


def test_absolute_names_in_a_zip_are_no_images_of_it(tmp_path):
    files = {f"img_align_celeba/00000{k}.jpg": plain(k) for k in (1, 2)}
    zipped(tmp_path / "celeba" / "img_align_celeba.zip", files | {"/img/000003.jpg": plain(9)})
    assert len(celeba.find_celeba(tmp_path)[0][1].names) == 2


def test_celeba_half_unzipped_gives_way_to_its_zip(tmp_path):
    save_celeba(tmp_path / "celeba" / "img_align_celeba", NAMES[:2])
    files = {f"img_align_celeba/{name}": plain(k) for k, name in enumerate(NAMES, 1)}
    zipped(tmp_path / "celeba" / "img_align_celeba.zip", files)
    assert numbers(load_celeba(COLOUR, tmp_path)) == [1, 2, 3, 4, 5, 6, 7]


PARTITION = {1: 1, 2: 0, 3: 2, 4: 0, 6: 1, 99: 0}  # the split of each image


@pytest.mark.parametrize("suffix, place", [("txt", "celeba"), ("csv", "."), ("txt", "celeba/Eval")])
def test_partition_file_decides_the_splits(tmp_path, suffix, place):
    save_celeba(tmp_path / "celeba" / "img_align_celeba")
    comma = " " if suffix == "txt" else ","
    lines = [f"{number:06d}.jpg{comma}{part}" for number, part in PARTITION.items()]
    (tmp_path / place).mkdir(exist_ok=True)
    path = tmp_path / place / f"list_eval_partition.{suffix}"
    path.write_text("\n".join(["image_id,partition"] * (suffix == "csv") + lines))
    assert numbers(load_celeba(COLOUR, tmp_path)) == [2, 4]  # 5 and 7 have no split, 99 no image
    assert numbers(load_celeba(COLOUR, tmp_path, "valid")) == [1, 6]
    assert numbers(load_celeba(COLOUR, tmp_path, "test")) == [3]
    assert len(listing(tmp_path / "cache", ".npy")) == 3, "each split has its own"


def test_without_partition_file_the_official_numbers_decide(tmp_path):
    ends = "162770.jpg", "162771.jpg", "182637.jpg", "182638.jpg", "202599.png", "000001.jpg"
    save_celeba(tmp_path / "celeba", ends)
    splits = [load_celeba(COLOUR, tmp_path, split) for split in ("train", "valid", "test")]
    assert [len(images) for images in splits] == [2, 2, 2]


def test_of_training_images_alone_the_last_are_held_out(tmp_path, monkeypatch):
    monkeypatch.setattr(celeba, "HELD_OUT", 2)
    names = [f"{k:06d}.jpg" for k in range(1, 22)]
    save_celeba(tmp_path / "celeba", names[:20])
    assert numbers(load_celeba(COLOUR, tmp_path)) == list(range(1, 21)), "20 are too few"
    save_celeba(tmp_path / "celeba", names[20:])
    assert numbers(load_celeba(COLOUR, tmp_path)) == list(range(1, 20))
    assert numbers(load_celeba(COLOUR, tmp_path, "valid")) == [20, 21]
    for split in ("test", "trian"):
        with pytest.raises(ValueError, match=split):
            load_celeba(COLOUR, tmp_path, split)


def test_missing_celeba_says_where_to_find_it(tmp_path, capsys):
    for root in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ValueError, match=celeba.PAGE.split()[0]):
            celeba.celeba_files(root, "train")
    (tmp_path / "img_align_celeba.zip").write_text("<html>quota exceeded</html>")
    with pytest.raises(ValueError, match="img_align_celeba.zip"):
        celeba.celeba_files(tmp_path, "train")
    assert "img_align_celeba.zip" in capsys.readouterr().out, "the damaged archive is named"
    assert not (tmp_path / "cache").exists()


def test_download_is_tried_where_nothing_is_there(tmp_path, monkeypatch):
    asked = []

    def download(root, split, download):
        asked.append(root)
        if len(asked) == 1:
            raise RuntimeError("the quota\nis used up")
        save_celeba(Path(root) / "celeba" / "img_align_celeba")

    monkeypatch.setattr(datasets, "CelebA", download)
    with pytest.raises(FileNotFoundError, match=r"the quota is used up.*img_align_celeba\.zip"):
        load_celeba(COLOUR, tmp_path)
    for _ in range(2):
        assert numbers(load_celeba(COLOUR, tmp_path)) == [1, 2, 3, 4, 5, 6, 7]
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("given", "size", "left", "top", "side"),
    [(ORIGINAL, 140, 19, 39, 140), (ORIGINAL, 64, 19, 39, 140), (HALF, 16, 9.5, 19.5, 70)],
)
def test_celeba_crop_to_the_pixel(tmp_path, given, size, left, top, side):
    save(tmp_path / "celeba" / "000001.jpg", ramp(*given))
    image = load_celeba(replace(COLOUR, image_size=size), tmp_path)[0].double()
    centres = (torch.arange(size) + 0.5) * side / size - 0.5
    assert (image[0] - (left + centres)).abs().max() <= 0.51
    assert (image[1] - (top + centres)[:, None]).abs().max() <= 0.51


def test_copies_that_are_square_already_are_not_cropped_again(tmp_path):
    save(tmp_path / "celeba" / "000001.jpg", ramp(64, 64))
    image = load_celeba(replace(COLOUR, image_size=64), tmp_path)[0]
    assert torch.equal(image[0, 0], torch.arange(64))


# CelebA's attributes

COLUMNS = [f"Attribute_{k}" for k in range(40)]


def write_attributes(path, names, csv=False):
    """Image k has attribute k alone."""
    no, space = ("0", ",") if csv else ("-1", "  ")
    rows = [[name, *("1" if k == int(name[:6]) else no for k in range(40))] for name in names]
    head = [",".join(["image_id", *COLUMNS])] if csv else [str(len(rows)), " ".join(COLUMNS) + " "]
    path.write_text("\n".join([*head, *(space.join(row) for row in rows)]) + "\n")


@pytest.mark.parametrize("csv", [False, True])
def test_attributes_come_in_the_order_of_the_images(tmp_path, csv):
    save_celeba(tmp_path / "celeba" / "img_align_celeba")
    lines = "".join(f"{number:06d}.jpg {part}\n" for number, part in PARTITION.items())
    (tmp_path / "celeba" / "list_eval_partition.txt").write_text(lines)
    name = f"list_attr_celeba.{'csv' if csv else 'txt'}"
    write_attributes(tmp_path / "celeba" / name, NAMES[::-1], csv)
    images = load_celeba(COLOUR, tmp_path)
    names, attributes = celeba_attributes(COLOUR, tmp_path, "train")
    assert names == COLUMNS and attributes.dtype == torch.bool and attributes.shape == (2, 40)
    assert attributes.nonzero()[:, 1].tolist() == numbers(images) == [2, 4]


@pytest.mark.parametrize("cache", [True, False])
def test_attributes_leave_out_the_images_that_were_skipped(tmp_path, cache):
    if not cache:
        (tmp_path / "cache").write_text("a file in the place of the folder")
    names = [f"{k:06d}.jpg" for k in range(1, 21)]
    save_celeba(tmp_path / "celeba", names)
    (tmp_path / "celeba" / "000003.jpg").write_text("no image")
    write_attributes(tmp_path / "celeba" / "list_attr_celeba.txt", names)
    loaded = numbers(load_celeba(COLOUR, tmp_path))
    _, attributes = celeba_attributes(COLOUR, tmp_path)
    assert len(loaded) == 19 and attributes.nonzero()[:, 1].tolist() == loaded


def test_attributes_are_those_of_the_cache_that_is_used(tmp_path, monkeypatch):
    names, real = [f"{k:06d}.jpg" for k in range(1, 21)], celeba.crop_face
    save_celeba(tmp_path / "celeba", names)
    write_attributes(tmp_path / "celeba" / "list_attr_celeba.txt", names)
    failures = iter([True])

    def face_but_once(image, **options):
        if next(failures, False):
            raise ValueError
        return real(image, **options)

    monkeypatch.setattr(celeba, "crop_face", face_but_once)
    larger = replace(COLOUR, image_size=24)
    assert [len(load_celeba(asked, tmp_path)) for asked in (larger, COLOUR)] == [19, 20]
    assert [len(celeba_attributes(a, tmp_path)[1]) for a in (larger, COLOUR)] == [19, 20]


def test_a_damaged_cache_does_not_hinder_the_look_at_attributes_before_images_are_decoded(tmp_path):
    save_celeba(tmp_path / "celeba")
    write_attributes(tmp_path / "celeba" / "list_attr_celeba.txt", NAMES)
    load_celeba(COLOUR, tmp_path)
    for path in (tmp_path / "cache").iterdir():
        path.write_bytes(path.read_bytes()[:10])
    assert len(celeba_attributes(COLOUR, tmp_path)[1]) == 7


def test_missing_and_damaged_lists_are_named(tmp_path):
    save_celeba(tmp_path / "celeba" / "img_align_celeba")
    path = tmp_path / "celeba" / "list_attr_celeba.txt"
    with pytest.raises(ValueError, match="list_attr_celeba"):
        celeba_attributes(COLOUR, tmp_path)
    write_attributes(path, NAMES[:-2])
    with pytest.raises(ValueError, match="2 images, such as 000006"):
        celeba_attributes(COLOUR, tmp_path)
    write_attributes(path, NAMES)
    for bad in (path.read_text()[:-10], path.read_text().replace("-1", "yes")):
        path.write_text(bad)
        with pytest.raises(ValueError, match="list_attr_celeba.txt is damaged"):
            celeba_attributes(COLOUR, tmp_path)


def test_attributes_become_labels(tmp_path):
    save_celeba(tmp_path / "celeba" / "img_align_celeba", NAMES)
    write_attributes(tmp_path / "celeba" / "list_attr_celeba.txt", NAMES)
    asked = replace(COLOUR, attributes=("Attribute_3", "Attribute_1", "Attribute_7"), classes=8)
    found = numbers(load_celeba(asked, tmp_path)), celeba_labels(asked, tmp_path).tolist()
    expected = {1: 2, 2: 0, 3: 1, 4: 0, 5: 0, 6: 0, 7: 4}
    assert dict(zip(*found)) == expected, "the i-th attribute counts 2^i"
    both = "Attribute_3 + Attribute_1"
    assert label_names(asked)[:4] == ["none of them", "Attribute_3", "Attribute_1", both]


@pytest.mark.parametrize(
    ("attributes", "classes"),
    [((), 8), (("Attribute_1",), 10), (("Nice",), 2), (("Attribute_1", "Attribute_1"), 4)],
)
def test_attributes_that_celeba_has_not_are_refused(tmp_path, attributes, classes):
    save_celeba(tmp_path / "celeba", NAMES)
    write_attributes(tmp_path / "celeba" / "list_attr_celeba.txt", NAMES)
    asked = replace(COLOUR, attributes=attributes, classes=classes)
    with pytest.raises(ValueError, match="classes" if classes == 10 else "attributes"):
        celeba_labels(asked, tmp_path)


@pytest.mark.parametrize(
    "where", ["ffhq/thumbnails128x128", "images1024x1024", "a/FFHQ-dataset", "."]
)
@pytest.mark.parametrize("flat", [True, False])
def test_ffhq_is_found(tmp_path, where, flat):
    for k in (999, 1000, 1, 69999):
        name = f"{k:05d}.png" if flat else f"{k // 1000 * 1000:05d}/{k:05d}.png"
        save(tmp_path / "data" / where / name, plain(k % 7, (32, 32)))
    save_celeba(tmp_path / "data" / "celeba" / "img_align_celeba")
    save(tmp_path / "data" / "ffhq" / "in-the-wild-images" / "00000.png", plain(9))
    assert numbers(load_ffhq(COLOUR, tmp_path / "data")) == [1, 999 % 7, 1000 % 7, 69999 % 7]


def test_ffhq_is_read_from_stylegans_zip(tmp_path):
    numbers_given = 0, 2500, 999
    files = {f"{k // 1000:05d}/img{k:08d}.png": plain(k % 7, (32, 32)) for k in numbers_given}
    zipped(tmp_path / "ffhq-32x32.zip", files)
    assert numbers(load_ffhq(COLOUR, tmp_path)) == [0, 999 % 7, 2500 % 7]


@pytest.mark.parametrize(
    ("size", "k"),
    [(128, 0), ((64, 128), 0), (129, 1), ((64, 136), 1), (256, 1), (512, 2), (2048, 2)],
)
def test_of_several_ffhqs_the_smallest_that_need_not_be_enlarged(tmp_path, size, k, monkeypatch):
    places = "ffhq/thumbnails128x128", "ffhq256", "ffhq/images1024x1024"
    for where in places:
        save(tmp_path / where / "00000.png", plain(1, (8, 8)))
    monkeypatch.setattr(ffhq, "load_files", lambda files, *_: files.root)
    assert load_ffhq(replace(COLOUR, image_size=size), tmp_path) == tmp_path / places[k]


def test_ffhq_has_a_test_split_only_when_complete(tmp_path, monkeypatch):
    for k in range(7):
        save(tmp_path / "ffhq" / f"{k:05d}.png", plain(k, (32, 32)))
    assert numbers(load_ffhq(COLOUR, tmp_path)) == [0, 1, 2, 3, 4, 5, 6]
    for split in ("test", "valid"):
        with pytest.raises(ValueError, match=split):
            load_ffhq(COLOUR, tmp_path, split)
    monkeypatch.setattr(ffhq, "TRAINING", 5)
    monkeypatch.setattr(ffhq, "IMAGES", 7)
    assert numbers(load_ffhq(COLOUR, tmp_path)) == [0, 1, 2, 3, 4]
    assert numbers(load_ffhq(COLOUR, tmp_path, "test")) == [5, 6]


def test_missing_ffhq_says_where_to_find_it(tmp_path):
    """The same faces, before they were cut out, do not count."""
    save(tmp_path / "ffhq" / "in-the-wild-images" / "00000.png", plain(9))
    with pytest.raises(ValueError, match="github.com/NVlabs/ffhq-dataset"):
        load_ffhq(COLOUR, tmp_path)
