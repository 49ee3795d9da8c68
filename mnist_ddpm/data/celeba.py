"""CelebA: 202,599 aligned faces with 40 attributes (Liu et al., arXiv 1411.7766)."""

import re
from bisect import bisect_left
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from mnist_ddpm import ddpm
from mnist_ddpm.data.cache import cache_path, load_files, skipped_names
from mnist_ddpm.data.download import NotDownloaded, fetched
from mnist_ddpm.data.pictures import Shape, fitted
from mnist_ddpm.data.search import Files, search, walk

NAMES = r"\d{6}\.(jpe?g|png|webp)"
WIDTH, HEIGHT = 178, 218  # of an original
CROP = 140  # side of the square that is kept of it
SPLITS = "train", "valid", "test"
LAST = 162_770, 182_637, 202_599  # number of the last image in each
HELD_OUT = 500  # images to validate on, of more than ten times as many without official ones
FILES = "img_align_celeba.zip, list_eval_partition.txt and (for labels) list_attr_celeba.txt"
PAGE = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html (for non-commercial research only)"
HELP = f"download {FILES} from CelebA's page, {PAGE}, into the folder {{}}; the zip may stay packed"


def find_celeba(root: str | Path) -> list[tuple[Path, Files]]:
    """Each folder or archive with images of CelebA's, at root or below."""
    return search(root, "celeba", NAMES)


def number(name: str) -> str:
    """img_align_celeba/000001.jpg to 000001."""
    return name.rpartition("/")[2].partition(".")[0]


def read_list(root: str | Path, name: str) -> tuple[list[str], dict[str, list[int]]] | None:
    """Column names, and each image's numbers by its own, from name.txt or .csv anywhere below root.

    None where there is no such file. Raises ValueError for a damaged one.
    """
    wanted = f"{name}.txt", f"{name}.csv"
    paths = (place / file for place, files in walk(root) for file in files if file in wanted)
    path, columns, rows = next(paths, None), [], {}
    if path is None:
        return None
    try:
        for line in path.read_text(encoding="utf-8-sig").splitlines():
            words = line.replace(",", " ").split()
            if words and re.fullmatch(r"\d+\.\w+", words[0]):
                rows[number(words[0])] = [int(word) for word in words[1:]]
            elif len(words) > 1:
                columns = [word for word in words if word != "image_id"]
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): download it again") from error
    even = {len(row) for row in rows.values()} == {len(columns) or 1}
    ddpm.check(even, f"{path} is damaged (lines of several lengths, or none): download it again")
    return columns, rows


def celeba_files(root: str | Path, split: str) -> Files:
    """A split's images, by number: from img_align_celeba, else the fullest other folder.

    Splits are those of list_eval_partition below root; without that file, the official ones, by
    number. Of a copy that has training images only, the last 500 are held out as "valid". Raises
    ValueError for an unknown split, and where there are no images.
    """
    ddpm.check(split in SPLITS, f'CelebA has no split "{split}": take one of {", ".join(SPLITS)}')
    found = find_celeba(root)
    if not found:
        raise NotDownloaded(f"no CelebA below {root}: {HELP.format(Path(root, 'celeba'))}")
    fullest = min(found, key=lambda it: (it[0].stem != "img_align_celeba", -len(it[1].names)))
    top, names = fullest[1]
    partition = read_list(root, "list_eval_partition")

    def part(name: str) -> int:
        if partition:
            return partition[1].get(number(name), [-1])[0]
        return bisect_left(LAST, int(number(name)))

    training = [name for name in names if part(name) == 0]
    chosen = [name for name in names if part(name) == SPLITS.index(split)]
    if len(training) == len(names) > 10 * HELD_OUT:
        chosen = {"train": training[:-HELD_OUT], "valid": training[-HELD_OUT:]}.get(split, [])
    advice = HELP.format(top.parent)
    ddpm.check(bool(chosen), f"{top} has no image of CelebA's {split} split: {advice}")
    return Files(top, chosen)


def face(image: Image.Image, shape: Shape, crop: int) -> Image.Image:
    """The centre of a face, in the shape's proportions and of its size.

    It is taken from `crop` of an original's 178 columns, and as large a share of its 218 rows. A
    picture that has not the originals' shape counts as cropped already.
    """
    width, height = image.size
    if abs(width / height * HEIGHT / WIDTH - 1) < 0.02:
        kept = crop * min(width / WIDTH, height / HEIGHT)
        width, height = min(width, kept), min(height, kept * HEIGHT / WIDTH)
    return fitted(image, shape, within=(width, height))


def from_torchvision(root: str | Path) -> None:
    """Downloads all of CelebA below root."""
    from torchvision import datasets  # takes two seconds

    datasets.CelebA(root, split="all", download=True)


def load_celeba(
    recipe, root: str | Path = "data", split: str = "train", crop: int = CROP, download: bool = True
) -> Tensor:
    """The "train", "valid" or "test" split: uint8 (N, *recipe.shape).

    crop: side of the centred square that is kept of 178 x 218 pixels; of a rectangle the width, at
    most. download: torchvision tries where there is nothing. Raises as celeba_files and load_files
    do, ValueError for a crop that does not fit, FileNotFoundError where the download fails.
    """
    ddpm.check(1 <= crop <= WIDTH, f"crop is {crop}: take 1 to {WIDTH}, the width of an image")
    if download and not find_celeba(root):
        fetched("CelebA", lambda: from_torchvision(root), HELP.format(Path(root, "celeba")))
    files, fit = celeba_files(root, split), partial(face, shape=recipe.shape, crop=crop)
    return load_files(files, recipe.shape, Path(root, "cache"), f"celeba-{split}", fit, crop)


def celeba_attributes(
    recipe, root: str | Path = "data", split: str = "train", crop: int = CROP
) -> tuple[list[str], Tensor]:
    """The 40 attributes' names, and which each image of load_celeba has: bool (N, 40).

    Call load_celeba with the same arguments first: its cache (or, where none can be written, this
    process) knows the images that cannot be read, which are left out here too. Raises ValueError
    where list_attr_celeba is missing or lacks an image.
    """
    files, listed = celeba_files(root, split), read_list(root, "list_attr_celeba")
    advice = HELP.format(Path(root, "celeba"))
    ddpm.check(listed is not None, f"no list_attr_celeba.txt or .csv below {root}: {advice}")
    path = cache_path(files, recipe.shape, Path(root, "cache"), f"celeba-{split}", crop)
    skipped = set(skipped_names(path))
    numbers = [number(name) for name in files.names if name not in skipped]
    missing = [each for each in numbers if each not in listed[1]]
    if missing:
        lacking = f"no line for {len(missing)} images, such as {missing[0]}"
        raise ValueError(f"list_attr_celeba has {lacking}: replace it")
    return listed[0], torch.tensor([listed[1][each] for each in numbers]) > 0


def celeba_targets(recipe, root: str | Path = "data", split: str = "train") -> Tensor:
    """The 40 attributes of load_celeba's images: bool (N, 40). Raises as celeba_attributes does."""
    return celeba_attributes(recipe, root, split)[1]


def celeba_labels(recipe, root: str | Path = "data", split: str = "train") -> Tensor:
    """Labels of load_celeba's images: int64 (N,). Of the named attributes the i-th counts 2^i.

    Raises ValueError for attributes that CelebA has not, or another number of classes, and as
    celeba_attributes does.
    """
    asked = recipe.attributes
    ddpm.check(bool(asked), "attributes is empty: for labels of celeba name some, such as Smiling")
    fits = recipe.classes == 2 ** len(asked)
    ddpm.check(fits, f"classes is {recipe.classes}: {len(asked)} attributes make {2 ** len(asked)}")
    names, present = celeba_attributes(recipe, root, split)
    fits = set(asked) <= set(names) and len(set(asked)) == len(asked)
    ddpm.check(fits, f"attributes is {asked}: take different ones of {', '.join(names)}")
    columns = present[:, [names.index(name) for name in asked]]
    return (columns * 2 ** torch.arange(len(asked))).sum(dim=1)
