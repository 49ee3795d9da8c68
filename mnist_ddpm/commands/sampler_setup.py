"""Sampler, steps and guidance as the flags and the checkpoint choose them."""

import inspect
import shlex
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from mnist_ddpm import catalogue, ddpm
from mnist_ddpm.commands.checkpoint_inputs import pick_variance
from mnist_ddpm.commands.flags import DrawingFlags
from mnist_ddpm.data.labels import label_number, needs_labels
from mnist_ddpm.ddpm import Schedule, check
from mnist_ddpm.evaluation import generation
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.formats.checkpoints import GUIDANCE_OPTIONS, Checkpoint
from mnist_ddpm.machine import devices, processes
from mnist_ddpm.machine.partial_results import CountedNetwork
from mnist_ddpm.machine.process import is_first_process
from mnist_ddpm.machine.processes import ProcessGroup
from mnist_ddpm.machine.text import parse_json
from mnist_ddpm.methods import solvers
from mnist_ddpm.methods.guidance import SCALE
from mnist_ddpm.methods.learned_variance import takes_exponent
from mnist_ddpm.recipe import Recipe
from mnist_ddpm.training.loop import as_typed

CLIPS = {"static": ddpm.clipped, "dynamic": solvers.thresholded, "none": None}
MAX_IMAGES = 10**9
STEPS = 50  # where neither a flag nor the checkpoint says how many
# The variances that a sampler has by default, by name
OWN_VARIANCES = {variance: name for name, variance in catalogue.VARIANCES.items()} | {
    inspect.Parameter.empty: "posterior"
}
Flags = TypeVar("Flags", bound=DrawingFlags)


class SamplerChoice(NamedTuple):
    """The sampler that the flags choose, with all that it needs but a denoiser."""

    name: str
    sampler: Callable  # as ddpm.ddim_sampler
    options: dict[str, Any]  # of this sampler
    times: list[int]
    sampling_schedule: Schedule  # the one to sample along: the network's own, or that of --path
    described: dict[str, Any]  # the options in words, for a card


def pick_processes_and_device(flags: DrawingFlags) -> tuple[ProcessGroup, torch.device]:
    """The processes that share the work, and this one's device. Checks the flags' ranges."""
    for name in ("n", "batch_size"):
        value = getattr(flags, name)
        check(1 <= value <= MAX_IMAGES, f"{name} is {value}: it must be from 1 to {MAX_IMAGES:,}")
    check(0 <= flags.seed < 2**32, f"seed is {flags.seed}: it must be from 0 to 2^32 - 1")
    scale = guidance_scale(flags)
    check(abs(scale) <= 1e6, f"guidance is {scale}: it must be a number up to a million")
    world = processes.connect_world(flags.processes, flags.device == "cpu")
    device = devices.pick_device(flags.device, world)
    devices.check_precision(flags.precision, device)
    return world, device


def with_sampling_defaults(
    flags: Flags, recipe: Recipe, is_followed: bool = True, starts_at_T: bool = True
) -> Flags:
    """The flags, with the checkpoint's advice for those that were not typed, which is printed.

    It is ignored with --sampler, on guidance where any flag of guidance was typed, and on timesteps
    where steps or spacing were, or where sampling does not start at T. Raises ValueError where
    timesteps were typed with one of these.
    """
    is_followed = is_followed and flags.sampler is None
    advice = checkpoints.sampling_defaults(flags.checkpoint) if is_followed else {}
    is_guided = any(getattr(flags, name) is not None for name in GUIDANCE_OPTIONS)
    is_spaced = flags.steps is not None or flags.spacing is not None
    is_clear = not (flags.timesteps and is_spaced)
    check(is_clear, "--timesteps are given: leave out --steps and --spacing")
    takes_timesteps = starts_at_T and not is_spaced
    has_timesteps = flags.timesteps or ("timesteps" in advice and takes_timesteps)
    unused = {"steps", "spacing"} if has_timesteps else {"timesteps"}
    unused |= {*GUIDANCE_OPTIONS} if is_guided else set()
    advice = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in advice.items()
        if getattr(flags, name) is None and name not in unused
    }
    if advice and is_first_process():
        words = shlex.join(as_typed(advice.items()))
        print(f"as {flags.checkpoint} advises, with {words} (a flag that you type wins)")
    flags = replace(flags, **advice, advised=(*flags.advised, *advice))
    steps = min(STEPS, recipe.T) if flags.steps is None else flags.steps
    steps = len(flags.timesteps) if flags.timesteps else steps
    return replace(flags, steps=steps, spacing=flags.spacing or "trailing")


def guidance_scale(flags: DrawingFlags) -> float:
    """The guidance scale, for labels or a guide."""
    if flags.guidance is not None:
        return flags.guidance
    return SCALE if flags.guide else 1.0


def check_labels_and_guidance(flags: DrawingFlags, recipe: Recipe) -> None:
    """Raises ValueError for a label or a guidance that the network does not know."""
    is_guided_by_labels = flags.guidance not in (None, 1) and not flags.guide
    if not recipe.classes and (flags.label or is_guided_by_labels):
        raise ValueError(
            f"{flags.checkpoint} was trained without labels: --label needs a checkpoint with "
            "them (train --classes auto), and --guidance needs one too, or a --guide"
        )
    for label in flags.label:
        label_number(label, recipe)
    if needs_labels(recipe) and guidance_scale(flags) != 1 and not flags.guide:
        raise ValueError(
            f"{flags.checkpoint} was always given its label (label_dropout 0): "
            "use --guidance 1, or a --guide"
        )


def check_interval(flags: DrawingFlags, times: list[int], recipe: Recipe) -> None:
    """Raises ValueError for an interval of guidance in which nothing would be guided."""
    if not flags.guidance_interval:
        return
    if guidance_scale(flags) == 1:
        advice = "name a --guide, or a checkpoint with labels"
        if flags.guide or (recipe.classes and not needs_labels(recipe)):
            advice = "set --guidance to other than 1"
        raise ValueError(f"--guidance-interval is of no use where nothing guides: {advice}")
    low, high = flags.guidance_interval
    typed = f"--guidance-interval {low} {high}"
    is_rising = 0 <= low < high <= recipe.T
    check(is_rising, f"{typed} must be two rising times from 0 to T = {recipe.T}")
    acts = "guidance_interval" in flags.advised or any(low < t <= high for t in times)
    check(acts, f"none of the {len(times)} times sampled is in {typed}")


def labels_in_turn(flags: DrawingFlags, recipe: Recipe) -> Tensor:
    """The labels that images get in turn, those of --label, else all: int64."""
    numbers = [label_number(label, recipe) for label in flags.label]
    return torch.tensor(numbers or range(recipe.classes))


def choose_sampler(flags: DrawingFlags, recipe: Recipe, default: str = "ddim") -> SamplerChoice:
    """The sampler, its options and times. Raises ValueError where flags do not fit."""
    name = flags.sampler or default
    sampler = catalogue.SAMPLERS[name]
    defaults = own_options(sampler)
    if catalogue.gives_next_time(name) and flags.path is not None:
        raise ValueError(f"{name} knows the network's own path alone: leave out --path")
    for flag in ("eta", "variance"):
        if flag not in defaults and getattr(flags, flag) != getattr(DrawingFlags, flag):
            raise ValueError(f"{name} takes no --{flag}: leave it out, or choose another --sampler")
    options = read_options(flags.option, name, defaults)
    described = dict(options)
    if "eta" in defaults:
        own_eta = 0.0 if defaults["eta"] is inspect.Parameter.empty else defaults["eta"]
        options["eta"] = own_eta if flags.eta is None else flags.eta
        described["eta"] = options["eta"]
    if "variance" in defaults:
        variance = OWN_VARIANCES.get(defaults["variance"], "the sampler's own")
        if flags.variance != "auto" or variance == "posterior":
            variance = pick_variance(flags.variance, recipe)
        described["variance"] = variance
        options["variance"] = catalogue.VARIANCES.get(variance, defaults["variance"])
    if flags.path is None:
        sampling_schedule = catalogue.make_schedule(recipe)
    else:
        sampling_schedule = catalogue.make_sampling_schedule(recipe, flags.path)
    if flags.timesteps:
        times = [*flags.timesteps]
        ddpm.transitions(times, recipe.T)  # raises unless they fall
    else:
        times = catalogue.sampling_times(sampling_schedule, flags.steps, flags.spacing)
    return SamplerChoice(name, sampler, options, times, sampling_schedule, described)


def build_denoiser_for_batch(
    flags: DrawingFlags,
    sampler_choice: SamplerChoice,
    checkpoint: Checkpoint,
    counted: CountedNetwork,
    *,
    labels: Tensor | None,
    condition_images: Tensor | None,
    device: torch.device,
) -> generation.DenoiserForBatch:
    """The function from a batch to its denoiser, as the flags guide and clip it.

    labels, condition_images: as of generation.make_denoiser_for_batch.
    """
    recipe = checkpoint.recipe
    guide = None
    if flags.guide:
        weak = load_guide(flags, checkpoint, device)
        network = generation.autocast(counted.counting(weak.network), flags.precision, device)
        guide = network, weak.recipe
    return generation.make_denoiser_for_batch(
        generation.autocast(counted, flags.precision, device),
        checkpoint.schedule,
        recipe,
        labels=labels,
        scale=guidance_scale(flags),
        guide=guide,
        interval=flags.guidance_interval,
        clip=CLIPS[flags.clip],
        condition_images=None if condition_images is None else condition_images.to(device),
        sampling_schedule=sampler_choice.sampling_schedule,
        next_times=catalogue.next_times(sampler_choice.name, sampler_choice.times, recipe),
        with_exponent=takes_exponent(sampler_choice.options.get("variance")),
    )


def generate_images(
    flags: DrawingFlags,
    sampler_choice: SamplerChoice,
    denoiser_for_batch: generation.DenoiserForBatch,
    recipe: Recipe,
    **options,
) -> tuple[Tensor, ddpm.Film]:
    """The images that the flags ask for, and a film. options: of generation.generate."""
    options["sampler"] = partial(sampler_choice.sampler, **sampler_choice.options)
    options["times"] = sampler_choice.times
    options |= {"seed": flags.seed, "batch_size": flags.batch_size}
    return generation.generate(
        denoiser_for_batch, sampler_choice.sampling_schedule, flags.n, recipe.shape, **options
    )


def load_guide(flags: DrawingFlags, checkpoint: Checkpoint, device: torch.device) -> Checkpoint:
    """The guide of autoguidance. Raises ValueError where it is for other images or noise."""
    guide = checkpoints.load(flags.guide, device)
    for name in (
        "image_size",
        "channels",
        "condition",
        "classes",
        "attributes",
        "label_names",
        "T",
    ):
        ours, theirs = (getattr(each.recipe, name) for each in (checkpoint, guide))
        message = f"its {name} is {theirs}, and should be {ours}"
        check(ours == theirs, f"{flags.guide} cannot guide {flags.checkpoint}: {message}")
    message = "train it with the same --schedule, --beta-1 and --beta-T"
    is_same = torch.equal(guide.schedule.a, checkpoint.schedule.a)
    check(is_same, f"{flags.guide} cannot guide {flags.checkpoint}: {message}")
    if flags.compile:
        guide.network.compile()
    return guide


def own_options(sampler: Callable) -> dict[str, Any]:
    """A sampler's options and their defaults: all but the five that every sampler takes first."""
    parameters = [*inspect.signature(sampler).parameters.items()]
    return {name: parameter.default for name, parameter in parameters[5:]}


def read_options(pairs: tuple[str, ...], sampler: str, defaults: dict[str, Any]) -> dict[str, Any]:
    """--option's name=value pairs. Raises ValueError for what the sampler does not take."""
    known = defaults.keys() - {"eta", "variance"}
    options = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        names = ", ".join(sorted(known)) or "none"
        check(name in known, f'{sampler} takes no --option "{name}": it takes {names}')
        try:
            options[name] = parse_json(value)
        except ValueError:
            options[name] = value
    return options
