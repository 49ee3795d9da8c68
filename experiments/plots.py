"""An experiment's picture and caption, from its rows alone."""

from abc import ABC, abstractmethod
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from experiments.results import Claim, Row, claims_table, column_values, means_and_bars, select_rows
from experiments.runner import SHORT_TRAINING, ExperimentRun
from mnist_ddpm.machine.files import replacing


class Experiment(ABC):
    """A paper's experiment: how it is measured, plotted and judged."""

    about: str  # what the picture shows, for the caption
    size: tuple[float, float]  # of the picture, in inches
    training = SHORT_TRAINING  # settings of its networks; {} if it trains none
    seeds_are = "Trainings of each network"  # what differs from seed to seed, for the caption

    @abstractmethod
    def measure(self, run: ExperimentRun, seed: int) -> None:
        """Measures the rows of a seed, but for those that the run has already."""

    @abstractmethod
    def plot(self, rows: list[Row], figure: Figure) -> None:
        """Draws the rows into an empty figure."""

    @abstractmethod
    def claims(self, rows: list[Row]) -> list[Claim]:
        """The paper's claims, with the figures that the rows have for them."""


def plot_points(
    ax: Axes, rows: list[Row], column: str, arms: dict[str, Row], log: bool = False
) -> None:
    """Plots a point for each arm, whose rows its key selects, with its interval over seeds."""
    values = [column_values(rows, column, key) for key in arms.values()]
    means, bars = means_and_bars(values, log)
    ax.errorbar(means, range(len(arms)), xerr=bars, fmt="o", ms=4, capsize=2, lw=1)
    ax.set_yticks(range(len(arms)), arms)
    ax.invert_yaxis()
    ax.set_xscale("log" if log else "linear")
    ax.grid(alpha=0.3, which="both")


def plot_lines(
    ax: Axes, rows: list[Row], column: str, x: str, arms: dict[str, Row], log: bool = False
) -> None:
    """Plots a line over column x for each arm, whose rows its key selects, with intervals.

    Points at the same x are drawn side by side, so that no interval hides another. log: the means
    and intervals are those of the logarithms.
    """
    for i, (label, key) in enumerate(arms.items()):
        positions = sorted({row[x] for row in select_rows(rows, key)})
        values = [column_values(rows, column, {**key, x: position}) for position in positions]
        means, bars = means_and_bars(values, log)
        line = ax.errorbar(positions, means, bars, label=label, marker="o", ms=3, capsize=2, lw=1)
        inches = (i - (len(arms) - 1) / 2) / 28
        shift = ScaledTranslation(inches, 0, ax.figure.dpi_scale_trans)
        for artist in line.get_children():
            artist.set_transform(ax.transData + shift)
    if log:
        ax.set_yscale("log")
    ax.set_xlabel(x)
    ax.grid(alpha=0.3, which="both")


def plot_real_distance(ax: Axes, rows: list[Row], vertical: bool = False) -> None:
    """Plots a dotted line at the distance of real digits."""
    line = ax.axvline if vertical else ax.axhline
    for row in select_rows(rows, {"arm": "real"}):
        line(row["frechet"], color="0.4", ls=":", lw=1, label=f"{row['n']} real digits")


def caption(experiment: Experiment, rows: list[Row]) -> str:
    """What the picture shows, under which conditions, and the verdicts on the paper's claims."""
    seeds = {row["seed"] for row in rows if row.get("seed", "") != ""}
    (real,) = select_rows(rows, {"arm": "real"})
    conditions = (
        f"{experiment.seeds_are}: {len(seeds)}. "
        "Bars are 95 % intervals over them (Student's t). "
        f"A Fréchet distance compares {real['n']} images with all training images. "
        f"That of as many unseen real digits is {real['frechet']:.3f}."
    )
    about = " ".join(experiment.about.split())
    table = "\n".join(claims_table(experiment.claims(rows)))
    return "\n\n".join([about, conditions, table]) + "\n"


def write_plot(experiment: Experiment, rows: list[Row], folder: Path, note: str = "") -> None:
    """Writes plot.png and caption.md to a folder; a note stands above both."""
    figure = Figure(figsize=experiment.size, layout="constrained")
    # on logarithmic scales 20, not 2 × 10¹
    with matplotlib.rc_context({"axes.formatter.min_exponent": 4, "axes.titlesize": 10}):
        experiment.plot(rows, figure)
        if note:
            figure.suptitle(note, fontsize=9, color="tab:red")
        with replacing(folder / "plot.png") as temporary:
            figure.savefig(temporary, format="png", dpi=100, pil_kwargs={"optimize": True})
    text = caption(experiment, rows)
    with replacing(folder / "caption.md") as temporary:
        temporary.write_text(f"{note}.\n\n{text}" if note else text, encoding="utf-8")
