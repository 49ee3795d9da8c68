"""How images are drawn: what `sample` and `evaluate` share."""

import inspect
import shlex
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mnist_ddpm import catalogue, ddpm
from mnist_ddpm.commands import flags
from mnist_ddpm.commands.common import load_checkpoint, pick_variance
from mnist_ddpm.data.labels import always_told
from mnist_ddpm.ddpm import Schedule
from mnist_ddpm.evaluation import generation
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.formats.checkpoints import GUIDANCE_OPTIONS, Checkpoint
from mnist_ddpm.machine import devices, processes
from mnist_ddpm.machine.partial_results import CountedNetwork
from mnist_ddpm.machine.processes import World
from mnist_ddpm.machine.progress import is_first_process
from mnist_ddpm.machine.text import parse_json
from mnist_ddpm.methods import solvers
from mnist_ddpm.methods.guidance import SCALE
from mnist_ddpm.methods.learned_variance import takes_exponent
from mnist_ddpm.training import cost
from mnist_ddpm.training.recipe import Recipe
from mnist_ddpm.training.sampling_defaults import as_typed

CLIPS: dict[str, Callable | None] = {
    "static": ddpm.clipped,
    "dynamic": solvers.thresholded,
    "none": None,
}
MOST = 10**9  # images
STEPS = 50  # where neither a flag nor the checkpoint says how many
# The variances that a sampler has by default, by name
OWN_VARIANCES = {each: name for name, each in catalogue.VARIANCES.items()} | {
    inspect.Parameter.empty: "posterior"
}


class Steps(NamedTuple):
    """What the flags make of sampling."""

    name: str  # of the sampler
    sampler: Callable  # as ddpm.ddim_sampler
    options: dict[str, Any]  # of this sampler
    times: list[int]
    told: dict[str, Any]  # the options in words, for a card

    @property
    def bound(self) -> Callable:
        """The sampler with its options."""
        return partial(self.sampler, **self.options)


class Drawing(flags.Drawing):
    """How images are drawn, by the flags and the checkpoint's advice."""

    advised = ()  # names of the flags that the checkpoint filled in

    def connect(self) -> tuple[World, torch.device]:
        """The processes that share the work, and this one's device.

        Raises ValueError where flags do not fit.
        """
        for name in ("n", "batch_size"):
            if not 1 <= getattr(self, name) <= MOST:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be from 1 to {MOST:,}")
        ddpm.check(0 <= self.seed < 2**32, f"seed is {self.seed}: it must be from 0 to 2^32 - 1")
        if not abs(self.scale) <= 1e6:
            raise ValueError(f"guidance is {self.scale}: it must be a number up to a million")
        world = processes.connect(self.processes, self.device == "cpu")
        device = devices.pick_device(self.device, world)
        devices.check_precision(self.precision, device)
        return world, device

    def take_advice(self, recipe: Recipe, heed: bool = True) -> None:
        """Fills in flags that were not typed, by the checkpoint's advice, and prints them.

        A --sampler that was typed is all that it takes; flags of guidance stand together.
        """
        advice = (
            checkpoints.sampling_defaults(self.checkpoint) if heed and self.sampler is None else {}
        )
        guided = any(getattr(self, name) is not None for name in GUIDANCE_OPTIONS)
        for name, value in advice.items():
            if getattr(self, name) is None and not (guided and name in GUIDANCE_OPTIONS):
                setattr(self, name, tuple(value) if isinstance(value, list) else value)
                self.advised += (name,)
        if self.advised and is_first_process():
            told = shlex.join(as_typed((name, getattr(self, name)) for name in self.advised))
            print(f"as {self.checkpoint} advises, with {told} (a flag that you type wins)")
        if self.steps is None:
            self.steps = min(STEPS, recipe.T)
        if self.spacing is None:
            self.spacing = "trailing"

    @property
    def scale(self) -> float:
        """The guidance scale, for labels or a guide."""
        return self.guidance if self.guidance is not None else SCALE if self.guide else 1.0

    def check_memory(self, recipe: Recipe, device: torch.device) -> None:
        """Raises ValueError for more images, or more at once, than memory can hold."""
        batch_size = self.batch_size if device.type == "cpu" else 1  # a GPU's has its own errors
        cost.check_drawing(recipe, self.n, batch_size)

    def check_labels(self, recipe: Recipe) -> None:
        """Raises ValueError for a label or a guidance that the network does not know."""
        unguided = self.guidance in (None, 1) or self.guide
        if not recipe.classes and (self.label or not unguided):
            raise ValueError(
                f"{self.checkpoint} was trained without labels: --label needs a checkpoint with "
                "them (train --classes 10), and --guidance needs one too, or a --guide"
            )
        for label in self.label:
            if not 0 <= label < recipe.classes:
                known = f"{self.checkpoint}'s 0 to {recipe.classes - 1}"
                raise ValueError(f"label {label} is not one of {known}")
        if always_told(recipe) and self.scale != 1 and not self.guide:
            problem = f"{self.checkpoint} was always told its label (label_dropout 0)"
            raise ValueError(f"{problem}: use --guidance 1, or a --guide")

    def check_interval(self, times: list[int], recipe: Recipe) -> None:
        """Raises ValueError for an interval of guidance in which nothing would be guided."""
        if not self.guidance_interval:
            return
        if self.scale == 1:
            able = self.guide or (recipe.classes and not always_told(recipe))
            advice = "name a --guide, or a checkpoint with labels"
            if able:
                advice = "set --guidance to other than 1"
            raise ValueError(f"--guidance-interval is of no use where nothing guides: {advice}")
        low, high = self.guidance_interval
        asked = f"--guidance-interval {low} {high}"
        if not 0 <= low < high <= recipe.T:
            raise ValueError(f"{asked} must be two rising times from 0 to T = {recipe.T}")
        advised = "guidance_interval" in self.advised
        if not advised and not any(low < t <= high for t in times):
            raise ValueError(f"none of the {len(times)} times sampled is in {asked}")

    def labels(self, recipe: Recipe) -> Tensor:
        """Those to draw, in turn: int64 (n,)."""
        turn = torch.tensor(self.label or range(recipe.classes))
        return turn[torch.arange(self.n) % len(turn)]

    def sampling(self, recipe: Recipe, unless_told: str = "ddim") -> Steps:
        """The sampler, its options and times. Raises ValueError where flags do not fit."""
        name = self.sampler or unless_told
        sampler = catalogue.SAMPLERS[name]
        own = own_options(sampler)
        if name in catalogue.TELLING and self.path is not None:
            raise ValueError(f"{name} knows the network's own path alone: leave out --path")
        for flag in ("eta", "variance"):
            if flag not in own and getattr(self, flag) != getattr(Drawing, flag):
                problem = f"{name} takes no --{flag}"
                raise ValueError(f"{problem}: leave it out, or choose another --sampler")
        options, told = read_options(self.option, name, own), {}
        told |= options
        if "eta" in own:
            default = 0.0 if own["eta"] is inspect.Parameter.empty else own["eta"]
            told["eta"] = options["eta"] = default if self.eta is None else self.eta
        if "variance" in own:
            told["variance"], options["variance"] = self.step_variance(recipe, own["variance"])
        steps = min(STEPS, recipe.T) if self.steps is None else self.steps
        times = catalogue.sampling_times(self.path_of(recipe), steps, self.spacing or "trailing")
        return Steps(name, sampler, options, times, told)

    def path_of(self, recipe: Recipe) -> Schedule:
        """The schedule to sample along. Raises ValueError for one that the network cannot."""
        if self.path is None:
            return catalogue.make_schedule(recipe)
        return catalogue.make_path(recipe, self.path)

    def step_variance(self, recipe: Recipe, default: Callable) -> tuple[str, Callable]:
        """The name and the function of a step's variance. A sampler's own holds unless told."""
        name = OWN_VARIANCES.get(default, "the sampler's own")
        if self.variance != "auto" or name == "posterior":
            name = pick_variance(self.variance, recipe)
        return name, catalogue.VARIANCES.get(name, default)

    def denoiser_of(
        self, checkpoint: Checkpoint, counted: CountedNetwork, device: torch.device, steps: Steps,
        pictures: Tensor | None = None,
    ) -> generation.Source:  # fmt: skip
        """What draws a batch of images, guided and clipped, given the pictures' condition.

        Raises ValueError for a wrong guide.
        """
        recipe, guide = checkpoint.recipe, None
        if self.guide:
            weak = self.load_guide(checkpoint, device)
            network = generation.autocast(counted.counting(weak.network), self.precision, device)
            guide = network, weak.recipe
        return generation.denoisers(
            generation.autocast(counted, self.precision, device),
            checkpoint.schedule,
            recipe,
            labels=self.labels(recipe) if recipe.classes else None,
            scale=self.scale,
            guide=guide,
            interval=self.guidance_interval,
            clip=CLIPS[self.clip],
            pictures=None if pictures is None else pictures.to(device),
            path=None if self.path is None else self.path_of(recipe),
            heading=catalogue.heading(steps.name, steps.times, recipe),
            with_exponent=takes_exponent(steps.options.get("variance")),
        )

    def load_guide(self, checkpoint: Checkpoint, device: torch.device) -> Checkpoint:
        """The worse checkpoint. Raises ValueError where it is for other images, or other noise."""
        guide = load_checkpoint(self, self.guide, device)
        problem = f"{self.guide} cannot guide {self.checkpoint}"
        for name in ("image_size", "channels", "condition", "classes", "attributes", "T"):
            ours, theirs = (getattr(each.recipe, name) for each in (checkpoint, guide))
            if ours != theirs:
                raise ValueError(f"{problem}: its {name} is {theirs}, and should be {ours}")
        if not torch.equal(guide.schedule.a, checkpoint.schedule.a):
            advice = "train it with the same --schedule, --beta-1 and --beta-T"
            raise ValueError(f"{problem}: {advice}")
        return guide


def own_options(sampler: Callable) -> dict[str, Any]:
    """A sampler's options and their defaults: all but the five that every sampler takes first."""
    parameters = [*inspect.signature(sampler).parameters.items()]
    return {name: each.default for name, each in parameters[5:]}


def read_options(given: tuple[str, ...], sampler: str, own: dict[str, Any]) -> dict[str, Any]:
    """--option's name=value pairs. Raises ValueError for what the sampler does not take."""
    known, options = own.keys() - {"eta", "variance"}, {}
    for pair in given:
        name, _, value = pair.partition("=")
        if name not in known:
            takes = ", ".join(sorted(known)) or "none"
            raise ValueError(f'{sampler} takes no --option "{name}": it takes {takes}')
        try:
            options[name] = parse_json(value)
        except ValueError:
            options[name] = value
    return options
