"""`python -m mnist_ddpm evaluate`."""

from pathlib import Path

import torch
from torch import Tensor

from mnist_ddpm import catalogue, ddpm
from mnist_ddpm.commands import flags
from mnist_ddpm.commands.common import (
    EXPONENTS,
    apart,
    in_words,
    keep_parts,
    load_checkpoint,
    moved,
    pick_variance,
    tell_written,
    write_picture,
)
from mnist_ddpm.commands.drawing import MOST, Drawing
from mnist_ddpm.commands.reading import holds_samples, read_images
from mnist_ddpm.data import sets
from mnist_ddpm.data.labels import always_told, typical_labels
from mnist_ddpm.evaluation import cards, distances, extractors, generation, losses
from mnist_ddpm.evaluation.features import RealImages
from mnist_ddpm.formats.checkpoints import Checkpoint, find
from mnist_ddpm.machine import files, processes
from mnist_ddpm.machine.partial_results import CountedNetwork, PartialResults
from mnist_ddpm.machine.processes import World
from mnist_ddpm.machine.progress import progress_bar
from mnist_ddpm.methods.likelihood import bits_per_dim
from mnist_ddpm.training.recipe import Recipe

# Flags of drawing, which are idle where the images are there already
HOW = (
    "sampler", "steps", "spacing", "path", "eta", "variance", "option", "clip", "label", "guidance",
    "guidance_interval", "guide", "precision",
)  # fmt: skip


class Evaluate(flags.Evaluate, Drawing):
    """Images, drawn or read, and judged."""

    split = "train"  # of which the conditions are

    def run(self) -> None:
        """Draws or reads images, judges and writes. What cannot be done is told before."""
        self.check_flags()
        world, device = self.connect()
        checkpoint = load_checkpoint(self, self.checkpoint, device)
        recipe = moved(checkpoint.recipe, self.dataset)
        checkpoint = checkpoint._replace(recipe=recipe)
        self.take_advice(recipe, heed=not self.images)
        self.check_memory(recipe, device)
        self.check(recipe)
        weights = extractors.digest((find(self.checkpoint) / "model.safetensors").read_bytes())
        side = max(recipe.shape[1:])
        judge = extractors.pick_judge(self.extractor, recipe.dataset, device, side, world)
        with processes.main_process_first(world):
            training, held_out = self.real_images(recipe)
            given = read_images(self.images, recipe, self.data) if self.images else None
        cards.check_enough(self.n if given is None else min(self.n, len(given)), len(training))
        judge.features(training[: world.size])  # says now where it is not for such images
        mirrored, folder = cards.sees_mirrored(recipe), self.data / "cache"
        real = RealImages(judge, training, held_out, mirrored, folder)
        real.tell_missing()
        kept = keep_parts(self, self.out, CountedNetwork(checkpoint.network), device, *real.signed)
        with kept.stoppable():
            origin = {}
            if given is None:
                pictures = None
                if recipe.conditional:
                    pictures = self.chosen(training if held_out is None else held_out)
                given, origin = self.draw(world, kept, checkpoint, device, pictures)
            elif self.n < len(given):
                count = f"judging {self.n:,} of {len(given):,} images, drawn at random"
                print(f"{count}: --n {len(given)} takes all")
            named = {"checkpoint": str(self.checkpoint), "checkpoint_sha256": weights}
            card = cards.build_card(
                given, training, held_out, judge, recipe, real=real.features(), n=self.n,
                seed=self.seed, device=device, reference_sha256=real.signed[0], **named, **origin,
                command=self.command,
            )  # fmt: skip
            if world.rank > 0:
                return
            if self.images:
                card["images"] = str(self.images)
            if held_out is not None:
                card |= self.measure(kept, checkpoint, held_out, device)
            try:
                picture = self.write(card, given, training)
            finally:  # a disk may be too full for the card
                print("\n".join(cards.card_lines(card)))
            kept.discard()
        tell_written(self.out, picture)

    def check_flags(self) -> None:
        """Raises ValueError for flags that say how to draw, where images are there already."""
        if not self.images:
            return
        names = [name for name in HOW if name != "variance" or not self.bits]
        idle = [name for name in names if getattr(self, name) != getattr(Drawing, name)]
        if idle:
            problem = f"the images in {self.images} are drawn already"
            raise ValueError(f"{problem}: leave out {in_words(idle)}")

    def check(self, recipe: Recipe) -> None:
        """Raises ValueError or OSError for what cannot be done, before images are read."""
        files.check_writable(self.out)
        apart(self.out, recipe.dataset)
        if self.images and not holds_samples(self.images):
            apart(self.out, self.images)
        if self.bits and not 2 <= self.bits <= MOST:
            problem = f"--bits is {self.bits}: a standard error needs at least 2 images"
            raise ValueError(f"{problem}, and at most {MOST:,} can be named")
        if self.bits and always_told(recipe):
            problem = "--bits needs a network that can do without its labels"
            raise ValueError(f"{problem}: leave it out")
        if self.bits and recipe.conditional:
            problem = f"--bits needs a network without a condition, and here is {recipe.condition}"
            raise ValueError(f"{problem}: leave it out")
        if not self.images:
            self.check_labels(recipe)
            self.check_interval(self.sampling(recipe).times, recipe)

    def real_images(self, recipe: Recipe) -> tuple[Tensor, Tensor | None]:
        """Those of training, and those held out, or None. Raises ValueError for too few of them."""
        training = sets.load_images(recipe, self.data)
        held_out = sets.held_out(recipe, self.data)
        if held_out is not None and len(held_out) < cards.LEAST:
            held_out = None  # too few to tell anything
        if self.bits and held_out is None:
            raise ValueError("--bits needs held-out images, of which there are none: leave it out")
        if recipe.conditional and held_out is not None:
            self.split = sets.HELD_OUT[recipe.dataset]
        return training, held_out

    def chosen(self, images: Tensor) -> Tensor:
        """n of the images (N, …), in an order that the seed decides, and again where n > N."""
        order = distances.shuffled(torch.arange(len(images)), self.seed)
        return images[order[torch.arange(self.n) % len(order)]]

    def labels(self, recipe: Recipe) -> Tensor:
        """Those given, else as in training, so that distances do not measure their shares.

        Where there are conditions, they are of the same images.
        """
        if self.label:
            return super().labels(recipe)
        try:
            known = sets.load_labels(recipe, self.data, self.split)
        except (ValueError, FileNotFoundError) as error:
            advice = "or name those to draw, in turn, with --label"
            raise ValueError(f"{error}; {advice}") from error
        if recipe.conditional:
            return self.chosen(known)
        return typical_labels(known, self.n, self.seed)

    def draw(
        self, world: World, kept: PartialResults, checkpoint: Checkpoint, device: torch.device,
        pictures: Tensor | None,
    ) -> tuple[Tensor, dict]:  # fmt: skip
        """The images to judge, of the pictures' condition; how they were made, and at what cost."""
        recipe, steps = checkpoint.recipe, self.sampling(checkpoint.recipe)
        images, _ = generation.generate(
            self.denoiser_of(checkpoint, kept.counted, device, steps, pictures),
            self.path_of(recipe), self.n, recipe.shape, sampler=steps.bound, times=steps.times,
            seed=self.seed, batch_size=self.batch_size, device=device, kept=kept, world=world,
        )  # fmt: skip
        how = {"name": steps.name, **steps.told, "precision": self.precision}
        how |= {"steps": self.steps, "spacing": self.spacing, "clip": self.clip}
        how |= {"path": self.path} if self.path else {}
        how |= {"compile": True} if self.compile else {}
        how |= {"advised": list(self.advised)} if self.advised else {}
        if recipe.classes:
            how |= {"labels": list(self.label) or "as in training"}
        if self.guide:
            how |= {"guide": str(self.guide)}
        if recipe.classes or self.guide:
            how |= {"guidance": self.scale}
        if self.guidance_interval:
            how |= {"guidance_interval": list(self.guidance_interval)}
        about = {"sampler": how, **generation.cost(kept, self.n, world)}
        if pictures is not None:
            how |= {"condition": f"{recipe.condition} of {self.split} images"}
            about["condition_error"] = losses.condition_error(
                catalogue.condition_of(recipe), images, pictures
            )
        return images, about

    def measure(
        self, kept: PartialResults, checkpoint: Checkpoint, held_out: Tensor, device: torch.device
    ) -> dict:
        """What a card has of the network itself, by images held out."""
        network, schedule, recipe = checkpoint
        if recipe.conditional:
            return {}  # its loss and bound would be of images given their own condition
        denoise, figures = catalogue.make_denoiser(network, schedule, recipe), {}
        options = {"batch_size": self.batch_size, "seed": self.seed, "device": device}
        if not always_told(recipe):
            images = held_out[:1000]
            figures["L_simple"] = losses.loss_by_tenth(denoise, schedule, images, **options)
        if self.bits:
            variance, count = pick_variance(self.variance, recipe), min(50, schedule.T)
            learned = variance == "learned"
            bound = bits_per_dim(
                catalogue.bound_denoiser(network, schedule, recipe, learned),
                schedule, held_out[: self.bits],
                exponent=EXPONENTS[variance], times_per_image=count,
                margin=sets.known_margin(recipe), progress=progress_bar, part=kept.compute,
                **options,
            )  # fmt: skip
            figures["bits_per_dim"] = cards.bound_figures(bound, variance, count)
        return figures

    def write(self, card: dict, images: Tensor, training: Tensor) -> Path:
        """The card, and the pairs of images that are closest: the path of that picture."""
        cards.write_card(self.out, card)
        picture = self.out.with_name(f"{self.out.stem}-closest.png")
        pairs = cards.closest_pairs(card, images, training)
        write_picture(picture, ddpm.tile(pairs, len(pairs) // 2, scale=2))
        return picture
