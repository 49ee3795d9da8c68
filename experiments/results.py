"""Rows of results in a CSV file, intervals over seeds, and verdicts on a paper's claims."""

import csv
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mnist_ddpm.ddpm import check
from mnist_ddpm.evaluation.distances import Estimate
from mnist_ddpm.machine.files import replacing
from mnist_ddpm.machine.text import parse_json, read_json

Row = dict[str, str | int | float]  # what was measured, and the figures
TEXTS = "arm", "measure"  # columns of text, not numbers
# 97.5 % quantiles of Student's t for 2, 3, … 10 seeds
STUDENT = [12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262]


def parse_cell(text: str) -> str | int | float:
    """A cell of a CSV file as it was before it was written."""
    try:
        value = parse_json(text)
    except ValueError:
        return text
    is_number = type(value) in (int, float) and math.isfinite(value)
    return value if is_number else text


def read_rows(path: Path) -> list[Row]:
    """The rows of a CSV file; none if there is no file. An empty cell is "".

    Raises ValueError for a file that is damaged, for example cut short.
    """
    if not path.exists():
        return []
    try:
        check(path.is_file(), "it is no regular file")
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(file)
        check(lines and lines[-1].endswith("\n"), "it is cut short")
        names, *table = csv.reader(lines)
        check("arm" in names, 'it has no column "arm"')
        rows = []
        for cells in table:
            check(len(cells) == len(names), f"a row has {len(cells)} cells, not {len(names)}")
            pairs = zip(names, cells)
            row = {name: text if name in TEXTS else parse_cell(text) for name, text in pairs}
            wrong = [x for name, x in row.items() if name not in TEXTS and x and type(x) is str]
            check(not wrong, f"{str(wrong)[:50]} should be a number")
            rows.append(row)
        return rows
    except (ValueError, csv.Error) as error:
        advice = "remove it to measure again, or choose another --out"
        raise ValueError(f"{path} is damaged ({error}): {advice}") from error


def read_record(path: Path) -> dict:
    """The content of record.json; {} if there is no file. Raises ValueError if it is damaged."""
    if not path.exists():
        return {}
    try:
        record = read_json(path)
        check(isinstance(record, dict), "it is no JSON object")
        for name, kind in (("scale", dict), ("networks", dict), ("earlier", list)):
            check(isinstance(record.get(name, kind()), kind), f"{name} is of another kind")
        return record
    except ValueError as error:
        advice = "remove it and results.csv to measure again, or choose another --out"
        raise ValueError(f"{path} is damaged ({error}): {advice}") from error


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
