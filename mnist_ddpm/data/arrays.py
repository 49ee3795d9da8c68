"""Arrays in .npy, .npz and .safetensors files: never unpickled, nor larger than the file is."""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open

from mnist_ddpm.data.image_files import regular_file
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
