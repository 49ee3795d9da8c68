"""`python -m mnist_ddpm compare`."""

from mnist_ddpm.commands import flags
from mnist_ddpm.evaluation import cards


class Compare(flags.Compare):
    """Two cards side by side."""

    def run(self) -> None:
        """Prints a line for each figure that both have."""
        first, second = cards.read_card(self.first), cards.read_card(self.second)
        print("\n".join(cards.comparison(first, second)))
        print("(± covers other images from the same network; training it again may change more)")
