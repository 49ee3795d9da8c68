"""The cache of decoded images: what makes it anew, what may interrupt it, what it leaves out."""

import errno
import multiprocessing
import os
import signal
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import raising, with_flipped_bit
from picture_helpers import (
    image_recipe,
    listing,
    numbers,
    plain,
    save,
    save_celeba,
    save_some,
    zipped,
)
from PIL import Image

from mnist_ddpm.data import cache
from mnist_ddpm.data.celeba import load_celeba
from mnist_ddpm.data.folders import load_folder

COLOUR = image_recipe()
SIX = [0, 1, 2, 3, 4, 5]


@pytest.fixture
def folder(tmp_path):
    """Six images."""
    save_some(tmp_path / "in")
    return tmp_path / "in"


@pytest.fixture
def load(folder, tmp_path):
    """What loads them, with a cache."""
    return lambda recipe=COLOUR: load_folder(recipe, folder, tmp_path / "cache")


@pytest.fixture
def blind(monkeypatch):
    """After calling this, no image can be opened."""

    def close_eyes():
        monkeypatch.setattr(cache, "read_picture", lambda *_: pytest.fail("an image was read"))

    return close_eyes


def fail_at(monkeypatch, action, k=4):
    """At the k-th image that is read, action is done first."""
    original, count = cache.read_picture, []

    def read_picture(*arguments):
        count.append(1)
        if len(count) == k:
            action()
        return original(*arguments)

    monkeypatch.setattr(cache, "read_picture", read_picture)


def test_cache_is_a_file_that_numpy_reads_and_that_no_tensor_changes(load, tmp_path):
    images = load()
    images[0] = 123
    (path,) = (tmp_path / "cache").glob("*.npy")
    assert numbers(torch.from_numpy(np.load(path))) == SIX


@pytest.mark.filterwarnings("error")
def test_cache_larger_than_memory_is_mapped_for_reading_only(load, monkeypatch):
    real, used = np.load, []

    def small_memory(path, mmap_mode):
        used.append(mmap_mode)
        if mmap_mode != "r":
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        return real(path, mmap_mode=mmap_mode)

    monkeypatch.setattr(np, "load", small_memory)
    assert numbers(load()) == SIX and used == ["c", "r"]


def touch_and_change(folder):
    """Changes an image, but not its size, a thousandth of a millisecond later."""
    stat = (folder / "2.png").stat()
    save(folder / "2.png", plain(9, (20, 20)))
    os.utime(folder / "2.png", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1000))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (touch_and_change, [0, 1, 9, 3, 4, 5]),
        (lambda folder: save(folder / "2.png", plain(9, (20, 21))), [0, 1, 9, 3, 4, 5]),
        (lambda folder: save(folder / "3a.png", plain(9, (20, 20))), [0, 1, 2, 3, 9, 4, 5]),
        (lambda folder: (folder / "2.png").unlink(), [0, 1, 3, 4, 5]),
        (lambda folder: (folder / "2.png").rename(folder / "9.png"), [0, 1, 3, 4, 5, 2]),
    ],
    ids=["touched", "changed", "added", "removed", "renamed"],
)
def test_cache_is_made_again_when_files_change(load, folder, tmp_path, change, expected):
    for path in folder.iterdir():
        os.utime(path, (1, 1))
    load()
    old = {*listing(tmp_path / "cache")}
    change(folder)
    assert numbers(load()) == expected
    new = {*listing(tmp_path / "cache")}
    assert len(old) == len(new) == 2 and not new & old, "the old one is removed"


def test_cache_is_made_again_when_decoding_changes(load, tmp_path, monkeypatch):
    load()
    before = {*listing(tmp_path / "cache")}
    monkeypatch.setattr(cache, "DECODING", 99)
    load()
    assert not {*listing(tmp_path / "cache")} & before


def test_sizes_channels_and_folders_have_caches_of_their_own(tmp_path, blind):
    for k, name in enumerate(("one", "two")):
        save(tmp_path / name / "in" / "a.png", plain(k, (20, 20)))
        os.utime(tmp_path / name / "in" / "a.png", (1, 1))
    sizes = [replace(COLOUR, image_size=size) for size in (16, (8, 24), (24, 8))]
    variants = [*sizes, replace(COLOUR, channels=1)]

    def load():
        folders = tmp_path / "one" / "in", tmp_path / "two" / "in"
        return [load_folder(s, folder, tmp_path / "cache") for folder in folders for s in variants]

    first = load()
    assert [images.shape[1:] for images in first] == 2 * [asked.shape for asked in variants]
    assert numbers(first[0]) == [0] and numbers(first[4]) == [1]
    blind()
    assert all(torch.equal(a, b) for a, b in zip(first, load()))
    assert len(listing(tmp_path / "cache", ".npy")) == 8


def test_interrupted_start_leaves_nothing(load, tmp_path, monkeypatch):
    fail_at(monkeypatch, raising(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        load()
    assert listing(tmp_path / "cache") == []
    assert numbers(load()) == SIX


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_start_leaves_nothing_that_looks_complete(load, folder, tmp_path, monkeypatch):
    save_some(folder, 300)
    with monkeypatch.context() as patch:
        fail_at(patch, lambda: os.kill(os.getpid(), signal.SIGKILL), 290)
        process = multiprocessing.get_context("fork").Process(target=load)
        process.start()
        process.join()
    assert process.exitcode == -signal.SIGKILL
    (partial,) = (tmp_path / "cache").iterdir()
    assert partial.suffix == ".partial" and partial.stat().st_size > 0
    assert len(load()) == 300
    assert partial.exists(), "another run may be at work on it"
    os.utime(partial, (1, 1))  # long ago
    assert len(load()) == 300
    assert not listing(tmp_path / "cache", ".partial"), "it is removed"


def test_two_starts_at_once_do_not_disturb_each_other(load, tmp_path, monkeypatch):
    other = []
    fail_at(monkeypatch, lambda: other.append(load()))
    assert numbers(load()) == numbers(other[0]) == SIX
    assert len(listing(tmp_path / "cache")) == 2


def test_a_cache_that_another_start_made_and_uses_is_used_too(load, monkeypatch):
    """Windows does not let a mapped file be replaced."""
    real = os.replace

    def replace_mapped(source, target):
        real(source, target)
        if target.suffix == ".npy":
            raise PermissionError(errno.EACCES, "Access is denied")

    monkeypatch.setattr(os, "replace", replace_mapped)
    assert numbers(load()) == SIX
    monkeypatch.setattr(os, "replace", raising(PermissionError(errno.EACCES, "Access is denied")))
    with pytest.raises(OSError, match="cannot write"):
        load(replace(COLOUR, channels=1))


@pytest.mark.parametrize("suffix", [".npy", ".json"])
def test_a_damaged_cache_is_noticed_and_made_again(load, folder, tmp_path, suffix, capsys):
    """In its header, its images, the names that were skipped, or the checksum; or cut short."""
    save_some(folder, 10)
    (folder / "4.png").unlink()
    (folder / "4.png").symlink_to(tmp_path / "nowhere")
    load()
    (path,) = (tmp_path / "cache").glob(f"*{suffix}")
    good = path.read_bytes()
    places = [round(part * (len(good) - 1)) for part in (0, 0.01, 0.5, 0.99, 1)]
    for bad in (*(with_flipped_bit(good, place) for place in places), b"", good[:30], good[:-1]):
        path.write_bytes(bad)
        capsys.readouterr()
        assert numbers(load()) == [0, 1, 2, 3, 5, 6, 7, 8, 9]
        assert path.read_bytes() == good and path.stem in capsys.readouterr().out
    path.unlink()  # such as the record of an earlier version
    assert numbers(load()) == [0, 1, 2, 3, 5, 6, 7, 8, 9] and path.read_bytes() == good


def test_cache_that_cannot_be_written_stays_in_memory_if_small(tmp_path, monkeypatch, capsys):
    save_celeba(tmp_path / "celeba")
    (tmp_path / "cache").write_text("a file in the place of the folder")
    images = load_celeba(COLOUR, tmp_path)
    assert numbers(images) == [1, 2, 3, 4, 5, 6, 7]
    images[0] = 0  # ordinary memory
    assert str(tmp_path / "cache") in capsys.readouterr().out
    monkeypatch.setattr(cache, "MEMORY", 5000)
    with pytest.raises(OSError, match="cache"):
        load_celeba(COLOUR, tmp_path)


def test_disk_too_full_is_told_before_the_work(load, monkeypatch):
    usage = type("Usage", (), {"free": 4607})  # of 6 x 3 x 16 x 16 = 4608
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: usage)
    with monkeypatch.context() as patch:
        patch.setattr(cache, "read_picture", lambda *_: pytest.fail("an image was read"))
        with pytest.raises(OSError, match="4,608 bytes, and 4,607"):
            load()
    usage.free = 4608
    assert len(load()) == 6


def test_disk_that_fills_while_writing_leaves_nothing(load, folder, tmp_path):
    resource = pytest.importorskip("resource")
    save_some(folder, 60)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # no file may grow beyond, as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match="46,080"):
            load()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert listing(tmp_path / "cache") == []
    assert len(load()) == 60


@pytest.mark.parametrize("n, allowed", [(1, 0), (9, 0), (10, 1), (29, 2), (299, 3), (400, 4)])
def test_a_few_damaged_images_are_skipped_and_named(tmp_path, capsys, n, allowed):
    save_some(tmp_path / "in", n)
    half = (tmp_path / "in" / "0.png").read_bytes()[:60]
    bad = [tmp_path / "in" / f"{k}.png" for k in range(allowed + 1)]
    for path in bad[:-1]:
        path.write_bytes(half)
    images = load_folder(COLOUR, tmp_path / "in", tmp_path / "cache")
    assert len(images) == n - allowed
    printed = capsys.readouterr().out
    assert all(str(path) in printed for path in bad[:-1][:3]) and bool(printed) == (allowed > 0)
    bad[-1].write_text("not an image at all")
    with pytest.raises(ValueError, match=f"of {n} images, {allowed}") as caught:
        load_folder(COLOUR, tmp_path / "in", tmp_path / "cache")
    assert all(str(path) in str(caught.value) for path in bad)
    assert len(listing(tmp_path / "cache")) == 2, "the cache before is left, and no partial file"


def test_damaged_image_in_a_zip_is_named(tmp_path):
    zipped(tmp_path / "celeba.zip", {"000001.jpg": plain(1)})
    with zipfile.ZipFile(tmp_path / "celeba.zip", "a") as archive:
        archive.writestr("000002.jpg", "text")
    with pytest.raises(ValueError, match=r"celeba\.zip/000002\.jpg"):
        load_celeba(COLOUR, tmp_path)


@pytest.mark.parametrize(
    "error", [PermissionError(errno.EACCES, "denied"), FileNotFoundError(errno.ENOENT, "gone")]
)
def test_a_passing_failure_is_no_damaged_image(tmp_path, monkeypatch, error):
    """It would stay in the cache: the folder is the same when the file can be opened again."""
    for k in range(40):
        save(tmp_path / f"{k}.png", Image.new("RGB", (20, 20), (k, 0, 0)))
    real = Path.read_bytes

    def read_bytes(path):
        if path.name == "7.png":
            raise error
        return real(path)

    with monkeypatch.context() as patched, pytest.raises(ValueError, match="7.png"):
        patched.setattr(Path, "read_bytes", read_bytes)
        load_folder(COLOUR, tmp_path, tmp_path / "cache")
    assert len(load_folder(COLOUR, tmp_path, tmp_path / "cache")) == 40


def test_too_little_memory_is_no_damaged_image(load, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "read_picture", raising(MemoryError))
    with pytest.raises(MemoryError):
        load()
    assert listing(tmp_path / "cache") == []
