"""What to train, and how, in a given time, from measurements of this machine."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from pathlib import Path

from torch import Tensor

from mnist_ddpm.datasets import planning_for
from mnist_ddpm.ddpm import check
from mnist_ddpm.machine import process
from mnist_ddpm.machine.text import is_out_of_memory
from mnist_ddpm.recipe import Recipe, Size, deciding, fit_batch_size, format_size, preset
from mnist_ddpm.training import loop, session
from mnist_ddpm.training.throughput import ThroughputMeter

SHORT_TRAINING = 750  # steps: with fewer, the batch is halved
MAX_WARMUP = 500  # steps
MIN_STEPS = 20  # of a training
COMPILING = 1200  # seconds: from this much time on, a minute or two may go into compiling
YEAR = 366 * 24 * 3600  # seconds
MARGIN = 0.99  # part of the time that is planned; the program needs the other percent to end


@dataclass(frozen=True)
class Plan:
    """A recipe and what to expect of it. In training, length and learning rate follow the clock."""

    preset: str
    recipe: Recipe  # with the expected epochs
    pace: float  # images trained a second
    seconds: float  # of training, previews included
    deadline: float  # of training, by time.monotonic()
    sampling: float  # seconds an image, with the sampling defaults
    sampling_defaults: dict  # flags of sample; {} if there are none
    minutes: float  # that were asked for
    measured: float  # seconds that measuring took

    @property
    def final_preview_steps(self) -> float:
        """How many steps take as long as a preview, if a step takes as long as 3 evaluations."""
        evaluations = session.IMAGES * min(session.STEPS, self.recipe.T)
        return evaluations / 3 / self.recipe.batch_size

    def flags(self) -> list[str]:
        """The flags of train that make the same recipe."""
        base = preset(self.preset)
        flags = ["--preset", self.preset]
        for field in fields(self.recipe):
            name = field.name
            value = getattr(self.recipe, name)
            is_default = value == getattr(base, name) and name != "precision"  # the device's
            if is_default or field.metadata["hidden"]:
                continue
            flags.append(f"--{name.replace('_', '-')}")
            value = format_size(value) if name == "image_size" else value
            if value is not True:
                flags += map(str, value if isinstance(value, tuple) else [value])
        return flags

    def lines(self, out: Path) -> list[str]:
        """A description of the training in a folder."""
        r = self.recipe
        settings = f"preset {self.preset}, about {r.epochs:.3g} epochs in batches of {r.batch_size}"
        precision = f"{r.precision}, compiled" if r.compile else r.precision
        speed = f"{self.pace:.0f} images/s measured in {self.measured:.0f} s"
        end = datetime.now() + timedelta(seconds=self.deadline - time.monotonic())
        duration = f"{self.seconds / 60:.1f} minutes, until {end:%H:%M:%S}"
        lines = [f"{out}: {settings}, {precision}: {speed}, {duration}"]
        if self.sampling_defaults:
            command = process.own_command(["sample", "--checkpoint", str(out)])
            lines.append(f"then 64 images take about {64 * self.sampling:.1f} s: {command}")
        return lines

    def equivalent_command(self, recipe: Recipe, places: Sequence[str] = ()) -> str:
        """A line with the command that trains a recipe without planning. places: more flags."""
        command = ["train", *replace(self, recipe=recipe).flags(), *places]
        about = "about the same without planning (as many steps, the rate by their number)"
        return f"{about}: {process.own_command(command)}"


def measuring_seconds(seconds: float) -> float:
    """Seconds that measuring may take of a total."""
    return min(20.0, max(2.0, seconds / 15))


def make_plan(
    request: Recipe,
    load: Callable[[Recipe], Tensor],
    seconds: float,
    meter: ThroughputMeter,
    clock: Callable[[], float] = time.monotonic,
    began: float | None = None,
    size: Size | None = None,
) -> tuple[Plan, Tensor]:
    """The best use of some seconds, counted from when it began, and the images to train on.

    request: its data, labels and seed are used. load: returns the images for a recipe; its time
    does not count if it may have to decode them. size: of the images; None: the preset's. Raises
    ValueError for a size that does not fit, for less than 20 steps, and for more than a year.
    """
    in_range = 0 < seconds <= YEAR
    check(in_range, f"minutes is {seconds / 60:g}: it must be above 0, and at most a year")
    start = clock()
    began = start if began is None else began
    settings = {name: getattr(request, name) for name in deciding("data")}
    planning = planning_for(request.dataset, request.channels)
    settings |= planning.changes
    if size is not None:
        settings["image_size"] = size
    names = planning.presets if size is None else planning.sized_presets
    meter.warm_up(preset(names[-1], **settings))
    meter.allow(measuring_seconds(seconds))
    name, recipe, pace = choose_preset(names, settings, seconds, meter, planning.min_images_seen)
    evaluation = meter.seconds_per_evaluation(recipe)
    measured_at = clock()
    images = load(recipe)
    loading = clock() - measured_at if planning.needs_decoding else 0.0
    if len(images) < recipe.batch_size:
        recipe = fit_batch_size(recipe, len(images))
    deadline = began + MARGIN * seconds + loading
    training_seconds = deadline - clock()
    steps = len(images) // recipe.batch_size
    epochs = expected_epochs(recipe, steps, training_seconds, pace, evaluation)
    total = max(0, round(epochs * steps))
    message = f"{seconds / 60:.3g} minutes are enough for {total} steps here: give it more"
    check(total >= MIN_STEPS, message)
    defaults = loop.measured_defaults(recipe)
    plan = Plan(
        preset=name,
        recipe=with_epochs(recipe, epochs, steps),
        pace=pace,
        seconds=training_seconds,
        deadline=deadline,
        sampling=defaults.get("steps", 0) * evaluation * (2 if "guidance" in defaults else 1),
        sampling_defaults=defaults,
        minutes=seconds / 60,
        measured=measured_at - start,
    )
    return plan, images


def expected_epochs(
    recipe: Recipe, steps: int, seconds: float, pace: float, evaluation: float
) -> float:
    """Epochs, each of some steps, that fit a time with the previews that training draws.

    evaluation: seconds to evaluate the network on an image.
    """
    epoch = steps * recipe.batch_size / pace  # seconds
    # A step takes as long as three evaluations, and its pace was measured for longer.
    preview = preview_seconds(recipe, min(evaluation, 1 / (3 * pace)))
    previews_per_epoch = 1 / max(1, session.PREVIEW_EVERY // steps)
    # Training limits previews to 3 s and a twentieth of the time, and draws one more at the end.
    limited = (seconds - 3 - preview) / (1.05 * epoch)
    return max(seconds / (epoch + previews_per_epoch * preview), limited)


def preview_seconds(recipe: Recipe, evaluation: float) -> float:
    """Seconds for a preview and its file, from the seconds to evaluate the network on an image."""
    return session.IMAGES * min(session.STEPS, recipe.T) * evaluation + 0.5


def with_epochs(recipe: Recipe, epochs: float, steps: int) -> Recipe:
    """The recipe with some epochs, each of some steps, and warm-up and EMA to suit them."""
    epochs = float(f"{epochs:.4g}")
    total = max(1, round(epochs * steps))
    decay = round(min(recipe.ema_decay, max(0.9, 1 - 20 / total)), 5)
    warmup = min(MAX_WARMUP, recipe.warmup_steps)
    return replace(recipe, epochs=epochs, warmup_steps=warmup, ema_decay=decay)


def choose_preset(
    names: tuple[str, ...], settings: dict, seconds: float, meter: ThroughputMeter, needed: int
) -> tuple[str, Recipe, float]:
    """The best of the presets for a time: its name, its recipe, and its pace.

    The recipe gets the fastest precision, a batch that leaves enough steps, and compilation if
    there is time for it and it pays. needed: images that a network must see.
    """
    name, recipe, pace = largest_preset(names, settings, seconds, meter, needed)
    while recipe.batch_size > 32 and pace * seconds / recipe.batch_size < SHORT_TRAINING:
        recipe = replace(recipe, batch_size=recipe.batch_size // 2)
    if meter.device.type != "mps" and seconds >= COMPILING:
        compiled = replace(recipe, compile=True)
        compiled_pace = meter.compiled_pace(compiled)
        # measured once more beside it, since paces vary
        if compiled_pace > 1.05 * pace and compiled_pace > 1.05 * meter.pace(recipe):
            return name, compiled, compiled_pace
    return name, recipe, pace


def largest_preset(
    names: tuple[str, ...], settings: dict, seconds: float, meter: ThroughputMeter, needed: int
) -> tuple[str, Recipe, float]:
    """The largest preset that sees enough images, else the smallest, with its fastest precision."""
    smallest = preset(names[-1], **settings)
    slowest_pace = meter.pace(smallest)  # in float32; twice as fast in a lower precision
    images = slowest_pace * seconds
    for name in names[:-1]:
        if images < needed / 2:
            break  # not even the smallest sees enough
        recipe = preset(name, **settings)
        factor = meter.flops(recipe) / meter.flops(smallest)
        if meter.device.type == "cpu" and factor > 2 and images / factor < needed / 2:
            continue  # not worth a measurement
        try:
            recipe, pace = in_fastest_precision(recipe, meter)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            continue
        if pace * seconds > needed:
            return name, recipe, pace
    recipe, pace = in_fastest_precision(smallest, meter)
    return names[-1], recipe, max(pace, slowest_pace)  # other work may have slowed one down


def in_fastest_precision(recipe: Recipe, meter: ThroughputMeter) -> tuple[Recipe, float]:
    """The recipe in its fastest precision, and its pace."""
    recipes = [replace(recipe, precision=precision) for precision in meter.precisions()]
    paces = [meter.pace(recipe) for recipe in recipes]
    fastest = max(range(len(paces)), key=paces.__getitem__)
    return recipes[fastest], paces[fastest]
