"""`python -m mnist_ddpm sample`."""

import io
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mnist_ddpm import catalogue, ddpm
from mnist_ddpm.commands.drawing import (
    MAX_IMAGES,
    labels_in_turn,
    load_guide,
    open_checkpoint,
    pick_processes_and_device,
    sampling_of,
)
from mnist_ddpm.commands.flags import SampleFlags, check_kinds
from mnist_ddpm.commands.image_inputs import read_condition_images, read_image
from mnist_ddpm.commands.outputs import open_partial_results, print_written, write_picture
from mnist_ddpm.data.labels import label_names
from mnist_ddpm.ddpm import check
from mnist_ddpm.evaluation import extractors
from mnist_ddpm.generation import Drawing
from mnist_ddpm.machine import files, folder_lock
from mnist_ddpm.machine.partial_results import PartialResults
from mnist_ddpm.machine.process import is_first_process
from mnist_ddpm.machine.processes import ProcessGroup
from mnist_ddpm.methods import inpainting
from mnist_ddpm.recipe import Recipe
from mnist_ddpm.sampling import SamplerChoice, Sampling
from mnist_ddpm.training import cost

GRID_IMAGES = 400  # at most
PATH_FLAGS = "checkpoint", "guide", "condition_image", "init_image", "mask"
COMMAND_ONLY_FLAGS = {"out", "processes", "label"}


class SamplingJob(NamedTuple):
    """What `sample` draws with: the checkpoint, the sampler and the flags, all checked."""

    flags: SampleFlags
    drawing: Drawing
    condition_images: Tensor | None  # uint8 (M, C, H, W)
    world: ProcessGroup
    device: torch.device

    @property
    def recipe(self) -> Recipe:
        """That of the network that draws."""
        return self.drawing.checkpoint.recipe

    @property
    def film_columns(self) -> int:
        """How many images stand side by side in the films, and how many rows there are."""
        return 6 if max(self.recipe.shape[1:]) <= 32 else 4  # noise takes much space

    def draw(self, kept: PartialResults | None = None) -> tuple[Tensor, ddpm.Film]:
        """The images, uint8 (n, C, H, W), and a film of the first ones."""
        flags = self.flags
        return self.drawing.images(
            flags.n,
            device=self.device,
            seed=flags.seed,
            batch_size=flags.batch_size,
            first=flags.first,
            film_images=self.film_columns**2,
            partial_results=kept,
            world=self.world,
        )


def prepare_job(flags: SampleFlags, sampling: Sampling | None = None) -> SamplingJob:
    """Loads the checkpoint, and checks the flags against it.

    sampling: how to draw, whatever the flags and the checkpoint say. Raises ValueError for what
    cannot be drawn.
    """
    check_kinds(flags)
    check_image_flags(flags)
    check(
        0 <= flags.first <= MAX_IMAGES, f"first is {flags.first}: take one from 0 to {MAX_IMAGES:,}"
    )
    world, device = pick_processes_and_device(flags)
    checkpoint, flags = open_checkpoint(flags, device)
    recipe = checkpoint.recipe
    sampling = sampling or sampling_of(
        flags,
        recipe,
        is_followed=not flags.mask,
        starts_at_T=not flags.init_image,
        default="ddpm" if flags.mask else "ddim",
    )
    condition_images = load_condition_images(flags, recipe)
    cost.check_drawing(recipe, flags.n, flags.batch_size if device.type == "cpu" else 1)
    sampling.check_guidance(recipe, flags.checkpoint, flags.label)
    choice = sampling.choice(recipe)
    if flags.init_image:
        choice = choice_from_image(choice, flags, sampling, recipe, device)
    sampling.check_interval(recipe, choice)
    labels = labels_in_turn(flags, recipe) if recipe.classes else None
    guide = load_guide(sampling, checkpoint, flags, device)
    inputs = labels, condition_images, guide
    drawing = Drawing(checkpoint, sampling, choice, flags.precision, *inputs)
    return SamplingJob(flags, drawing, condition_images, world, device)


def sample(
    checkpoint: str | Path = "mnist",
    n: int | None = None,
    *,
    seed: int = 0,
    labels: int | str | Iterable[int | str] = (),
    film: bool = False,
    device: str = "auto",
    **options,
) -> Tensor | tuple[Tensor, ddpm.Film]:
    """The images that the command `sample` draws, uint8 (n, C, H, W), as the checkpoint advises.

    checkpoint: a folder, a shipped name, or owner/name on the hub. n: 64, or one image for each
    label. labels: numbers or names, of networks that take them, in turn. film: also return
    (t, x_t, x0_hat) of the first images at some 40 times. options: any other flag of the command by
    its name, such as steps, guidance or init_image. Raises ValueError for what cannot be drawn,
    FileNotFoundError for a missing checkpoint.
    """
    known = {field.name for field in fields(SampleFlags)} - COMMAND_ONLY_FLAGS
    unknown = sorted(options.keys() - known)
    check(not unknown, f"sample takes no {', '.join(unknown)}: see mnist-ddpm sample --help")
    try:
        labels = np.ravel([*labels] if isinstance(labels, Iterator) else labels).tolist()
    except ValueError as error:  # lists of several lengths
        raise ValueError(f"labels are {labels!r}: name one, or a list of them") from error
    options |= {"checkpoint": checkpoint, "seed": seed, "label": labels}
    options["device"] = str(device)
    options["n"] = len(labels) or SampleFlags.n if n is None else n
    for name, value in options.items():
        if name in PATH_FLAGS and isinstance(value, str):
            options[name] = Path(value)
        elif isinstance(value, np.generic):
            options[name] = value.item()
    try:
        job = prepare_job(SampleFlags(**options))
    except ValueError as error:
        raise ValueError(as_arguments(str(error))) from error
    images, frames = job.draw()
    return (images, frames) if film else images


def as_arguments(message: str) -> str:
    """A message with the names of sample's arguments in place of the command's flags."""
    names = {field.name for field in fields(SampleFlags)}

    def argument(match: re.Match) -> str:
        name = match[1].replace("-", "_")
        if name not in names:
            return match[0]  # of another command
        return "labels" if name == "label" else name

    return re.sub(r"--([a-z]+(?:-[a-z]+)*)", argument, message)


def run_sample(flags: SampleFlags) -> None:
    """Draws images and writes them. What cannot be drawn is reported before."""
    job = prepare_job(flags)
    flags = job.flags
    recipe = job.recipe
    digests = [] if job.condition_images is None else [extractors.digest(job.condition_images)]
    array_path = flags.out / "samples.npz"
    kept = open_partial_results(
        flags, job.drawing.sampling, array_path, job.drawing.networks, job.device, *digests
    )
    out = files.writable_folder(flags.out)
    with kept.stoppable():
        images, film = job.draw(kept)
        if job.world.rank > 0:
            return
        shown = range(flags.first, flags.first + min(flags.n, GRID_IMAGES))
        condition = catalogue.condition_batch(recipe, job.condition_images, shown)
        with folder_lock.locked_folder(out, waits=True):
            paths = write_samples(out, images, film, job.film_columns, condition)
    kept.discard()
    evaluations = kept.evaluations / len(job.world.share(flags.n))
    duration = f"{kept.seconds:.1f} s on {job.device}"
    print(f"{out}: {flags.n} images x {evaluations:.0f} network evaluations in {duration}")
    if recipe.attributes or recipe.label_names:
        names = enumerate(label_names(recipe))
        print("labels: " + ", ".join(f"{label} {name}" for label, name in names))
    print_written(*paths)


def load_condition_images(flags: SampleFlags, recipe: Recipe) -> Tensor | None:
    """The images of --condition-image: uint8 (M, C, H, W); None if the network needs none.

    Raises ValueError if the flag is missing, or of no use.
    """
    path = flags.condition_image
    if path is None:
        message = f"{flags.checkpoint} draws from a condition ({recipe.condition})"
        check(not recipe.conditional, f"{message}: give pictures with --condition-image")
        return None
    message = "leave out --condition-image, or train --condition small"
    check(recipe.conditional, f"{flags.checkpoint} was trained without a condition: {message}")
    return read_condition_images(path, recipe, flags.first + flags.n)


def check_image_flags(flags: SampleFlags) -> None:
    """Raises ValueError for flags of an image or mask that is not given."""
    if flags.mask:
        check(flags.init_image, "--mask needs the image that it belongs to: give --init-image too")
    if flags.strength != SampleFlags.strength and (flags.mask or not flags.init_image):
        raise ValueError("--strength is for an --init-image without a --mask: leave it out")
    for name in ("resamples", "jump"):
        if getattr(flags, name) != getattr(SampleFlags, name) and not flags.mask:
            raise ValueError(f"--{name} is for inpainting: leave it out, or give a --mask")


def choice_from_image(
    choice: SamplerChoice,
    flags: SampleFlags,
    sampling: Sampling,
    recipe: Recipe,
    device: torch.device,
) -> SamplerChoice:
    """The same sampler, from --init-image: inpainting where there is a --mask."""
    image, mask = read_image(flags.init_image, flags.mask, recipe)
    image = image.to(device)
    if mask is None:
        return start_from(image, choice, flags, sampling, recipe)
    message = f"--mask is for ancestral sampling: leave out --sampler {flags.sampler}"
    check(sampling.sampler == "ddpm", message)
    if is_first_process():
        evaluations = len(choice.times) * flags.resamples
        print(f"inpainting evaluates the network {evaluations} times an image (--resamples)")
    sampler = partial(
        inpainting.repaint_sampler,
        **choice.sampler.keywords,
        known=image,
        mask=mask.to(device),
        resamples=flags.resamples,
        jump=flags.jump,
    )
    return choice._replace(sampler=sampler)


def start_from(
    image: Tensor, choice: SamplerChoice, flags: SampleFlags, sampling: Sampling, recipe: Recipe
) -> SamplerChoice:
    """The same sampler, started from an image that is noised as far as --strength says."""
    strength = flags.strength
    check(0 < strength <= 1, f"strength is {strength}: it must be above 0, and at most 1")
    message = "--strength decides where sampling begins: leave out --timesteps"
    check(not sampling.timesteps, message)
    last = max(1, round(strength * recipe.T))
    schedule = ddpm.Schedule(choice.schedule.a[: last + 1], choice.schedule.b[: last + 1])
    times = replace(sampling, steps=min(sampling.steps, last)).times(schedule)
    return choice._replace(sampler=inpainting.sdedit(image, choice.sampler), times=times)


def write_samples(
    out: Path, images: Tensor, film: ddpm.Film, columns: int, condition: Tensor | None
) -> list[Path]:
    """Writes the array, the grid, the strip and the GIFs, of as many images as fill their rows.

    condition: of the images in the grid, for a second grid. Returns the paths.
    """
    import matplotlib.pyplot as plt  # takes most of a second

    array = images.permute(0, 2, 3, 1).numpy()
    with files.replacing(out / "samples.npz") as path, path.open("wb") as file:
        np.savez_compressed(file, images=array)
    names = ["samples.png", "steps.png", "generation.gif", "predicted_x0.gif", "samples.npz"]
    write_grid(out / "samples.png", images[:GRID_IMAGES])
    if condition is not None:
        names.append("condition.png")
        write_grid(out / "condition.png", ddpm.to_uint8(condition))
    count = len(film[0][1])
    strip = ddpm.show_strip(film, images=min(2, count), moments=min(11, len(film)))
    with files.replacing(out / "steps.png") as path:
        strip.savefig(path, format="png", dpi=110)
    plt.close(strip)
    count = max(columns, count // columns * columns)
    film = [(t, xt[:count], x0_hat[:count]) for t, xt, x0_hat in film]
    for name, predicted in (("generation.gif", False), ("predicted_x0.gif", True)):
        encoded = io.BytesIO()  # as in write_picture
        ddpm.save_gif(encoded, film, predicted=predicted, columns=columns)
        with files.replacing(out / name) as path:
            path.write_bytes(encoded.getvalue())
    return [out / name for name in names]


def write_grid(path: Path, images: Tensor) -> None:
    """Writes uint8 images (N, C, H, W) as a picture that is about square."""
    write_picture(path, ddpm.tile(images, math.ceil(math.sqrt(len(images))), scale=2))
