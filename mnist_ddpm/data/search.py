"""Finds a data set's image files, in folders and in zip archives."""

import os
import re
import stat
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from mnist_ddpm.machine.text import printable

LOST = "lost+found"  # a file system's own folder, which only root may read


class Files(NamedTuple):
    """Image files below a folder or in a zip archive, in the order of the data set."""

    root: Path
    names: list[str]  # relative to root, with "/" between folders


def regular(path: Path) -> Path:
    """A file's path. Raises ValueError for a pipe, which would keep us waiting, or a device.

    Raises OSError where there is none.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is no regular file")
    return path


def walk(
    root: str | Path, onerror: Callable[[OSError], object] | None = None
) -> Iterator[tuple[Path, list[str]]]:
    """Each folder from root down with its files, sorted; no hidden ones, none twice through links.

    onerror gets the error of a folder that cannot be read. Without it such a folder is skipped.
    """
    seen = set()
    for folder, below, names in os.walk(root, onerror=onerror, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted(name for name in below if not name.startswith(".") and name != LOST)
        yield Path(folder), sorted(name for name in names if not name.startswith("."))


def zip_folders(path: Path) -> list[tuple[Path, list[str]]]:
    """Each folder in an archive with its files. Of a damaged archive none, and a printed line."""
    folders = {}
    try:
        with zipfile.ZipFile(regular(path)) as archive:
            for name in archive.namelist():
                folders.setdefault(path / os.path.dirname(name), []).append(os.path.basename(name))
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        told = printable(f"{path} is damaged or no zip archive, and was skipped ({error})")
        print(told)
    return list(folders.items())


def search(root: str | Path, mention: str, pattern: str) -> list[tuple[Path, Files]]:
    """Folders, also in zips, with files whose names fit a pattern.

    They are root itself, and those below it whose paths fit `mention`, which names the data set.
    Folders 00000, 01000, … count as one: the folder that they lie in.
    """
    top, found = Path(root).absolute(), {}
    fits = re.compile(pattern, re.IGNORECASE).fullmatch

    def mentioned(path: Path) -> bool:
        return re.search(mention, path.relative_to(top.parent).as_posix().lower()) is not None

    for folder, names in walk(top):
        zips = [folder / name for name in names if name.lower().endswith(".zip")]
        zips = [path for path in zips if mentioned(path)]
        for place, inside in [
            (folder, names),
            *(pair for path in zips for pair in zip_folders(path)),
        ]:
            files = [name for name in inside if fits(name)]
            numbered = place != top and re.fullmatch(r"\d{5}", place.name)
            whole = place.parent if numbered else place
            if files and (whole == top or mentioned(whole)):
                base = next((path for path in zips if path in (whole, *whole.parents)), whole)
                inner = "" if place == base else place.relative_to(base).as_posix() + "/"
                found.setdefault(whole, Files(base, [])).names.extend(inner + f for f in files)
    return [
        (place, Files(files.root, sorted(files.names))) for place, files in sorted(found.items())
    ]
