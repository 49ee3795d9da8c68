"""FFHQ: 70,000 faces (Karras et al., arXiv 1812.04948)."""

import re
from functools import partial
from pathlib import Path

from torch import Tensor

from mnist_ddpm import ddpm
from mnist_ddpm.data.cache import load_files
from mnist_ddpm.data.pictures import fitted
from mnist_ddpm.data.search import Files, search

NAMES = r"(img)?(\d{5}|\d{8})\.(png|jpe?g|webp)"
MENTION = r"^(?!.*in-the-wild).*(ffhq|thumbnails128x128|images1024x1024)"
TRAIN, TEST = 60_000, 10_000
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
        named = re.search(r"\d{2,4}$", pair[0].stem)
        side = int(named[0]) if named else 1024
        small = side < max(recipe.shape[1:])
        return small, -side if small else side, -len(pair[1].names)

    found = search(root, MENTION, NAMES)
    ddpm.check(bool(found), f"no FFHQ below {root}: {HELP.format(Path(root, 'ffhq'))}")
    place, (top, names) = min(found, key=preference)
    if len(names) == TRAIN + TEST:
        names = names[:TRAIN] if split == "train" else names[TRAIN:]
    else:
        count = f"{len(names):,} images, not FFHQ's {TRAIN + TEST:,}"
        ddpm.check(split == "train", f"{place} has {count}: none are held out to test")
    fit = partial(fitted, shape=recipe.shape)
    return load_files(Files(top, names), recipe.shape, Path(root, "cache"), f"ffhq-{split}", fit)
