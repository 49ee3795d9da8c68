"""How to draw best, for the kinds of networks with which that was measured.

A checkpoint's config.json says it under "draw". The figures are in docs/results.md,
docs/samplers.md and docs/plan.md.
"""

from collections.abc import Iterable
from pathlib import Path

from mnist_ddpm.training.checkpoint_files import told_advice
from mnist_ddpm.training.recipe import Recipe

DIGITS = {"sampler": "dpmpp", "steps": 20, "eta": 1.0}
FACES = {"sampler": "dpmpp", "steps": 20, "eta": 0.0}
FEW = {"steps": 4}  # of a network that was trained for few
# By data set and schedule, with T = 1000
BEST = {("mnist", "linear", 1000): DIGITS, ("celeba", "cosine", 1000): FACES}
# Of digits, away from a network that was trained a tenth as long
GUIDED = {"guidance": 1.5, "guidance_interval": [0, 500]}


def best(recipe: Recipe) -> dict:
    """Flags of sample and their values; {} where nothing was measured."""
    if recipe.network == "shortcut":
        return {"sampler": "shortcut", **FEW}
    if recipe.objective == "consistency":
        return {"sampler": "consistency", **FEW}
    if recipe.objective == "matching":
        return {"sampler": "consistency", **FEW, "spacing": "signal"}
    return dict(BEST.get((recipe.dataset, recipe.schedule, recipe.T), {}))


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
