"""torchvision's data sets, with errors that say what to do."""

import errno
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
DISK_ERRORS = errno.EACCES, errno.ENOSPC, errno.EROFS


class NotDownloaded(ValueError):
    """Files are missing that will be downloaded when the images are loaded."""


def load_with_advice(name: str, load: Callable[[], T], advice: str) -> T:
    """What load() returns, from files that are there, or downloads.

    Raises FileNotFoundError, in one line, where it fails; the disk's own error where that is why.
    """
    try:
        return load()
    except Exception as error:  # no network, no gdown, a quota, a damaged archive …
        reason = error.__cause__ if isinstance(error, FileNotFoundError) else None
        reason = reason or error
        if getattr(reason, "errno", None) in DISK_ERRORS:  # the archives are sound
            raise reason from None
        message = " ".join(str(reason).split())
        raise FileNotFoundError(f"{name} could not be loaded ({message}): {advice}") from error
