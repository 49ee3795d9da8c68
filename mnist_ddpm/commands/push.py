"""`python -m mnist_ddpm push`."""

from mnist_ddpm.commands import flags
from mnist_ddpm.evaluation.publishing import push_to_hub
from mnist_ddpm.machine import devices


class Push(flags.Push):
    """A checkpoint on the hub."""

    def run(self) -> None:
        """Draws some images, uploads, and prints the address."""
        device, options = devices.pick_device(self.device), {"private": self.private}
        print(push_to_hub(self.checkpoint, self.to, card=self.card, device=device, **options))
