"""Pictures that a command is given: to start from, to inpaint, and to judge."""

import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mnist_ddpm import ddpm
from mnist_ddpm.data import folders, pictures
from mnist_ddpm.data.pictures import regular_file
from mnist_ddpm.machine import devices
from mnist_ddpm.machine.text import describe_error
from mnist_ddpm.recipe import Recipe


def read_image(path: Path, mask: Path | None, recipe: Recipe) -> tuple[Tensor, Tensor | None]:
    """A file's image (1, C, H, W) in [-1, 1], and its mask (1, 1, H, W): 1 known, 0 to inpaint.

    It fits images to a network: 28 x 28 pixels are padded for one of MNIST;
    others are cropped to its shape and resized.
    Raises ValueError for a file that is no image, and a mask of another size, or hiding nothing.
    """
    image = pictures.open_image(path, "L" if recipe.channels == 1 else "RGB")
    x0 = ddpm.to_float(fit_to_network(image, recipe, 0, Image.Resampling.LANCZOS))
    if mask is None:
        return x0, None
    stencil = pictures.open_image(mask, "L")
    if stencil.size != image.size:
        sizes = ["{} x {}".format(*picture.size) for picture in (stencil, image)]
        message = f"the mask is {sizes[0]} pixels and the image {sizes[1]}"
        raise ValueError(f"{message}: they must be of the same size")
    known = fit_to_network(stencil, recipe, 255, Image.Resampling.NEAREST) > 127
    message = "paint black what is to be inpainted (transparent is white)"
    ddpm.check(not known.all(), f"{mask} hides nothing: {message}")
    return x0, known.float()


def read_condition_images(path: Path, recipe: Recipe, n: int) -> Tensor:
    """A picture, or the first n of a folder, as images to take a condition of: uint8 (M, C, H, W).

    Raises as read_image, and as folders.list_image_files.
    """
    paths = folders.list_image_files(path)[:n] if path.is_dir() else [path]
    return torch.cat([read_condition_image(each, recipe) for each in paths])


def read_condition_image(path: Path, recipe: Recipe) -> Tensor:
    """A picture as an image (1, C, H, W), uint8; for condition small it may be that small already.

    It is then enlarged pixel by pixel, so that its squares' means are its own pixels.
    """
    image = pictures.open_image(path, "L" if recipe.channels == 1 else "RGB")
    smaller = recipe.condition == "small" and image.width < recipe.shape[2]
    resample = Image.Resampling.BOX if smaller else Image.Resampling.LANCZOS
    return fit_to_network(image, recipe, 0, resample)


def fit_to_network(
    image: Image.Image, recipe: Recipe, fill: int, resample: Image.Resampling
) -> Tensor:
    """A picture in the network's size: uint8 (1, C, H, W). fill: the colour of MNIST's margin."""
    _, height, width = recipe.shape
    image = pictures.with_margin(image, recipe, fill)
    image = pictures.crop_and_resize(image, recipe.shape, resample)
    return torch.from_numpy(np.array(image)).view(1, height, width, -1).permute(0, 3, 1, 2)


def holds_samples(folder: Path) -> bool:
    """Whether the sample command wrote this folder, with an array beside pictures of all images."""
    return (folder / "samples.npz").is_file()


def read_images(path: Path, recipe: Recipe, data: Path) -> Tensor:
    """Images to judge, uint8 (N, C, H, W), from a samples.npz or a folder.

    Raises ValueError where they do not fit.
    """
    if holds_samples(path):
        path = path / "samples.npz"
        print(f"judging the images in {path}")
    if path.is_dir():
        return folders.load_folder(recipe, path, data / "cache")
    try:
        with regular_file(path).open("rb") as file:
            ddpm.check(zipfile.is_zipfile(file), "it is no zip archive")
        with np.load(path) as arrays:
            size = arrays.zip.getinfo("images.npy").file_size  # which a small file may unpack to
            devices.check_memory(size, f"{path}", "split it")
            images = torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2)
    except MemoryError:  # no fault of the file
        raise
    except Exception as error:  # NumPy's are of many kinds
        message = f"{path} is neither a folder nor a samples.npz of the sample command"
        raise ValueError(f"{message} ({describe_error(error)})") from error
    shape = images.shape
    is_right = images.dtype == torch.uint8 and shape[1:] == recipe.shape
    message = f"{path} holds {images.dtype} {tuple(shape)}, not uint8 (n, {recipe.shape})"
    ddpm.check(is_right, message)
    return images
