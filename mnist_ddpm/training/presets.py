"""Settings that belong together, by name."""

from collections.abc import Mapping

from mnist_ddpm.ddpm import check
from mnist_ddpm.training.recipe import Recipe

LAPTOP = {
    "base_channels": 64, "channel_mults": (1, 2, 2), "schedule": "cosine", "prediction": "x0",
    "objective": "min-snr", "batch_size": 64, "optimizer": "muon", "learning_rate": 2e-3,
    "epochs": 80,
}  # fmt: skip
# The paper's network on 32 x 32 positions and its training (Appendix B; the warm-up is its code's).
# The rate's fall to 0 is ours.
DDPM = {
    "base_channels": 128, "channel_mults": (1, 2, 2, 2), "blocks_per_level": 2,
    "attention_resolutions": (16,), "learning_rate": 2e-4, "warmup_steps": 5000,
    "ema_decay": 0.9999,
}  # fmt: skip

# What each changes in Recipe
PRESETS: dict[str, dict] = {
    "mnist": {"optimizer": "muon"},
    "mnist-small": {"optimizer": "muon", "base_channels": 16, "objective": "p2"},  # for minutes
    "mnist-fast": {  # as many parameters as mnist, with a third of its operations
        "optimizer": "muon", "patch_size": 4, "base_channels": 48, "channel_mults": (1, 2, 2),
        "prediction": "x0", "objective": "p2",
    },
    "faces-32": {"dataset": "celeba", "image_size": 32, "patch_size": 2, **LAPTOP},
    "faces-64-small": {"dataset": "celeba", "image_size": 64, "patch_size": 4, **LAPTOP},
    "faces-64": {
        "dataset": "celeba", "image_size": 64, "patch_size": 2, "dropout": 0.1,
        "schedule": "cosine", "batch_size": 64, "accumulation": 2, "epochs": 50, **DDPM,
    },
    "ddpm-cifar10": {
        "dataset": "celeba", "image_size": 32, "patch_size": 1, "dropout": 0.1, "epochs": 600,
        **DDPM,
    },
    "ddpm-celebahq": {
        "dataset": "ffhq", "image_size": 256, "patch_size": 1, "batch_size": 64, "accumulation": 8,
        "gradient_checkpointing": True, "epochs": 500, **DDPM,
        "channel_mults": (1, 1, 2, 2, 4, 4), "learning_rate": 2e-5,
    },
}  # fmt: skip


def preset(name: str, **given) -> Recipe:
    """The recipe of that name; what is given wins. Raises ValueError for an unknown name."""
    check(name in PRESETS, f'preset "{name}" is unknown: take one of {", ".join(PRESETS)}')
    return resolve(given, PRESETS[name])


def resolve(given: Mapping, base: Mapping) -> Recipe:
    """What is given, and for all else what the base says: a preset, a saved run's settings.

    A value that is given always wins, also one equal to the default. Values of the base that it
    makes void are left out.
    """
    return Recipe(**{**base, **made_void(given, base), **given})


def made_void(given: Mapping, base: Mapping) -> dict:
    """What becomes of the base's values that no longer make sense beside what is given."""
    void, attributes = {}, tuple(base.get("attributes", ()))
    if tuple(given.get("attributes", attributes)) != attributes:
        void["classes"] = 0  # as many as the attributes make
    elif attributes and not given.get("classes", True):
        void["attributes"] = ()  # they would bring the labels back
    before = base.get("optimizer") or "adam"
    now = given.get("optimizer", before) or "adam"
    if before != now and "learning_rate" in base:
        void["learning_rate"] = None  # the optimizer's own
    return void
