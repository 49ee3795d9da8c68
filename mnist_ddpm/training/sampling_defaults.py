"""How to draw best, for the kinds of networks with which that was measured.

A checkpoint's config.json says it under "draw". The figures are in docs/results.md,
docs/samplers.md and docs/plan.md.
"""

from collections.abc import Iterable
from pathlib import Path

from mnist_ddpm.datasets import dataset_named
from mnist_ddpm.training.recipe import Recipe
from mnist_ddpm.training.run import Run
from mnist_ddpm.training.saving import config_value


def measured_defaults(recipe: Recipe) -> dict:
    """Flags of sample and their values; {} where nothing was measured."""
    return dict(dataset_named(recipe.dataset).draw.get((recipe.schedule, recipe.T), {}))


def defaults_for_run(run: Run, folder: str | Path, resume: bool) -> dict:
    """What to write for a run: what a resumed one's checkpoint says, else what suits its method."""
    recorded = config_value(folder, "draw") if resume else None
    if recorded is not None:
        return recorded
    return run.method.sampling_defaults or measured_defaults(run.settings)


def as_typed(values: Iterable[tuple[str, object]]) -> list[str]:
    """Flags and their values as they are typed."""
    words = []
    for name, value in values:
        words.append(f"--{name.replace('_', '-')}")
        several = value if isinstance(value, list | tuple) else [value]
        words += [f"{each:g}" if isinstance(each, float) else str(each) for each in several]
    return words
