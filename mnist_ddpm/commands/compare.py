"""`python -m mnist_ddpm compare`."""

from mnist_ddpm.commands.flags import CompareFlags
from mnist_ddpm.evaluation import cards


def run_compare(flags: CompareFlags) -> None:
    """Prints a line for each figure that both cards have."""
    print("\n".join(cards.comparison(cards.read_card(flags.first), cards.read_card(flags.second))))
    print("(± covers other images from the same network; training it again may change more)")
