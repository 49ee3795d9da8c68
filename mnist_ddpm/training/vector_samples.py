"""Vectors in the data's units, and pictures of them."""

import io
from collections.abc import Sequence

import imageio.v3 as imageio
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

MOST_LINES = 100  # in a picture
MOST_NAMES = 8  # below an axis
MOST_DIFFERENT = 10  # of two columns' scales, on one axis
MARGIN = 0.05  # around the vectors, as a share of their extent
Columns = Sequence[tuple[str, float, float]]  # names, means and scales


def to_units(vectors: Tensor, columns: Columns) -> np.ndarray:
    """Vectors (N, D, 1, 1) as networks see them, in the data's units: float64 (N, D)."""
    _, means, scales = zip(*columns)
    return vectors.flatten(1).double().cpu().numpy() * np.array(scales) + np.array(means)


def limits_of(values: np.ndarray) -> tuple[float, float]:
    """The ends of an axis that shows all values, with a margin."""
    least = float(values.min())
    most = float(values.max())
    margin = MARGIN * (most - least) or 1.0
    return least - margin, most + margin


def plot_vectors(axes: Axes, vectors: np.ndarray, columns: Columns, shown: np.ndarray) -> None:
    """Points (N, 2) as a scatter plot, other vectors (N, D) as lines over their columns.

    Columns of very different scales are drawn in standard deviations from their means. shown: the
    vectors that the axes are wide enough for.
    """
    names, means, scales = zip(*columns)
    if len(names) == 2:
        axes.scatter(*vectors.T, s=4, linewidths=0)
        axes.set(xlim=limits_of(shown[:, 0]), ylim=limits_of(shown[:, 1]))
        axes.set(xlabel=names[0], ylabel=names[1])
        return
    if max(scales) > MOST_DIFFERENT * min(scales):
        vectors, shown = ((rows - np.array(means)) / np.array(scales) for rows in (vectors, shown))
        axes.set_ylabel("standard deviations from the mean")
    is_short = len(names) <= MOST_NAMES
    axes.plot(vectors[:MOST_LINES].T, lw=0.7, alpha=0.5, marker="." if is_short else "", ms=3)
    axes.set(ylim=limits_of(shown))
    if is_short:
        axes.set_xticks(range(len(names)), names, rotation=20)
    else:
        axes.set_xlabel("column")


def picture_of_panels(
    panels: Sequence[np.ndarray], titles: Sequence[str], columns: Columns
) -> np.ndarray:
    """Sets of vectors (N, D) side by side, with the axes of the last: uint8 (height, width, 3)."""
    figure = Figure(figsize=(3.4 * len(panels), 3.4), dpi=110, layout="constrained")
    for k, (vectors, title) in enumerate(zip(panels, titles)):
        axes = figure.add_subplot(1, len(panels), k + 1)
        plot_vectors(axes, vectors, columns, panels[-1])
        axes.set_title(title, fontsize=9)
    encoded = io.BytesIO()
    figure.savefig(encoded, format="png")
    return imageio.imread(encoded.getvalue(), extension=".png")[..., :3]
