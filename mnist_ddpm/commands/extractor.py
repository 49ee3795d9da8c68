"""`python -m mnist_ddpm extractor`."""

import time

import torch

from mnist_ddpm.commands.flags import ExtractorFlags
from mnist_ddpm.commands.outputs import print_written
from mnist_ddpm.datasets import dataset_named
from mnist_ddpm.ddpm import check
from mnist_ddpm.evaluation.extractor_training import train_extractor
from mnist_ddpm.evaluation.extractors import save_extractor
from mnist_ddpm.machine import devices, files
from mnist_ddpm.training.cost import count_parameters


def run_extractor(flags: ExtractorFlags) -> None:
    """Trains and saves an extractor. Raises FileExistsError where it would overwrite a file."""
    seed = flags.seed
    epochs = flags.epochs
    out = flags.out
    check(0 <= seed < 2**32, f"seed is {seed}: it must be from 0 to 2^32 - 1")
    check(1 <= epochs <= 10**6, f"epochs is {epochs}: it must be from 1 to 1,000,000")
    device = devices.pick_device(flags.device)
    files.check_writable(out)
    if out.exists():
        raise FileExistsError(f"{out} exists already: name another file")
    began = time.monotonic()
    options = {"epochs": epochs, "seed": seed, "device": device}
    network, accuracy = train_extractor(flags.dataset, flags.data, **options)
    seconds = time.monotonic() - began
    record = {"accuracy": round(accuracy, 5), "epochs": epochs, "seed": seed}
    record |= {"seconds": round(seconds, 1), "device": str(device), "torch": torch.__version__}
    save_extractor(out, network, record)
    score = f"{accuracy:.2%} right on {dataset_named(flags.dataset).classifier.measured_on}"
    print(f"{count_parameters(network):,} parameters, {score}, {seconds / 60:.1f} min on {device}")
    print_written(out)
