"""`python -m mnist_ddpm sample`."""

import io
import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from mnist_ddpm import catalogue, ddpm
from mnist_ddpm.commands import flags
from mnist_ddpm.commands.common import keep_parts, load_checkpoint, tell_written, write_picture
from mnist_ddpm.commands.drawing import Drawing, Steps
from mnist_ddpm.commands.reading import read_conditions, read_image
from mnist_ddpm.data.labels import label_names
from mnist_ddpm.evaluation import extractors, generation
from mnist_ddpm.machine import files
from mnist_ddpm.machine.partial_results import CountedNetwork
from mnist_ddpm.methods import inpainting
from mnist_ddpm.training.recipe import Recipe

SHOWN = 400  # images in a grid, at most


class Sample(flags.Sample, Drawing):
    """Images, drawn and saved."""

    def run(self) -> None:
        """Draws and writes. What cannot be drawn is told before."""
        world, device = self.connect()
        checkpoint = load_checkpoint(self, self.checkpoint, device)
        recipe, counted = checkpoint.recipe, CountedNetwork(checkpoint.network)
        self.take_advice(recipe, heed=not self.mask)  # which is not for filling in
        pictures = self.conditions(recipe)
        digests = [] if pictures is None else [extractors.digest(pictures)]
        kept = keep_parts(self, self.out / "samples.npz", counted, device, *digests)
        self.check_memory(recipe, device)
        self.check_labels(recipe)
        steps = self.from_image(recipe, device) if self.init_image else self.sampling(recipe)
        self.check_interval(steps.times, recipe)
        denoiser_of = self.denoiser_of(checkpoint, counted, device, steps, pictures)
        self.check_image_flags()
        out = files.writable_folder(self.out)
        columns = 6 if max(recipe.shape[1:]) <= 32 else 4  # of the films, and rows: noise is large
        with kept.stoppable():
            images, film = generation.generate(
                denoiser_of, self.path_of(recipe), self.n, recipe.shape, sampler=steps.bound,
                times=steps.times, seed=self.seed, batch_size=self.batch_size,
                film_images=columns**2, device=device, kept=kept, world=world,
            )  # fmt: skip
            if world.rank > 0:
                return
            shown = catalogue.conditions(recipe, pictures, range(self.n)[:SHOWN])
            written = write(out, images, film, columns, shown)
        kept.discard()
        each = kept.evaluations / len(world.share(self.n))
        cost = f"{each:.0f} network evaluations in {kept.seconds:.1f} s on {device}"
        print(f"{out}: {self.n} images x {cost}")
        if recipe.attributes:
            names = enumerate(label_names(recipe))
            print("labels: " + ", ".join(f"{label} {name}" for label, name in names))
        tell_written(*written)

    def conditions(self, recipe: Recipe) -> Tensor | None:
        """The pictures of --condition-image: uint8 (M, C, H, W); None where the network needs none.

        Raises ValueError where it is missing, or of no use.
        """
        path, kind = self.condition_image, recipe.condition
        if path is None and recipe.conditional:
            problem = f"{self.checkpoint} draws from a condition ({kind})"
            raise ValueError(f"{problem}: give a picture, or a folder, with --condition-image")
        if path is not None and not recipe.conditional:
            problem = f"{self.checkpoint} was trained without a condition"
            raise ValueError(f"{problem}: leave out --condition-image, or train --condition small")
        return None if path is None else read_conditions(path, recipe, self.n)

    def check_image_flags(self) -> None:
        """Raises ValueError for flags of an image or mask that is not given."""
        if self.mask and not self.init_image:
            raise ValueError("--mask needs the image that it belongs to: give --init-image too")
        if self.strength != Sample.strength and (self.mask or not self.init_image):
            raise ValueError("--strength is for an --init-image without a --mask: leave it out")
        for name in ("resamples", "jump"):
            if getattr(self, name) != getattr(Sample, name) and not self.mask:
                problem = f"--{name} is for filling in what a --mask hides"
                raise ValueError(f"{problem}: leave it out, or give one")

    def from_image(self, recipe: Recipe, device: torch.device) -> Steps:
        """As sampling, with --init-image, and --mask if given."""
        steps = self.sampling(recipe, "ddpm" if self.mask else "ddim")
        image, mask = read_image(self.init_image, self.mask, recipe)
        if mask is None:
            return self.varying(steps, image.to(device), recipe)
        if steps.name != "ddpm":
            advice = f"leave out --sampler {self.sampler}"
            raise ValueError(f"--mask is for ancestral sampling: {advice}")
        known = {"known": image.to(device), "mask": mask.to(device)}
        known |= {"resamples": self.resamples, "jump": self.jump}
        return steps._replace(sampler=inpainting.repaint_sampler, options=steps.options | known)

    def varying(self, steps: Steps, image: Tensor, recipe: Recipe) -> Steps:
        """The steps from an image that is noised as far as --strength says."""
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength is {self.strength}: it must be above 0, and at most 1")
        last = max(1, round(self.strength * recipe.T))
        path = self.path_of(recipe)
        path = ddpm.Schedule(path.a[: last + 1], path.b[: last + 1])
        times = catalogue.sampling_times(path, min(self.steps, last), self.spacing)
        return steps._replace(sampler=inpainting.sdedit(image, steps.sampler), times=times)


def write(
    out: Path, images: Tensor, film: ddpm.Film, columns: int, shown: Tensor | None
) -> list[Path]:
    """The array, the grid, the strip and the GIFs, of as many images as fill their rows.

    shown: the conditions of those in the grid, for a grid of their own. Returns the paths.
    """
    array = images.permute(0, 2, 3, 1).numpy()
    with files.replacing(out / "samples.npz") as path, path.open("wb") as file:
        np.savez_compressed(file, images=array)
    names = ["samples.png", "steps.png", "generation.gif", "predicted_x0.gif", "samples.npz"]
    write_grid(out / "samples.png", images[:SHOWN])
    if shown is not None:
        names.append("condition.png")
        write_grid(out / names[-1], ddpm.to_uint8(shown))
    count = len(film[0][1])
    strip = ddpm.show_strip(film, images=min(2, count), moments=min(11, len(film)))
    with files.replacing(out / "steps.png") as path:
        strip.savefig(path, format="png", dpi=110)
    plt.close(strip)
    whole = max(columns, count // columns * columns)
    film = [(t, xt[:whole], x0_hat[:whole]) for t, xt, x0_hat in film]
    for name, predicted in (("generation.gif", False), ("predicted_x0.gif", True)):
        encoded = io.BytesIO()  # as in write_picture
        ddpm.save_gif(encoded, film, predicted=predicted, columns=columns)
        with files.replacing(out / name) as path:
            path.write_bytes(encoded.getvalue())
    return [out / name for name in names]


def write_grid(path: Path, images: Tensor) -> None:
    """uint8 images (N, C, H, W) as a picture that is about square."""
    write_picture(path, ddpm.tile(images, math.ceil(math.sqrt(len(images))), scale=2))
