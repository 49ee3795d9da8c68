"""`python -m mnist_ddpm push`."""

from dataclasses import dataclass
from pathlib import Path

from mnist_ddpm.evaluation.publishing import push_to_hub
from mnist_ddpm.training import machine


@dataclass
class Push:
    """Publish a checkpoint on the Hugging Face hub: weights, settings, and a page about them.

    The page shows images, says how to load the checkpoint, and has the figures of a card.

    Example: python -m mnist_ddpm push --checkpoint checkpoints/mine --card card.json --to me/digits
    """

    to: str  # owner/name on the hub, or owner/name@branch
    # folder that training wrote, or a shipped name
    checkpoint: Path = Path("checkpoints/mnist")
    card: Path | None = None  # a card of `evaluate`, about this checkpoint
    private: bool = False  # a new repository is for you alone
    device: str = "auto"  # that draws: cpu, cuda, cuda:1, mps; auto picks the best available

    def run(self) -> None:
        """Draws some images, uploads, and prints the address."""
        device, options = machine.pick_device(self.device), {"private": self.private}
        print(push_to_hub(self.checkpoint, self.to, card=self.card, device=device, **options))
