"""Trains a recipe from start to end: starts or resumes the run, trains, saves."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from mnist_ddpm import catalogue, ddpm
from mnist_ddpm.ddpm import check
from mnist_ddpm.machine import devices
from mnist_ddpm.machine.processes import ProcessGroup
from mnist_ddpm.method import Method
from mnist_ddpm.methods.guidance import Teacher
from mnist_ddpm.training import checkpoint_files, loop, previews, run, saving, session, throughput
from mnist_ddpm.training.recipe import Recipe
from mnist_ddpm.training.run import Run
from mnist_ddpm.training.sampling_defaults import defaults_for_run
from mnist_ddpm.training.weight_loading import load_weights

Device = torch.device | str
Weights = dict[str, Tensor]  # by name


def start_run(
    recipe: Recipe,
    device: Device = "cpu",
    weights: Weights | None = None,
    method_weights: dict[str, Weights] | None = None,
    teacher: Teacher | None = None,
    method: Method | None = None,
) -> Run:
    """As ddpm.start_run, for any recipe: a run at step 0, from random weights or those given.

    method_weights: of its method's networks, by name. teacher: as formats.teachers loads it.
    method: in place of the recipe's. Raises ValueError for an unknown name, weights of another
    network, or a recipe that does not fit.
    """
    network = catalogue.make_network(recipe).to(device)
    method = catalogue.make_method(recipe, teacher) if method is None else method
    method.networks.to(device)
    source = recipe.init_from or "what is given"
    if weights is not None:
        load_weights(network.state_dict(), weights, source)
    for name, own in (method_weights or {}).items():
        load_weights(method.networks[name].state_dict(), own, source)
    optimizer_factory = partial(catalogue.make_optimizer, recipe=recipe)
    return run.new_run(recipe, network, optimizer_factory, method, catalogue.make_times(recipe))


def method_settings(recipe: Recipe) -> dict:
    """Settings that rebuild the network and sample from it, where they are not the notebook's."""
    names = ["schedule", "prediction"]
    optional = ("network", "condition", "attributes", "blocks_per_level", "norm_groups")
    names += [name for name in optional if getattr(recipe, name) != getattr(Recipe, name)]
    if isinstance(recipe.image_size, tuple):
        names.append("image_size")
    if recipe.attention != (len(recipe.channel_mults) - 1,):
        names.append("attention_resolutions")
    if catalogue.learns_variance(recipe):
        names.append("objective")
    return {name: getattr(recipe, name) for name in names}


def save_checkpoint(
    folder: str | Path,
    network: nn.Module,
    recipe: Recipe,
    record: dict,
    sampling_defaults: dict | None = None,
) -> None:
    """Writes a checkpoint of an averaged network, and the record of its training.

    sampling_defaults: flags of sample that work best, if known. Raises OSError where it cannot be
    written.
    """
    method = method_settings(recipe)
    checkpoint_files.write_checkpoint(folder, network, recipe, record, method, sampling_defaults)


def train(
    recipe: Recipe,
    images: Tensor,
    folder: str | Path,
    labels: Tensor | None = None,
    resume: bool = False,
    weights: Weights | None = None,
    deadline: float = math.inf,
    device: Device = "cpu",
    world: ProcessGroup = run.SINGLE_PROCESS,
    log: session.Log | None = None,
    final_preview_steps: float | None = None,
    sampling_defaults: dict | None = None,
    teacher: Teacher | None = None,
    method_weights: dict[str, Weights] | None = None,
) -> Run:
    """Starts a run, or resumes that in folder, and trains it to its end, or until a deadline.

    weights, method_weights, teacher: as in start_run. deadline, final_preview_steps: as in
    loop.fit. sampling_defaults: those to save; None: those of defaults_for_run. Raises ValueError
    where the recipe names weights to start from or a teacher, and none are passed, and as
    check_precision, resume_run and loop.fit.
    """
    has_weights = resume or weights is not None or not recipe.init_from
    check(has_weights, f"init_from is {recipe.init_from}: pass the weights of initial_weights")
    has_teacher = teacher is not None or not recipe.teacher
    check(has_teacher, f"teacher is {recipe.teacher}: pass that of teachers.load_teacher")
    devices.check_precision(recipe.precision, device)
    recipe = replace(recipe, compile=recipe.compile and devices.compiles(device, recipe.precision))
    start = partial(start_run, device=device, teacher=teacher)
    if resume:
        new_or_resumed_run = saving.resume_run(folder, start, recipe)
    else:
        new_or_resumed_run = start(recipe, weights=weights, method_weights=method_weights)
    if world.rank == 0:
        device_text = f"{world.size} processes" if world.size > 1 else device
        print_start(new_or_resumed_run, images, device_text)
    preview = partial(
        previews.draw_preview,
        make_denoiser=partial(catalogue.make_denoiser, recipe=recipe),
        processes=world.size,
        condition=catalogue.condition_batch(recipe, images, range(previews.IMAGES)),
    )
    if sampling_defaults is None:
        sampling_defaults = defaults_for_run(new_or_resumed_run, folder, resume)
    return loop.fit(
        new_or_resumed_run,
        images,
        catalogue.make_schedule(recipe),
        folder,
        save_checkpoint=partial(save_checkpoint, sampling_defaults=sampling_defaults),
        labels=labels,
        deadline=deadline,
        augment=ddpm.mirrored if recipe.is_mirrored else None,
        final_preview_steps=final_preview_steps,
        world=world,
        log=log,
        preview=preview,
    )


def print_start(new_or_resumed_run: Run, images: Tensor, device: Device) -> None:
    """Prints what is trained on how many images, and on which device."""
    count = f"{run.count_parameters(new_or_resumed_run.network):,} parameters"
    shape = tuple(images.shape[1:])
    print(f"{len(images):,} images of {shape}, {count}, on {device}", flush=True)


def throughput_meter(device: torch.device) -> throughput.ThroughputMeter:
    """A meter of how fast this machine trains and samples, for a plan."""
    start = partial(start_run, device=device)
    factories = catalogue.make_schedule, catalogue.make_network
    return throughput.ThroughputMeter(device, start, *factories)
