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
from mnist_ddpm.training.weight_loading import load_weights


def restore(run: Run, state: dict) -> None:
    """Loads a saved state into a run at step 0. Raises errors of many kinds where it does not fit.

    Only tensors and numbers are loaded: settings of optimisers and scalers stay the run's own.
    """
    if run.method.networks and "parts" not in state:
        load_joined_networks(run, state)
    else:
        load_optimizer(run.optimizer, state["optimizer"])
        load_weights(run.network.state_dict(), state["model"], "model")
        load_weights(run.ema.state_dict(), state["ema"], "ema")
        for name, network in run.method.networks.items():
            load_optimizer(run.method_optimizers[name], state["part_optimizers"][name])
            load_weights(network.state_dict(), state["parts"][name], name)
    if run.time_sampler is not None:
        load_weights(run.time_sampler.state_dict(), state["times"], "times")
    scaler = state.get("scaler") or run.scaler.state_dict()
    numbers = {name: scaler[name] for name in ("scale", "_growth_tracker") if scaler}
    numbers |= {"step": state["step"], "n": state.get("n", 0), "seconds": state.get("seconds", 0.0)}
    for name, value in numbers.items():
        kinds = (int, float) if name in ("scale", "seconds") else (int,)
        check(type(value) in kinds and 0 <= value < 1e38, f"{name} is {value!r}")
    run.scaler.load_state_dict(run.scaler.state_dict() | numbers)
    run.step = numbers["step"]
    run.n_images = numbers["n"]
    run.training_seconds = float(numbers["seconds"])
    check(type(state["losses"]) is list, "losses are no list")
    run.losses = [*map(float, state["losses"])]


def load_optimizer(optimizer: Optimizer, state: dict) -> None:
    """Copies an optimiser's saved tensors, such as Adam's moments, into one that has none yet.

    Raises errors of many kinds where they are not as such an optimiser makes them.
    """
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.zeros_like(p)
    optimizer.step()  # makes the tensors
    optimizer.zero_grad()
    copy_optimizer_state(optimizer.state_dict(), state)


def copy_optimizer_state(own: dict, saved: dict) -> None:
    """Copies saved tensors into those of an optimiser's own state_dict, and 0 where none are."""
    if "param_groups" not in own:  # of optimisers within it, such as Muon's
        for name, inner in own.items():
            copy_optimizer_state(inner, saved[name])
        return
    unknown = saved["state"].keys() - own["state"].keys()
    check(not unknown, f"its optimizer knows no weight {sorted(map(str, unknown))[:3]}")
    for index, tensors in own["state"].items():
        zeros = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
        load_weights(tensors, saved["state"].get(index, zeros), f"optimizer, {index}")


def load_joined_networks(run: Run, state: dict) -> None:
    """Loads an earlier version's state into a run whose method has networks."""
    networks = run.method.networks
    joined = load_joined_optimizer(run, state["optimizer"])
    for key, own in (("model", run.network), ("ema", run.ema)):
        load_weights(own.state_dict(), without_method_networks(state[key], networks), key)
    for name, network in networks.items():
        prefix = f"{name}."
        own = {key: value for key, value in state["model"].items() if key.startswith(prefix)}
        own = {key.removeprefix(prefix): value for key, value in own.items()}
        load_weights(network.state_dict(), own, name)
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
