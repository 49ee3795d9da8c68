"""`python -m mnist_ddpm sample`."""

import io
import math
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from mnist_ddpm import catalogue, ddpm
from mnist_ddpm.commands import sampler_setup
from mnist_ddpm.commands.checkpoint_inputs import open_checkpoint
from mnist_ddpm.commands.flags import SampleFlags, check_kinds
from mnist_ddpm.commands.image_inputs import read_condition_images, read_image
from mnist_ddpm.commands.outputs import open_partial_results, print_written, write_picture
from mnist_ddpm.commands.sampler_setup import SamplerChoice
from mnist_ddpm.data.labels import label_names
from mnist_ddpm.ddpm import check
from mnist_ddpm.evaluation import extractors, generation
from mnist_ddpm.formats.checkpoints import Checkpoint
from mnist_ddpm.machine import files, folder_lock
from mnist_ddpm.machine.partial_results import CountedNetwork, PartialResults
from mnist_ddpm.machine.process import is_first_process
from mnist_ddpm.machine.processes import ProcessGroup
from mnist_ddpm.methods import inpainting
from mnist_ddpm.recipe import Recipe
from mnist_ddpm.training import cost

GRID_IMAGES = 400  # at most
PATH_FLAGS = "checkpoint", "guide", "condition_image", "init_image", "mask"
COMMAND_ONLY_FLAGS = {"out", "advised", "processes", "label"}


class SamplingJob(NamedTuple):
    """What `sample` draws with: the checkpoint, the sampler and the flags, all checked."""

    flags: SampleFlags  # with the checkpoint's advice
    checkpoint: Checkpoint
    sampler_choice: SamplerChoice
    denoiser_for_batch: generation.DenoiserForBatch
    network: CountedNetwork
    condition_images: Tensor | None  # uint8 (M, C, H, W)
    labels: Tensor | None  # of the images, in turn: int64 (L,)
    world: ProcessGroup
    device: torch.device

    @property
    def film_columns(self) -> int:
        """How many images stand side by side in the films, and how many rows there are."""
        return 6 if max(self.checkpoint.recipe.shape[1:]) <= 32 else 4  # noise takes much space

    def draw(self, partial: PartialResults | None = None) -> tuple[Tensor, ddpm.Film]:
        """The images, uint8 (n, C, H, W), and a film of the first ones."""
        options = {"film_images": self.film_columns**2, "partial_results": partial}
        options |= {"first": self.flags.first, "device": self.device, "world": self.world}
        return sampler_setup.generate_images(
            self.flags,
            self.sampler_choice,
            self.denoiser_for_batch,
            self.checkpoint.recipe,
            **options,
        )


def prepare_job(flags: SampleFlags) -> SamplingJob:
    """Loads the checkpoint, and checks the flags against it.

    Raises ValueError for what cannot be drawn.
    """
    check_kinds(flags)
    limit = sampler_setup.MAX_IMAGES
    check(0 <= flags.first <= limit, f"first is {flags.first}: it must be from 0 to {limit:,}")
    world, device = sampler_setup.pick_processes_and_device(flags)
    checkpoint, flags = open_checkpoint(flags, device)
    recipe = checkpoint.recipe
    flags = sampler_setup.with_sampling_defaults(
        flags, recipe, is_followed=not flags.mask, starts_at_T=not flags.init_image
    )
    condition_images = load_condition_images(flags, recipe)
    network = CountedNetwork(checkpoint.network)
    cost.check_drawing(recipe, flags.n, flags.batch_size if device.type == "cpu" else 1)
    sampler_setup.check_labels_and_guidance(flags, recipe)
    sampler_choice = choose_with_image(flags, recipe, device)
    sampler_setup.check_interval(flags, sampler_choice.times, recipe)
    labels = sampler_setup.labels_in_turn(flags, recipe) if recipe.classes else None
    denoiser_for_batch = sampler_setup.build_denoiser_for_batch(
        flags,
        sampler_choice,
        checkpoint,
        network,
        labels=labels,
        condition_images=condition_images,
        device=device,
    )
    check_image_flags(flags)
    return SamplingJob(
        flags=flags,
        checkpoint=checkpoint,
        sampler_choice=sampler_choice,
        denoiser_for_batch=denoiser_for_batch,
        network=network,
        condition_images=condition_images,
        labels=labels,
        world=world,
        device=device,
    )


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
    labels = np.ravel([*labels] if isinstance(labels, Iterator) else labels).tolist()
    options |= {"checkpoint": checkpoint, "seed": seed, "label": labels}
    options["device"] = str(device)
    options["n"] = len(labels) or SampleFlags.n if n is None else n
    for name, value in options.items():
        if name in PATH_FLAGS and isinstance(value, str):
            options[name] = Path(value)
        elif isinstance(value, np.generic):
            options[name] = value.item()
    job = prepare_job(SampleFlags(**options))
    images, frames = job.draw()
    return (images, frames) if film else images


def run_sample(flags: SampleFlags) -> None:
    """Draws images and writes them. What cannot be drawn is reported before."""
    job = prepare_job(flags)
    flags = job.flags
    recipe = job.checkpoint.recipe
    digests = [] if job.condition_images is None else [extractors.digest(job.condition_images)]
    array_path = flags.out / "samples.npz"
    partial = open_partial_results(flags, array_path, job.network, job.device, *digests)
    out = files.writable_folder(flags.out)
    with partial.stoppable():
        images, film = job.draw(partial)
        if job.world.rank > 0:
            return
        shown = range(flags.first, flags.first + min(flags.n, GRID_IMAGES))
        condition = catalogue.condition_batch(recipe, job.condition_images, shown)
        with folder_lock.locked_folder(out, waits=True):
            paths = write_samples(out, images, film, job.film_columns, condition)
    partial.discard()
    evaluations = partial.evaluations / len(job.world.share(flags.n))
    duration = f"{partial.seconds:.1f} s on {job.device}"
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


def choose_with_image(flags: SampleFlags, recipe: Recipe, device: torch.device) -> SamplerChoice:
    """As choose_sampler, with --init-image and --mask if given."""
    inpaints = flags.init_image and flags.mask
    sampler_choice = sampler_setup.choose_sampler(flags, recipe, "ddpm" if inpaints else "ddim")
    if not flags.init_image:
        return sampler_choice
    image, mask = read_image(flags.init_image, flags.mask, recipe)
    image = image.to(device)
    if mask is None:
        return start_from(image, sampler_choice, flags, recipe)
    message = f"--mask is for ancestral sampling: leave out --sampler {flags.sampler}"
    check(sampler_choice.name == "ddpm", message)
    options = {"known": image, "mask": mask.to(device)}
    options |= {"resamples": flags.resamples, "jump": flags.jump}
    if is_first_process():
        evaluations = len(sampler_choice.times) * flags.resamples
        print(f"inpainting evaluates the network {evaluations} times an image (--resamples)")
    return sampler_choice._replace(
        sampler=inpainting.repaint_sampler, options=sampler_choice.options | options
    )


def start_from(
    image: Tensor, sampler_choice: SamplerChoice, flags: SampleFlags, recipe: Recipe
) -> SamplerChoice:
    """The sampler choice that starts from an image, noised as far as --strength says."""
    strength = flags.strength
    check(0 < strength <= 1, f"strength is {strength}: it must be above 0, and at most 1")
    message = "--strength decides where sampling begins: leave out --timesteps"
    check(not flags.timesteps, message)
    last = max(1, round(strength * recipe.T))
    schedule = sampler_choice.sampling_schedule
    schedule = ddpm.Schedule(schedule.a[: last + 1], schedule.b[: last + 1])
    times = catalogue.sampling_times(schedule, min(flags.steps, last), flags.spacing)
    return sampler_choice._replace(
        sampler=inpainting.sdedit(image, sampler_choice.sampler), times=times
    )


def write_samples(
    out: Path, images: Tensor, film: ddpm.Film, columns: int, condition: Tensor | None
) -> list[Path]:
    """Writes the array, the grid, the strip and the GIFs, of as many images as fill their rows.

    condition: of the images in the grid, for a second grid. Returns the paths.
    """
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
