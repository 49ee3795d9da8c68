"""`python -m mnist_ddpm likelihood`."""

import math

from torch import Tensor

from mnist_ddpm import catalogue
from mnist_ddpm.commands import checkpoint_inputs
from mnist_ddpm.commands.flags import LikelihoodFlags
from mnist_ddpm.commands.outputs import open_partial_results, print_written
from mnist_ddpm.data import loading
from mnist_ddpm.data.pictures import margin
from mnist_ddpm.ddpm import Denoiser, Network, Schedule, check
from mnist_ddpm.evaluation import cards, extractors
from mnist_ddpm.machine import devices, files
from mnist_ddpm.machine.partial_results import CountedNetwork
from mnist_ddpm.methods import likelihood, schedules
from mnist_ddpm.methods.learned_variance import LearnedDenoiser
from mnist_ddpm.training.cost import check_drawing
from mnist_ddpm.training.recipe import Recipe


def run_likelihood(flags: LikelihoodFlags) -> None:
    """Measures the bound, prints and writes it. What cannot be measured is reported before."""
    device = devices.pick_device(flags.device)
    checkpoint, flags = checkpoint_inputs.open_checkpoint(flags, device)
    recipe = checkpoint_inputs.locate_dataset(checkpoint.recipe, flags.dataset)
    counted = CountedNetwork(checkpoint.network)
    variance = checkpoint_inputs.pick_variance(flags.variance, recipe)
    denoise, schedule = make_chain(
        flags, counted, checkpoint.schedule, recipe, variance == "learned"
    )
    images = images_to_measure(flags, recipe)
    check_drawing(recipe, len(images), flags.batch_size if device.type == "cpu" else 1)
    files.check_writable(flags.out)
    digest = extractors.digest(images)
    partial = open_partial_results(flags, flags.out, counted, device, digest)
    with partial.stoppable():
        options = checkpoint_inputs.bound_options(flags, recipe, variance, device, partial)
        options["times_per_image"] = flags.times_per_image
        bound = likelihood.bits_per_dim(denoise, schedule, images, **options)
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
    checkpoint_inputs.check_bound(recipe, "likelihood")
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
