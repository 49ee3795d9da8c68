"""MNIST's digits and their labels, from its four official archives.

They are read in memory, where gzip compares their checksums: nothing is unpacked beside them.
"""

import gzip
import os
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mnist_ddpm.data.loading import load_with_advice
from mnist_ddpm.data.pictures import margin
from mnist_ddpm.datasets import MNIST
from mnist_ddpm.ddpm import check
from mnist_ddpm.recipe import format_size

ARCHIVES = {"train": "train", "test": "t10k"}  # a split's name, and that in its archives' names
LARGEST = 16 + 60_000 * 28 * 28  # bytes of the training images
ADVICE = "restore {}, one of the four official archives, or name another folder with --data"


def load_mnist(recipe, root: str | Path = "data", split: str = "train") -> Tensor:
    """As ddpm.load_mnist, for any recipe: uint8 (60000, or 10000 to test, 1, H, W).

    Raises ValueError for another split or a size that padding cannot reach, FileNotFoundError
    for archives that are missing or damaged.
    """
    side = MNIST.padded_side
    fits = all(each >= side and each % 2 == 0 for each in recipe.shape[1:])
    size = format_size(recipe.image_size)
    check(fits, f"image_size is {size}: mnist is padded, so take an even number from {side}")
    vertical, horizontal = margin(recipe)
    digits = read_split(root, split, "images-idx3")
    return F.pad(digits.unsqueeze(1), [horizontal, horizontal, vertical, vertical])


def mnist_labels(recipe, root: str | Path = "data", split: str = "train") -> Tensor:
    """The digits' values: int64 (60000 or, to test, 10000). Raises as load_mnist does.

    Raises ValueError, too, where the recipe has attributes, or other than 10 classes.
    """
    fits = recipe.classes == 10 and not recipe.attributes
    check(fits, f"classes is {recipe.classes}: for mnist take 10, and name no attributes")
    return read_split(root, split, "labels-idx1").long()


def read_split(root: str | Path, split: str, kind: str) -> Tensor:
    """The "images-idx3" or "labels-idx1" of a split. Raises as load_mnist does."""
    check(split in ARCHIVES, f'MNIST has no split "{split}": take train or test')
    path = Path(root, "MNIST", "raw", f"{ARCHIVES[split]}-{kind}-ubyte.gz")
    return load_with_advice("MNIST", partial(read_archive, path), ADVICE.format(path))


def unpack(path: Path) -> bytes:
    """The content of a gzip file. Raises OSError where it is larger than MNIST's, or damaged."""
    with gzip.open(path) as file:
        data = file.read(LARGEST + 1)  # to its end, where gzip compares the checksum
    if len(data) > LARGEST:
        raise OSError(f"{path} unpacks to more than MNIST's {LARGEST:,} bytes")
    return data


def read_archive(path: Path) -> Tensor:
    """What one of MNIST's archives holds, downloaded if missing or damaged: uint8 (N, …)."""
    check(path.is_file() or not os.path.lexists(path), f"{path} is no regular file")
    try:
        data = unpack(path)
    except (OSError, EOFError, zlib.error):
        from torchvision import datasets  # takes two seconds

        md5 = dict(datasets.MNIST.resources)[path.name]
        mirror = datasets.MNIST.mirrors[0]
        datasets.utils.download_url(mirror + path.name, path.parent, md5=md5)
        data = unpack(path)
    sides = 1 if "idx1" in path.name else 3
    # IDX: a magic number that ends in how many sides there are, then they, then bytes
    check(data[:4] == bytes([0, 0, 8, sides]), f"{path} holds no IDX file of {sides} dimension(s)")
    shape = np.frombuffer(data, ">i4", sides, offset=4).tolist()
    return torch.frombuffer(bytearray(data), dtype=torch.uint8, offset=4 + 4 * sides).view(shape)
