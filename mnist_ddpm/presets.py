"""Settings that belong together, by name, and what a network costs: parameters, operations, memory."""

import math
import weakref
from dataclasses import fields
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from mnist_ddpm.ddpm import Settings, count_parameters, look_up, make_model

LAPTOP = {
    "base_channels": 64, "channel_mults": (1, 2, 2), "schedule": "cosine", "prediction": "x0", "objective": "min-snr",
    "batch_size": 64, "optimizer": "muon", "learning_rate": 2e-3, "epochs": 80,
}  # fmt: skip
# The paper's network on 32 x 32 positions and its training (Appendix B; the warm-up is its code's), but for the rate's
# fall to 0
DDPM = {
    "base_channels": 128, "channel_mults": (1, 2, 2, 2), "blocks_per_level": 2, "attention_resolutions": (16,),
    "learning_rate": 2e-4, "warmup_steps": 5000, "ema_decay": 0.9999,
}  # fmt: skip

# What each changes in Settings
PRESETS: dict[str, dict] = {
    "mnist": {"optimizer": "muon"},
    "mnist-small": {"optimizer": "muon", "base_channels": 16, "objective": "p2"},  # for minutes
    "mnist-fast": {  # as many parameters as mnist, with a third of its operations
        "optimizer": "muon", "patch_size": 4, "base_channels": 48, "channel_mults": (1, 2, 2), "prediction": "x0",
        "objective": "p2",
    },
    "faces-32": {"dataset": "celeba", "image_size": 32, "patch_size": 2, **LAPTOP},
    "faces-64-small": {"dataset": "celeba", "image_size": 64, "patch_size": 4, **LAPTOP},
    "faces-64": {
        "dataset": "celeba", "image_size": 64, "patch_size": 2, "dropout": 0.1, "schedule": "cosine", "batch_size": 64,
        "accumulation": 2, "epochs": 50, **DDPM,
    },
    "ddpm-cifar10": {"dataset": "celeba", "image_size": 32, "patch_size": 1, "dropout": 0.1, "epochs": 600, **DDPM},
    "ddpm-celebahq": {
        "dataset": "ffhq", "image_size": 256, "patch_size": 1, "batch_size": 64, "accumulation": 8,
        "gradient_checkpointing": True, "epochs": 500, **DDPM, "channel_mults": (1, 1, 2, 2, 4, 4),
        "learning_rate": 2e-5,
    },
}  # fmt: skip


def fill_in(values: dict, base: dict) -> dict:
    """The values for Settings; of those left at Settings' defaults, what the base says."""
    defaults = {f.name: f.default for f in fields(Settings)}
    given = {name: value for name, value in values.items() if value != defaults[name]}
    filled = values | base | given
    return filled | made_void(filled, base, set(given))


def made_void(values: dict, base: dict, given: set[str]) -> dict:
    """What becomes of values that were not given but came from the base, and that others, which were, make void."""
    void, attributes = {}, tuple(base.get("attributes", ()))
    if tuple(values.get("attributes", ())) != attributes and "classes" not in given:
        void["classes"] = 0  # as many as the attributes make
    elif attributes and "classes" in values and not values["classes"]:
        void["attributes"] = ()  # or they would bring the labels back
    before, now = (settings.get("optimizer") or "adam" for settings in (base, values))
    if before != now and "learning_rate" in base and "learning_rate" not in given:
        void["learning_rate"] = None  # the optimizer's own
    return void


def dataset(preset: str, asked: str) -> str:
    """The data set of a run: the one asked for, or where that is Settings' default, the preset's. Raises as preset."""
    return fill_in({"dataset": asked}, look_up("preset", preset, PRESETS))["dataset"]


def preset(name: str) -> Settings:
    """The settings of that name. Raises ValueError for an unknown one."""
    return Settings(**look_up("preset", name, PRESETS))


class Cost(NamedTuple):
    parameters: int
    flops: int  # of one evaluation of one image: two for each multiplication with an addition
    memory: int  # bytes of a training step: weights, their average, Adam's two moments, and the most besides


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of the tensors made inside it: `live` now, and `peak` at the worst moment."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self.seen = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            storage = tensor.untyped_storage() if isinstance(tensor, Tensor) else None
            if storage is not None and storage not in self.seen:
                self.seen.add(storage)
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self.forget, storage.nbytes())
        return result

    def forget(self, size: int) -> None:
        self.live -= size


@cache
def cost(settings: Settings) -> Cost:
    """What a network costs, without a byte of it being allocated or an operation done.

    The memory is counted in float32: half precision takes less, a device's libraries take some more.
    """
    s = settings
    with FakeTensorMode():
        model = make_model(s).train()
        x = torch.zeros(math.ceil(s.batch_size / s.accumulation), *s.shape)
        t = torch.ones(len(x), dtype=torch.long)
        labels = torch.zeros_like(t) if s.classes else None
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(x[:1], t[:1], labels if labels is None else labels[:1])
        model.gradient_checkpointing = s.gradient_checkpointing
        with LiveTensors() as memory:
            memory.seen.update(parameter.untyped_storage() for parameter in model.parameters())
            (model(x, t, labels) - x.repeat(1, 1 + s.learned_variance, 1, 1)).square().mean().backward()
    parameters = count_parameters(model)
    return Cost(parameters, counter.get_total_flops(), memory.peak + 4 * 4 * parameters)
