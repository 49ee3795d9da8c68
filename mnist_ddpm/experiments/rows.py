"""Rows of results: each names what was measured, and the figures; a CSV file holds them."""

import csv
import json
from pathlib import Path

from mnist_ddpm.machine.files import replacing

Row = dict[str, str | int | float]


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
