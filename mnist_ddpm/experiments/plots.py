"""An experiment's picture and caption, from its rows alone."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from mnist_ddpm.experiments.claims import Claim, claims_table, spread
from mnist_ddpm.experiments.rows import Row, column, matching
from mnist_ddpm.experiments.runner import Lab
from mnist_ddpm.machine.files import replacing


class Experiment(NamedTuple):
    """A paper's experiment: how it is done, drawn and judged."""

    run: Callable[[Lab], None]  # measures its rows
    plot: Callable[[list[Row], Figure], None]
    claims: Callable[[list[Row]], list[Claim]]
    about: str  # of the caption: what the picture shows
    size: tuple[float, float]  # of the picture, in inches
    training: dict  # settings of its networks; none where it trains none
    seeds: str = "Trainings of each network"  # of the caption: what differs from seed to seed


def points(ax: Axes, rows: list[Row], name: str, arms: list[str], log: bool = False, **key) -> None:
    """A point for each arm, with its interval over seeds."""
    middle, ends = spread([column(rows, name, arm=arm, **key) for arm in arms], log)
    ax.errorbar(middle, range(len(arms)), xerr=ends, fmt="o", ms=4, capsize=2, lw=1)
    ax.set_yticks(range(len(arms)), arms)
    ax.invert_yaxis()
    ax.set_xscale("log" if log else "linear")
    ax.grid(alpha=0.3, which="both")


def lines(
    ax: Axes, rows: list[Row], name: str, x: str, arms: dict[str, Row], log: bool = False
) -> None:
    """A line for each arm over x, with its interval over seeds; log: of the logarithms.

    What lies at the same x is drawn side by side, so that no interval hides another.
    """
    for i, (label, key) in enumerate(arms.items()):
        at = sorted({row[x] for row in matching(rows, key)})
        middle, ends = spread([column(rows, name, **key, **{x: value}) for value in at], log)
        drawn = ax.errorbar(at, middle, ends, label=label, marker="o", ms=3, capsize=2, lw=1)
        inches = (i - (len(arms) - 1) / 2) / 28
        beside = ScaledTranslation(inches, 0, ax.figure.dpi_scale_trans)
        for artist in drawn.get_children():
            artist.set_transform(ax.transData + beside)
    if log:
        ax.set_yscale("log")
    ax.set_xlabel(x)
    ax.grid(alpha=0.3, which="both")


def floor_line(ax: Axes, rows: list[Row], across: bool = True) -> None:
    """A dotted line at the distance of real digits; across: from left to right."""
    line = ax.axhline if across else ax.axvline
    for row in matching(rows, {"arm": "real"}):
        line(row["frechet"], color="0.4", ls=":", lw=1, label=f"{row['n']} real digits")


def caption(experiment: Experiment, rows: list[Row]) -> str:
    """What the picture shows, under which conditions, and what becomes of the paper's claims."""
    seeds = {row["seed"] for row in rows if row.get("seed", "") != ""}
    (real,) = matching(rows, {"arm": "real"})
    conditions = (
        f"{experiment.seeds}: {len(seeds)}. "
        "Bars are 95 % intervals over them (Student's t). "
        f"A Fréchet distance compares {real['n']} images with all training images. "
        f"That of as many unseen real digits is {real['frechet']:.3f}."
    )
    about = " ".join(experiment.about.split())
    parts = [about, conditions, "\n".join(claims_table(experiment.claims(rows)))]
    return "\n\n".join(parts) + "\n"


def draw_plot(experiment: Experiment, rows: list[Row], folder: Path, note: str = "") -> None:
    """Writes plot.png and caption.md to a folder; a note stands above both."""
    figure = Figure(figsize=experiment.size, layout="constrained")
    # on logarithmic scales 20, not 2 × 10¹
    with matplotlib.rc_context({"axes.formatter.min_exponent": 4, "axes.titlesize": 10}):
        experiment.plot(rows, figure)
        if note:
            figure.suptitle(note, fontsize=9, color="tab:red")
        figure.savefig(folder / "plot.png", dpi=100, pil_kwargs={"optimize": True})
    text = caption(experiment, rows)
    with replacing(folder / "caption.md") as partial:
        partial.write_text(f"{note}.\n\n{text}" if note else text, encoding="utf-8")
