"""`python -m mnist_ddpm compare`."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from mnist_ddpm.evaluation import cards


@dataclass
class Compare:
    """Set two cards of `evaluate` side by side.

    Cards that differ in n, extractor or training images are refused.

    Example: python -m mnist_ddpm compare a.json b.json
    """

    first: tyro.conf.Positional[Path]
    second: tyro.conf.Positional[Path]

    def run(self) -> None:
        """Prints a line for each figure that both have."""
        first, second = cards.read_card(self.first), cards.read_card(self.second)
        print("\n".join(cards.comparison(first, second)))
        print("(± covers other images from the same network; training it again may change more)")
