"""All machines alike: on the processor, a thread for each of the processes that share the tests."""

import os

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch looks
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

from mnist_ddpm import ddpm

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure(config):
    """Unpacks MNIST once, before all processes would do so at the same time."""
    archives = (ROOT / "data" / "MNIST" / "raw").glob("*.gz")
    if not hasattr(config, "workerinput") and not all(p.with_suffix("").exists() for p in archives):
        ddpm.load_images("mnist", 32, ROOT / "data")
