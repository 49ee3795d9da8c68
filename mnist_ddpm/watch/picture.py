"""progress.png: the curves of a validated run, and what becomes of the same noise over time."""

from pathlib import Path

import imageio.v3 as imageio
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from mnist_ddpm.machine.files import replacing
from mnist_ddpm.watch.progress import Progress, Record
from mnist_ddpm.watch.verdict import DISTANCES, find_verdict, tenths

PICTURE = "progress.png"
MOMENTS = 16  # columns of images, at most
STYLES = "-.", "--", ":"  # of the references
GREY = "0.45"


def strip_path(folder: Path, step: int) -> Path:
    """Where the images of a validation are, side by side."""
    return folder / "previews" / f"validation_{step:07d}.png"


def write_strip(folder: Path, step: int, picture: np.ndarray) -> None:
    """Writes a strip of images (height, width, 3)."""
    with replacing(strip_path(folder, step)) as temporary:
        temporary.write_bytes(imageio.imwrite("<bytes>", picture, extension=".png"))


def write_progress_picture(folder: Path, progress: Progress) -> None:
    """Draws progress.png in the run's folder, from its records and strips. Raises OSError."""
    records = progress.measured()
    last = progress.records[-1]
    panels = []
    if records and records[-1].losses is not None:
        panels += [plot_losses, plot_tenths]
    if records and records[-1].distance is not None:
        panels.append(plot_distances)
    figure = Figure(figsize=(10.5, 6.2), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1, 0.95))
    figure.suptitle(f"Step {last.step:,} of {last.total_steps:,}: {find_verdict(progress).kind}")
    for ax, plot in zip(np.atleast_1d(upper.subplots(1, max(1, len(panels)))), panels):
        plot(ax, progress, records)
        low, high = ax.get_ylim()
        digits = (1, 2, 5) if high < 100 * low else (1,)
        ax.yaxis.set_major_locator(LogLocator(subs=digits))
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.yaxis.set_minor_locator(NullLocator())
        ax.tick_params(labelsize=7)
        ax.spines[["top", "right"]].set_visible(False)
    draw_strips(lower.subplots(), folder, records)
    with replacing(folder / PICTURE) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def plot_losses(ax: Axes, progress: Progress, records: list[Record]) -> None:
    """The mean loss against the step. The band is the error beside the best linear prediction."""
    steps = [record.step for record in records]
    mean = np.array([np.mean(record.losses) for record in records])
    ax.plot(steps, mean, "o-", ms=3, lw=1.2, color="C0")
    for style, (name, losses) in zip(STYLES, progress.references.items()):
        draw_level(ax, float(np.mean(losses)), name, style, side="left")
    ax.set(yscale="log", xlabel="step", title="Does the loss fall?")


def plot_tenths(ax: Axes, progress: Progress, records: list[Record]) -> None:
    """The loss by t, beside what is reachable."""
    t = (np.arange(10) + 0.5) * progress.T / 10
    for style, (name, losses) in zip(STYLES, progress.references.items()):
        ax.plot(t, tenths(losses, progress.T), color=GREY, lw=1, ls=style, label=name)
    own = tenths(records[-1].losses, progress.T)
    ax.plot(t, own, "o-", ms=3, lw=1.2, color="C0", label="this network")
    ax.set(yscale="log", xlabel="t", title="At which t is it behind?")
    ax.legend(fontsize=7, frameon=False)


def plot_distances(ax: Axes, progress: Progress, records: list[Record]) -> None:
    """The distance with its interval, against the step."""
    steps = [record.step for record in records]
    value, low, high = np.array([record.distance for record in records]).T
    ax.errorbar(steps, value, [value - low, high - value], fmt="o-", ms=3, lw=1.2, color="C1")
    for style, name in zip(STYLES, DISTANCES):
        distance = getattr(progress, f"{name}_distance")
        if distance is not None:
            draw_level(ax, distance.value, DISTANCES[name], style)
    ax.set(yscale="log", xlabel="step", title="Do the images get better?")


def draw_level(ax: Axes, level: float, name: str, style: str, side: str = "right") -> None:
    """A line across the panel, with its name above an end."""
    ax.axhline(level, color=GREY, lw=1, ls=style)
    where = {"xycoords": ax.get_yaxis_transform(), "textcoords": "offset points"}
    end, shift = (1, -2) if side == "right" else (0, 2)
    ax.annotate(name, (end, level), (shift, 2), ha=side, fontsize=7, color=GREY, **where)


def draw_strips(ax: Axes, folder: Path, records: list[Record]) -> None:
    """A column of images for each of some records, a row for each noise."""
    chosen = np.unique(np.linspace(0, max(0, len(records) - 1), MOMENTS).round().astype(int))
    steps = [records[k].step for k in chosen if records]
    steps = [step for step in steps if strip_path(folder, step).is_file()]
    ax.set_title("What becomes of the same noise?")
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0, labelsize=8)
    ax.set(xticks=[], yticks=[])
    if steps:
        strips = [imageio.imread(strip_path(folder, step)) for step in steps]
        picture = np.concatenate(strips, axis=1)
        ax.imshow(picture, interpolation="nearest")
        centres = (np.arange(len(steps)) + 0.5) * picture.shape[1] / len(steps)
        ax.set_xticks(centres, [f"{step:,}" for step in steps])
        ax.set_xlabel("step")
