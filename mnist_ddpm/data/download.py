"""torchvision's data sets, with errors that say what to do."""

import errno
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
OF_THE_DISK = errno.EACCES, errno.ENOSPC, errno.EROFS


class NotDownloaded(ValueError):
    """Files are missing that will be downloaded when the images are loaded."""


def fetched(name: str, load: Callable[[], T], advice: str) -> T:
    """What load() gives, from files that are there, or downloads.

    Raises FileNotFoundError, in one line, where it fails; the disk's own error where that is why.
    """
    try:
        return load()
    except Exception as error:  # no network, no gdown, a quota, a damaged archive …
        reason = error.__cause__ if isinstance(error, FileNotFoundError) else None
        reason = reason or error
        if getattr(reason, "errno", None) in OF_THE_DISK:  # the archives are sound
            raise reason from None
        said = " ".join(str(reason).split())
        raise FileNotFoundError(f"{name} could not be loaded ({said}): {advice}") from error
