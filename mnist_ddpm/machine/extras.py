"""Packages that only some features need: pip installs them with an extra of this package."""

from importlib import import_module
from types import ModuleType

from mnist_ddpm.machine.files import first_line


def import_extra(extra: str, *names: str) -> list[ModuleType]:
    """The modules of these names. Raises ValueError, which names the extra, if one is missing."""
    try:
        return [import_module(name) for name in names]
    except ImportError as error:
        packages = " ".join(name.split(".")[0] for name in names)
        raise ValueError(
            f"{packages} cannot be imported ({first_line(error)}): "
            f'pip install ".[{extra}]" in a clone, or pip install {packages}'
        ) from error
