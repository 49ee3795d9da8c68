"""Settings that belong together, by name."""

from collections.abc import Mapping

from mnist_ddpm.ddpm import check
from mnist_ddpm.training.options import PRESETS, settled
from mnist_ddpm.training.recipe import Recipe


def preset(name: str, **given) -> Recipe:
    """The recipe of that name; what is given wins. Raises ValueError for an unknown name."""
    check(name in PRESETS, f'preset "{name}" is unknown: take one of {", ".join(PRESETS)}')
    return resolve(given, PRESETS[name])


def resolve(given: Mapping, base: Mapping) -> Recipe:
    """What is given, and for all else what the base says: a preset, a saved run's settings.

    A value that is given always wins, also one equal to the default. Values of the base that it
    makes void are left out.
    """
    return Recipe(**settled(given, base))
