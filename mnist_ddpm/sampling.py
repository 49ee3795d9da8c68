"""How images are drawn: the sampler, its times, and guidance, in one object.

It comes from flags, and from what a checkpoint's config.json or a method advises.
"""

import inspect
import json
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mnist_ddpm import catalogue, ddpm
from mnist_ddpm.data.labels import needs_labels
from mnist_ddpm.ddpm import Schedule, check
from mnist_ddpm.machine.text import parse_json
from mnist_ddpm.methods import guidance, solvers
from mnist_ddpm.methods.paths import own_times
from mnist_ddpm.recipe import Recipe

STEPS = 50  # where nothing says how many
CLIPS = {"static": ddpm.clipped, "dynamic": solvers.thresholded, "none": None}
GUIDANCE_OPTIONS = "guide", "guidance", "guidance_interval"
NAME = re.compile(r"\w[\w.-]*")


def is_number(value: object, *types: type) -> bool:
    """Whether a value is a number of one of these types, and not absurdly large."""
    return type(value) in types and abs(value) <= 10**6


def are_times(value: object) -> bool:
    """Whether a value is a list of whole numbers."""
    return type(value) is list and bool(value) and all(is_number(t, int) for t in value)


# What may be advised under "draw" in config.json, with what is a value of it
ADVICE: dict[str, Callable[[object], bool]] = {
    "sampler": lambda x: x in [*catalogue.SAMPLERS],
    "spacing": lambda x: x in [*catalogue.SPACINGS],
    "steps": lambda x: is_number(x, int),
    "timesteps": are_times,
    "eta": lambda x: is_number(x, int, float),
    "guidance": lambda x: is_number(x, int, float),
    "guidance_interval": lambda x: are_times(x) and len(x) == 2,
    # a name without a folder, since nothing outside the checkpoint's is read
    "guide": lambda x: type(x) is str and bool(NAME.fullmatch(x)),
}


class SamplerChoice(NamedTuple):
    """A sampler with all that it needs but a denoiser."""

    sampler: Callable[..., ddpm.States]  # with its options
    times: list[int]
    schedule: Schedule  # the one to sample along: the network's own, or that of the path
    described: dict[str, Any]  # its name and options in words, for a card
    needs_exponent: bool = False  # whether it takes a learned variance from the denoiser


@dataclass(frozen=True)
class Sampling:
    """How images are drawn. None stands for what the sampler or the network does by itself."""

    sampler: str = "ddim"
    steps: int = STEPS
    spacing: str = "trailing"
    timesteps: tuple[int, ...] | None = None  # the times themselves, instead of the two before
    path: str | None = None  # a schedule to sample along
    eta: float | None = None
    variance: str = "auto"
    option: tuple[str, ...] = ()  # more of the sampler's own, as name=value
    clip: str = "static"
    guidance: float | None = None
    # guided are times above the first, up to the second: times of the network's own schedule
    guidance_interval: tuple[int, int] | None = None
    guide: Path | None = None
    advised: tuple[str, ...] = ()  # which of these came from advice

    @classmethod
    def from_card(cls, facts: Mapping) -> "Sampling":
        """As `describe` has said. Raises errors of many kinds for what is no card's."""
        name = facts["name"]
        sampler = catalogue.look_up("sampler", name, catalogue.SAMPLERS)
        known = {each.name for each in fields(cls)} - {"sampler", "option"}
        values = {key: facts[key] for key in known & facts.keys()}
        values = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        own = own_options(sampler).keys() & facts.keys() - {"eta", "variance"}
        option = tuple(f"{key}={json.dumps(facts[key])}" for key in sorted(own))
        return cls(sampler=name, option=option, **values)

    @classmethod
    def chosen(
        cls,
        typed: Mapping,
        advice: Mapping,
        T: int,
        starts_at_T: bool = True,
        default: str = "ddim",
    ) -> "Sampling":
        """What was typed, and the advice for what was not; else the default sampler.

        Advice on guidance is ignored where anything of guidance was typed, and that on timesteps
        where steps or spacing were, or where sampling does not start at T. Raises ValueError for
        timesteps beside steps or spacing.
        """
        is_spaced = bool(typed.keys() & {"steps", "spacing"})
        is_clear = not ("timesteps" in typed and is_spaced)
        check(is_clear, "--timesteps are given: leave out --steps and --spacing")
        has_timesteps = "timesteps" in typed or (
            "timesteps" in advice and starts_at_T and not is_spaced
        )
        unused = {"steps", "spacing"} if has_timesteps else {"timesteps"}
        if typed.keys() & {*GUIDANCE_OPTIONS}:
            unused |= {*GUIDANCE_OPTIONS}
        followed = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in advice.items()
            if name not in typed and name not in unused
        }
        values = {"sampler": default} | followed | dict(typed)
        steps = len(values.get("timesteps") or ()) or values.get("steps", min(STEPS, T))
        return cls(**values | {"steps": steps, "advised": tuple(followed)})

    @property
    def scale(self) -> float:
        """The guidance scale, for labels or a guide: 1 where nothing guides."""
        if self.guidance is not None:
            return self.guidance
        return guidance.SCALE if self.guide else 1.0

    def advised_flags(self) -> str:
        """The flags that would have said what was advised."""
        return shlex.join(as_typed((name, getattr(self, name)) for name in self.advised))

    def schedule(self, recipe: Recipe) -> Schedule:
        """The schedule to sample along. Raises ValueError where the network cannot."""
        if self.path is None:
            return catalogue.make_schedule(recipe)
        return catalogue.make_sampling_schedule(recipe, self.path)

    def times(self, schedule: Schedule) -> list[int]:
        """The times to sample at, falling. Raises ValueError unless they are such times."""
        if self.timesteps:
            ddpm.transitions([*self.timesteps], schedule.T)  # raises unless they fall
            return [*self.timesteps]
        return catalogue.sampling_times(schedule, self.steps, self.spacing)

    def choice(self, recipe: Recipe) -> SamplerChoice:
        """The sampler for networks of a recipe. Raises ValueError for what does not fit."""
        sampler = catalogue.SAMPLERS[self.sampler]
        if catalogue.needs_next_time(self.sampler) and self.path is not None:
            raise ValueError(f"{self.sampler} knows the network's own path alone: leave out --path")
        options, described = self.sampler_options(sampler, recipe)
        schedule = self.schedule(recipe)
        facts = {"name": self.sampler, **described}
        needs_exponent = getattr(options.get("variance"), "needs_exponent", False)
        sampler = partial(sampler, **options)
        return SamplerChoice(sampler, self.times(schedule), schedule, facts, needs_exponent)

    def sampler_options(self, sampler: Callable, recipe: Recipe) -> tuple[dict, dict]:
        """The sampler's options, and the same in words."""
        defaults = own_options(sampler)
        for name in ("eta", "variance"):
            if name not in defaults and getattr(self, name) != getattr(Sampling, name):
                advice = "leave it out, or choose another --sampler"
                raise ValueError(f"{self.sampler} takes no --{name}: {advice}")
        options = read_options(self.option, self.sampler, defaults)
        described = dict(options)
        if "eta" in defaults:
            options["eta"] = defaults["eta"] if self.eta is None else self.eta
            described["eta"] = options["eta"]
        if "variance" in defaults:
            named = {function: name for name, function in catalogue.VARIANCES.items()}
            variance = named.get(defaults["variance"], "the sampler's own")
            if self.variance != "auto" or variance == "posterior":
                variance = pick_variance(self.variance, recipe)
            described["variance"] = variance
            options["variance"] = catalogue.VARIANCES.get(variance, defaults["variance"])
        return options, described

    def check_guidance(self, recipe: Recipe, source: str | Path, labels: Iterable = ()) -> None:
        """Raises ValueError for labels, guidance or an interval of no use to the network."""
        is_guided_by_labels = self.guidance not in (None, 1) and not self.guide
        if not recipe.classes and (labels or is_guided_by_labels):
            raise ValueError(
                f"{source} was trained without labels: --label needs a checkpoint with "
                "them (train --classes auto), and --guidance needs one too, or a --guide"
            )
        if needs_labels(recipe) and self.scale != 1 and not self.guide:
            raise ValueError(
                f"{source} was always given its label (label_dropout 0): "
                "use --guidance 1, or a --guide"
            )
        if not self.guidance_interval:
            return
        if self.scale == 1:
            advice = "name a --guide, or a checkpoint with labels"
            if self.guide or (recipe.classes and not needs_labels(recipe)):
                advice = "set --guidance to other than 1"
            raise ValueError(f"--guidance-interval is of no use where nothing guides: {advice}")
        low, high = self.guidance_interval
        typed = f"--guidance-interval {low} {high}"
        is_rising = 0 <= low < high <= recipe.T
        check(is_rising, f"{typed} must be two rising times from 0 to T = {recipe.T}")

    def check_interval(self, recipe: Recipe, choice: SamplerChoice) -> None:
        """Raises ValueError for a typed interval in which no time is sampled."""
        if not self.guidance_interval or "guidance_interval" in self.advised:
            return
        low, high = self.guidance_interval
        own = own_times(catalogue.make_schedule(recipe), choice.schedule)[choice.times]
        acts = bool(((low < own) & (own <= high)).any())
        typed = f"--guidance-interval {low} {high}"
        check(acts, f"none of the {len(choice.times)} times sampled is in {typed}")

    def describe(self, choice: SamplerChoice, recipe: Recipe) -> dict:
        """How images were drawn, for a card."""
        facts = choice.described | {"steps": self.steps, "clip": self.clip}
        if self.timesteps:
            facts["timesteps"] = list(self.timesteps)
        else:
            facts["spacing"] = self.spacing
        optional = {
            "path": self.path,
            "advised": list(self.advised),
            "guide": str(self.guide) if self.guide else None,
            "guidance_interval": list(self.guidance_interval or ()),
        }
        facts |= {name: value for name, value in optional.items() if value}
        if recipe.classes or self.guide:
            facts["guidance"] = self.scale
        return facts


def check_advice(advice: object, path: Path) -> dict:
    """The advice itself. Raises ValueError for what is none, which names the file."""
    is_known = type(advice) is dict and advice.keys() <= ADVICE.keys()
    is_valid = is_known and all(ADVICE[name](value) for name, value in advice.items())
    check(is_valid, f'{path} has options of another version under "draw": name a --sampler')
    return advice


def as_typed(values: Iterable[tuple[str, object]]) -> list[str]:
    """Flags and their values as they are typed."""
    words = []
    for name, value in values:
        words.append(f"--{name.replace('_', '-')}")
        several = value if isinstance(value, list | tuple) else [value]
        words += [f"{each:g}" if isinstance(each, float) else str(each) for each in several]
    return words


def pick_variance(name: str, recipe: Recipe) -> str:
    """What "auto" means for a checkpoint. Raises ValueError for a variance it has not learned."""
    learned = catalogue.learns_variance(recipe)
    if name == "auto":
        return "learned" if learned else "posterior"
    message = "choose another --variance, or train with --objective hybrid"
    check(learned or name != "learned", f"this checkpoint has learned no variance: {message}")
    return name


def own_options(sampler: Callable) -> dict[str, Any]:
    """A sampler's options and their defaults: its parameters that have one."""
    parameters = inspect.signature(sampler).parameters.items()
    return {name: each.default for name, each in parameters if each.default is not inspect._empty}


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
