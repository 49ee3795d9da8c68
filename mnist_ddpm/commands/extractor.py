"""`python -m mnist_ddpm extractor`."""

import time

import torch

from mnist_ddpm.commands import flags
from mnist_ddpm.commands.common import tell_written
from mnist_ddpm.ddpm import check
from mnist_ddpm.evaluation.extractor_training import HELD_OUT, train_extractor
from mnist_ddpm.evaluation.extractors import save_extractor
from mnist_ddpm.machine import devices, files
from mnist_ddpm.training.run import count_parameters


class TrainExtractor(flags.TrainExtractor):
    """An extractor, trained."""

    def run(self) -> None:
        """Trains and saves it. Raises FileExistsError where it would overwrite a file."""
        check(0 <= self.seed < 2**32, f"seed is {self.seed}: it must be from 0 to 2^32 - 1")
        check(1 <= self.epochs <= 10**6, f"epochs is {self.epochs}: it must be from 1 to 1,000,000")
        device = devices.pick_device(self.device)
        files.check_writable(self.out)
        if self.out.exists():
            raise FileExistsError(f"{self.out} exists already: name another file")
        began = time.monotonic()
        options = {"epochs": self.epochs, "seed": self.seed, "device": device}
        network, accuracy = train_extractor(self.dataset, self.data, **options)
        took = time.monotonic() - began
        record = {
            "accuracy": round(accuracy, 5), "epochs": self.epochs, "seed": self.seed,
            "seconds": round(took, 1), "device": str(device), "torch": torch.__version__,
        }  # fmt: skip
        save_extractor(self.out, network, record)
        count = count_parameters(network)
        right = f"{accuracy:.2%} right on {HELD_OUT[self.dataset]}"
        print(f"{count:,} parameters, {right}, {took / 60:.1f} min on {device}")
        tell_written(self.out)
