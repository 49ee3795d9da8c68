"""Denoising diffusion from scratch. `mnist_ddpm.ddpm` is generated from MNIST_DDPM.ipynb; the rest builds on it."""

from collections.abc import MutableMapping

from mnist_ddpm import ddpm, image_folder, learned_variance, muon, parameterisation, schedules, solvers

__version__ = "0.4.0"

TABLES = (
    "DATASETS", "AUGMENTATIONS", "SCHEDULES", "OBJECTIVES", "OTHER_PREDICTIONS", "TIME_SAMPLERS", "OPTIMIZERS",
    "SAMPLERS", "SPACINGS",
)  # fmt: skip


def add_methods(namespace: MutableMapping[str, dict]) -> None:
    """Enters this package's methods into the tables of a namespace, ddpm's or the notebook's, replacing none."""
    for module in (image_folder, schedules, parameterisation, learned_variance, muon, solvers):
        for table in TABLES:
            methods = namespace.get(table, {})
            methods |= {name: method for name, method in getattr(module, table, {}).items() if name not in methods}
    namespace.get("LEARNED_VARIANCE", set()).update(ddpm.LEARNED_VARIANCE)


add_methods(vars(ddpm))
