"""How to draw best, for the kinds of networks with which that was measured.

A checkpoint's config.json says it under "draw". The figures are in docs/results.md,
docs/samplers.md and docs/plan.md.
"""

from collections.abc import Iterable
from pathlib import Path

from mnist_ddpm.datasets import dataset_named
from mnist_ddpm.training.checkpoint_files import told_advice
from mnist_ddpm.training.recipe import Recipe

FEW = {"steps": 4}  # of a network that was trained for few


def best(recipe: Recipe) -> dict:
    """Flags of sample and their values; {} where nothing was measured."""
    if recipe.network == "shortcut":
        return {"sampler": "shortcut", **FEW}
    if recipe.objective == "consistency":
        return {"sampler": "consistency", **FEW}
    if recipe.objective == "matching":
        return {"sampler": "consistency", **FEW, "spacing": "signal"}
    return dict(dataset_named(recipe.dataset).draw.get((recipe.schedule, recipe.T), {}))


def advice_for(recipe: Recipe, folder: str | Path, resume: bool) -> dict:
    """What to write for a run: that of its recipe, or of the checkpoint that it goes on from."""
    told = told_advice(folder) if resume else None
    return best(recipe) if told is None else told


def as_typed(values: Iterable[tuple[str, object]]) -> list[str]:
    """Flags and their values as they are typed."""
    words = []
    for name, value in values:
        words.append(f"--{name.replace('_', '-')}")
        words += [
            f"{each:g}" if isinstance(each, float) else str(each)
            for each in (value if isinstance(value, list | tuple) else (value,))
        ]
    return words
