"""Denoising diffusion from scratch. `mnist_ddpm.ddpm` is generated from MNIST_DDPM.ipynb; the rest builds on it."""

from collections.abc import MutableMapping

from mnist_ddpm import ddpm, image_folder, learned_variance, muon, parameterisation, schedules, solvers

__version__ = "0.3.0"

TABLES = "DATASETS", "AUGMENTATIONS", "SCHEDULES", "DENOISERS", "OBJECTIVES", "TIME_SAMPLERS", "OPTIMIZERS", "SAMPLERS"


def add_methods(namespace: MutableMapping[str, dict]) -> None:
    """Enters this package's methods into the tables of a namespace, of ddpm or of the notebook: what is there stays."""
    for module in (image_folder, schedules, parameterisation, learned_variance, muon, solvers):
        for table in TABLES:
            own = namespace.get(table, {})
            own |= {name: method for name, method in getattr(module, table, {}).items() if name not in own}
    namespace.get("LEARNED_VARIANCE", set()).update(ddpm.LEARNED_VARIANCE)
    if "simple" in namespace.get("OBJECTIVES", {}):
        namespace["OBJECTIVES"]["simple"] = parameterisation.simple(namespace["OBJECTIVES"]["simple"])


add_methods(vars(ddpm))
