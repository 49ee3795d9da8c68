"""`python -m mnist_ddpm plan`."""

import time
from functools import partial
from pathlib import Path

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
from mnist_ddpm.recipe import Recipe, deciding, preset
from mnist_ddpm.training import loop, planning, saving, throughput, tracking

GUIDE = "guide"  # folder in that of the network


def run_plan(flags: PlanFlags) -> None:
    """Plans, and unless it is a dry run trains. What cannot be done is reported before."""
    if flags.log != "none":
        tracking.summary_writer()  # raises where it is not installed
    device = devices.pick_device(flags.device)
    folders = check_folders(flags)
    settings = loading.data_settings(flags.dataset, flags.data, flags.classes)
    names = [name for name in deciding("data") if name not in settings and hasattr(flags, name)]
    recipe = Recipe(**settings, **{name: getattr(flags, name) for name in names})
    check_outside(flags.out, flags.dataset)
    loading.check_labelled(recipe, flags.data)
    if dataset_named(flags.dataset).padded_side:  # quickly read: before the machine is measured
        loading.load_images(recipe, flags.data)
    plans, images = make_plans(flags, recipe, device)
    recipe = plans[0].recipe
    labels = loading.load_labels(recipe, flags.data) if recipe.classes else None
    runs = [*zip(folders, plans)]
    for folder, plan in runs:
        print("\n".join(plan.lines(folder)), flush=True)
        if flags.dry_run:
            print(plan.equivalent_command(plan.recipe, place_flags(flags, folder)), flush=True)
    print_if_short(recipe, len(images), "--minutes", flags.minutes)
    if flags.dry_run:
        return
    recipes = [carry_out(flags, plan, folder, images, labels, device) for folder, plan in runs]
    for (folder, plan), recipe in zip(runs, recipes):
        print(plan.equivalent_command(recipe, place_flags(flags, folder)))
    for folder, _ in runs:
        print_checkpoint(folder)


def make_plans(
    flags: PlanFlags, recipe: Recipe, device: torch.device
) -> tuple[list[planning.Plan], Tensor]:
    """What to train, after measuring, and on which images. Prints what it does."""
    seconds = 60 * flags.minutes
    measuring = throughput.ThroughputMeter(device)
    compiles = seconds >= planning.COMPILING and device.type != "mps"
    also = ", then compiling the network, a minute or two" if compiles else ""
    duration = f"about {planning.measuring_seconds(seconds):.0f} s, which count"
    print(f"measuring this machine: {duration}{also}", flush=True)
    load = partial(loading.load_images, root=flags.data)
    options = {"began": flags.began, "size": flags.image_size}
    plan, images = planning.make_plan(recipe, load, seconds, measuring, **options)
    wanted = preset(plan.preset).batch_size
    print_smaller_batch(wanted, plan.recipe.batch_size, len(images))
    if not flags.guide:
        return [plan], images
    plans, notice = planning.with_guide(plan, len(images), GUIDE, measuring)
    if notice:
        print(notice)
    return plans, images


def check_folders(flags: PlanFlags) -> list[Path]:
    """The folders for the checkpoints. Raises ValueError or OSError where they cannot be."""
    folders = [flags.out]
    if flags.guide:
        planning.check_guide_dataset(flags.dataset)
        folders.append(flags.out / GUIDE)
    if not flags.dry_run:
        for folder in folders:
            saving.check_not_overwriting(folder)
        files.writable_folder(flags.out)
    return folders


def carry_out(
    flags: PlanFlags,
    plan: planning.Plan,
    folder: Path,
    images: Tensor,
    labels: Tensor | None,
    device: torch.device,
) -> Recipe:
    """Trains one network, and prints how long that took. Returns its recipe, as it was trained."""
    began = time.monotonic()
    run = loop.start_run(plan.recipe, device)
    run.sampling_defaults = plan.sampling_defaults
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
