"""Puts a saved training state into a run, also one of an earlier version.

There a method's parts were submodules of the network: their tensors stood beside the network's own,
as fake.* or critic.*, in the average too, and one optimiser moved them all.
"""

from copy import copy

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mnist_ddpm.ddpm import check
from mnist_ddpm.training.run import Run


def restore(run: Run, state: dict) -> None:
    """Puts a saved state into a run at step 0."""
    if run.method.parts and "parts" not in state:
        load_joined_networks(run, state)
    else:
        run.network.load_state_dict(state["model"])
        run.ema.load_state_dict(state["ema"])
        load_optimizer(run.optimizer, state["optimizer"])
        for name, part in run.method.parts.items():
            part.load_state_dict(state["parts"][name])
            load_optimizer(run.part_optimizers[name], state["part_optimizers"][name])
    if run.times is not None:
        run.times.load_state_dict(state["times"])
    if state.get("scaler"):
        run.scaler.load_state_dict(state["scaler"])
    run.step = state["step"]
    run.losses = [*map(float, state["losses"])]
    run.n = state.get("n", 0)
    run.seconds = float(state.get("seconds", 0.0))
    for name, count in (("step", run.step), ("n", run.n)):
        check(type(count) is int and count >= 0, f"{name} is {count!r}")


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Loads an optimiser's state, fused as suits this device, not the one that saved it."""
    for group, own in zip(state.get("param_groups", []), optimizer.param_groups):
        group["fused"] = own.get("fused")
    optimizer.load_state_dict(state)


def load_joined_networks(run: Run, state: dict) -> None:
    """Loads the networks and optimisers of such a state into a run whose method has parts."""
    parts = run.method.parts
    run.network.load_state_dict(without_parts(state["model"], parts))
    run.ema.load_state_dict(without_parts(state["ema"], parts))
    for name, part in parts.items():
        prefix = f"{name}."
        own = {key: value for key, value in state["model"].items() if key.startswith(prefix)}
        part.load_state_dict({key.removeprefix(prefix): value for key, value in own.items()})
    joined = load_joined_optimizer(run, state["optimizer"])
    for _, optimizer in run.trained:
        for own, old in zip(inner_optimizers(optimizer), inner_optimizers(joined)):
            for group in own.param_groups:
                own.state.update((p, old.state[p]) for p in group["params"] if p in old.state)


def without_parts(tensors: dict[str, Tensor], parts: nn.ModuleDict) -> dict[str, Tensor]:
    """The tensors of the network alone."""
    prefixes = tuple(f"{name}." for name in parts)
    return {key: value for key, value in tensors.items() if not key.startswith(prefixes)}


def load_joined_optimizer(run: Run, state: dict) -> Optimizer:
    """The optimiser of all networks, as it was: Adam with one group for each, or one for all."""
    networks = [run.network, *run.method.parts.values()]
    combined = copy(run.network)  # the same parameters, and those of the parts after them
    combined._modules = {**run.network._modules, **run.method.parts}
    if len(state.get("param_groups", [])) == len(networks):
        joined = torch.optim.Adam([{"params": [*each.parameters()]} for each in networks])
    elif "param_groups" in state:
        joined = torch.optim.Adam(combined.parameters())
    else:
        joined = type(run.optimizer)(combined, run.settings.learning_rate)
    load_optimizer(joined, state)
    return joined


def inner_optimizers(optimizer: Optimizer) -> list[Optimizer]:
    """The optimiser, and that of the parameters for which it has another."""
    return [optimizer, *filter(None, [getattr(optimizer, "adam", None)])]
