"""Decoded images in a cache on disk, which training maps instead of reading.

A cache is a .npy file, so that data larger than memory train at the speed of the disk. A .json file
beside it has the images that were skipped, and why, and the CRC-32 of both. The files' name has
data set, size and channels, and a digest of the images' names, sizes and times: when these change,
the cache is made again, and the old one removed. A killed run leaves a .partial file, which is
never read.

At every start each process reads the whole file once and compares the checksum. That finds any
flipped byte, goes at the speed of most disks, and leaves in memory what training reads next.
"""

import errno
import hashlib
import io
import json
import math
import os
import secrets
import shutil
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mnist_ddpm import ddpm
from mnist_ddpm.data.pictures import Files, Shape, describe_unreadable, read_picture, regular_file
from mnist_ddpm.machine.files import flush_to_disk, remove_abandoned, replacing, writable_folder
from mnist_ddpm.machine.process import is_first_process, progress_bar
from mnist_ddpm.machine.text import printable, read_json

Skipped = dict[str, str]  # by the names of images that cannot be read: why
DECODING = 2  # to be raised when the same file gives other pixels
MEMORY = 2**30  # the most bytes to keep in memory where no cache can be written
MAX_FILE_SIZE = 2**29  # bytes; larger files are no pictures, and memory would not hold many
SKIPPED: dict[Path, Skipped] = {}  # left out in memory, by the cache that was not written

Fit = Callable[[Image.Image], Image.Image]  # a picture of any size to one of a shape
Write = Callable[[bytes], object]
Decode = Callable[[Write], Skipped]  # writes each image; returns what it skipped


@contextmanager
def open_files(files: Files) -> Iterator[Callable[[str], bytes]]:
    """Inside, a function from a name to the content of that file."""

    def check_size(size: int) -> None:
        ddpm.check(size <= MAX_FILE_SIZE, f"{size:,} bytes, more than {MAX_FILE_SIZE:,}")

    def read_from_folder(name: str) -> bytes:
        path = regular_file(files.root / name)
        check_size(path.stat().st_size)
        return path.read_bytes()

    def read_from_archive(name: str) -> bytes:
        check_size(archive.getinfo(name).file_size)
        return archive.read(name)

    if files.root.is_dir():
        yield read_from_folder
    else:
        with zipfile.ZipFile(files.root) as archive:
            yield read_from_archive


def decode_file(path: Path, read: Callable[[], bytes], fit: Fit, mode: str) -> bytes | str:
    """The channels x height x width bytes of an image, or why it can never be read.

    Raises ValueError where it cannot be read now.
    """
    try:
        data = read()
    except OSError as error:
        if error.errno == errno.ENOENT and path.is_symlink():  # to nowhere
            return describe_unreadable(path, error)
        advice = "repair that, and run again"
        raise ValueError(f"{path} cannot be read now ({error}): {advice}") from error
    except Exception as error:  # of a damaged archive
        return describe_unreadable(path, error)
    try:
        picture = fit(read_picture(io.BytesIO(data), mode))
        return np.atleast_3d(picture).transpose(2, 0, 1).tobytes()
    except Exception as error:  # of many kinds
        return describe_unreadable(path, error)


def decode(files: Files, shape: Shape, fit: Fit, write: Write) -> Skipped:
    """Writes the bytes of each image, in order. Returns the names that it could not read, and why.

    Raises ValueError where more than 1 % cannot be read; of less than 300 images three, but at most
    a tenth.
    """
    mode = "L" if shape[0] == 1 else "RGB"
    n = len(files.names)
    most_skipped = max(n // 100, min(3, n // 10))
    reasons = {}
    bar = progress_bar(total=n, desc="decoding images", unit="image", leave=False, delay=2)
    # Threads serve: Pillow decodes and resizes outside Python's lock.
    with open_files(files) as read, ThreadPoolExecutor(os.cpu_count()) as pool, bar:

        def decode_name(name: str) -> bytes | str:
            return decode_file(files.root / name, partial(read, name), fit, mode)

        for start in range(0, n, 256):  # in parts, so that few results wait in memory
            names = files.names[start : start + 256]
            with closing(pool.map(decode_name, names)) as images:  # where it stops, none is begun
                for name, image in zip(names, images):
                    bar.update()
                    if isinstance(image, bytes):
                        write(image)
                        continue
                    reasons[name] = image
                    if len(reasons) > most_skipped:
                        rule = f"repair or move them (of {n} images, {most_skipped} may be skipped)"
                        raise ValueError(f"{first_few([*reasons.values()], 20)}: {rule}")
    return reasons


def first_few(sentences: list[str], most: int) -> str:
    """The first of some sentences, in one line, with the number of the others."""
    others = len(sentences) - most
    return "; ".join(sentences[:most]) + (f"; and {others} more" if others > 0 else "")


def cache_path(files: Files, shape: Shape, folder: Path, label: str) -> Path:
    """Where the cache of these images belongs."""
    channels, height, width = shape
    origin = hashlib.sha256(repr(files.root.resolve()).encode()).hexdigest()[:8]
    return folder / f"{label}-{height}x{width}x{channels}-{origin}-{fingerprint(files)}.npy"


def fingerprint(files: Files) -> str:
    """A digest of the names, sizes and times of the files, or of the archive that holds them."""
    digest = hashlib.sha256(f"{DECODING}\n".encode())
    archive = None if files.root.is_dir() else files.root.stat()
    for name in files.names:
        size = changed = -1
        with suppress(OSError):  # a link to nowhere: reported when it is decoded
            stat = archive or os.stat(os.path.join(files.root, name))
            size = stat.st_size
            changed = stat.st_mtime_ns
        digest.update(f"{name!r} {size} {changed}\n".encode())
    return digest.hexdigest()[:16]


def record_path(path: Path) -> Path:
    """Where a cache's skipped names and checksum stand."""
    return path.with_suffix(".json")


def checksum(path: Path, skipped: list) -> int:
    """The CRC-32 of a cache's file and of the names that it leaves out."""
    crc = zlib.crc32(json.dumps(skipped).encode())
    bar = progress_bar(
        total=path.stat().st_size,
        desc="checking the cache",
        unit="B",
        unit_scale=True,
        leave=False,
        delay=2,
    )
    with path.open("rb") as file, bar:
        for block in iter(partial(file.read, 2**20), b""):
            crc = zlib.crc32(block, crc)
            bar.update(len(block))
    return crc


def open_cache(path: Path, shape: Shape) -> Tensor | None:
    """The images (N, *shape) of a cache, mapped; None where there is none, or a damaged one."""
    if not path.is_file():
        return None
    try:
        record = read_json(record_path(path))
        skipped = record["skipped"]
        ddpm.check(record["crc32"] == checksum(path, skipped), "another checksum")
        dict(skipped)  # an earlier version kept names alone
        try:
            array = np.load(path, mmap_mode="c")  # what the tensor changes does not reach the file
        except OSError:  # Linux refuses that to a file larger than memory
            array = np.load(path, mmap_mode="r")
        ddpm.check(array.dtype == np.uint8 and array.shape[1:] == shape, "other images")
    except (OSError, ValueError, EOFError, KeyError, TypeError):
        print(f"{path} is damaged, or of an earlier version: the images are decoded again")
        return None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writ", UserWarning)
        return torch.from_numpy(array[: len(array) - len(skipped)])


def skipped_names(path: Path) -> Skipped:
    """What a cache, or what is in memory instead, leaves out; nothing before it is made."""
    try:
        return dict(read_json(record_path(path))["skipped"])
    except (OSError, ValueError, KeyError, TypeError):  # it is missing, or will be made again
        return SKIPPED.get(path, {})


def load_files(files: Files, shape: Shape, folder: Path, label: str, fit: Fit) -> Tensor:
    """The images, from a cache in the folder, or decoded into it the first time: uint8 (N, *shape).

    Prints which are skipped. label: distinguishes caches of the same files. Raises as load_cached,
    and as decode.
    """
    path = cache_path(files, shape, folder, label)
    n = len(files.names)
    images = load_cached(path, shape, n, partial(decode, files, shape, fit))
    skipped = skipped_names(path)
    if skipped and is_first_process():
        listed = printable(first_few([*skipped.values()], 3))
        print(f"skipped {len(skipped)} of {n} images: {listed}")
    return images


def load_cached(path: Path, shape: Shape, n: int, decode_all: Decode) -> Tensor:
    """The images (n, *shape) of a cache, which is made with decode_all where it is missing.

    Where no cache can be written the images stay in memory, up to 1 GiB, and a printed line
    reports it. Raises OSError above that, or where the disk is full.
    """
    images = open_cache(path, shape)
    if images is None:
        try:
            writable_folder(path.parent)
        except OSError as error:
            return load_into_memory(path, shape, n, decode_all, error)
        write_cache(path, shape, n, decode_all)
        images = open_cache(path, shape)
    remove_older_caches(path)
    return images


def load_into_memory(path: Path, shape: Shape, n: int, decode_all: Decode, why: OSError) -> Tensor:
    """The images without the cache that cannot be written. Raises OSError if they are too many."""
    size = n * math.prod(shape)
    if size > MEMORY:
        raise OSError(f"{why}: no other place has room for {size / 1e9:.1f} GB of images") from why
    print(f"{why}; for now the {n:,} images are decoded into memory, at every start")
    buffer = io.BytesIO()
    SKIPPED[path] = decode_all(buffer.write)
    return torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8).view(-1, *shape)


def write_cache(path: Path, shape: Shape, n: int, decode_all: Decode) -> None:
    """Decodes the images into a cache. Raises OSError where they do not fit the disk."""
    size = n * math.prod(shape)
    free = shutil.disk_usage(path.parent).free
    if size > free:
        sizes = f"the decoded images take {size:,} bytes, and {free:,} are free"
        raise OSError(f"the disk of {path.parent} is too full: {sizes}")
    prefix = path.name.rpartition("-")[0]
    # with a name of its own, since two runs may start at once
    temporary = path.with_name(f"{prefix}-{secrets.token_hex(4)}.partial")
    try:
        skipped = write_array(temporary, (n, *shape), decode_all)
        skipped = [*skipped.items()]
        record = {"skipped": skipped, "crc32": checksum(temporary, skipped)}
        with replacing(record_path(path)) as record_file:
            record_file.write_text(json.dumps(record), encoding="utf-8")
        try:
            os.replace(temporary, path)
        except PermissionError:  # on Windows, where another run has made it meanwhile and uses it
            if open_cache(path, shape) is None:
                raise
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"cannot write {path}, of {size:,} bytes ({reason}): free some") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_array(path: Path, shape: tuple[int, ...], decode_all: Decode) -> Skipped:
    """Writes the images as a .npy file, whose last rows are empty if some images are skipped.

    shape: number of images, channels, height, width. Returns the skipped ones.
    """
    with path.open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        end = file.tell() + math.prod(shape)
        skipped = decode_all(file.write)
        file.truncate(end)
    flush_to_disk(path)
    return skipped


def remove_older_caches(path: Path) -> None:
    """Removes other caches of the same images, and .partial files that killed runs left."""
    prefix = path.name.rpartition("-")[0]
    for other in path.parent.glob(f"{prefix}-*"):
        if other.suffix == ".partial":
            remove_abandoned(other)
        elif other not in (path, record_path(path)) and other.suffix in (".npy", ".json"):
            with suppress(OSError):  # in use, on some systems, or gone already
                other.unlink()
