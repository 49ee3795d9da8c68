"""Image files whose pixels say which image they are, and a recipe for them."""

import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mnist_ddpm.recipe import Recipe, Size

NAMES = [f"{k:06d}.jpg" for k in range(1, 8)]
ORIGINAL, HALF = (178, 218), (89, 109)


def image_recipe(
    dataset: str = "celeba", image_size: Size = 16, channels: int = 3, **settings
) -> Recipe:
    """A recipe whose network takes images of any size."""
    sizes = {"image_size": image_size, "channels": channels, "patch_size": 1}
    return Recipe(dataset=dataset, channel_mults=(1,), **sizes, **settings)


def plain(k, size=ORIGINAL):
    """An image of one colour that stands for its number."""
    return Image.new("RGB", size, (10 * k, 5 * k, 250 - 10 * k))


def ramp(width, height):
    """Red is the column, green the row."""
    row, column = np.mgrid[:height, :width].astype(np.uint8)
    return Image.fromarray(np.stack([column, row, 0 * row], axis=2))


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "PNG")  # whatever its name: without loss, so that pixels can be compared


def save_celeba(folder, names=NAMES, size=ORIGINAL):
    for name in names:
        save(folder / name, plain(int(Path(name).stem[-2:]), size))


def save_some(folder, n=6):
    for k in range(n):
        save(folder / f"{k}.png", plain(k % 25, (20, 20)))


def zipped(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, image in files.items():
            with archive.open(name, "w") as file:
                image.save(file, "PNG")


def numbers(images):
    """The numbers of plain images."""
    assert images.dtype == torch.uint8 and images.shape[1:] == (3, 16, 16)
    assert torch.equal(images, images[:, :, :1, :1].expand_as(images))
    return (images[:, 0, 0, 0] // 10).tolist()


def listing(cache, suffix=""):
    return sorted(path.name for path in Path(cache).glob(f"*{suffix}"))
