"""Settings that belong together, by name."""

from collections.abc import Mapping

from mnist_ddpm.ddpm import check
from mnist_ddpm.training.options import PRESETS, merge_settings
from mnist_ddpm.training.recipe import Recipe


def preset(name: str, **changes) -> Recipe:
    """The recipe of that name, with some changes. Raises ValueError for an unknown name."""
    check(name in PRESETS, f'preset "{name}" is unknown: take one of {", ".join(PRESETS)}')
    return resolve(changes, PRESETS[name])


def resolve(changes: Mapping, base: Mapping) -> Recipe:
    """The recipe of a base, such as a preset or a saved run's settings, with some changes.

    A change always wins, also one to the default. Values of the base that no longer make sense
    beside it are left out.
    """
    return Recipe(**merge_settings(changes, base))
