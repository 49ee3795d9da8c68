"""One picture of an examination: what the code draws with an exact network, and what is right."""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from diffusion_doctor import mathematics
from diffusion_doctor.bugs import BUGS
from diffusion_doctor.mathematics import Schedule
from diffusion_doctor.oracles import points_oracle, run_sampler
from diffusion_doctor.report import Report
from diffusion_doctor.sampler_results import in_range
from diffusion_doctor.schedule_checks import VISIBLE
from diffusion_doctor.subject import Subject

SHOWN = 10  # images a row


def draw_picture(subject: Subject, report: Report, path: Path) -> str | None:
    """Writes the picture that shows most of what was given; returns its path, or None without one.

    A sampler shows images of four shapes drawn with their exact denoiser; other code the curve of
    its schedule, as does a sampler that fails.
    """
    if subject.schedule is None or not subject.schedule.a.isfinite().all():
        return None
    figure = None
    try:
        if subject.sampler is not None:
            figure = sampler_figure(subject)
    except Exception:  # of any kind, in code that others wrote: the checks have reported it
        pass
    figure = figure or schedule_figure(subject)
    figure.suptitle(title_of(report), fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return str(path)


def title_of(report: Report) -> str:
    """The likeliest cause, or that nothing was found."""
    if report.is_ok:
        return "Nothing wrong was found"
    titles = [BUGS[bug].title for bug, _ in report.causes()]
    return f"Likeliest cause: {titles[0]}" if titles else "Something is wrong"


def shapes(shape: tuple[int, ...]) -> Tensor:
    """A ring, a cross, a square and stripes in [-1, 1] (4, *shape), for images (C, H, W)."""
    _, height, width = shape
    y = torch.linspace(-1, 1, height).view(-1, 1)
    x = torch.linspace(-1, 1, width).view(1, -1)
    radius = (x.square() + y.square()).sqrt()
    far = torch.maximum(x.abs().expand(height, width), y.abs().expand(height, width))
    patterns = [
        (radius > 0.45) & (radius < 0.8),
        ((x.abs() < 0.22) | (y.abs() < 0.22)) & (far < 0.85),
        far < 0.55,
        ((x + y + 4) * 2.2 % 2 < 1) & (far < 0.85),
    ]
    return torch.stack([pattern.expand(shape).float() * 1.8 - 0.9 for pattern in patterns])


def sampler_figure(subject: Subject) -> Figure | None:
    """Images of shapes that the user's sampler and DDPM's steps draw."""
    points = shapes(subject.shape).double()
    run = run_sampler(subject, points_oracle(subject, points), SHOWN, 0)
    if run.images is None:
        return None
    drawn = in_range(subject, run.images.float())
    distances = torch.cdist(drawn.flatten(1).double(), points.flatten(1)).nan_to_num(1e9)
    error = drawn - points[distances.argmin(dim=1)].float()
    levels = levels_of_run(subject, run.code_times)
    rows = [
        ("your sampler", drawn),
        ("their error × 10", error * 10),
        (
            "a right one",
            right_samples(levels, mathematics.ideal_denoiser(levels, points), subject.shape),
        ),
    ]
    return rows_figure(rows, "An exact denoiser of four shapes, not a network")


def levels_of_run(subject: Subject, code_times: Tensor) -> Schedule:
    """The schedule of the times at which a sampler called the network."""
    entries = subject.entries(code_times).clamp(1, subject.T).round().long().unique()
    return mathematics.respaced(subject.path, entries.flip(0).tolist())


def right_samples(
    levels: Schedule, denoise: mathematics.Denoiser, shape: tuple[int, ...]
) -> Tensor:
    """Images (SHOWN, *shape) by DDPM's steps along a schedule."""
    generator = torch.Generator().manual_seed(0)

    def noise() -> Tensor:
        return torch.randn(SHOWN, *shape, generator=generator, dtype=torch.float64)

    start = noise() * levels.b[-1]
    *_, (_, x, _) = mathematics.ddpm_sampler(
        denoise, levels, [*range(levels.T, 0, -1)], start, noise
    )
    return x.float()


def rows_figure(rows: list[tuple[str, Tensor]], caption: str) -> Figure:
    """Rows of images (N, C, H, W) in [-1, 1], each with its name."""
    figure = Figure(figsize=(8, 0.4 + len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), 1)
    for ax, (name, images) in zip(axes, rows):
        images = images[:, :3] if images.shape[1] >= 3 else images[:, :1]
        framed = torch.nn.functional.pad(images[:SHOWN].nan_to_num(), [1, 1, 1, 1], value=-0.5)
        row = torch.cat([*framed], dim=2).permute(1, 2, 0).clamp(-1, 1) / 2 + 0.5
        ax.imshow(row.expand(-1, -1, 3).numpy(), interpolation="nearest")
        ax.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=10)
        ax.set_xticks([])
        ax.set_yticks([])
    axes[-1].set_xlabel(caption, fontsize=9)
    return figure


def schedule_figure(subject: Subject) -> Figure:
    """Signal over noise of the schedule, beside DDPM's linear and the cosine schedule."""
    figure = Figure(figsize=(6, 3.4), layout="constrained")
    ax = figure.subplots()
    lines = {
        "yours": subject.schedule,
        "linear (DDPM)": mathematics.linear(),
        "cosine (Improved DDPM)": mathematics.cosine(),
    }
    for name, schedule in lines.items():
        ratio = (schedule.a / schedule.b)[1:].clamp(min=1e-6).numpy()
        style = {"linewidth": 2.5} if name == "yours" else {"linewidth": 1, "linestyle": "--"}
        ax.plot(torch.linspace(0, 1, len(ratio)), ratio, label=name, **style)
    ax.axhline(VISIBLE, color="grey", linewidth=0.8)
    ax.text(0, VISIBLE * 1.1, "the image shows at T above this line", fontsize=8, color="grey")
    ax.set_yscale("log")
    ax.set_xlabel("t / T")
    ax.set_ylabel("signal over noise, a_t / b_t")
    ax.legend(fontsize=9)
    return figure
