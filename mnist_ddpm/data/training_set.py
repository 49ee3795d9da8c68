"""What a training has read, in lines and in a picture, before its first step."""

from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from mnist_ddpm.data.labels import SHOWN, label_names
from mnist_ddpm.ddpm import check, tile
from mnist_ddpm.recipe import Recipe

CHUNK = 1000  # images that are looked at together
LEAST_RANGE = 64  # of 255: pixels of a smaller range are those of another scale
DRAWN = 64
COLUMNS = 8
CELL_WIDTH = 64  # pixels, or more
TEXT_HEIGHT = 13


def describe_training_set(images: Tensor, labels: Tensor | None, recipe: Recipe) -> Iterator[str]:
    """Lines about images, uint8 (N, C, H, W), and their labels (N,).

    Raises ValueError where all images are the same, or nearly black, or without contrast.
    """
    digests = set()
    ranges = []
    for part in images.split(CHUNK):
        array = part.numpy()
        ranges.append((int(array.min()), int(array.max())))
        digests.update(hash(image.tobytes()) for image in array)
    least = min(low for low, _ in ranges)
    most = max(high for _, high in ranges)
    values = f"pixels from {least} to {most}"
    source = f"{recipe.dataset} is read as {values}, where 0 is black and 255 white"
    check(most - least >= LEAST_RANGE, f"{source}: scale its images to the full range")
    n, channels, height, width = images.shape
    check(len(digests) > 1, f"the {n:,} images of {recipe.dataset} are all the same: add others")
    size = f"{height} high, {width} wide, {channels} channel(s)"
    yield f"{n:,} images, {size}, {values}, {n - len(digests):,} exact duplicates"
    if labels is not None:
        counts = torch.bincount(labels, minlength=recipe.classes).tolist()
        listed = [f"{name}: {count}" for name, count in zip(label_names(recipe), counts)]
        others = " …" if len(listed) > SHOWN else ""
        yield f"images of each label: {', '.join(listed[:SHOWN])}{others}"


def draw_training_set(images: Tensor, labels: Tensor | None, recipe: Recipe) -> np.ndarray:
    """A picture of 64 of the images, spread over all, with their labels' names below them."""
    chosen = torch.linspace(0, len(images) - 1, min(DRAWN, len(images))).long()
    scale = -(-CELL_WIDTH // images.shape[3])
    if labels is None:
        return tile(images[chosen], COLUMNS, scale)
    names = label_names(recipe)
    cells = []
    for k in chosen[labels[chosen].argsort(stable=True)].tolist():
        picture = Image.fromarray(tile(images[k : k + 1], 1, scale))
        cell = Image.new("RGB", (picture.width, picture.height + TEXT_HEIGHT))
        cell.paste(picture)
        name = names[labels[k]].encode("latin-1", "replace").decode("latin-1")  # what fonts have
        ImageDraw.Draw(cell).text((2, picture.height), name, "white")
        cells.append(torch.from_numpy(np.array(cell)).permute(2, 0, 1))
    return tile(torch.stack(cells), COLUMNS)
