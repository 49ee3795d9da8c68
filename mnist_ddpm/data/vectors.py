"""Vectors (N, D), such as points, signals and the rows of a table, each as an image (D, 1, 1).

Networks see columns with mean 0 and standard deviation 1 over the training rows. A recipe has the
mean and scale of each column, so that samples come back in the data's units.
"""

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mnist_ddpm.data.arrays import array_names, array_of_split, find_array, label_words
from mnist_ddpm.data.labels import distinct_names, numbered_labels
from mnist_ddpm.data.loading import NoSplit
from mnist_ddpm.datasets import VECTOR_SETTINGS
from mnist_ddpm.ddpm import check
from mnist_ddpm.machine import devices
from mnist_ddpm.machine.text import describe_error

UNSEEN = 10  # of so many rows one is held out, where the file has no rows to test
MOST_UNSEEN = 10_000
DELIMITERS = ",;\t"
CELL = 100  # bytes that a cell takes in memory, about


class Rows(NamedTuple):
    """The rows of a file, and what they are called."""

    values: np.ndarray  # float64 (N, D)
    names: list[str]  # of the columns
    labels: list[str] | None


def reads_as_number(word: str) -> bool:
    """Whether a cell can be read as a number."""
    try:
        float(word)
    except ValueError:
        return False
    return True


def read_csv(path: Path, labelled: bool) -> Rows:
    """The rows of a .csv file, whose first line may name the columns.

    labelled: the last column has labels. Raises ValueError for what is no table of numbers.
    """
    devices.check_memory(CELL // 4 * path.stat().st_size, f"{path}", "save it as .npy")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            delimiter = max(DELIMITERS, key=first.count)
            lines = [row for row in csv.reader(file, delimiter=delimiter) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no table of text ({describe_error(error)})") from error
    check(bool(lines), f"{path} is empty")
    width = len(lines[0])
    ragged = next((k for k, row in enumerate(lines) if len(row) != width), None)
    if ragged is not None:
        cells = f"{len(lines[ragged])} cells, and the first {width}"
        raise ValueError(f"{path} is ragged: row {ragged + 1} has {cells}")
    end = width - labelled
    check(end > 0, f"{path} has no column but that of labels")
    has_names = not all(map(reads_as_number, lines[0][:end]))
    names = lines.pop(0)[:end] if has_names else [f"column {k + 1}" for k in range(end)]
    values = np.empty((len(lines), end))
    for k, row in enumerate(lines):
        try:
            values[k] = row[:end]
        except ValueError as error:
            place = f"row {k + 1 + has_names}"
            raise ValueError(f"{path} has a cell in {place} that is no number ({error})") from error
    return Rows(values, names, [row[-1].strip() for row in lines] if labelled else None)


def read_vectors(path: Path, split: str, labelled: bool) -> Rows:
    """The rows of an array. Labels are the array beside it, or else its last column.

    Raises ValueError for what is no array of vectors.
    """
    arrays = find_array(path, split)
    check(arrays is not None, f"{path} has no array of vectors: name it data")
    values, labels = arrays
    is_table = values.ndim == 2 and values.dtype.kind in "biuf" and min(values.shape) > labelled
    check(is_table, f"{path} holds {values.dtype} of shape {values.shape}: vectors are (N, D)")
    devices.check_memory(8 * values.size, f"{path}", "split it")
    if labelled and labels is None:
        labels = values[:, -1]
        values = values[:, :-1]
    words = label_words(labels, len(values), str(path)) if labelled else None
    names = [f"column {k + 1}" for k in range(values.shape[1])]
    return Rows(np.asarray(values, np.float64), names, words)


def split_rows(name: str, split: str, labelled: bool) -> Rows:
    """The rows of a split: those of its name in the file, or else 9 of 10 rows and the others.

    Raises NoSplit, and ValueError for values that are not finite.
    """
    path = Path(name)
    is_csv = path.suffix == ".csv"
    is_divided = not is_csv and array_of_split(array_names(path), "test") is not None
    if is_csv:
        rows = read_csv(path, labelled)
    else:
        rows = read_vectors(path, split if is_divided else "train", labelled)
    bad = np.argwhere(~np.isfinite(rows.values))
    if len(bad):
        k, column = bad[0]
        where = f"{rows.names[column]} of row {k + 1} is {rows.values[k, column]}"
        raise ValueError(f"{name} has {len(bad)} values that are not finite: {where}")
    return rows if is_divided else rows_of_split(rows, split, name)


def rows_of_split(rows: Rows, split: str, name: str) -> Rows:
    """The rows of one split where the file has one set: every tenth row is held out, at most."""
    n = len(rows.values)
    order = np.random.default_rng(0).permutation(n)
    unseen = min(n // UNSEEN, MOST_UNSEEN)
    if split not in ("train", "test") or (split == "test" and not unseen):
        raise NoSplit(f"{name} has no {split} rows")
    chosen = np.sort(order[:unseen] if split == "test" else order[unseen:])
    labels = rows.labels and [rows.labels[k] for k in chosen]
    return Rows(rows.values[chosen], rows.names, labels)


def vector_settings(name: str, labelled: bool) -> dict:
    """The settings of a recipe for the vectors in a file, with the columns' means and scales.

    Raises as split_rows, and ValueError for a single row and for columns of one value.
    """
    rows = split_rows(name, "train", labelled)
    n = len(rows.values)
    check(n > 1, f"{name} has {n} row(s) to train on: give it more")
    with np.errstate(over="ignore"):
        scales = rows.values.std(axis=0)
    is_constant = (rows.values == rows.values[0]).all(axis=0)
    constant = [column for column, same in zip(rows.names, is_constant) if same]
    message = f"{', '.join(constant[:3])} of {name} has one value in all rows: leave it out"
    check(not constant, message)
    check(bool(np.isfinite(scales).all()), f"{name} has values near the largest number: scale them")
    columns = zip(rows.names, rows.values.mean(axis=0).tolist(), scales.tolist())
    settings = {**VECTOR_SETTINGS, "channels": len(scales), "columns": tuple(columns)}
    return settings | ({"label_names": distinct_names(rows.labels)} if labelled else {})


def to_network(values: np.ndarray, recipe) -> Tensor:
    """Vectors (N, D) in the data's units as the network sees them: float32 (N, D, 1, 1)."""
    _, means, scales = zip(*recipe.columns)
    standardised = (values - np.array(means)) / np.array(scales)
    return torch.from_numpy(standardised).float()[:, :, None, None]


def load_vectors(recipe, root: str | Path = "data", split: str = "train") -> Tensor:
    """The rows of a split, as to_network. Raises as split_rows."""
    rows = split_rows(recipe.dataset, split, recipe.classes > 0)
    wanted = len(recipe.columns)
    count = f"{recipe.dataset} has {rows.values.shape[1]} columns"
    check(rows.values.shape[1] == wanted, f"{count}, and the network was made for {wanted}")
    return to_network(rows.values, recipe)


def vector_labels(recipe, root: str | Path = "data", split: str = "train") -> Tensor:
    """The labels of those rows: int64 (N,). Raises as split_rows and numbered_labels."""
    words = split_rows(recipe.dataset, split, labelled=True).labels
    names = recipe.label_names or distinct_names(
        split_rows(recipe.dataset, "train", labelled=True).labels
    )
    return numbered_labels(words, recipe, names)
