"""`python -m mnist_ddpm evaluate`."""

import math

import torch
from torch import Tensor

from mnist_ddpm import catalogue, ddpm, generation
from mnist_ddpm.commands import outputs
from mnist_ddpm.commands.drawing import (
    MAX_IMAGES,
    labels_in_turn,
    load_guide,
    locate_dataset,
    open_checkpoint,
    pick_processes_and_device,
    sampling_of,
)
from mnist_ddpm.commands.flags import CompareFlags, DrawingFlags, EvaluateFlags, LikelihoodFlags
from mnist_ddpm.commands.image_inputs import holds_samples, read_images
from mnist_ddpm.commands.outputs import open_partial_results, print_written
from mnist_ddpm.data import loading
from mnist_ddpm.data.labels import label_number, needs_labels, typical_labels
from mnist_ddpm.data.pictures import margin
from mnist_ddpm.datasets import dataset_named
from mnist_ddpm.ddpm import Denoiser, Network, Schedule, check
from mnist_ddpm.evaluation import cards, distances, extractors, losses
from mnist_ddpm.evaluation.extractors import RealImages
from mnist_ddpm.formats.checkpoints import Checkpoint, find
from mnist_ddpm.machine import devices, files, processes
from mnist_ddpm.machine.partial_results import CountedNetwork, PartialResults
from mnist_ddpm.machine.process import progress_bar
from mnist_ddpm.machine.processes import ProcessGroup
from mnist_ddpm.methods import likelihood, schedules
from mnist_ddpm.methods.learned_variance import LearnedDenoiser
from mnist_ddpm.recipe import Recipe
from mnist_ddpm.sampling import Sampling, pick_variance
from mnist_ddpm.training import cost
from mnist_ddpm.training.cost import check_drawing

# The exponent of each variance of a step, for the bound: as likelihood.bits_per_dim
EXPONENTS = {"posterior": 0.0, "beta": 1.0, "learned": None}
# Flags of drawing that have no effect on images that are there already
SAMPLING_FLAGS = (
    "sampler steps spacing timesteps path eta variance option clip label guidance "
    "guidance_interval guide precision"
).split()


def run_evaluate(flags: EvaluateFlags) -> None:
    """Draws or reads images, judges them, writes a card. What cannot be done is reported before."""
    check_sampling_flags(flags)
    world, device = pick_processes_and_device(flags)
    checkpoint, flags = open_checkpoint(flags, device)
    recipe = locate_dataset(checkpoint.recipe, flags.dataset)
    checkpoint = checkpoint._replace(recipe=recipe)
    sampling = None if flags.images else sampling_of(flags, recipe)
    cost.check_drawing(recipe, flags.n, flags.batch_size if device.type == "cpu" else 1)
    check_request(flags, sampling, recipe)
    digest = extractors.digest((find(flags.checkpoint) / "model.safetensors").read_bytes())
    about = {"checkpoint": str(flags.checkpoint), "checkpoint_sha256": digest}
    side = max(recipe.shape[1:])
    judge = extractors.pick_judge(flags.extractor, recipe.dataset, device, side, world)
    with processes.main_process_first(world):
        training, held_out = load_real_images(flags, recipe)
        images = read_images(flags.images, recipe, flags.data) if flags.images else None
    n = flags.n if images is None else min(flags.n, len(images))
    cards.check_enough(n, len(training))
    judge.features(training[: world.size])  # reports now where it is not for such images
    real = RealImages(judge, training, held_out, recipe.is_mirrored, flags.data / "cache")
    real.announce_missing()
    drawing = None
    if images is None:
        drawing = prepare_drawing(flags, checkpoint, sampling, training, held_out, device)
    networks = drawing.networks if drawing else ()
    partial = open_partial_results(flags, sampling, flags.out, networks, device, *real.digests)
    with partial.stoppable():
        if images is None:
            images, described = draw_images(flags, drawing, partial, device, world)
            about |= described
            if recipe.conditional:
                about["sampler"]["condition"] += f" of {condition_split(recipe, held_out)} images"
        elif n < len(images):
            count = f"{n:,} of {len(images):,} images, drawn at random"
            print(f"judging {count}: --n {len(images)} takes all")
        about |= {"reference_sha256": real.digests[0], "command": flags.command}
        card = cards.build_card(
            images,
            training,
            held_out,
            judge,
            recipe,
            real=real.features(),
            n=flags.n,
            seed=flags.seed,
            device=device,
            **about,
        )
        if world.rank > 0:
            return
        if flags.images:
            card["images"] = str(flags.images)
        if held_out is not None:
            card |= measure_network(flags, checkpoint, held_out, partial, device)
        picture = flags.out.with_name(f"{flags.out.stem}-closest.png")
        try:
            cards.write_card(flags.out, card)
            pairs = cards.closest_pairs(card, images, training)
            outputs.write_picture(picture, ddpm.tile(pairs, len(pairs) // 2, scale=2))
        finally:  # a disk may be too full for the card
            print("\n".join(cards.card_lines(card)))
        partial.discard()
    outputs.print_written(flags.out, picture)


def check_sampling_flags(flags: EvaluateFlags) -> None:
    """Raises ValueError for flags that say how to draw, where images are there already."""
    if not flags.images:
        return
    names = [name for name in SAMPLING_FLAGS if name != "variance" or not flags.bits]
    names = [name for name in names if getattr(flags, name) != getattr(DrawingFlags, name)]
    if names:
        typed = " and ".join(f"--{name.replace('_', '-')}" for name in names)
        raise ValueError(f"the images in {flags.images} are drawn already: leave out {typed}")


def check_request(flags: EvaluateFlags, sampling: Sampling | None, recipe: Recipe) -> None:
    """Raises ValueError or OSError for what cannot be done, before images are read."""
    files.check_writable(flags.out)
    outputs.check_outside(flags.out, recipe.dataset)
    if flags.images and not holds_samples(flags.images):
        outputs.check_outside(flags.out, flags.images)
    if flags.bits:
        is_in_range = 2 <= flags.bits <= MAX_IMAGES
        check(is_in_range, f"--bits is {flags.bits}: take from 2 to {MAX_IMAGES:,} images")
        check_bound(recipe, "--bits")
    if sampling is not None:
        sampling.check_guidance(recipe, flags.checkpoint, flags.label)
        labels_in_turn(flags, recipe)  # raises for one that is unknown
        sampling.check_interval(recipe, sampling.choice(recipe))


def load_real_images(flags: EvaluateFlags, recipe: Recipe) -> tuple[Tensor, Tensor | None]:
    """The training images, and those held out, or None. Raises ValueError for too few of them."""
    training = loading.load_images(recipe, flags.data)
    held_out = loading.held_out(recipe, flags.data)
    if held_out is not None and len(held_out) < cards.LEAST:
        held_out = None  # too few to tell anything
    is_enough = held_out is not None or not flags.bits
    check(is_enough, "--bits needs held-out images, of which there are none: leave it out")
    return training, held_out


def choose_images(images: Tensor, n: int, seed: int) -> Tensor:
    """n of the images (N, …), in an order that the seed decides, repeated where n > N."""
    order = distances.shuffled(torch.arange(len(images)), seed)
    return images[order[torch.arange(n) % len(order)]]


def labels_as_in_training(flags: EvaluateFlags, recipe: Recipe, split: str = "train") -> Tensor:
    """The labels of --label in turn, else as in training: distances then ignore their shares.

    Where there are conditions, they are of the same images of the split.
    """
    if flags.label:
        return labels_in_turn(flags, recipe)
    try:
        labels = loading.load_labels(recipe, flags.data, split)
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"{error}; or name those to draw, in turn, with --label") from error
    if recipe.conditional:
        return choose_images(labels, flags.n, flags.seed)
    return typical_labels(labels, flags.n, flags.seed)


def prepare_drawing(
    flags: EvaluateFlags,
    checkpoint: Checkpoint,
    sampling: Sampling,
    training: Tensor,
    held_out: Tensor | None,
    device: torch.device,
) -> generation.Drawing:
    """What draws the images to judge, with the labels and conditions of real ones."""
    recipe = checkpoint.recipe
    condition_images = None
    split = "train"
    if recipe.conditional:
        split = condition_split(recipe, held_out)
        images = training if held_out is None else held_out
        condition_images = choose_images(images, flags.n, flags.seed)
    labels = labels_as_in_training(flags, recipe, split) if recipe.classes else None
    inputs = labels, condition_images, load_guide(sampling, checkpoint, flags, device)
    choice = sampling.choice(recipe)
    return generation.Drawing(checkpoint, sampling, choice, flags.precision, *inputs)


def condition_split(recipe: Recipe, held_out: Tensor | None) -> str:
    """The split whose images conditions are taken of: the unseen one, if there is one."""
    return "train" if held_out is None else dataset_named(recipe.dataset).held_out


def draw_images(
    flags: EvaluateFlags,
    drawing: generation.Drawing,
    partial: PartialResults,
    device: torch.device,
    world: ProcessGroup,
) -> tuple[Tensor, dict]:
    """The images to judge; and for a card, how they were drawn, and at what cost."""
    images, _ = drawing.images(
        flags.n,
        device=device,
        seed=flags.seed,
        batch_size=flags.batch_size,
        partial_results=partial,
        world=world,
    )
    recipe = drawing.checkpoint.recipe
    facts = drawing.sampling.describe(drawing.choice, recipe) | {"precision": flags.precision}
    if flags.compile:
        facts["compile"] = True
    if recipe.classes:
        numbers = [label_number(label, recipe) for label in flags.label]
        facts["labels"] = numbers or "as in training"
    about = {"sampler": facts, **generation.cost_per_image(partial, flags.n, world)}
    if drawing.condition_images is not None:
        facts["condition"] = recipe.condition
        about["condition_error"] = losses.condition_error(
            catalogue.condition_function(recipe), images, drawing.condition_images
        )
    return images, about


def check_bound(recipe: Recipe, request: str) -> None:
    """Raises ValueError where no bound can be measured, which the flag or command requests."""
    needs = f"{request} needs a network"
    check(not needs_labels(recipe), f"{needs} that can do without its labels (label_dropout is 0)")
    check(not recipe.conditional, f"{needs} without a condition, and here is {recipe.condition}")


def measure_bound(
    flags: EvaluateFlags | LikelihoodFlags,
    denoise: Denoiser | LearnedDenoiser,
    schedule: Schedule,
    images: Tensor,
    recipe: Recipe,
    variance: str,
    times_per_image: int | None,
    device: torch.device,
    partial: PartialResults,
) -> likelihood.Bound:
    """As likelihood.bits_per_dim by the flags; its parts are kept as partial results."""
    return likelihood.bits_per_dim(
        denoise,
        schedule,
        images,
        exponent=EXPONENTS[variance],
        margin=margin(recipe),
        times_per_image=times_per_image,
        batch_size=flags.batch_size,
        seed=flags.seed,
        device=device,
        progress=progress_bar,
        part=partial.compute,
    )


def measure_network(
    flags: EvaluateFlags,
    checkpoint: Checkpoint,
    held_out: Tensor,
    partial: PartialResults,
    device: torch.device,
) -> dict:
    """For a card: the loss, and with --bits the bound, of the network on images held out."""
    network, schedule, recipe = checkpoint
    if recipe.conditional:
        return {}  # its loss and bound would be of images given their own condition
    figures = {}
    if not needs_labels(recipe):
        figures["L_simple"] = losses.loss_by_tenth(
            catalogue.make_denoiser(network, schedule, recipe),
            schedule,
            held_out[:1000],
            batch_size=flags.batch_size,
            seed=flags.seed,
            device=device,
        )
    if flags.bits:
        variance = pick_variance(flags.variance, recipe)
        times_per_image = min(50, schedule.T)
        denoise = catalogue.bound_denoiser(network, schedule, recipe, variance == "learned")
        images = held_out[: flags.bits]
        bound = measure_bound(
            flags, denoise, schedule, images, recipe, variance, times_per_image, device, partial
        )
        figures["bits_per_dim"] = cards.bound_figures(bound, variance, times_per_image)
    return figures


def run_likelihood(flags: LikelihoodFlags) -> None:
    """Measures the bound, prints and writes it. What cannot be measured is reported before."""
    device = devices.pick_device(flags.device)
    checkpoint, flags = open_checkpoint(flags, device)
    recipe = locate_dataset(checkpoint.recipe, flags.dataset)
    counted = CountedNetwork(checkpoint.network)
    variance = pick_variance(flags.variance, recipe)
    denoise, schedule = make_chain(
        flags, counted, checkpoint.schedule, recipe, variance == "learned"
    )
    images = images_to_measure(flags, recipe)
    check_drawing(recipe, len(images), flags.batch_size if device.type == "cpu" else 1)
    files.check_writable(flags.out)
    digest = extractors.digest(images)
    partial = open_partial_results(flags, None, flags.out, [counted], device, digest)
    with partial.stoppable():
        times = flags.times_per_image
        bound = measure_bound(
            flags, denoise, schedule, images, recipe, variance, times, device, partial
        )
        height, width = (side - 2 * black for side, black in zip(recipe.shape[1:], margin(recipe)))
        evaluations = partial.evaluations / len(images)
        card = describe_bound(bound) | {"n": len(images), "dataset": recipe.dataset}
        card |= {"split": flags.split, "pixels": [recipe.channels, height, width]}
        card |= {"evaluations_per_image": evaluations, "seconds": round(partial.seconds, 1)}
        card |= {"checkpoint": str(flags.checkpoint), "schedule": recipe.schedule, "T": recipe.T}
        card |= {"steps": schedule.T, "variance": variance, "seed": flags.seed}
        card |= {"device": str(device), "hardware": devices.hardware(device)}
        card |= {"versions": devices.versions()}
        try:
            cards.write_card(flags.out, card)
        finally:  # a disk may be too full for the card
            print(
                f"{bound.mean:.4f} ± {bound.standard_error:.4f} bits/dim, "
                f"an upper bound ({variance} variance, {schedule.T} steps), "
                f"on {height} x {width} pixels of the first {len(images)} {flags.split} images\n"
                f"{evaluations:.0f} network evaluations an image, {partial.seconds:.0f} s, "
                f"seed {flags.seed}, {device}"
            )
    partial.discard()
    print_written(flags.out)


def make_chain(
    flags: LikelihoodFlags, network: Network, schedule: Schedule, recipe: Recipe, is_learned: bool
) -> tuple[Denoiser | LearnedDenoiser, Schedule]:
    """The clipped denoiser and its schedule, of fewer steps where --steps asks for them."""
    if flags.steps is not None:
        times = catalogue.sampling_times(schedule, flags.steps, flags.spacing)
        network = schedules.respaced_network(network, times)
        schedule = schedules.respaced_schedule(schedule, times)
    elif flags.spacing != LikelihoodFlags.spacing:
        raise ValueError("--spacing is that of --steps: name them too, or leave it out")
    check_bound(recipe, "likelihood")
    return catalogue.bound_denoiser(network, schedule, recipe, is_learned), schedule


def images_to_measure(flags: LikelihoodFlags, recipe: Recipe) -> Tensor:
    """The images to measure. Raises ValueError for fewer than two."""
    images = loading.load_images(recipe, flags.data, flags.split)
    images = images[: min(len(images), max(0, flags.n))]
    message = f"a standard error needs at least 2 images, and there are {len(images)}"
    check(len(images) >= 2, f"{message}: see --n and --split")
    return images


def describe_bound(bound: likelihood.Bound) -> dict:
    """The bound and its terms, for a card."""
    return {
        "bits_per_dim": bound.mean,
        "standard_error": bound.standard_error,
        "L_T": bound.prior,
        "L_0_to_T_minus_1": [None if math.isnan(term) else term for term in bound.terms.tolist()],
    }


def run_compare(flags: CompareFlags) -> None:
    """Prints a line for each figure that both cards have."""
    print("\n".join(cards.comparison(cards.read_card(flags.first), cards.read_card(flags.second))))
    print("(± covers other images from the same network; training it again may change more)")
