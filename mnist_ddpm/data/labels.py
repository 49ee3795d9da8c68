"""What labels mean, for any data set."""

import unicodedata
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from mnist_ddpm.ddpm import check

SHOWN = 12  # names in a message, at most


def typical_labels(labels: Tensor, n: int, seed: int = 0) -> Tensor:
    """n of the labels (N,), drawn at random: their counts vary as those of other real images do."""
    return labels[torch.randint(len(labels), (n,), generator=torch.Generator().manual_seed(seed))]


def needs_labels(recipe) -> bool:
    """Whether a network with labels never trained without, and so knows nothing without them."""
    return recipe.classes > 0 and recipe.label_dropout == 0


def label_names(recipe) -> list[str]:
    """What each label stands for: its name, the attributes that are present, or its number."""
    names = recipe.attributes
    if not names:
        return [*recipe.label_names] or [str(label) for label in range(recipe.classes)]
    labels = range(2 ** len(names))
    present = [[name for i, name in enumerate(names) if label >> i & 1] for label in labels]
    return [" + ".join(some) or "none of them" for some in present]


def describe_names(names: Sequence[str]) -> str:
    """The names in one line: 0 to 9, or the first of them."""
    if [*names] == [str(label) for label in range(len(names))]:
        return f"0 to {len(names) - 1}"
    return ", ".join(names[:SHOWN]) + (" …" if len(names) > SHOWN else "")


def label_number(typed: str | int, recipe) -> int:
    """The label of that name or, where no name is a number, of that number.

    Raises ValueError where there is none.
    """
    names = [*map(composed, label_names(recipe))]
    typed = composed(str(typed))
    if typed in names:
        return names.index(typed)
    is_number = typed.isdecimal() and not any(name.isdecimal() for name in names)
    is_known = is_number and int(typed) < len(names)
    check(is_known, f"label {typed} is not one of {describe_names(names)}")
    return int(typed)


def composed(name: str) -> str:
    """The name with each accent in one character with its letter; macOS takes them apart."""
    return unicodedata.normalize("NFC", name)


def distinct_names(values: Iterable[str], order: Sequence[str] = ()) -> tuple[str, ...]:
    """Each value once, in that order; (): sorted, whole numbers by size."""
    names = {*map(composed, values)}
    if order:
        return tuple(name for name in map(composed, order) if name in names)
    are_numbers = all(name.removeprefix("-").isdecimal() for name in names)
    return tuple(sorted(names, key=int if are_numbers else None))


def check_count(classes: int, dataset: str, names: Sequence[str]) -> None:
    """Raises ValueError unless a data set has that number of labels."""
    count = f"{dataset} has {len(names)} labels ({describe_names(names)})"
    check(len(names) == classes, f"classes is {classes}, and {count}: take --classes auto")


def numbered_labels(values: Sequence[str], recipe, names: Sequence[str]) -> Tensor:
    """The position among the names of each image's label: int64 (N,).

    Raises ValueError for other labels, and for a recipe of another number of classes.
    """
    check_count(recipe.classes, recipe.dataset, names)
    values = [*map(composed, values)]
    names = [*map(composed, names)]
    unknown = [*{*values} - {*names}]
    message = f"{recipe.dataset} has images with the label {', '.join(unknown[:3])}"
    check(not unknown, f"{message}, which training has not: it has {describe_names(names)}")
    numbers = {name: label for label, name in enumerate(names)}
    return torch.tensor([numbers[value] for value in values], dtype=torch.int64)
