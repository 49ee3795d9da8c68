"""CelebA, FFHQ and folders of images, decoded once into a cache that training reads from disk.

The cache is a .npy file that is mapped, not read: data larger than memory train at the speed of the disk. Its name
tells data set, size and channels, and a digest of the files' names, sizes and times: when these change it is made
anew, and the old one removed. A run that is killed while making it leaves a .partial file, which counts for nothing.
"""

import errno
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import time
import warnings
import zipfile
from bisect import bisect_left
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from mnist_ddpm.ddpm import FOLDER, PathLike, Settings, progress_bar
from mnist_ddpm.resumable import writable_folder

CELEBA_SIZE = 178, 218  # width and height of an original
CELEBA_SPLITS = "train", "valid", "test"
CELEBA_LAST = 162_770, 182_637, 202_599  # number of the last image in each
CELEBA_NAMES, FFHQ_NAMES = r"\d{6}\.(jpe?g|png|webp)", r"(img)?(\d{5}|\d{8})\.(png|jpe?g|webp)"
FFHQ_TRAIN, FFHQ_TEST = 60_000, 10_000
HELD_OUT = 500  # images for validation, where only training images are at hand, and more than ten times as many
DECODING = 2  # of caches: to be raised when the same file gives other pixels
LOST = "lost+found"  # a file system's own folder, for root alone
MEMORY = 2**30  # the most bytes to keep in memory where no cache can be written
SKIPPED: dict[Path, list[str]] = {}  # names left out of images in memory, by the cache that could not be written
CELEBA_HELP = (
    "download img_align_celeba.zip, list_eval_partition.txt and (for labels) list_attr_celeba.txt from CelebA's page, "
    "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html (for non-commercial research only), into the folder {}; "
    "the zip need not be unpacked"
)
FFHQ_HELP = (
    "download thumbnails128x128 (for sizes up to 128) or images1024x1024 from FFHQ's page, "
    "https://github.com/NVlabs/ffhq-dataset (CC BY-NC-SA 4.0), into the folder {}; a zip named ffhq…zip does as well"
)


# By EXIF's orientation
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


class Files(NamedTuple):
    root: Path  # a folder, or a .zip archive
    names: list[str]  # of image files below it, with "/" between folders, in the order of the data set


def upright(image: Image.Image) -> Image.Image:
    """Turned as its EXIF tells. (Pillow's exif_transpose writes all tags anew too, and fails at malformed ones.)"""
    image.load()  # which turns a TIFF, and takes the tag away
    try:
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # of many kinds
        return image
    return image if turn is None else image.transpose(turn)


def read_picture(source: Path | BinaryIO, mode: str) -> Image.Image:
    """The picture in a file, upright, transparency on white, 16 bits as 8, in Pillow's mode "L" or "RGB"."""
    with Image.open(source) as opened:
        image = upright(opened)
        if image.mode == "F" or (image.mode == "I" and opened.format == "TIFF"):
            raise ValueError("floating-point or 32-bit pixels, whose range is unknown: save it with 8 or 16 bits")
        if image.mode.startswith("I"):  # 16 bits, at times stored as 32; Pillow would cut off all above 255
            values, clear = np.asarray(image), image.info.get("transparency")
            values = np.where(values == clear, 65535, values.clip(0, 65535))
            image = Image.fromarray((values / 257).round().astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert(mode)


def unreadable(source: object, error: Exception) -> str:
    """One line about a file that Pillow failed to read, whatever the error; raises MemoryError again."""
    if isinstance(error, MemoryError):  # which is no fault of the file
        raise error
    reason = "no known format" if isinstance(error, UnidentifiedImageError) else str(error) or repr(error)
    return f"{source} is not a readable image ({reason})"


def open_image(path: PathLike, mode: str) -> Image.Image:
    """As read_picture. Raises ValueError for a file that is no image."""
    try:
        return read_picture(Path(path), mode)
    except Exception as error:
        raise ValueError(f"{unreadable(path, error)}: repair it or name another") from error


def fitted(
    image: Image.Image, size: int, crop: int | None = None, resample: Image.Resampling = Image.Resampling.LANCZOS
) -> Image.Image:
    """The centred square, resized to size x size: the largest, or (crop) that of CelebA's originals, in proportion.

    A picture that has not CelebA's shape counts as cropped already.
    """
    width, height = image.size
    side = min(width, height)
    if crop and abs(width / height * CELEBA_SIZE[1] / CELEBA_SIZE[0] - 1) < 0.02:
        side = min(side, crop * min(width / CELEBA_SIZE[0], height / CELEBA_SIZE[1]))
    left, top = (width - side) / 2, (height - side) / 2
    return image.resize((size, size), resample, box=(left, top, left + side, top + side))


def padded(image: Image.Image, settings: Settings, fill: int = 0) -> Image.Image:
    """28 x 28 pixels are padded for a model of MNIST, as its training images were; all else stays as it is."""
    if settings.dataset != "mnist" or image.size != (28, 28):
        return image
    return ImageOps.expand(image, (settings.image_size - 28) // 2, fill)


def decode(files: Files, settings: Settings, crop: int | None, write: Callable[[bytes], object]) -> list[str]:
    """Writes each image's channels x size x size bytes, in order. Returns the names that it could not read and skipped.

    Threads, since Pillow decodes and resizes outside Python's lock. Raises ValueError where more than 1 % cannot be
    read; of less than 300 images three, but no more than a tenth.
    """
    mode, n, skipped, reasons = "L" if settings.channels == 1 else "RGB", len(files.names), [], []
    allowed = max(n // 100, min(3, n // 10))

    def pixels(name: str) -> bytes | str:
        try:
            data = archive.read(name) if archive else (files.root / name).read_bytes()
        except OSError as error:
            if error.errno == errno.ENOENT and (files.root / name).is_symlink():  # to nowhere
                return unreadable(files.root / name, error)
            raise ValueError(f"{files.root / name} cannot be read now ({error}): repair that, and run again") from error
        except Exception as error:
            return unreadable(files.root / name, error)
        try:
            picture = read_picture(io.BytesIO(data), mode)
            square = np.asarray(fitted(padded(picture, settings), settings.image_size, crop))
            return np.atleast_3d(square).transpose(2, 0, 1).tobytes()
        except Exception as error:
            return unreadable(files.root / name, error)

    bar = progress_bar(total=n, desc="decoding images", unit="image", leave=False, delay=2)
    opened = nullcontext() if files.root.is_dir() else zipfile.ZipFile(files.root)
    with opened as archive, ThreadPoolExecutor(os.cpu_count()) as pool, bar:
        for start in range(0, n, 256):  # in parts, so that few results wait in memory to be written
            part = files.names[start : start + 256]
            for name, result in zip(part, pool.map(pixels, part)):
                if isinstance(result, bytes):
                    write(result)
                    continue
                skipped.append(name)
                reasons.append(result)
                if len(skipped) > allowed:
                    more = f"; and {len(reasons) - 20} more" if len(reasons) > 20 else ""
                    rule = f"repair or move away what cannot be read (of {n} images, {allowed} may be skipped)"
                    raise ValueError(f"{'; '.join(reasons[:20])}{more}: {rule}")
            bar.update(len(part))
    if skipped:
        more = "; …" if len(reasons) > 3 else ""
        print(f"skipped {len(skipped)} of {n} images: {'; '.join(reasons[:3])}{more}")
    return skipped


def fingerprint(files: Files) -> str:
    """A digest of the names, sizes and times of the files, or of the archive that holds them."""
    digest, archive = hashlib.sha256(f"{DECODING}\n".encode()), None if files.root.is_dir() else files.root.stat()
    for name in files.names:
        size, changed = -1, -1
        with suppress(OSError):  # a link to nowhere: told when it is decoded
            stat = archive or os.stat(os.path.join(files.root, name))
            size, changed = stat.st_size, stat.st_mtime_ns
        digest.update(f"{name!r} {size} {changed}\n".encode())
    return digest.hexdigest()[:16]


def open_cache(path: Path, shape: tuple[int, int, int]) -> Tensor | None:
    """The images (N, *shape) of a cache, mapped; None where there is none, or a damaged one."""
    if not path.is_file():
        return None
    try:
        try:
            array = np.load(path, mmap_mode="c")  # what is written to the tensor does not reach the file
        except OSError:  # Linux refuses that to a file larger than memory: then without a right to write
            array = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    if array.dtype != np.uint8 or array.shape[1:] != shape:
        return None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writ", UserWarning)
        return torch.from_numpy(array)


def load_files(files: Files, settings: Settings, cache: PathLike, label: str, crop: int | None = None) -> Tensor:
    """The images, from the cache or (the first time) decoded into it: uint8 (N, channels, image_size, image_size).

    Where the cache cannot be written they stay in memory, up to 1 GiB, and one printed line says so. Raises OSError
    above that, or where the disk is full; ValueError where too many images cannot be read.
    """
    size, channels, cache = settings.image_size, settings.channels, Path(cache)
    shape, need = (channels, size, size), len(files.names) * channels * size * size
    origin = hashlib.sha256(f"{files.root.resolve()!r} {crop}".encode()).hexdigest()[:8]
    prefix = f"{label}-{size}x{size}x{channels}-{origin}"
    path = cache / f"{prefix}-{fingerprint(files)}.npy"
    images = open_cache(path, shape)
    if images is not None:
        tidy(cache, prefix, path)
        return images
    try:
        writable_folder(cache)
    except OSError as error:
        if need > MEMORY:
            raise OSError(f"{error}: the decoded images, {need / 1e9:.1f} GB, have no other place") from error
        print(f"{error}; for now the {len(files.names):,} images are decoded into memory, at every start")
        buffer = io.BytesIO()
        SKIPPED[path] = decode(files, settings, crop, buffer.write)
        return torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8).view(-1, *shape)
    free = shutil.disk_usage(cache).free
    if need > free:
        raise OSError(f"the disk of {cache} is too full: the decoded images take {need:,} bytes, and {free:,} are free")
    unfinished = cache / f"{prefix}-{secrets.token_hex(4)}.partial"  # its own: two runs may start at once
    try:
        with unfinished.open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (len(files.names), *shape)}
            np.lib.format.write_array_header_1_0(file, header)
            skipped = decode(files, settings, crop, file.write)
            file.write(json.dumps({"skipped": skipped}).encode())  # behind the array, where NumPy does not look
            file.seek(0)
            header["shape"] = (len(files.names) - len(skipped), *shape)
            np.lib.format.write_array_header_1_0(file, header)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.replace(unfinished, path)
        except PermissionError:  # on Windows, where another run has made it meanwhile and uses it
            if open_cache(path, shape) is None:
                raise
    except OSError as error:
        raise OSError(f"cannot write {path}, of {need:,} bytes ({error.strerror or error}): make room") from error
    finally:
        unfinished.unlink(missing_ok=True)
    tidy(cache, prefix, path)
    return open_cache(path, shape)


def tidy(cache: Path, prefix: str, kept: Path) -> None:
    """Removes older caches of the same images, and unfinished ones that nobody has written to for ten minutes."""
    for old in cache.glob(f"{prefix}-*"):
        with suppress(OSError):  # in use, on some systems, or gone already
            if old != kept and (old.suffix == ".npy" or time.time() - old.stat().st_mtime > 600):
                old.unlink()


def walk(root: PathLike, onerror: Callable[[OSError], object] | None = None) -> Iterator[tuple[Path, list[str]]]:
    """Each folder from root down with its files, sorted; not the hidden ones, and none twice through links.

    onerror: gets the error of a folder that cannot be read; None: it is skipped.
    """
    seen = set()
    for folder, below, names in os.walk(root, onerror=onerror, followlinks=True):
        real = os.path.realpath(folder)
        below[:] = sorted(name for name in below if real not in seen and not name.startswith(".") and name != LOST)
        if real not in seen:
            seen.add(real)
            yield Path(folder), sorted(name for name in names if not name.startswith("."))


def load_folder(settings: Settings, folder: PathLike, cache: PathLike = "data/cache") -> Tensor:
    """All images below a folder, padded or cropped and resized: uint8 (N, channels, image_size, image_size).

    They are sorted by path; hidden files and folders do not count. Raises ValueError where there is none, or where
    more than a few cannot be read, OSError where a folder cannot be read, or they cannot be saved.
    """
    known = {suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN}

    def told(error: OSError) -> None:  # lest a part be taken for all
        raise error

    files = [at / name for at, names in walk(folder, told) for name in names]
    paths = [path for path in files if path.suffix.lower() in known]
    if not paths:
        raise ValueError(f"{folder} holds no images (files such as .png or .jpg)")
    names = [path.relative_to(folder).as_posix() for path in sorted(paths)]
    label = re.sub(r"\W+", "-", Path(folder).resolve().name)[:50] or "images"
    kind = "digits-" if settings.dataset == "mnist" else ""  # these may be padded
    return load_files(Files(Path(folder), names), settings, cache, kind + label)


def zip_folders(path: Path) -> list[tuple[Path, list[str]]]:
    """Each folder in an archive with its files; none, and a printed line, where it is damaged."""
    folders = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                folders.setdefault(path / os.path.dirname(name), []).append(os.path.basename(name))
    except (zipfile.BadZipFile, OSError) as error:
        print(f"{path} is damaged or no zip archive, and was skipped ({error})")
    return list(folders.items())


def search(root: PathLike, mention: str, pattern: str) -> list[tuple[Path, Files]]:
    """Folders, also in zips, with files that fit a pattern: root, and below it where the path mentions the data set.

    Folders 00000, 01000, … count as one, the folder that they lie in.
    """
    top, found, fits = Path(root).absolute(), {}, re.compile(pattern, re.IGNORECASE).fullmatch

    def mentioned(path: Path) -> bool:
        return re.search(mention, path.relative_to(top.parent).as_posix().lower()) is not None

    for folder, names in walk(top):
        zips = [folder / name for name in names if name.lower().endswith(".zip") and mentioned(folder / name)]
        for place, inside in [(folder, names), *(pair for path in zips for pair in zip_folders(path))]:
            files = [name for name in inside if fits(name)]
            whole = place.parent if place != top and re.fullmatch(r"\d{5}", place.name) else place
            if files and (whole == top or mentioned(whole)):
                base = next((path for path in zips if path in (whole, *whole.parents)), whole)
                inner = "" if place == base else place.relative_to(base).as_posix() + "/"
                found.setdefault(whole, Files(base, [])).names.extend(inner + name for name in files)
    return [(place, Files(files.root, sorted(files.names))) for place, files in sorted(found.items())]


def stem(name: str) -> str:
    """img_align_celeba/000001.jpg to 000001."""
    return name.rpartition("/")[2].partition(".")[0]


def read_list(root: PathLike, name: str) -> tuple[list[str], dict[str, list[int]]] | None:
    """Column names, and each image's numbers by its name without suffix, from name.txt or .csv anywhere below root.

    None where there is no such file. Raises ValueError for a damaged one.
    """
    paths = (at / file for at, files in walk(root) for file in files if file in (f"{name}.txt", f"{name}.csv"))
    path, columns, numbers = next(paths, None), [], {}
    if path is None:
        return None
    try:
        for line in path.read_text(encoding="utf-8-sig").splitlines():
            words = line.replace(",", " ").split()
            if words and re.fullmatch(r"\d+\.\w+", words[0]):
                numbers[stem(words[0])] = [int(word) for word in words[1:]]
            elif len(words) > 1:
                columns = [word for word in words if word != "image_id"]
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): download it again") from error
    if not numbers or {len(row) for row in numbers.values()} != {len(columns) or 1}:
        raise ValueError(f"{path} is damaged (lines of several lengths, or none): download it again")
    return columns, numbers


def celeba_files(root: PathLike, split: str) -> Files:
    """CelebA's images of a split, by number: from img_align_celeba if there is one, else the fullest other folder.

    Splits are those of list_eval_partition below root; without that file, the official ones, by number. Of a copy
    that has training images only, the last 500 are held out as "valid". Raises ValueError for an unknown split, and
    where there are no images.
    """
    if split not in CELEBA_SPLITS:
        raise ValueError(f'CelebA has no split "{split}": take one of {", ".join(CELEBA_SPLITS)}')
    found = search(root, "celeba", CELEBA_NAMES)
    if not found:
        raise ValueError(f"no CelebA below {root}: {CELEBA_HELP.format(Path(root, 'celeba'))}")
    _, files = min(found, key=lambda pair: (pair[0].stem != "img_align_celeba", -len(pair[1].names)))
    listed, wanted = read_list(root, "list_eval_partition"), CELEBA_SPLITS.index(split)

    def part(name: str) -> int:
        return listed[1].get(stem(name), [-1])[0] if listed else bisect_left(CELEBA_LAST, int(stem(name)))

    names, training = ([name for name in files.names if part(name) == index] for index in (wanted, 0))
    if len(training) == len(files.names) > 10 * HELD_OUT:
        names = {"train": training[:-HELD_OUT], "valid": training[-HELD_OUT:]}.get(split, [])
    if not names:
        where = f"{files.root} has no image of CelebA's {split} split"
        raise ValueError(f"{where}: {CELEBA_HELP.format(files.root.parent)}")
    return Files(files.root, names)


def load_celeba(
    settings: Settings, root: PathLike = "data", split: str = "train", *,
    crop: int = 140, download: bool = False,
) -> Tensor:  # fmt: skip
    """CelebA's "train", "valid" or "test" split: uint8 (N, channels, image_size, image_size).

    crop: side of the centred square that is kept of 178 x 218 pixels; of smaller copies, in proportion. download: let
    torchvision try where there is nothing. Raises as celeba_files and load_files do, and ValueError for a crop that
    does not fit.
    """
    if not 1 <= crop <= CELEBA_SIZE[0]:
        raise ValueError(f"crop is {crop}: it must be from 1 to {CELEBA_SIZE[0]}, the width of CelebA's images")
    if download and not search(root, "celeba", CELEBA_NAMES):
        from torchvision import datasets  # here, since it takes two seconds

        try:
            datasets.CelebA(root, split="all", download=True)
        except Exception as error:  # no gdown, no network, Google's quota, a web page in the place of the zip
            reason, advice = " ".join(str(error).split()), CELEBA_HELP.format(Path(root, "celeba"))
            raise ValueError(f"torchvision cannot download CelebA ({reason}): {advice}") from error
    return load_files(celeba_files(root, split), settings, Path(root, "cache"), f"celeba-{split}", crop)


def celeba_attributes(settings: Settings, root: PathLike = "data", split: str = "train") -> tuple[list[str], Tensor]:
    """The 40 attributes' names, and which each image of load_celeba has: bool (N, 40), in the order of the images.

    Call load_celeba with the same settings first: its cache (or where none can be written, this process) knows the
    images that cannot be read, which are left out here too. Raises ValueError where list_attr_celeba is missing or
    lacks an image.
    """
    files, listed = celeba_files(root, split), read_list(root, "list_attr_celeba")
    if not listed:
        raise ValueError(f"no list_attr_celeba.txt or .csv below {root}: {CELEBA_HELP.format(Path(root, 'celeba'))}")
    size = settings.image_size
    cached = f"celeba-{split}-{size}x{size}x{settings.channels}-*-{fingerprint(files)}.npy"
    skipped = {name for path, names in SKIPPED.items() if path.match(cached) for name in names}
    for path in Path(root, "cache").glob(cached):
        array = np.load(path, mmap_mode="r")
        with path.open("rb") as file:
            file.seek(array.offset + array.nbytes)
            skipped.update(json.loads(file.read())["skipped"])
    numbers = [stem(name) for name in files.names if name not in skipped]
    missing = [number for number in numbers if number not in listed[1]]
    if missing:
        raise ValueError(f"list_attr_celeba has no line for {len(missing)} images, such as {missing[0]}: replace it")
    return listed[0], torch.tensor([listed[1][number] for number in numbers]) > 0


def load_ffhq(settings: Settings, root: PathLike = "data", split: str = "train") -> Tensor:
    """FFHQ's "train" or "test" split, its first 60,000 and last 10,000 images: uint8 (N, channels, size, size).

    Of several variants, the smallest that need not be enlarged. Anything but all 70,000 images is for training
    only. Raises as load_files does, ValueError where there is nothing.
    """
    if split not in ("train", "test"):
        raise ValueError(f'FFHQ has no split "{split}": take train or test')

    def preference(pair: tuple[Path, Files]) -> tuple[bool, int, int]:
        named = re.search(r"\d{2,4}$", pair[0].stem)
        side = int(named[0]) if named else 1024
        small = side < settings.image_size
        return small, -side if small else side, -len(pair[1].names)

    mention = r"^(?!.*in-the-wild).*(ffhq|thumbnails128x128|images1024x1024)"
    found = search(root, mention, FFHQ_NAMES)
    if not found:
        raise ValueError(f"no FFHQ below {root}: {FFHQ_HELP.format(Path(root, 'ffhq'))}")
    place, files = min(found, key=preference)
    names, n = files.names, len(files.names)
    if n == FFHQ_TRAIN + FFHQ_TEST:
        names = names[:FFHQ_TRAIN] if split == "train" else names[FFHQ_TRAIN:]
    elif split == "test":
        raise ValueError(f"{place} has {n:,} images, not FFHQ's {FFHQ_TRAIN + FFHQ_TEST:,}: none are held out to test")
    return load_files(Files(files.root, names), settings, Path(root, "cache"), f"ffhq-{split}")


def load_own_folder(settings: Settings, root: PathLike = "data", split: str = "train") -> Tensor:
    """load_folder for settings.dataset, with its cache in root / "cache". Raises ValueError for the test split."""
    if split != "train":
        raise ValueError(f"the folder {settings.dataset} has no {split} split: take train")
    return load_folder(settings, settings.dataset, Path(root, "cache"))


def mirrored(x0: Tensor, generator: torch.Generator) -> Tensor:
    """Images (N, C, H, W), each flipped left to right with probability 1/2."""
    flip = torch.rand(len(x0), generator=generator, device=generator.device) < 0.5
    return torch.where(flip.view(-1, 1, 1, 1), x0.flip(-1), x0)


DATASETS: dict[str, Callable[..., Tensor]] = {
    "celeba": partial(load_celeba, download=True), "ffhq": load_ffhq, FOLDER: load_own_folder,
}  # fmt: skip
AUGMENTATIONS = {"celeba": mirrored, "ffhq": mirrored}
