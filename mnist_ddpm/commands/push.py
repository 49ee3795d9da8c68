"""`python -m mnist_ddpm push`."""

from mnist_ddpm.commands.flags import PushFlags
from mnist_ddpm.evaluation.publishing import push_to_hub
from mnist_ddpm.machine import devices


def run_push(flags: PushFlags) -> None:
    """Draws some images, uploads them with the checkpoint, and prints the address."""
    device = devices.pick_device(flags.device)
    options = {"card": flags.card, "device": device, "private": flags.private}
    print(push_to_hub(flags.checkpoint, flags.to, **options))
