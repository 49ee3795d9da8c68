"""`python -m mnist_ddpm plan`."""

import time
from functools import partial

import torch
from torch import Tensor

from mnist_ddpm.commands.outputs import check_outside
from mnist_ddpm.commands.train import (
    print_checkpoint,
    print_if_short,
    print_smaller_batch,
    print_start,
)
from mnist_ddpm.commands.training_flags import PlanFlags, place_flags
from mnist_ddpm.data import loading
from mnist_ddpm.datasets import dataset_named
from mnist_ddpm.machine import devices, files
from mnist_ddpm.machine.text import printable
from mnist_ddpm.recipe import Recipe, deciding, preset
from mnist_ddpm.training import loop, planning, saving, throughput, tracking


def run_plan(flags: PlanFlags) -> None:
    """Plans, and unless it is a dry run trains. What cannot be done is reported before."""
    if flags.log != "none":
        tracking.summary_writer()  # raises where it is not installed
    device = devices.pick_device(flags.device)
    if not flags.dry_run:
        saving.check_not_overwriting(flags.out)
        files.writable_folder(flags.out)
    settings = settings_of_data(flags)
    names = [name for name in deciding("data") if name not in settings and hasattr(flags, name)]
    recipe = Recipe(**settings, **{name: getattr(flags, name) for name in names})
    check_outside(flags.out, flags.dataset)
    loading.check_labelled(recipe, flags.data)
    if dataset_named(flags.dataset).padded_side:  # quickly read: before the machine is measured
        loading.load_images(recipe, flags.data)
    plan, images = plan_training(flags, recipe, device)
    labels = loading.load_labels(plan.recipe, flags.data) if plan.recipe.classes else None
    print("\n".join(plan.lines(flags.out)), flush=True)
    print_if_short(plan.recipe, len(images), "--minutes", flags.minutes)
    trained = plan.recipe
    if not flags.dry_run:
        trained = carry_out(flags, plan, images, labels, device)
    print(plan.equivalent_command(trained, place_flags(flags, flags.out)))
    if not flags.dry_run:
        print_checkpoint(flags.out)


def settings_of_data(flags: PlanFlags) -> dict:
    """The settings of a recipe that the data decide; without labels where auto finds none."""
    loading.check_dataset(flags.dataset)
    if flags.classes == "auto" and not flags.attributes:
        try:
            return loading.data_settings(flags.dataset, flags.data, "auto")
        except ValueError as error:
            print(f"training without labels: {printable(error)}")
    classes = 0 if flags.classes == "auto" else flags.classes
    return loading.data_settings(flags.dataset, flags.data, classes) | {"classes": classes}


def plan_training(
    flags: PlanFlags, recipe: Recipe, device: torch.device
) -> tuple[planning.Plan, Tensor]:
    """What to train, after measuring, and on which images. Prints what it does."""
    seconds = 60 * flags.minutes
    measuring = throughput.ThroughputMeter(device)
    compiles = seconds >= planning.COMPILING and device.type != "mps"
    also = ", then compiling the network, a minute or two" if compiles else ""
    duration = f"about {planning.measuring_seconds(seconds):.0f} s, which count"
    print(f"measuring this machine: {duration}{also}", flush=True)
    load = partial(loading.load_images, root=flags.data)
    plan, images = planning.make_plan(
        recipe, load, seconds, measuring, began=flags.began, size=flags.image_size
    )
    wanted = preset(plan.preset).batch_size
    print_smaller_batch(wanted, plan.recipe.batch_size, len(images))
    return plan, images


def carry_out(
    flags: PlanFlags,
    plan: planning.Plan,
    images: Tensor,
    labels: Tensor | None,
    device: torch.device,
) -> Recipe:
    """Trains, and prints how long that took. Returns the recipe, as it was trained."""
    began = time.monotonic()
    folder = flags.out
    run = loop.start_run(plan.recipe, device)
    print_start(run, images, labels, folder, device)
    with tracking.tracker_log(flags.log, folder, plan.recipe) as log:
        loop.fit(
            run,
            images,
            folder,
            labels=labels,
            deadline=plan.deadline,
            final_preview_steps=plan.final_preview_steps,
            log=log,
        )
    minutes = (time.monotonic() - began) / 60
    expected = plan.seconds / 60
    print(f"{folder}: {run.step} steps in {minutes:.1f} min ({expected:.1f} expected)")
    return run.settings
