"""One's own images in a .npy, .npz or .safetensors file.

Arrays are never unpickled, and never larger than the file says.
"""

import os
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

import numpy as np
from PIL import Image
from safetensors import SafetensorError, safe_open

from mnist_ddpm.data.loading import NoSplit
from mnist_ddpm.data.picture_sets import PictureSet, picture_settings
from mnist_ddpm.data.pictures import regular_file
from mnist_ddpm.ddpm import check
from mnist_ddpm.machine import devices
from mnist_ddpm.machine.text import describe_error

T = TypeVar("T")
UNNAMED = ""  # the name of the array in a .npy file
DATA = {  # names of a split's data
    "train": ("images", "train_images", "x_train", "x", "data"),
    "test": ("test_images", "x_test"),
}
LABELS = {"train": ("labels", "train_labels", "y_train", "y"), "test": ("test_labels", "y_test")}
SHAPES = "images are (N, H, W), (N, H, W, C) or (N, C, H, W), of 1 or 3 channels"
CHUNK = 1000  # images whose range is looked at together


def check_declared_size(file: BinaryIO, size: int) -> None:
    """Raises ValueError unless a .npy file of that size holds what its header declares."""
    check(size > 0, "it is empty")
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0
    shape, _, dtype = (read if version == (1, 0) else np.lib.format.read_array_header_2_0)(file)
    check(not dtype.hasobject, "it holds Python objects, which are never loaded")
    declared = int(np.prod([1, *shape], dtype=object)) * dtype.itemsize
    there = size - file.tell()
    check(declared == there, f"its header declares {declared:,} bytes, and it has {there:,}")


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


def read_array(path: Path, name: str = UNNAMED) -> np.ndarray:
    """One of the arrays in a file; that of a .npy file is mapped.

    Raises ValueError for a damaged file, one with pickled objects, or one larger than memory.
    """

    def read() -> np.ndarray:
        if path.suffix == ".npy":
            with path.open("rb") as file:
                check_declared_size(file, os.path.getsize(path))
            return np.load(path, mmap_mode="r", allow_pickle=False)
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as archive:
                size = archive.getinfo(f"{name}.npy").file_size
                devices.check_memory(size, name, "split it")
                with archive.open(f"{name}.npy") as file:
                    check_declared_size(file, size)
                with archive.open(f"{name}.npy") as file:
                    return np.lib.format.read_array(file, allow_pickle=False)
        devices.check_memory(os.path.getsize(path), name, "split it")
        with safe_open(path, "np") as file:
            return file.get_tensor(name)

    return with_reason(path, read)


def with_reason(path: Path, read: Callable[[], T]) -> T:
    """What read() returns. Raises ValueError, which names the file, for what is wrong with it."""
    try:
        regular_file(path)
        return read()
    except MemoryError:  # no fault of the file
        raise
    except (OSError, ValueError, EOFError, KeyError, TypeError, SyntaxError) as error:
        reason = describe_error(error)
    except (zipfile.BadZipFile, NotImplementedError, SafetensorError, AttributeError) as error:
        reason = describe_error(error)
    raise ValueError(f"{path} cannot be read as {path.suffix} ({reason}): save it once more")


class NamedArray(NamedTuple):
    """The data of a split, and the labels beside them in the same file, if there are some."""

    values: np.ndarray
    labels: np.ndarray | None


def array_of_split(names: list[str], split: str) -> str | None:
    """The name of a split's array; None where there is none.

    The only array without a name of labels is that of training.
    """
    others = [name for name in names if name not in (*LABELS["train"], *LABELS["test"])]
    candidates = [name for name in DATA[split] if name in names]
    if split == "train" and len(others) == 1:
        candidates = others
    return candidates[0] if candidates else None


def find_array(path: Path, split: str) -> NamedArray | None:
    """A split's array in a file, named as array_of_split; or None. Raises as read_array."""
    names = array_names(path)
    name = array_of_split(names, split)
    if name is None:
        return None
    labels = [name for name in LABELS[split] if name in names]
    return NamedArray(read_array(path, name), read_array(path, labels[0]) if labels else None)


def label_words(labels: np.ndarray, n: int, title: str) -> list[str]:
    """n labels, whole numbers or words, as words. Raises ValueError for what is neither."""
    labels = labels.reshape(len(labels), -1)
    is_one_each = labels.shape == (n, 1)
    check(is_one_each, f"{title} has labels of the shape {labels.shape}, and needs one for each")
    values = labels[:, 0]
    if values.dtype.kind in "SU":
        return [value.decode() if isinstance(value, bytes) else str(value) for value in values]
    are_whole = values.dtype.kind in "biu" or (np.isfinite(values) & (values % 1 == 0)).all()
    check(bool(are_whole), f"{title} has labels that are neither whole numbers nor words")
    return [str(int(value)) for value in values]


def as_images(array: np.ndarray, title: str) -> np.ndarray:
    """The same array as (N, H, W, C). Raises ValueError for another shape."""
    shape = array.shape
    has_images = array.ndim in (3, 4) and min(shape) > 0
    check(has_images, f"{title} has the shape {shape}: {SHAPES}")
    if array.ndim == 3:
        is_single = shape[-1] in (1, 3, 4)
        check(not is_single, f"{title} has the shape {shape}, as of one image: {SHAPES}")
        return array[..., None]
    if shape[-1] not in (1, 3) and shape[1] in (1, 3):
        return np.moveaxis(array, 1, -1)
    check(shape[-1] in (1, 3), f"{title} has the shape {shape}: {SHAPES}")
    return array


def black_and_white(array: np.ndarray, title: str) -> tuple[float, float]:
    """What is black and what is white: 0 and 255 of uint8, else 0 or -1, and 1.

    Raises ValueError for other types and ranges, for what is not finite, and for equal pixels.
    """
    is_known = array.dtype == np.uint8 or np.issubdtype(array.dtype, np.floating)
    check(is_known, f"{title} holds {array.dtype}: save uint8, or floats in [0, 1] or [-1, 1]")
    parts = [array[k : k + CHUNK] for k in range(0, len(array), CHUNK)]
    least = float(min(part.min() for part in parts))
    most = float(max(part.max() for part in parts))
    is_finite = all(np.isfinite(part).all() for part in parts)
    check(is_finite, f"{title} has pixels that are NaN or infinite: leave these images out")
    check(least < most, f"all pixels of {title} are {least:g}: there is nothing to learn")
    if array.dtype == np.uint8:
        return 0.0, 255.0
    is_known = -1 <= least and most <= 1
    advice = "scale them to [0, 1] or [-1, 1], or save uint8"
    check(is_known, f"{title} has floats from {least:g} to {most:g}: {advice}")
    return (0.0 if least >= 0 else -1.0), 1.0


def to_picture(array: np.ndarray, black: float, white: float, k: int) -> Image.Image:
    """Image k of an array (N, H, W, C), with 8 bits."""
    pixels = np.asarray(array[k], np.float64)
    pixels = np.rint((pixels - black) * (255 / (white - black))).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def file_split(name: str, root: str | Path, split: str) -> PictureSet:
    """The images of a file for a split. Raises NoSplit, and ValueError for what is no image."""
    arrays = find_array(Path(name), split)
    if arrays is None:
        raise NoSplit(f"{name} has no {split} images")
    title = f"{name}-{split}"
    images = as_images(arrays.values, title)
    black, white = black_and_white(images, title)
    labels = arrays.labels
    values = None if labels is None else partial(label_words, labels, len(images), title)
    return PictureSet(title, len(images), partial(to_picture, images, black, white), values)


def own_file_settings(name: str, root: str | Path, labelled: bool) -> dict:
    """The channels of images, and the names of labels."""
    arrays = find_array(Path(name), "train")
    check(arrays is not None, f"{name} has no array of images: name it images")
    channels = as_images(arrays.values, name).shape[-1]
    black_and_white(arrays.values, name)
    return {"channels": channels, **picture_settings(name, root, labelled)}
