"""One picture: opened, turned upright, padded, cut to a shape."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from threading import Lock
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from mnist_ddpm import ddpm
from mnist_ddpm.data.search import regular
from mnist_ddpm.datasets import dataset_named

MOST = 2**26  # pixels of a picture
LARGE = Lock()
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


def upright(image: Image.Image) -> Image.Image:
    """The picture, turned as its EXIF says."""
    # Pillow's exif_transpose writes all tags anew too, and fails at malformed ones.
    image.load()  # turns a TIFF, and takes the tag away
    try:
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # of many kinds
        return image
    return image if turn is None else image.transpose(turn)


def eight_bits(image: Image.Image) -> Image.Image:
    """A grey picture of 16 bits as one of 8; its transparent value becomes white."""
    # Pillow's own conversion cuts off all above 255.
    values, clear = np.asarray(image).clip(0, 65535), image.info.get("transparency")
    eight = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)  # rounded
    if clear is not None:
        eight[values == clear] = 255
    return Image.fromarray(eight)


def bounded(image: Image.Image) -> None:
    """Lets a JPEG of more pixels than MOST be decoded at a half of its size, or less.

    Raises ValueError for one of another kind, or still too large.
    """
    for part in (2, 4, 8):
        if image.width * image.height > MOST:
            image.draft(image.mode, (image.width // part, image.height // part))
    count = image.width * image.height / 1e6
    told = f"{count:.0f} megapixels, more than {MOST / 1e6:.0f}"
    ddpm.check(image.width * image.height <= MOST, f"{told}: save it smaller")


def one_at_a_time(image: Image.Image) -> AbstractContextManager:
    """Inside, no other large picture is decoded: each may take half a gigabyte."""
    return LARGE if image.width * image.height > MOST // 8 else nullcontext()


def read_picture(source: Path | BinaryIO, mode: str) -> Image.Image:
    """The picture in a file, upright, on white, with 8 bits, in Pillow's mode "L" or "RGB"."""
    with Image.open(source) as opened, one_at_a_time(opened):
        bounded(opened)
        image = upright(opened)
        if image.mode == "F" or (image.mode == "I" and opened.format == "TIFF"):
            raise ValueError("pixels of unknown range: save it with 8 or 16 bits")
        if image.mode.startswith("I"):  # 16 bits, which some formats give as 32
            image = eight_bits(image)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert(mode)


def unreadable(source: object, error: Exception) -> str:
    """One line about a file that Pillow failed to read. Raises a MemoryError again."""
    if isinstance(error, MemoryError):  # no fault of the file
        raise error
    unknown = isinstance(error, UnidentifiedImageError)
    reason = "no known format" if unknown else str(error) or repr(error)
    return f"{source} is not a readable image ({reason})"


def open_image(path: str | Path, mode: str) -> Image.Image:
    """As read_picture. Raises ValueError for a file that is no image."""
    try:
        return read_picture(regular(Path(path)), mode)
    except Exception as error:  # of many kinds
        raise ValueError(f"{unreadable(path, error)}: repair it or name another") from error


def margin(recipe) -> tuple[int, int]:
    """Pixels that are black above and below, left and right: (0, 0) unless originals are padded."""
    side = dataset_named(recipe.dataset).padded_side
    _, height, width = recipe.shape
    return ((height - side) // 2, (width - side) // 2) if side else (0, 0)


def padded(image: Image.Image, recipe, fill: int = 0) -> Image.Image:
    """A picture as small as a padded data set's originals, with its margin; others unchanged."""
    side = dataset_named(recipe.dataset).padded_side
    if image.size != (side, side):
        return image
    vertical, horizontal = margin(recipe)
    return ImageOps.expand(image, (horizontal, vertical), fill)


def fitted(
    image: Image.Image, shape: Shape, resample=LANCZOS, within: tuple[float, float] | None = None
) -> Image.Image:
    """The largest centred part of the shape's proportions, resized to its height and width.

    within: width and height of the centred part to take it from, else of the whole.
    """
    _, height, width = shape
    most_across, most_down = within or image.size
    across = min(most_across, most_down * (width / height))
    down = min(most_down, most_across * (height / width))
    left, top = (image.width - across) / 2, (image.height - down) / 2
    return image.resize((width, height), resample, box=(left, top, left + across, top + down))
