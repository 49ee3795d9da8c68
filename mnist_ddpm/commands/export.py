"""`python -m mnist_ddpm export`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mnist_ddpm.formats import checkpoints, diffusers
from mnist_ddpm.training import files


@dataclass
class Export:
    """Write a checkpoint as another library reads it.

    diffusers: a folder for DDPMPipeline.from_pretrained. That has no patches, labels or learned
    variances, and one number of groups in all its normalisations: train with --patch-size 1, and
    with --base-channels 128, or 30 and equal --channel-mults.

    Example: python -m mnist_ddpm export --checkpoint checkpoints/mine --format diffusers --out out
    """

    checkpoint: Path  # folder that training wrote, or a name on the hub
    out: Path  # folder for the result
    format: Literal["diffusers"] = "diffusers"

    def run(self) -> None:
        """Writes it. Raises ValueError for what the library cannot express."""
        network, _, recipe, _ = checkpoints.load(self.checkpoint)
        try:
            diffusers.settings_to_diffusers(recipe)
        except ValueError as error:
            raise ValueError(f"{self.checkpoint} cannot be exported: {error}") from error
        if any(files.writable_folder(self.out).iterdir()):
            raise FileExistsError(f"{self.out} is not empty: name another folder")
        diffusers.save_diffusers(self.out, network, recipe)
        print(f'{self.out}: DDPMPipeline.from_pretrained("{self.out}") reads it')
