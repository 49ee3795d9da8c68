"""Denoising diffusion from scratch. `mnist_ddpm.ddpm` is generated from MNIST_DDPM.ipynb; the rest builds on it."""

from collections.abc import MutableMapping

from mnist_ddpm import ddpm, image_folder, learned_variance, muon, parameterisation, schedules, solvers

__version__ = "0.3.0"

TABLES = "DATASETS", "AUGMENTATIONS", "SCHEDULES", "DENOISERS", "OBJECTIVES", "TIME_SAMPLERS", "OPTIMIZERS", "SAMPLERS"


def add_methods(namespace: MutableMapping[str, dict]) -> None:
    """Enters this package's methods into the tables of a namespace: of ddpm, or of the notebook."""
    for module in (image_folder, schedules, parameterisation, learned_variance, muon, solvers):
        for table in TABLES:
            namespace.get(table, {}).update(getattr(module, table, {}))


add_methods(vars(ddpm))
