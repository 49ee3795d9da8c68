"""Images decoded once into a cache, which training reads from disk.

A cache is a .npy file that is mapped, not read: data larger than memory train at the speed of the
disk. Its name has data set, size and channels, and holds a digest of the files' names, sizes and
times. When these change it is made again, and the old one removed. A run that is killed while it
makes one leaves a .partial file, which counts for nothing.

Behind the array stand the names that were skipped and, at the end, the CRC-32 of all before it. At
every start each process reads the whole file once and compares: that finds any flipped byte, goes
at the speed of most disks, and leaves in memory what training reads next.
"""

import errno
import hashlib
import io
import json
import os
import secrets
import shutil
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mnist_ddpm import ddpm
from mnist_ddpm.data.pictures import Shape, read_picture, unreadable
from mnist_ddpm.data.search import Files, regular
from mnist_ddpm.machine.files import remove_abandoned, writable_folder
from mnist_ddpm.machine.progress import progress_bar
from mnist_ddpm.machine.text import printable

DECODING = 2  # to be raised when the same file gives other pixels
MEMORY = 2**30  # the most bytes to keep in memory where no cache can be written
LARGEST = 2**29  # bytes of a picture's file
CHECKSUM = 8  # bytes of the checksum, in hexadecimal digits
SKIPPED: dict[Path, list[str]] = {}  # names left out in memory, by the cache that was not written

Fit = Callable[[Image.Image], Image.Image]  # a picture of any size to one of a shape


@contextmanager
def reading(files: Files) -> Iterator[Callable[[str], bytes]]:
    """Inside, a function from a name to the content of that file."""

    def from_folder(name: str) -> bytes:
        path = regular(files.root / name)
        check_size(path.stat().st_size)
        return path.read_bytes()

    def from_archive(name: str) -> bytes:
        check_size(archive.getinfo(name).file_size)
        return archive.read(name)

    if files.root.is_dir():
        yield from_folder
    else:
        with zipfile.ZipFile(files.root) as archive:
            yield from_archive


def check_size(size: int) -> None:
    """Raises ValueError for a file that is no picture, since memory would not hold many such."""
    ddpm.check(size <= LARGEST, f"{size:,} bytes, more than {LARGEST:,}")


def pixels(path: Path, read: Callable[[], bytes], fit: Fit, mode: str) -> bytes | str:
    """One image's channels x height x width bytes, or why it never can be read.

    Raises ValueError where it cannot be read now.
    """
    try:
        data = read()
    except OSError as error:
        if error.errno == errno.ENOENT and path.is_symlink():  # to nowhere
            return unreadable(path, error)
        problem = f"{path} cannot be read now ({error}): repair that, and run again"
        raise ValueError(problem) from error
    except Exception as error:  # of a damaged archive
        return unreadable(path, error)
    try:
        picture = fit(read_picture(io.BytesIO(data), mode))
        return np.atleast_3d(picture).transpose(2, 0, 1).tobytes()
    except Exception as error:  # of many kinds
        return unreadable(path, error)


def decode(files: Files, shape: Shape, fit: Fit, write: Callable[[bytes], object]) -> list:
    """Writes each image's bytes, in order. Returns the names that it could not read and skipped.

    Raises ValueError where more than 1 % cannot be read; of less than 300 images three, but no
    more than a tenth.
    """
    mode, n, reasons = "L" if shape[0] == 1 else "RGB", len(files.names), {}
    allowed = max(n // 100, min(3, n // 10))
    bar = progress_bar(total=n, desc="decoding images", unit="image", leave=False, delay=2)
    # Threads serve: Pillow decodes and resizes outside Python's lock.
    with reading(files) as read, ThreadPoolExecutor(os.cpu_count()) as pool, bar:

        def result(name: str) -> bytes | str:
            return pixels(files.root / name, lambda: read(name), fit, mode)

        for start in range(0, n, 256):  # in parts, so that few results wait in memory
            part = files.names[start : start + 256]
            with closing(pool.map(result, part)) as images:  # where it stops, none is begun
                for name, image in zip(part, images):
                    bar.update()
                    if isinstance(image, bytes):
                        write(image)
                        continue
                    reasons[name] = image
                    if len(reasons) > allowed:
                        rule = f"repair or move them (of {n} images, {allowed} may be skipped)"
                        raise ValueError(f"{listed(reasons.values(), 20)}: {rule}")
    if reasons:
        told = printable(listed(reasons.values(), 3))
        print(f"skipped {len(reasons)} of {n} images: {told}")
    return list(reasons)


def listed(reasons, most: int) -> str:
    """The first of some sentences, in one line, with the number of the others."""
    reasons = list(reasons)
    more = f"; and {len(reasons) - most} more" if len(reasons) > most else ""
    return "; ".join(reasons[:most]) + more


def fingerprint(files: Files) -> str:
    """A digest of the names, sizes and times of the files, or of the archive that holds them."""
    digest = hashlib.sha256(f"{DECODING}\n".encode())
    archive = None if files.root.is_dir() else files.root.stat()
    for name in files.names:
        size, changed = -1, -1
        with suppress(OSError):  # a link to nowhere: told when it is decoded
            stat = archive or os.stat(os.path.join(files.root, name))
            size, changed = stat.st_size, stat.st_mtime_ns
        digest.update(f"{name!r} {size} {changed}\n".encode())
    return digest.hexdigest()[:16]


def cache_path(files: Files, shape: Shape, folder: Path, label: str, crop: int | None) -> Path:
    """Where the cache of these images belongs."""
    channels, height, width = shape
    origin = hashlib.sha256(f"{files.root.resolve()!r} {crop}".encode()).hexdigest()[:8]
    return folder / f"{label}-{height}x{width}x{channels}-{origin}-{fingerprint(files)}.npy"


def open_cache(path: Path, shape: Shape) -> Tensor | None:
    """The images (N, *shape) of a cache, mapped; None where there is none, or a damaged one."""
    if not path.is_file():
        return None
    try:
        if not is_whole(path):
            print(f"{path} is damaged, or of an earlier version: the images are decoded anew")
            return None
        try:
            array = np.load(path, mmap_mode="c")  # what the tensor changes does not reach the file
        except OSError:  # Linux refuses that to a file larger than memory
            array = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    if array.dtype != np.uint8 or array.shape[1:] != shape:
        return None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writ", UserWarning)
        return torch.from_numpy(array)


def is_whole(path: Path) -> bool:
    """Whether the checksum at a cache's end is right. Raises OSError where it cannot be read."""
    with path.open("rb") as file:
        size = path.stat().st_size - CHECKSUM
        return size > 0 and checksum(file, size) == file.read()


def checksum(file, size: int) -> bytes:
    """Of a file's first bytes, which it reads: their CRC-32."""
    file.seek(0)
    options = {"unit": "B", "unit_scale": True, "leave": False, "delay": 2}
    crc, left = 0, size
    with progress_bar(total=size, desc="checking the cache", **options) as bar:
        while block := file.read(min(left, 2**20)):
            crc, left = zlib.crc32(block, crc), left - len(block)
            bar.update(len(block))
    return b"%08x" % crc


def skipped_names(path: Path) -> list[str]:
    """The names that a cache, or what is in memory instead, leaves out; none before it is made."""
    try:
        array = np.load(path, mmap_mode="r")
        with path.open("rb") as file:
            file.seek(array.offset + array.nbytes)
            return json.loads(file.read()[:-CHECKSUM])["skipped"]
    except (OSError, ValueError, EOFError, KeyError):  # it is missing, or will be made anew
        return SKIPPED.get(path, [])


def load_files(
    files: Files, shape: Shape, folder: Path, label: str, fit: Fit, crop: int | None = None
) -> Tensor:
    """The images, from a cache in the folder, or decoded into it the first time: uint8 (N, *shape).

    label and crop distinguish caches of the same files. Where no cache can be written the images
    stay in memory, up to 1 GiB, and a printed line reports it. Raises OSError above that, or where
    the disk is full; ValueError where too many images cannot be read.
    """
    path = cache_path(files, shape, folder, label, crop)
    images = open_cache(path, shape)
    if images is None:
        try:
            writable_folder(folder)
        except OSError as error:
            return load_into_memory(files, shape, fit, path, error)
        write_cache(files, shape, fit, path)
        images = open_cache(path, shape)
    tidy(path)
    return images


def load_into_memory(files: Files, shape: Shape, fit: Fit, path: Path, why: OSError) -> Tensor:
    """The images without the cache that cannot be written. Raises OSError if they are too many."""
    n, need = len(files.names), len(files.names) * np.prod(shape)
    if need > MEMORY:
        problem = f"{why}: the decoded images, {need / 1e9:.1f} GB, have no other place"
        raise OSError(problem) from why
    print(f"{why}; for now the {n:,} images are decoded into memory, at every start")
    buffer = io.BytesIO()
    SKIPPED[path] = decode(files, shape, fit, buffer.write)
    return torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8).view(-1, *shape)


def write_cache(files: Files, shape: Shape, fit: Fit, path: Path) -> None:
    """Decodes the images into a cache. Raises OSError where the disk has no room."""
    need, free = len(files.names) * np.prod(shape), shutil.disk_usage(path.parent).free
    if need > free:
        sizes = f"the decoded images take {need:,} bytes, and {free:,} are free"
        raise OSError(f"the disk of {path.parent} is too full: {sizes}")
    prefix = path.name.rpartition("-")[0]
    own = path.with_name(f"{prefix}-{secrets.token_hex(4)}.partial")  # two runs may start at once
    try:
        with own.open("wb+") as file:
            write_array(file, files, shape, fit)
        try:
            os.replace(own, path)
        except PermissionError:  # on Windows, where another run has made it meanwhile and uses it
            if open_cache(path, shape) is None:
                raise
    except OSError as error:
        problem = f"cannot write {path}, of {need:,} bytes ({error.strerror or error}): make room"
        raise OSError(problem) from error
    finally:
        own.unlink(missing_ok=True)


def write_array(file, files: Files, shape: Shape, fit: Fit) -> None:
    """The images as a .npy file; behind the array, where NumPy does not look, all the rest."""

    def write_header(n: int) -> None:
        header = {"descr": "|u1", "fortran_order": False, "shape": (n, *shape)}
        np.lib.format.write_array_header_1_0(file, header)

    write_header(len(files.names))
    skipped = decode(files, shape, fit, file.write)
    file.write(json.dumps({"skipped": skipped}).encode())
    file.seek(0)
    write_header(len(files.names) - len(skipped))  # as long as the first: NumPy pads it
    digits = checksum(file, file.seek(0, os.SEEK_END))
    file.seek(0, os.SEEK_END)
    file.write(digits)
    file.flush()
    os.fsync(file.fileno())


def tidy(kept: Path) -> None:
    """Removes older caches of the same images, and .partial files that are left behind."""
    prefix = kept.name.rpartition("-")[0]
    for old in kept.parent.glob(f"{prefix}-*"):
        if old.suffix == ".partial":
            remove_abandoned(old)
        elif old != kept and old.suffix == ".npy":
            with suppress(OSError):  # in use, on some systems, or gone already
                old.unlink()
