"""Denoising diffusion from scratch. `mnist_ddpm.ddpm` is generated from MNIST_DDPM.ipynb; the rest builds on it."""

from collections.abc import MutableMapping

from mnist_ddpm import ddpm, image_folder, learned_variance, muon, parameterisation, schedules, solvers

__version__ = "0.4.0"

TABLES = "DATASETS", "AUGMENTATIONS", "SCHEDULES", "OBJECTIVES", "TIME_SAMPLERS", "OPTIMIZERS", "SAMPLERS", "SPACINGS"


def add_methods(namespace: MutableMapping[str, dict]) -> None:
    """Enters this package's methods into the tables of a namespace, ddpm's or the notebook's, replacing none."""
    for module in (image_folder, schedules, parameterisation, learned_variance, muon, solvers):
        for table in TABLES:
            enter(namespace.get(table, {}), getattr(module, table, {}))
    enter(namespace.get("DENOISERS", {}), parameterisation.denoisers())
    namespace.get("LEARNED_VARIANCE", set()).update(ddpm.LEARNED_VARIANCE)
    objectives = namespace.get("OBJECTIVES", {})
    objectives |= {name: parameterisation.for_any_prediction(name, own) for name, own in objectives.items()}


def enter(table: dict, methods: dict) -> None:
    """Adds methods whose names the table lacks."""
    table |= {name: method for name, method in methods.items() if name not in table}


add_methods(vars(ddpm))
