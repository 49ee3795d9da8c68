"""One picture: opened, turned upright, given a margin, cut to a shape."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from mnist_ddpm import ddpm
from mnist_ddpm.data.image_files import regular_file
from mnist_ddpm.datasets import dataset_named
from mnist_ddpm.machine.text import describe_error

# Pillow's decoders that are used, where it has them. Others may start programs: Ghostscript.
FORMATS = "AVIF BMP GIF JPEG JPEG2000 MPO PNG PPM TGA TIFF WEBP".split()
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


def known_formats() -> list[str]:
    """Those of FORMATS that this Pillow can read."""
    Image.init()  # once
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
