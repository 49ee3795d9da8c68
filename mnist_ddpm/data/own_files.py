"""One's own data in a file: images in an array, vectors in an array or a table."""

from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from mnist_ddpm.data import vectors
from mnist_ddpm.data.arrays import find_array, label_words
from mnist_ddpm.data.loading import NoSplit
from mnist_ddpm.data.picture_sets import PictureSet, load_pictures, picture_labels, picture_settings
from mnist_ddpm.ddpm import check

SHAPES = "images are (N, H, W), (N, H, W, C) or (N, C, H, W), of 1 or 3 channels"
CHUNK = 1000  # images whose range is looked at together


def as_images(array: np.ndarray, title: str) -> np.ndarray:
    """The same array as (N, H, W, C). Raises ValueError for another shape."""
    shape = array.shape
    has_images = array.ndim in (3, 4) and min(shape) > 0
    check(has_images, f"{title} has the shape {shape}: {SHAPES}, and vectors (N, D)")
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


def load_own_file(recipe, root: str | Path = "data", split: str = "train") -> Tensor:
    """Images as load_pictures, or vectors as load_vectors. Raises as these."""
    return (vectors.load_vectors if recipe.is_vector else load_pictures)(recipe, root, split)


def own_file_labels(recipe, root: str | Path = "data", split: str = "train") -> Tensor:
    """Their labels: int64 (N,). Raises as picture_labels and vector_labels."""
    return (vectors.vector_labels if recipe.is_vector else picture_labels)(recipe, root, split)


def own_file_settings(name: str, root: str | Path, labelled: bool) -> dict:
    """The channels of images, or the columns of vectors; and the names of labels."""
    path = Path(name)
    if path.suffix == ".csv":
        return vectors.vector_settings(name, labelled)
    arrays = find_array(path, "train")
    check(arrays is not None, f"{name} has no array of images: name it images")
    if arrays.values.ndim == 2:
        return vectors.vector_settings(name, labelled)
    channels = as_images(arrays.values, name).shape[-1]
    black_and_white(arrays.values, name)
    return {"channels": channels, **picture_settings(name, root, labelled)}
