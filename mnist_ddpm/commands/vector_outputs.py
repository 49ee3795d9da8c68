"""The files that `sample` writes of vectors."""

import csv
from pathlib import Path

import numpy as np
from torch import Tensor

from mnist_ddpm.commands.outputs import write_picture
from mnist_ddpm.data.labels import label_names
from mnist_ddpm.ddpm import Film
from mnist_ddpm.machine import files
from mnist_ddpm.training.recipe import Recipe
from mnist_ddpm.training.vector_samples import picture_of_panels, to_units

MOMENTS = 5  # of the film, in the strip
FILM_VECTORS = 1000


def write_vectors(
    out: Path, vectors: Tensor, film: Film, recipe: Recipe, labels: list[int] | None
) -> list[Path]:
    """Writes vectors (N, D, 1, 1) in the data's units, a plot, and how they came to be.

    labels: of the vectors, for the table's last column. Returns the paths.
    """
    names = [name for name, _, _ in recipe.columns]
    rows = to_units(vectors, recipe.columns)
    with files.replacing(out / "samples.npy") as path, path.open("wb") as file:
        np.save(file, rows)
    with files.replacing(out / "samples.csv") as path:
        with path.open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(names if labels is None else [*names, "label"])
            words = label_names(recipe)
            ends = [[]] * len(rows) if labels is None else [[words[k]] for k in labels]
            table.writerows([*map(repr, row), *end] for row, end in zip(rows.tolist(), ends))
    count = f"{len(rows):,} samples"
    write_picture(out / "samples.png", picture_of_panels([rows], [count], recipe.columns))
    chosen = np.linspace(0, len(film) - 1, min(MOMENTS, len(film))).round().astype(int)
    panels = [to_units(film[k][1], recipe.columns) for k in chosen]
    titles = [f"t = {film[k][0]}" for k in chosen]
    write_picture(out / "steps.png", picture_of_panels(panels, titles, recipe.columns))
    return [out / f"{name}" for name in ("samples.png", "steps.png", "samples.csv", "samples.npy")]
