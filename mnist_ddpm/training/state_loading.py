"""Loads a saved training state into a run, also one that an earlier version saved.

In earlier versions a method's networks were submodules of the run's network: their tensors were
saved with its own, as fake.* or critic.*, in the average too, and one optimiser trained them all.
"""

from copy import copy

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mnist_ddpm.ddpm import check
from mnist_ddpm.training.run import Run


def restore(run: Run, state: dict) -> None:
    """Loads a saved state into a run at step 0."""
    if run.method.networks and "parts" not in state:
        load_joined_networks(run, state)
    else:
        run.network.load_state_dict(state["model"])
        run.ema.load_state_dict(state["ema"])
        load_optimizer(run.optimizer, state["optimizer"])
        for name, network in run.method.networks.items():
            network.load_state_dict(state["parts"][name])
            load_optimizer(run.method_optimizers[name], state["part_optimizers"][name])
    if run.time_sampler is not None:
        run.time_sampler.load_state_dict(state["times"])
    if state.get("scaler"):
        run.scaler.load_state_dict(state["scaler"])
    run.step = state["step"]
    run.losses = [*map(float, state["losses"])]
    run.n_images = state.get("n", 0)
    run.training_seconds = float(state.get("seconds", 0.0))
    for name, count in (("step", run.step), ("n", run.n_images)):
        check(type(count) is int and count >= 0, f"{name} is {count!r}")


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Loads an optimiser's state, except whether it is fused, which depends on the device.

    Raises ValueError for a tensor that has not the shape of its weight.
    """
    for group, own in zip(state.get("param_groups", []), optimizer.param_groups):
        group["fused"] = own.get("fused")
    optimizer.load_state_dict(state)
    for weight, tensors in optimizer.state.items():
        for name, x in tensors.items():
            fits = not isinstance(x, Tensor) or x.dim() == 0 or x.shape == weight.shape
            check(fits, f"{name} is {tuple(x.shape)}, its weight {tuple(weight.shape)}")


def load_joined_networks(run: Run, state: dict) -> None:
    """Loads an earlier version's state into a run whose method has networks."""
    networks = run.method.networks
    run.network.load_state_dict(without_method_networks(state["model"], networks))
    run.ema.load_state_dict(without_method_networks(state["ema"], networks))
    for name, network in networks.items():
        prefix = f"{name}."
        own = {key: value for key, value in state["model"].items() if key.startswith(prefix)}
        network.load_state_dict({key.removeprefix(prefix): value for key, value in own.items()})
    joined = load_joined_optimizer(run, state["optimizer"])
    for _, optimizer in run.networks_and_optimizers:
        for own, old in zip(inner_optimizers(optimizer), inner_optimizers(joined)):
            for group in own.param_groups:
                own.state.update((p, old.state[p]) for p in group["params"] if p in old.state)


def without_method_networks(
    tensors: dict[str, Tensor], networks: nn.ModuleDict
) -> dict[str, Tensor]:
    """The tensors of the run's network, without those of its method's."""
    prefixes = tuple(f"{name}." for name in networks)
    return {key: value for key, value in tensors.items() if not key.startswith(prefixes)}


def load_joined_optimizer(run: Run, state: dict) -> Optimizer:
    """The earlier version's optimiser of all networks, with its state.

    It was Adam, with one group for each network or one for all, or the run's kind.
    """
    networks = [run.network, *run.method.networks.values()]
    combined = copy(run.network)  # the same parameters, then those of the method's networks
    combined._modules = {**run.network._modules, **run.method.networks}
    if len(state.get("param_groups", [])) == len(networks):
        joined = torch.optim.Adam([{"params": [*each.parameters()]} for each in networks])
    elif "param_groups" in state:
        joined = torch.optim.Adam(combined.parameters())
    else:
        joined = type(run.optimizer)(combined, run.settings.learning_rate)
    load_optimizer(joined, state)
    return joined


def inner_optimizers(optimizer: Optimizer) -> list[Optimizer]:
    """An optimiser, and the Adam inside it, if it has one, such as Muon's."""
    return [optimizer, *filter(None, [getattr(optimizer, "adam", None)])]
