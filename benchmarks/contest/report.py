"""Results as tables for people."""

from collections.abc import Iterable
from statistics import median

SPEEDS = TRAINING, SAMPLING = "training, images/s", "sampling, network evaluations/s"
COSTS = TRAINING_MEMORY, SAMPLING_MEMORY, FIRST = "training, MB", "sampling, MB", "first image, s"
FIGURES = *SPEEDS, *COSTS


def table(titles: list[str], rows: Iterable[Iterable[object]]) -> None:
    """Prints it as Markdown."""
    for cells in (titles, ["---"] * len(titles), *rows):
        print(f"| {' | '.join(map(str, cells))} |")


def cell(values: list[float]) -> str:
    """The median and, of several, the range."""
    spread = f" ({min(values):.4g}–{max(values):.4g})" if len(values) > 1 else ""
    return f"{median(values):.4g}{spread}"


def ratio(ours: dict[str, float], theirs: dict[str, float]) -> dict[str, float]:
    """How many times faster or smaller."""
    return {name: (ours[name] / theirs[name]) ** (1 if name in SPEEDS else -1) for name in FIGURES}


def ratios(medians: dict[str, dict], peers: list[str]) -> dict[str, dict]:
    """Of each row that is no peer's, to each peer's and to the best of them."""
    found = {}
    for row in [row for row in medians if peers and row not in peers]:
        each = {peer: ratio(medians[row], medians[peer]) for peer in peers}
        best = {name: min(r[name] for r in each.values()) for name in FIGURES}
        found[row] = {"the best peer": best} | each
    return found


def speeds_table(found: dict[str, dict]) -> None:
    """What was measured of each row."""
    lines = []
    for row, about in found.items():
        cells = [cell(about["values"][name]) for name in FIGURES]
        parts = zip(*(start.values() for start in about["starts"]))
        cold = " + ".join(f"{median(part):.2f}" for part in parts)
        lines.append([row, f"{about['parameters']:,}", *cells, cold])
    table(["contestant", "parameters", *FIGURES, "of it import + build + draw"], lines)


def ratios_tables(found: dict[str, dict]) -> None:
    for ours, each in found.items():
        print(f"\nHow many times faster or smaller {ours} is:")
        lines = [[row, *(f"{x:.2f}" for x in r.values())] for row, r in each.items()]
        table(["than", *FIGURES], lines)


def race_table(rows: dict[str, dict], peers: list[str]) -> None:
    """How far from the training images each was in the end, the estimates with intervals."""
    from mnist_ddpm.evaluation.distances import Estimate

    scores = {
        name: [Estimate(**estimate) for estimate in row["metrics"].values()]
        for name, row in rows.items()
    }
    best = min((scores[name][0].value for name in scores if name in peers), default=float("nan"))
    did = "precision", "images trained", "seconds"
    metrics = [name.replace("_", " ") for name in rows["real, unseen"]["metrics"]]
    lines = [
        [
            name, *(row.get(key, "") for key in did), *scores[name],
            f"{scores[name][0].value / best:.3f}",
        ]
        for name, row in rows.items()
    ]  # fmt: skip
    table(["contestant", *did, *metrics, "the first / the best peer's"], lines)
