"""Rows of results: each names what was measured, and the figures; a CSV file holds them."""

import csv
from pathlib import Path

from mnist_ddpm.machine.files import replacing

Row = dict[str, str | int | float]


def number(text: str) -> str | int | float:
    """A cell of a CSV file as it was before it was written."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def read_rows(path: Path) -> list[Row]:
    """The rows of a CSV file; none where there is no file. An empty cell is ""."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [
            {name: text if name == "arm" else number(text) for name, text in row.items()}
            for row in csv.DictReader(file)
        ]


def write_rows(path: Path, rows: list[Row]) -> None:
    """All rows as a CSV file, with a column for each name that any of them has."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, restval="")
        writer.writeheader()
        writer.writerows(rows)


def matching(rows: list[Row], key: Row) -> list[Row]:
    """The rows that have all of key's values."""
    return [row for row in rows if all(row.get(name) == value for name, value in key.items())]


def column(rows: list[Row], name: str, **key) -> list[float]:
    """The values in the rows that match: one for each seed."""
    return [row[name] for row in matching(rows, key) if row.get(name, "") != ""]


def by_seed(rows: list[Row], name: str, key: Row) -> dict[int, float]:
    """The same, by seed."""
    return {row["seed"]: row[name] for row in matching(rows, key) if row.get(name, "") != ""}
