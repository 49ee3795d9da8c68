"""One picture: opened, turned upright, given a margin, cut to a shape."""

import os
import re
import stat
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from mnist_ddpm import ddpm
from mnist_ddpm.datasets import dataset_named
from mnist_ddpm.machine.text import describe_error, printable

DEEPEST = 100  # folders within each other: os.walk calls itself for each
ROOT_ONLY = "lost+found"  # a file system's own folder, which only root may read
# Pillow's decoders that are used, where it has them. Others may start programs: Ghostscript.
FORMATS = "AVIF BMP GIF HEIF JPEG JPEG2000 MPO PNG PPM TGA TIFF WEBP".split()
MAX_PIXELS = 2**26  # of a picture
LARGE_PICTURES = Lock()
LANCZOS = Image.Resampling.LANCZOS
Shape = tuple[int, int, int]  # channels, height, width
TURNS = {  # by EXIF's orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Files(NamedTuple):
    """Image files below a folder or in a zip archive, in the order of the data set."""

    root: Path
    names: list[str]  # relative to root, with "/" between folders


def regular_file(path: Path) -> Path:
    """A file's path. Raises ValueError for a pipe, which would keep us waiting, or a device.

    Raises OSError where there is none.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is no regular file")
    return path


def walk_folders(
    root: str | Path, onerror: Callable[[OSError], object] | None = None
) -> Iterator[tuple[Path, list[str]]]:
    """Each folder from root down with its files, sorted; no hidden ones, none twice through links.

    onerror gets the error of a folder that cannot be read. Without it such a folder is skipped.
    Raises ValueError where folders are nested deeper than DEEPEST.
    """
    seen = set()
    depth = len(Path(root).parts)
    for folder, below, names in os.walk(root, onerror=onerror, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            below.clear()
            continue
        if len(Path(folder).parts) - depth > DEEPEST:
            raise ValueError(f"{root} has folders nested more than {DEEPEST} deep: move them out")
        seen.add(real)
        below[:] = sorted(name for name in below if not name.startswith(".") and name != ROOT_ONLY)
        yield Path(folder), sorted(name for name in names if not name.startswith("."))


def zip_folders(path: Path) -> list[tuple[Path, list[str]]]:
    """Each folder in an archive with its files. Of a damaged archive none, and a printed line."""
    folders = defaultdict(list)
    try:
        with zipfile.ZipFile(regular_file(path)) as archive:
            for name in archive.namelist():
                folder = path / os.path.dirname(name)
                if folder.is_relative_to(path):  # not where the name is an absolute path
                    folders[folder].append(os.path.basename(name))
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        print(printable(f"{path} is damaged or no zip archive, and was skipped ({error})"))
    return list(folders.items())


def find_image_files(root: str | Path, mention: str, pattern: str) -> list[tuple[Path, Files]]:
    """Folders, also in zips, with files whose names fit a pattern.

    They are root itself, and those below it whose paths fit `mention`, which names the data set.
    Folders 00000, 01000, … count as one: the folder that they lie in.
    """
    top = Path(root).absolute()
    files_by_place = {}
    fits = re.compile(pattern, re.IGNORECASE).fullmatch

    def mentioned(path: Path) -> bool:
        return re.search(mention, path.relative_to(top.parent).as_posix().lower()) is not None

    for folder, names in walk_folders(top):
        archives = [folder / name for name in names if name.lower().endswith(".zip")]
        archives = [path for path in archives if mentioned(path)]
        packed = [pair for path in archives for pair in zip_folders(path)]
        for inner_folder, inside in [(folder, names), *packed]:
            files = [name for name in inside if fits(name)]
            is_numbered = inner_folder != top and re.fullmatch(r"\d{5}", inner_folder.name)
            place = inner_folder.parent if is_numbered else inner_folder
            if files and (place == top or mentioned(place)):
                around = (path for path in archives if path in (place, *place.parents))
                base = next(around, place)
                inner = inner_folder.relative_to(base).as_posix()
                prefix = "" if inner == "." else f"{inner}/"
                known = files_by_place.setdefault(place, Files(base, []))
                known.names.extend(prefix + name for name in files)
    return [
        (place, Files(files.root, sorted(files.names)))
        for place, files in sorted(files_by_place.items())
    ]


def known_formats() -> list[str]:
    """Those of FORMATS that this Pillow can read, with pillow-heif also HEIF."""
    Image.init()  # once
    with suppress(ImportError):
        import_module("pillow_heif").register_heif_opener()
    return [name for name in FORMATS if name in Image.OPEN]


def upright(image: Image.Image) -> Image.Image:
    """The picture, turned as its EXIF says."""
    # Pillow's exif_transpose also writes all tags again, and fails at malformed ones.
    image.load()  # turns a TIFF, and takes the tag away
    try:
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # of many kinds
        return image
    return image if turn is None else image.transpose(turn)


def to_eight_bits(image: Image.Image) -> Image.Image:
    """A grey picture of 16 bits as one of 8; its transparent value becomes white."""
    # Pillow's own conversion cuts off all above 255.
    values = np.asarray(image).clip(0, 65535)
    transparent = image.info.get("transparency")
    rounded = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if transparent is not None:
        rounded[values == transparent] = 255
    return Image.fromarray(rounded)


def limit_size(image: Image.Image) -> None:
    """Lets a JPEG of more than MAX_PIXELS be decoded at a half of its size, or less.

    Raises ValueError for a picture of another kind, or still too large.
    """
    for part in (2, 4, 8):
        if image.width * image.height > MAX_PIXELS:
            image.draft(image.mode, (image.width // part, image.height // part))
    count = image.width * image.height
    size = f"{count / 1e6:.0f} megapixels, more than {MAX_PIXELS / 1e6:.0f}"
    ddpm.check(count <= MAX_PIXELS, f"{size}: save it smaller")


def decoding_lock(image: Image.Image) -> AbstractContextManager:
    """Inside, no other large picture is decoded: each may take half a gigabyte."""
    return LARGE_PICTURES if image.width * image.height > MAX_PIXELS // 8 else nullcontext()


def check_complete(opened: Image.Image, source: Path | BinaryIO) -> None:
    """Raises ValueError for a PNG whose compressed data end before its last pixel.

    Pillow leaves such pixels 0. So a PNG whose last row is 0 is decoded once more, over ones.
    """
    end = (0, max(0, opened.height - 2), *opened.size)  # here, interlaced or not, is the last pixel
    rows = opened.crop(end).tobytes()
    if opened.format != "PNG" or (any(rows[-len(rows) // 2 :]) and "interlace" not in opened.info):
        return
    if not isinstance(source, Path):
        source.seek(0)
    with Image.open(source, formats=["PNG"]) as white:
        ones = b"\xff" * (len(rows) * opened.height // min(2, opened.height))
        white.im = Image.frombytes(white.mode, white.size, ones).im
        ddpm.check(white.crop(end).tobytes() == rows, "its data end before its last pixel")


def read_picture(source: Path | BinaryIO, mode: str) -> Image.Image:
    """The picture in a file, upright, on white, with 8 bits, in Pillow's mode "L" or "RGB"."""
    with Image.open(source, formats=known_formats()) as opened, decoding_lock(opened):
        limit_size(opened)
        check_complete(opened, source)
        image = upright(opened)
        if image.mode == "F" or (image.mode == "I" and opened.format == "TIFF"):
            raise ValueError("pixels of unknown range: save it with 8 or 16 bits")
        if image.mode.startswith("I"):  # 16 bits, which some formats give as 32
            image = to_eight_bits(image)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert(mode)


def describe_unreadable(source: object, error: Exception) -> str:
    """One line about a file that Pillow failed to read. Raises a MemoryError again."""
    if isinstance(error, MemoryError):  # not the file's fault
        raise error
    unknown = isinstance(error, UnidentifiedImageError)
    reason = "no known format" if unknown else describe_error(error)
    return f"{source} is not a readable image ({reason})"


def open_image(path: str | Path, mode: str) -> Image.Image:
    """The picture in a file, as read_picture. Raises ValueError for a file that is no image."""
    try:
        return read_picture(regular_file(Path(path)), mode)
    except Exception as error:  # of many kinds
        reason = describe_unreadable(path, error)
        raise ValueError(f"{reason}: repair it or name another") from error


def margin(recipe) -> tuple[int, int]:
    """Pixels that are black above and below, left and right: (0, 0) unless originals are padded."""
    side = dataset_named(recipe.dataset).padded_side
    _, height, width = recipe.shape
    return ((height - side) // 2, (width - side) // 2) if side else (0, 0)


def with_margin(image: Image.Image, recipe, fill: int = 0) -> Image.Image:
    """A picture as small as a padded data set's originals, with its margin; others unchanged."""
    side = dataset_named(recipe.dataset).padded_side
    if image.size != (side, side):
        return image
    vertical, horizontal = margin(recipe)
    return ImageOps.expand(image, (horizontal, vertical), fill)


def crop_and_resize(
    image: Image.Image, shape: Shape, resample=LANCZOS, within: tuple[float, float] | None = None
) -> Image.Image:
    """The largest centred part of the shape's proportions, resized to its height and width.

    within: width and height of the centred part to take it from; None: the full picture.
    """
    _, height, width = shape
    available_width, available_height = within or image.size
    part_width = min(available_width, available_height * (width / height))
    part_height = min(available_height, available_width * (height / width))
    x = (image.width - part_width) / 2
    y = (image.height - part_height) / 2
    return image.resize((width, height), resample, box=(x, y, x + part_width, y + part_height))
