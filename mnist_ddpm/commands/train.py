"""`python -m mnist_ddpm train`."""

import math
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from mnist_ddpm import catalogue
from mnist_ddpm.commands.drawing import locate_dataset
from mnist_ddpm.commands.outputs import check_outside, print_written, write_picture
from mnist_ddpm.commands.status import check_validation, validation_log
from mnist_ddpm.commands.training_flags import TrainFlags, typed_settings
from mnist_ddpm.data import loading
from mnist_ddpm.data.training_set import describe_training_set, draw_training_set
from mnist_ddpm.datasets import dataset_named, is_own
from mnist_ddpm.ddpm import check, total_steps
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.machine import devices, files, folder_lock, processes
from mnist_ddpm.machine.process import is_first_process
from mnist_ddpm.machine.text import printable
from mnist_ddpm.recipe import PRESETS, Recipe, fit_batch_size, resolve
from mnist_ddpm.training import cost, loop, saving, tracking
from mnist_ddpm.training.first_weights import Sources, initial_weights
from mnist_ddpm.training.run import Run

TRAINING_IMAGES = "training_images.png"
ENOUGH_STEPS = {"adam": 2000, "muon": 400}  # that draw most digits legibly, by optimizer


def run_train(flags: TrainFlags) -> None:
    """Trains to the end of the epochs. What cannot be done is reported before images are read."""
    if flags.log != "none":
        tracking.summary_writer()  # raises where it is not installed
    world = processes.connect_world(flags.processes, flags.device == "cpu")
    sources = Sources()
    saved = saving.load_state(flags.out) if flags.resume else None
    with processes.main_process_first(world):  # which may download
        recipe = resumed_recipe(flags, saved.recipe) if saved else new_recipe(flags, sources)
    check_validation(flags)
    if saved:
        locate_dataset(recipe, None)
    else:
        saving.check_not_overwriting(flags.out)
        check_outside(flags.out, recipe.dataset)
    device = devices.pick_device(flags.device, world)
    processes.check_batch_size(recipe.batch_size, world)
    with processes.main_process_first(world):
        loading.check_labelled(recipe, flags.data)
    recipe = with_precision(recipe, flags, device)
    if device.type == "cpu":  # a GPU has errors of its own
        cost.check_training(recipe)
    with folder_lock.locked_folder(files.writable_folder(flags.out), world):
        pass  # reported before images are read
    start = partial(loop.start_run, device=device, sources=sources, is_resumed=flags.resume)
    with processes.main_process_first(world):
        run = saving.resume_run(flags.out, start, recipe, saved) if saved else start(recipe)
        images = loading.load_images(recipe, flags.data)
        labels = loading.load_labels(recipe, flags.data) if recipe.classes else None
    if not saved and "batch_size" not in flags.typed:
        run.settings = fit_batch_size(run.settings, len(images), world.size)
        print_smaller_batch(recipe.batch_size, run.settings.batch_size, len(images))
    recipe = run.settings
    if world.rank == 0:
        print_if_short(recipe, len(images), "--epochs", recipe.epochs)
        print_if_narrow(recipe)
        print_if_tinted(recipe)
        print_start(run, images, labels, flags.out, device)
    tracker = flags.log if world.rank == 0 else "none"
    validated = {"images": images, "labels": labels, "device": device}
    with (
        tracking.tracker_log(tracker, flags.out, recipe, run.step) as tracker_log,
        validation_log(flags, run, log=tracker_log, **validated) as log,
    ):
        loop.fit(run, images, flags.out, labels=labels, world=world, log=log)
    if world.rank == 0:
        speed = run.step * recipe.batch_size / max(run.training_seconds, 1e-9)
        steps = f"{run.step} steps in {run.training_seconds / 60:.1f} min"
        print(f"{flags.out}: {steps}, {speed:.0f} images/s")
        print_checkpoint(flags.out)


def print_start(
    run: Run, images: Tensor, labels: Tensor | None, folder: Path, device: torch.device
) -> None:
    """Prints what is trained, where, and on which images; training_images.png shows some.

    Raises as describe_training_set.
    """
    for line in describe_training_set(images, labels, run.settings):
        print(printable(line))
    write_picture(folder / TRAINING_IMAGES, draw_training_set(images, labels, run.settings))
    launched = processes.launched_processes()
    place = device if launched == 1 else f"{launched} processes"
    count = f"{cost.count_parameters(run.network):,} parameters"
    print(f"{count}, on {place}; {folder / TRAINING_IMAGES} shows images", flush=True)


def print_if_short(recipe: Recipe, n: int, flag: str, value: float) -> None:
    """Prints what to expect of so few steps that a network draws noise, and how many are enough.

    flag, value: what decides how long the training is; more is needed in proportion.
    """
    if recipe.init_from or recipe.batch_size > n:  # which fit refuses
        return
    steps = total_steps(recipe, n)
    enough = ENOUGH_STEPS.get(recipe.optimizer, ENOUGH_STEPS["adam"])
    if steps < enough:
        hint = f"some {enough:,} draw first images: {flag} {math.ceil(enough * value / steps)}"
        print(f"{steps} steps in {recipe.epochs:g} epochs: expect noise or strokes ({hint})")


def print_if_narrow(recipe: Recipe) -> None:
    """Prints that a U-Net is too narrow for its patches, where it predicts their noise.

    All that a patch's position knows goes through the first level's channels.
    """
    numbers = recipe.channels * recipe.patch_size**2
    is_unet = recipe.network in ("unet", "shortcut")
    if is_unet and recipe.prediction != "x0" and numbers > recipe.base_channels:
        sizes = f"a patch has {numbers} numbers, the first level {recipe.base_channels} channels"
        flags = f"--base-channels {numbers}, a smaller --patch-size, or --prediction x0"
        print(f"{sizes}: part of the noise is lost (take {flags})")


def print_if_tinted(recipe: Recipe) -> None:
    """Prints that samples in colour get a tint where the noise is predicted.

    At large t, an error of the noise is a larger one of the image's mean colour.
    """
    if recipe.channels > 1 and recipe.prediction == "eps":
        hint = "take --prediction v or x0; docs/troubleshooting.md"
        print(f"in colour, predicting the noise tints the samples until training is long ({hint})")


def resumed_recipe(flags: TrainFlags, saved: Recipe) -> Recipe:
    """The saved recipe, with what was typed. Raises ValueError for what cannot change."""
    message = "a resumed run has settings of its own: leave out --preset"
    check("preset" not in flags.typed, message)
    recipe = resolve(typed_settings(flags), asdict(saved))
    saving.check_changes(saved, recipe, flags.out)
    return recipe


def new_recipe(flags: TrainFlags, sources: Sources) -> Recipe:
    """The recipe of what was typed, the network to start from, and the preset, in this order.

    Raises ValueError for flags that a new run would ignore.
    """
    typed = typed_settings(flags)
    base = PRESETS[flags.preset]
    dataset = typed.get("dataset", base["dataset"])
    classes = flags.recipe.classes if "classes" in flags.typed else base.get("classes", 0)
    decided = loading.data_settings(dataset, flags.data, classes)
    if flags.recipe.init_from:
        has_labels = bool(classes) if is_own(dataset) else bool(dataset_named(dataset).labels)
        base = base | initial_weights(flags.recipe.init_from, has_labels, sources=sources)[0]
    base = base | decided
    recipe = resolve(typed, base)
    if "label_dropout" in typed:
        message = "--label-dropout hides labels, and there are none: leave it out, or see --classes"
        check(recipe.classes or recipe.attributes, message)
    if typed.keys() & {"beta_1", "beta_T"}:
        message = f"schedule {recipe.schedule} has betas of its own"
        check(catalogue.uses_betas(recipe), f"{message}: leave out --beta-1 and --beta-T")
    return recipe


def with_precision(recipe: Recipe, flags: TrainFlags, device: torch.device) -> Recipe:
    """The recipe in the precision that suits a device, unless one was typed.

    A resumed run keeps its own where the device has it.
    """
    is_emulated = devices.emulates(recipe.precision, device)
    if "precision" in flags.typed or (flags.resume and not is_emulated):
        return recipe
    precision = devices.default_precision(device)
    if precision != recipe.precision and is_first_process():
        reason = "this GPU has no bfloat16 arithmetic" if is_emulated else "this GPU computes in it"
        print(f"training in {precision}, since {reason} (a --precision that you type wins)")
    return replace(recipe, precision=precision)


def print_checkpoint(folder: Path) -> None:
    """Prints the last lines of a training: the files of its checkpoint."""
    paths = [folder / name for name in (checkpoints.WEIGHTS, checkpoints.CONFIG, checkpoints.STATE)]
    print_written(*(path for path in paths if path.is_file()))


def print_smaller_batch(wanted: int, batch_size: int, n: int) -> None:
    """Prints a line where a batch has become smaller than wanted to fit n images."""
    if n < wanted and is_first_process():
        print(f"{n} images are fewer than a batch of {wanted}: batches have {batch_size}")
