"""One's own images in a .npy, .npz or .safetensors file.

Arrays are never unpickled, and never larger than the file says.
"""

import os
import zipfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

import numpy as np
from PIL import Image
from safetensors import safe_open

from mnist_ddpm.data.loading import NoSplit
from mnist_ddpm.data.picture_sets import PictureSet, picture_settings
from mnist_ddpm.data.pictures import regular_file
from mnist_ddpm.ddpm import check
from mnist_ddpm.machine import devices
from mnist_ddpm.machine.process import is_first_process
from mnist_ddpm.machine.text import describe_error, printable

T = TypeVar("T")
UNNAMED = ""  # the name of the array in a .npy file
DATA = {  # names of a split's data
    "train": ("images", "train_images", "x_train", "x", "data"),
    "test": ("test_images", "x_test"),
}
LABELS = {"train": ("labels", "train_labels", "y_train", "y"), "test": ("test_labels", "y_test")}
SHAPES = "images are (N, H, W), (N, H, W, C) or (N, C, H, W), of 1 or 3 channels"
SMALLEST = 5  # pixels: an array (H, W, 3) or (H, W, 4) is one image
LONGEST = 16  # the most that a side may be of the other: signals and tables are longer
CHUNK = 1000  # images whose range is looked at together


def npy_shape(file: BinaryIO, size: int) -> tuple[int, ...]:
    """The shape of the array in a .npy file of that size.

    Raises ValueError unless the file holds what its header declares.
    """
    check(size > 0, "it is empty")
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0
    shape, _, dtype = (read if version == (1, 0) else np.lib.format.read_array_header_2_0)(file)
    check(not dtype.hasobject, "it holds Python objects, which are never loaded")
    declared = int(np.prod([1, *shape], dtype=object)) * dtype.itemsize
    there = size - file.tell()
    check(declared == there, f"its header declares {declared:,} bytes, and it has {there:,}")
    return shape


def array_names(path: Path) -> list[str]:
    """The names of the arrays in a file. Raises ValueError for a damaged one."""

    def names() -> list[str]:
        if path.suffix == ".npy":
            return [UNNAMED]
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                members = archive.namelist()
            return [name.removesuffix(".npy") for name in members if name.endswith(".npy")]
        with safe_open(path, "np") as file:
            return [*file.keys()]

    return with_reason(path, names)


def read_shape(path: Path, name: str = UNNAMED) -> tuple[int, ...]:
    """The shape of an array in a file, of which only the header is read.

    Raises ValueError for a damaged file, one with pickled objects, or one larger than memory.
    """

    def read() -> tuple[int, ...]:
        size = os.path.getsize(path)
        if path.suffix == ".npy":
            with path.open("rb") as file:
                return npy_shape(file, size)
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                size = archive.getinfo(f"{name}.npy").file_size
                devices.check_memory(size, name, "split it")
                with archive.open(f"{name}.npy") as file:
                    return npy_shape(file, size)
        devices.check_memory(size, name, "split it")
        with safe_open(path, "np") as file:
            return tuple(file.get_slice(name).get_shape())

    return with_reason(path, read, name)


def read_array(path: Path, name: str = UNNAMED) -> np.ndarray:
    """One of the arrays in a file; that of a .npy file is mapped. Raises as read_shape."""

    def read() -> np.ndarray:
        if path.suffix == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False)
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
                return np.lib.format.read_array(file, allow_pickle=False)
        with safe_open(path, "np") as file:
            return file.get_tensor(name)

    read_shape(path, name)
    return with_reason(path, read, name)


def with_reason(path: Path, read: Callable[[], T], name: str = UNNAMED) -> T:
    """What read() returns. Raises ValueError, which names file and array, for what is wrong."""
    try:
        regular_file(path)
        return read()
    except MemoryError:  # no fault of the file
        raise
    except Exception as error:  # of many kinds
        reason = describe_error(error)
    source = f"the array {name} of {path}" if name else path
    raise ValueError(f"{source} cannot be read as {path.suffix} ({reason}): save it once more")


class ArrayNames(NamedTuple):
    """The name of a split's images in a file, and of the labels beside them, if there are some."""

    images: str
    labels: str | None


def find_arrays(path: Path, split: str) -> ArrayNames | None:
    """The names of a split's arrays; None where there are none. Raises as array_names.

    The only array without a name of labels is that of training.
    """
    names = array_names(path)
    others = [name for name in names if name not in (*LABELS["train"], *LABELS["test"])]
    images = [name for name in DATA[split] if name in names]
    if split == "train" and len(others) == 1:
        images = others
    labels = [name for name in LABELS[split] if name in names]
    return ArrayNames(images[0], next(iter(labels), None)) if images else None


def read_labels(path: Path, name: str, n: int) -> list[str]:
    """The n labels in an array, whole numbers or words, as words.

    Raises ValueError for what is neither.
    """
    labels = read_array(path, name)
    title = f"the array {name} of {path}"
    is_one_each = labels.shape in ((n,), (n, 1))
    check(is_one_each, f"{title} has the shape {labels.shape}, and needs one label for each image")
    values = labels.reshape(n)
    kind = values.dtype.kind
    if kind == "S":
        values = with_reason(path, partial(np.char.decode, values, "utf-8"), name)
    if kind in "SU":
        return [*map(str, values)]
    are_whole = kind in "biu" or (
        kind == "f" and (np.isfinite(values) & (values == np.rint(values))).all()
    )
    check(bool(are_whole), f"{title} has labels that are neither whole numbers nor words")
    return [str(int(value)) for value in values]


def image_shape(shape: tuple[int, ...], title: str) -> tuple[int, int, int, int]:
    """N, H, W and C of an array of images. Raises ValueError for one of another shape."""
    channels_last = (*shape, 1) if len(shape) == 3 else shape
    if len(shape) == 4 and shape[-1] not in (1, 3):
        channels_last = shape[0], *shape[2:], shape[1]
    check(
        len(channels_last) == 4 and channels_last[-1] in (1, 3) and shape[0] > 0,
        f"{title} has the shape {shape}: {SHAPES}",
    )
    sides = channels_last[1:3]
    are_sides = min(sides) >= SMALLEST and max(sides) <= LONGEST * min(sides)
    height, width = sides
    read = f"{title} has the shape {shape}, of images {height} high and {width} wide"
    advice = f"images have {SMALLEST} pixels a side or more; transpose it, or cut signals to images"
    check(are_sides, f"{read}: {SHAPES}; {advice}")
    return channels_last


def black_and_white(array: np.ndarray, title: str) -> tuple[float, float]:
    """What is black and what is white: 0 and 255 of uint8, else 0 or -1, and 1.

    Raises ValueError for other types and ranges, less than a quarter of which too, and for what is
    not finite.
    """
    is_known = array.dtype == np.uint8 or np.issubdtype(array.dtype, np.floating)
    check(is_known, f"{title} holds {array.dtype}: save uint8, or floats in [0, 1] or [-1, 1]")
    parts = [array[k : k + CHUNK] for k in range(0, len(array), CHUNK)]
    least = float(min(part.min() for part in parts))
    most = float(max(part.max() for part in parts))
    is_finite = all(np.isfinite(part).all() for part in parts)
    check(is_finite, f"{title} has pixels that are NaN or infinite: leave these images out")
    black, white = (0.0 if least >= 0 else -1.0), 1.0
    if array.dtype == np.uint8:
        black, white = 0.0, 255.0
    values = f"{array.dtype} from {least:g} to {most:g}, where {black:g} is black, {white:g} white"
    uses_range = black <= least and most <= white and 4 * (most - least) >= white - black
    advice = "scale them to [0, 1] or [-1, 1], or to uint8 from 0 to 255"
    check(uses_range, f"{title} has {values}: {advice}")
    if is_first_process():
        n, height, width, channels = array.shape
        read = f"{n:,} images, {height} high, {width} wide, {channels} channel(s)"
        print(printable(f"{title}: {read}, {values}"))
    return black, white


def to_picture(array: np.ndarray, black: float, white: float, k: int) -> Image.Image:
    """Image k of an array (N, H, W, C), with 8 bits."""
    pixels = np.asarray(array[k], np.float64)
    pixels = np.rint((pixels - black) * (255 / (white - black))).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def read_images(path: Path, name: str, title: str) -> tuple[np.ndarray, float, float]:
    """An array of images as (N, H, W, C), and what is black and white in it, which is printed."""
    array = read_array(path, name)
    shape = image_shape(array.shape, title)
    is_last = array.shape in (shape, shape[:3])
    images = array.reshape(shape) if is_last else np.moveaxis(array, 1, -1)
    return images, *black_and_white(images, title)


def file_split(name: str, root: str | Path, split: str) -> PictureSet:
    """The images of a file for a split. Raises NoSplit, and ValueError for what is no image."""
    path = Path(name)
    arrays = find_arrays(path, split)
    if arrays is None:
        raise NoSplit(f"{name} has no {split} images")
    title = f"{name}-{split}"
    n, *_ = image_shape(read_shape(path, arrays.images), title)
    images = cache(partial(read_images, path, arrays.images, title))  # once, and not for labels
    values = partial(read_labels, path, arrays.labels, n) if arrays.labels else None
    return PictureSet(title, n, lambda k: to_picture(*images(), k), values)


def own_file_settings(name: str, root: str | Path, labelled: bool) -> dict:
    """The channels of images, and the names of labels."""
    path = Path(name)
    arrays = find_arrays(path, "train")
    check(arrays is not None, f"{name} has no array of images: name it images")
    *_, channels = image_shape(read_shape(path, arrays.images), name)
    return {"channels": channels, **picture_settings(name, root, labelled)}
