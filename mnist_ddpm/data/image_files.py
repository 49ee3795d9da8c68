"""Finds a data set's image files, in folders and in zip archives."""

import os
import re
import stat
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from mnist_ddpm.machine.text import printable

DEEPEST = 100  # folders within each other: os.walk calls itself for each
ROOT_ONLY = "lost+found"  # a file system's own folder, which only root may read


class Files(NamedTuple):
    """Image files below a folder or in a zip archive, in the order of the data set."""

    root: Path
    names: list[str]  # relative to root, with "/" between folders


def regular_file(path: Path) -> Path:
    """A file's path. Raises ValueError for a pipe, which would keep us waiting, or a device.

    Raises OSError where there is none.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is no regular file")
    return path


def walk_folders(
    root: str | Path, onerror: Callable[[OSError], object] | None = None
) -> Iterator[tuple[Path, list[str]]]:
    """Each folder from root down with its files, sorted; no hidden ones, none twice through links.

    onerror gets the error of a folder that cannot be read. Without it such a folder is skipped.
    Raises ValueError where folders are nested deeper than DEEPEST.
    """
    seen = set()
    depth = len(Path(root).parts)
    for folder, below, names in os.walk(root, onerror=onerror, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            below.clear()
            continue
        if len(Path(folder).parts) - depth > DEEPEST:
            raise ValueError(f"{root} has folders nested more than {DEEPEST} deep: move them out")
        seen.add(real)
        below[:] = sorted(name for name in below if not name.startswith(".") and name != ROOT_ONLY)
        yield Path(folder), sorted(name for name in names if not name.startswith("."))


def zip_folders(path: Path) -> list[tuple[Path, list[str]]]:
    """Each folder in an archive with its files. Of a damaged archive none, and a printed line."""
    folders = defaultdict(list)
    try:
        with zipfile.ZipFile(regular_file(path)) as archive:
            for name in archive.namelist():
                folder = path / os.path.dirname(name)
                if folder.is_relative_to(path):  # not where the name is an absolute path
                    folders[folder].append(os.path.basename(name))
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        print(printable(f"{path} is damaged or no zip archive, and was skipped ({error})"))
    return list(folders.items())


def find_image_files(root: str | Path, mention: str, pattern: str) -> list[tuple[Path, Files]]:
    """Folders, also in zips, with files whose names fit a pattern.

    They are root itself, and those below it whose paths fit `mention`, which names the data set.
    Folders 00000, 01000, … count as one: the folder that they lie in.
    """
    top = Path(root).absolute()
    files_by_place = {}
    fits = re.compile(pattern, re.IGNORECASE).fullmatch

    def mentioned(path: Path) -> bool:
        return re.search(mention, path.relative_to(top.parent).as_posix().lower()) is not None

    for folder, names in walk_folders(top):
        archives = [folder / name for name in names if name.lower().endswith(".zip")]
        archives = [path for path in archives if mentioned(path)]
        packed = [pair for path in archives for pair in zip_folders(path)]
        for inner_folder, inside in [(folder, names), *packed]:
            files = [name for name in inside if fits(name)]
            is_numbered = inner_folder != top and re.fullmatch(r"\d{5}", inner_folder.name)
            place = inner_folder.parent if is_numbered else inner_folder
            if files and (place == top or mentioned(place)):
                around = (path for path in archives if path in (place, *place.parents))
                base = next(around, place)
                inner = inner_folder.relative_to(base).as_posix()
                prefix = "" if inner == "." else f"{inner}/"
                known = files_by_place.setdefault(place, Files(base, []))
                known.names.extend(prefix + name for name in files)
    return [
        (place, Files(files.root, sorted(files.names)))
        for place, files in sorted(files_by_place.items())
    ]
