"""Rows of results in a CSV file, intervals over seeds, and verdicts on a paper's claims."""

import csv
import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mnist_ddpm.evaluation.distances import Estimate
from mnist_ddpm.machine.files import replacing

Row = dict[str, str | int | float]  # what was measured, and the figures
# 97.5 % quantiles of Student's t for 2, 3, … 10 seeds
STUDENT = [12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262]


def parse_cell(text: str) -> str | int | float:
    """A cell of a CSV file as it was before it was written."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def read_rows(path: Path) -> list[Row]:
    """The rows of a CSV file; none if there is no file. An empty cell is ""."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [
            {name: text if name == "arm" else parse_cell(text) for name, text in row.items()}
            for row in csv.DictReader(file)
        ]


def write_rows(path: Path, rows: list[Row]) -> None:
    """Writes all rows to a CSV file, with a column for each name that any of them has."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows(rows)


def select_rows(rows: list[Row], key: Row) -> list[Row]:
    """The rows that have all of key's values."""
    return [row for row in rows if key.items() <= row.items()]


def column_values(rows: list[Row], column: str, key: Row) -> list[float]:
    """A column's values in the rows that have all of key's: one for each seed."""
    return [row[column] for row in select_rows(rows, key) if row.get(column, "") != ""]


def values_by_seed(rows: list[Row], column: str, key: Row) -> dict[int, float]:
    """The values of column_values, by their rows' seeds."""
    chosen = [row for row in select_rows(rows, key) if row.get(column, "") != ""]
    return {row["seed"]: row[column] for row in chosen}


def mean_and_half_interval(values: list[float]) -> tuple[float, float]:
    """The mean, and half of the 95 % interval (Student's t); nan if there are too few values."""
    n = len(values)
    if n < 2:
        return (float(values[0]) if values else math.nan), math.nan
    quantile = STUDENT[n - 2] if n <= 10 else 1.96 + 2.6 / (n - 1)  # within 0.01 for more
    return float(np.mean(values)), float(quantile * np.std(values, ddof=1) / math.sqrt(n))


def means_and_bars(columns: list[list[float]], log: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Means (K,) of K columns, and how far their intervals reach below and above (2, K).

    log: intervals of the logarithms, so that the means are geometric.
    """
    values = [np.log(column) if log else column for column in columns]
    means, halves = np.array([mean_and_half_interval(list(each)) for each in values]).T
    ends = np.array([means - halves, means + halves])
    if log:
        means = np.exp(means)
        ends = np.exp(ends)
    return means, np.abs(ends - means)


class Claim(NamedTuple):
    """A paper's claim that one figure is less than another, and both figures here, by seed."""

    text: str
    less: dict[int, float]
    more: dict[int, float]

    @classmethod
    def of(cls, rows: list[Row], column: str, text: str, less: Row, more: Row) -> "Claim":
        """The claim that a column is less in the rows with the first key than with the second."""
        return cls(text, values_by_seed(rows, column, less), values_by_seed(rows, column, more))

    @property
    def differences(self) -> list[float]:
        """For each seed that both have: below 0 where the claim holds."""
        return [self.less[seed] - self.more[seed] for seed in self.less if seed in self.more]

    @property
    def verdict(self) -> str:
        """Whether the differences confirm it."""
        mean, half = mean_and_half_interval(self.differences)
        if mean + half < 0:
            return "holds here"
        if mean - half > 0:
            return "the other way round here"
        seen = "seen here" if mean < 0 else "not seen here"
        n = len(self.differences)
        return f"{seen}, within the noise of {n} seed{'s' * (n != 1)}"


def claims_table(claims: list[Claim]) -> list[str]:
    """Lines of a Markdown table: each claim, its verdict, both means, and their difference."""
    titles = "claim", "verdict", "should be less", "should be more", "difference"
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for claim in claims:
        less, more = (np.mean(list(values.values())) for values in (claim.less, claim.more))
        mean, half = mean_and_half_interval(claim.differences)
        has_interval = math.isfinite(half)  # with one seed there is none
        difference = Estimate(mean, mean - half, mean + half) if has_interval else f"{mean:.3g}"
        cells = claim.text, claim.verdict, f"{less:.3g}", f"{more:.3g}", str(difference)
        lines.append(f"| {' | '.join(cells)} |")
    return lines
