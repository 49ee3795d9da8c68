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
from mnist_ddpm.data.loading import NotDownloaded, load_with_advice
from mnist_ddpm.data.pictures import Files, Shape, crop_and_resize, find_image_files, walk_folders

NAMES = r"\d{6}\.(jpe?g|png|webp)"
WIDTH = 178  # of an original
HEIGHT = 218
CROP = 140  # side of the centred square that is used of it
SPLITS = "train", "valid", "test"
LAST = 162_770, 182_637, 202_599  # number of the last image in each
HELD_OUT = 500  # images to validate on, of more than ten times as many without official ones
FILES = "img_align_celeba.zip, list_eval_partition.txt and (for labels) list_attr_celeba.txt"
PAGE = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html (for non-commercial research only)"
HELP = f"download {FILES} from CelebA's page, {PAGE}, into the folder {{}}; the zip may stay packed"


def find_celeba(root: str | Path) -> list[tuple[Path, Files]]:
    """Each folder or archive with images of CelebA's, at root or below."""
    return find_image_files(root, "celeba", NAMES)


def image_number(name: str) -> str:
    """The number in a file's name, 000001 of img_align_celeba/000001.jpg."""
    return name.rpartition("/")[2].partition(".")[0]


def read_table(root: str | Path, name: str) -> tuple[list[str], dict[str, list[int]]] | None:
    """Column names, and the values of each image by its number, from name.txt or .csv below root.

    None where there is no such file. Raises ValueError for a damaged one.
    """
    wanted = f"{name}.txt", f"{name}.csv"
    files = ((folder / file) for folder, files in walk_folders(root) for file in files)
    path = next((file for file in files if file.name in wanted), None)
    if path is None:
        return None
    columns = []
    rows = {}
    try:
        for line in path.read_text(encoding="utf-8-sig").splitlines():
            words = line.replace(",", " ").split()
            if words and re.fullmatch(r"\d+\.\w+", words[0]):
                rows[image_number(words[0])] = [int(word) for word in words[1:]]
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
    places = find_celeba(root)
    if not places:
        raise NotDownloaded(f"no CelebA below {root}: {HELP.format(Path(root, 'celeba'))}")
    _, files = min(places, key=lambda it: (it[0].stem != "img_align_celeba", -len(it[1].names)))
    partition = read_table(root, "list_eval_partition")

    def split_of(name: str) -> int:
        if partition:
            return partition[1].get(image_number(name), [-1])[0]
        return bisect_left(LAST, int(image_number(name)))

    splits = {name: split_of(name) for name in files.names}
    training = [name for name in files.names if splits[name] == 0]
    chosen = [name for name in files.names if splits[name] == SPLITS.index(split)]
    if len(training) == len(splits) > 10 * HELD_OUT:
        chosen = {"train": training[:-HELD_OUT], "valid": training[-HELD_OUT:]}.get(split, [])
    advice = HELP.format(files.root.parent)
    ddpm.check(bool(chosen), f"{files.root} has no image of CelebA's {split} split: {advice}")
    return Files(files.root, chosen)


def crop_face(image: Image.Image, shape: Shape) -> Image.Image:
    """The centre of a face, in the shape's proportions and of its size.

    It is taken from CROP of an original's 178 columns, and as large a share of its 218 rows. A
    picture that has not the originals' shape counts as cropped already.
    """
    width, height = image.size
    if abs(width / height * HEIGHT / WIDTH - 1) < 0.02:
        width = CROP * min(width / WIDTH, height / HEIGHT)
        height = width * HEIGHT / WIDTH
    return crop_and_resize(image, shape, within=(width, height))


def download_celeba(root: str | Path) -> None:
    """Downloads all of CelebA below root."""
    from torchvision import datasets  # takes two seconds

    datasets.CelebA(root, split="all", download=True)


def load_celeba(recipe, root: str | Path = "data", split: str = "train") -> Tensor:
    """The "train", "valid" or "test" split: uint8 (N, *recipe.shape).

    torchvision tries to download what is not there. Raises as celeba_files and load_files do, and
    FileNotFoundError where the download fails.
    """
    if not find_celeba(root):
        advice = HELP.format(Path(root, "celeba"))
        load_with_advice("CelebA", partial(download_celeba, root), advice)
    files = celeba_files(root, split)
    fit = partial(crop_face, shape=recipe.shape)
    return load_files(files, recipe.shape, Path(root, "cache"), f"celeba-{split}", fit)


def celeba_attributes(
    recipe, root: str | Path = "data", split: str = "train"
) -> tuple[list[str], Tensor]:
    """The 40 attributes' names, and which each image of load_celeba has: bool (N, 40).

    Call load_celeba with the same arguments first: its cache (or, where none can be written, this
    process) knows the images that cannot be read, which are left out here too. Raises ValueError
    where list_attr_celeba is missing or lacks an image.
    """
    files = celeba_files(root, split)
    table = read_table(root, "list_attr_celeba")
    advice = HELP.format(Path(root, "celeba"))
    ddpm.check(table is not None, f"no list_attr_celeba.txt or .csv below {root}: {advice}")
    names, rows = table
    cache = cache_path(files, recipe.shape, Path(root, "cache"), f"celeba-{split}")
    skipped = {*skipped_names(cache)}
    numbers = [image_number(name) for name in files.names if name not in skipped]
    missing = [number for number in numbers if number not in rows]
    if missing:
        lacking = f"no line for {len(missing)} images, such as {missing[0]}"
        raise ValueError(f"list_attr_celeba has {lacking}: replace it")
    return names, torch.tensor([rows[number] for number in numbers]) > 0


def celeba_targets(recipe, root: str | Path = "data", split: str = "train") -> Tensor:
    """The 40 attributes of load_celeba's images: bool (N, 40). Raises as celeba_attributes does."""
    return celeba_attributes(recipe, root, split)[1]


def celeba_labels(recipe, root: str | Path = "data", split: str = "train") -> Tensor:
    """Labels of load_celeba's images: int64 (N,). Of the named attributes the i-th counts 2^i.

    Raises ValueError for attributes that CelebA has not, or another number of classes, and as
    celeba_attributes does.
    """
    chosen = recipe.attributes
    ddpm.check(bool(chosen), "attributes is empty: for labels of celeba name some, such as Smiling")
    classes = 2 ** len(chosen)
    fits = recipe.classes == classes
    ddpm.check(fits, f"classes is {recipe.classes}: {len(chosen)} attributes make {classes}")
    names, present = celeba_attributes(recipe, root, split)
    fits = {*chosen} <= {*names} and len({*chosen}) == len(chosen)
    ddpm.check(fits, f"attributes is {chosen}: take different ones of {', '.join(names)}")
    columns = present[:, [names.index(name) for name in chosen]]
    return (columns * 2 ** torch.arange(len(chosen))).sum(dim=1)
