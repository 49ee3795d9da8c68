"""FFHQ: 70,000 faces (Karras et al., arXiv 1812.04948)."""

import re
from functools import partial
from pathlib import Path

from torch import Tensor

from mnist_ddpm import ddpm
from mnist_ddpm.data.cache import load_files
from mnist_ddpm.data.pictures import Files, crop_and_resize, find_image_files

NAMES = r"(img)?(\d{5}|\d{8})\.(png|jpe?g|webp)"
MENTION = r"^(?!.*in-the-wild).*(ffhq|thumbnails128x128|images1024x1024)"
IMAGES = 70_000
TRAINING = 60_000
HELP = (
    "download thumbnails128x128 (for sizes up to 128) or images1024x1024 from FFHQ's page, "
    "https://github.com/NVlabs/ffhq-dataset (CC BY-NC-SA 4.0), into the folder {}; "
    "a zip named ffhq…zip does as well"
)


def load_ffhq(recipe, root: str | Path = "data", split: str = "train") -> Tensor:
    """The first 60,000 images, or (split "test") the last 10,000: uint8 (N, *recipe.shape).

    Of several variants, the smallest that need not be enlarged. Anything but all 70,000 images is
    for training only. Raises as load_files does, ValueError where there is nothing.
    """
    ddpm.check(split in ("train", "test"), f'FFHQ has no split "{split}": take train or test')

    def preference(pair: tuple[Path, Files]) -> tuple[bool, int, int]:
        size_in_name = re.search(r"\d{2,4}$", pair[0].stem)
        side = int(size_in_name[0]) if size_in_name else 1024
        is_small = side < max(recipe.shape[1:])
        return is_small, -side if is_small else side, -len(pair[1].names)

    variants = find_image_files(root, MENTION, NAMES)
    ddpm.check(bool(variants), f"no FFHQ below {root}: {HELP.format(Path(root, 'ffhq'))}")
    place, (top, names) = min(variants, key=preference)
    if len(names) == IMAGES:
        names = names[:TRAINING] if split == "train" else names[TRAINING:]
    else:
        count = f"{len(names):,} images, not FFHQ's {IMAGES:,}"
        ddpm.check(split == "train", f"{place} has {count}: none are held out to test")
    fit = partial(crop_and_resize, shape=recipe.shape)
    return load_files(Files(top, names), recipe.shape, Path(root, "cache"), f"ffhq-{split}", fit)
