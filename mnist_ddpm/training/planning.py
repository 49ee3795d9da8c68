"""What to train, and how, in the time there is, as this machine was measured."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from torch import Tensor

from mnist_ddpm.ddpm import check
from mnist_ddpm.machine import shell
from mnist_ddpm.machine.files import is_out_of_memory
from mnist_ddpm.training import loop, previews, sampling_defaults
from mnist_ddpm.training.options import Size, size_in_words
from mnist_ddpm.training.presets import preset
from mnist_ddpm.training.recipe import Recipe, fitted
from mnist_ddpm.training.throughput import ThroughputMeter

DIGITS = "mnist", "mnist-small"  # presets, the largest network first
FACES = "faces-64", "faces-64-small", "faces-32"
SIZED = FACES[:2]  # where a size is asked for, since the last is smaller by its own alone
# Images that a network sees at least: with fewer, a smaller one is better
ENOUGH = {DIGITS: 300_000, FACES: 150_000, SIZED: 150_000}
STEPS = 750  # that a short training has at least, by smaller batches
WARMUP = 500  # steps at most
KEPT = "dataset", "channels", "classes", "attributes", "seed"  # that a plan leaves as they are
FEWEST = 20  # steps worth a training
COMPILING = 1200  # seconds of which a minute or two may go into compiling the network
YEAR = 366 * 24 * 3600  # seconds
MARGIN = 0.99  # of the time is planned for: the rest is for the end of the program
# The preset of a worse network to keep away from, and one step of it for how many of the other's
GUIDE, EVERY = "mnist-small", 10
FEWEST_OF_GUIDE = 200  # steps: with fewer it has not been tried


@dataclass(frozen=True)
class Plan:
    """A recipe, and what is expected of it. Its steps and rate follow the clock."""

    preset: str
    recipe: Recipe  # its epochs are those expected
    pace: float  # images trained a second
    seconds: float  # that training will take, previews included
    deadline: float  # when it is to be done, by time.monotonic()
    sampling: float  # seconds an image, by the advice
    draw: dict  # advice, how to draw; {} where there is none, as for a guide
    preview: float  # seconds that one takes
    minutes: float  # that were asked for
    measured: float  # seconds that measuring took

    @property
    def ending(self) -> float:
        """Steps in whose time a preview is drawn: a step also goes back, which is twice as much."""
        evaluations = previews.IMAGES * min(previews.STEPS, self.recipe.T)
        return evaluations / 3 / self.recipe.batch_size

    def finish(self, clock=time.monotonic, now=datetime.now) -> datetime:
        """When it ends."""
        return now() + timedelta(seconds=self.deadline - clock())

    def flags(self) -> list[str]:
        """Those of train that make the same recipe."""
        base, flags = preset(self.preset), ["--preset", self.preset]
        for name, value in asdict(self.recipe).items():
            if value != getattr(base, name) or name == "precision":  # which depends on the device
                value = size_in_words(value) if name == "image_size" else value
                values = value if isinstance(value, tuple) else [value]
                values = [] if value is True else values
                flags += [f"--{name.replace('_', '-')}", *map(str, values)]
        return flags

    def lines(self, out: Path, **clocks) -> list[str]:
        """In words, for training in a folder. clocks: as of finish."""
        r = self.recipe
        what = f"preset {self.preset}, about {r.epochs:.3g} epochs in batches of {r.batch_size}"
        how = f"{r.precision}, compiled" if r.compile else r.precision
        speed = f"{self.pace:.0f} images/s measured in {self.measured:.0f} s"
        ends = f"{self.seconds / 60:.1f} minutes, until {self.finish(**clocks):%H:%M:%S}"
        command = shell.own_command(["sample", "--checkpoint", str(out)])
        drawing = f"then 64 images take about {64 * self.sampling:.1f} s: {command}"
        return [f"{out}: {what}, {how}: {speed}, {ends}", *([drawing] if self.draw else [])]

    def without(self, recipe: Recipe, places: Sequence[str] = ()) -> str:
        """A line: the command that trains as many steps without planning, as a recipe has them.

        places: more flags for train.
        """
        command = ["train", *replace(self, recipe=recipe).flags(), *places]
        about = "about the same without planning (as many steps, the rate by their number)"
        return f"{about}: {shell.own_command(command)}"


def measuring_seconds(seconds: float) -> float:
    """What of so much time goes into measuring, at most."""
    return min(20.0, max(2.0, seconds / 15))


def make_plan(
    asked: Recipe, load: Callable[[Recipe], Tensor], seconds: float, measuring: ThroughputMeter,
    clock: Callable[[], float] = time.monotonic, began: float | None = None,
    size: Size | None = None,
) -> tuple[Plan, Tensor]:  # fmt: skip
    """The best use of so many seconds from when it began, and the images to train on.

    asked: its data, labels and seed are kept. load: the images for a recipe; what it takes counts
    for digits alone, since pictures are decoded the first time. size: of the images, else that of
    the preset. Raises ValueError for a size that does not fit, and where the time is too short for
    a few steps, or longer than a year.
    """
    problem = f"minutes is {seconds / 60:g}"
    check(0 < seconds <= YEAR, f"{problem}: it must be above 0, and at most a year")
    since = clock()
    began, digits = since if began is None else began, asked.dataset == "mnist"
    kept = {name: getattr(asked, name) for name in KEPT}
    kept |= {"objective": "p2"} if digits else {}
    kept |= {} if size is None else {"image_size": size}
    names = DIGITS if digits else FACES if size is None else SIZED
    measuring.warm_up(preset(names[-1], **kept))
    measuring.allow(measuring_seconds(seconds))
    name, recipe, pace = choose_preset(names, kept, seconds, measuring)
    each = measuring.evaluation(recipe)
    loading = clock()
    images = load(recipe)
    deadline = began + MARGIN * seconds + (0.0 if digits else clock() - loading)
    if len(images) < recipe.batch_size:
        recipe = fitted(recipe, len(images))
    draw = sampling_defaults.best(recipe)
    made = Plan(
        name, recipe, pace, 0.0, deadline, draw.get("steps", 0) * each, draw,
        preview_seconds(recipe, each), seconds / 60, loading - since,
    )  # fmt: skip
    return with_expected_epochs(made, len(images), clock), images


def with_expected_epochs(made: Plan, n: int, clock: Callable[[], float]) -> Plan:
    """The plan with the epochs, on n images, that are expected from now on.

    Raises ValueError where they have too few steps.
    """
    left, steps = made.deadline - clock(), n // made.recipe.batch_size
    by_pace = made.ending * made.recipe.batch_size / made.pace + 0.5  # what was seen for longer
    epochs = epochs_within(left, made.recipe, steps, made.pace, min(made.preview, by_pace))
    few = f"{made.minutes:.3g} minutes are enough for {max(0, round(epochs * steps))} steps here"
    check(round(epochs * steps) >= FEWEST, f"{few}: give it more")
    return replace(made, recipe=with_epochs(made.recipe, epochs, steps), seconds=left)


def epochs_within(seconds: float, recipe: Recipe, steps: int, pace: float, preview: float) -> float:
    """Epochs of so many steps, with the previews that loop.fit draws, of so many seconds each."""
    epoch = steps * recipe.batch_size / pace
    rarely = preview / max(1, loop.PREVIEW_EVERY // steps)  # seconds an epoch
    # fit draws no more than take 3 s and a twentieth of the time, and one at the end
    return max(seconds / (epoch + rarely), (seconds - 3 - preview) / (1.05 * epoch))


def preview_seconds(recipe: Recipe, each: float) -> float:
    """What a preview and its file take, of so many seconds an evaluation of one image."""
    return previews.IMAGES * min(previews.STEPS, recipe.T) * each + 0.5


def with_epochs(recipe: Recipe, epochs: float, steps: int) -> Recipe:
    """The recipe for so many epochs of so many steps, its average as suits their number."""
    epochs = float(f"{epochs:.4g}")
    total = max(1, round(epochs * steps))
    decay = round(min(recipe.ema_decay, max(0.9, 1 - 20 / total)), 5)
    warmup = min(WARMUP, recipe.warmup_steps)
    return replace(recipe, epochs=epochs, warmup_steps=warmup, ema_decay=decay)


def check_guide_dataset(dataset: str) -> None:
    """Raises ValueError for other images than digits."""
    problem = f"a guide is planned for mnist alone, and not for {dataset}"
    check(dataset == "mnist", f"{problem}: its share of the time was not tried there")


def with_guide(
    made: Plan, n: int, folder: str, measuring: ThroughputMeter
) -> tuple[list[Plan], str]:
    """The plan, and that of a guide in folder, in the time of the first alone, on n images.

    folder: as the network's checkpoint names it. Where too few steps are left for a guide, the plan
    alone, and a line that reports it. Raises ValueError as check_guided.
    """
    check_guide_dataset(made.recipe.dataset)
    plans = split_with_guide(made, n, folder, measuring)
    few = f"{made.minutes:.3g} minutes are too few for a guide, of {FEWEST_OF_GUIDE} steps"
    return plans or [made], "" if plans else f"{few}: the network is trained without one"


def split_with_guide(made: Plan, n: int, folder: str, measuring: ThroughputMeter) -> list[Plan]:
    """The two plans; none where too few steps are left for the guide."""
    r = made.recipe
    names = *KEPT, "image_size", "objective", "precision", "batch_size"
    weak = preset(GUIDE, **{name: getattr(r, name) for name in names})
    pace, each = measuring.pace(weak), measuring.evaluation(weak)
    preview, steps = preview_seconds(weak, each), n // r.batch_size
    # The network's own part of the time
    share = (1 - preview / made.seconds) / (1 + made.pace / pace / EVERY)
    if share * r.epochs * steps / EVERY < FEWEST_OF_GUIDE:
        return []
    rest = (1 - share) * made.seconds
    guided = replace(
        made, recipe=with_epochs(r, share * r.epochs, steps), seconds=share * made.seconds,
        deadline=made.deadline - rest,
        draw=made.draw | {"guide": folder} | sampling_defaults.GUIDED,
        sampling=made.sampling + made.draw.get("steps", 0) // 2 * each,  # guided in half of them
    )  # fmt: skip
    guide = with_epochs(weak, share * r.epochs / EVERY, steps)
    own = replace(
        made, preset=GUIDE, recipe=guide, pace=pace, seconds=rest, draw={}, preview=preview
    )
    return [guided, own]


def choose_preset(
    names: tuple[str, ...], kept: dict, seconds: float, measuring: ThroughputMeter
) -> tuple[str, Recipe, float]:
    """The largest preset that gets to see enough in the time, else the smallest, and its pace.

    With precision and batch. The network is compiled too, if there is time and that pays.
    """
    name, recipe, pace = largest_preset(names, kept, seconds, measuring)
    while recipe.batch_size > 32 and pace * seconds / recipe.batch_size < STEPS:
        recipe = replace(recipe, batch_size=recipe.batch_size // 2)
    if measuring.device.type != "mps" and seconds >= COMPILING:
        compiled = replace(recipe, compile=True)
        faster = measuring.compiled_pace(compiled)
        # beside it, since paces vary
        if faster > 1.05 * pace and faster > 1.05 * measuring.pace(recipe):
            return name, compiled, faster
    return name, recipe, pace


def largest_preset(
    names: tuple[str, ...], kept: dict, seconds: float, measuring: ThroughputMeter
) -> tuple[str, Recipe, float]:
    """The largest preset that gets to see enough, in its fastest precision, and its pace."""
    smallest, enough = preset(names[-1], **kept), ENOUGH[names]
    # Images that the smallest would see, in float32; twice as many in a lower precision
    known = measuring.pace(smallest)
    most = known * seconds
    for name in names[:-1]:
        if most < enough / 2:
            break  # not even the smallest sees enough
        recipe = preset(name, **kept)
        heavier = measuring.flops(recipe) / measuring.flops(smallest)
        if measuring.device.type == "cpu" and heavier > 2 and most / heavier < enough / 2:
            continue  # measuring it would cost more than it tells
        try:
            recipe, pace = in_fastest_precision(recipe, measuring)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            continue
        if pace * seconds > enough:
            return name, recipe, pace
    recipe, pace = in_fastest_precision(smallest, measuring)
    return names[-1], recipe, max(pace, known)  # what is measured twice may have met other work


def in_fastest_precision(recipe: Recipe, measuring: ThroughputMeter) -> tuple[Recipe, float]:
    """The recipe in its fastest precision, and its pace."""
    recipes = [replace(recipe, precision=precision) for precision in measuring.precisions()]
    paces = [measuring.pace(each) for each in recipes]
    return recipes[paces.index(max(paces))], max(paces)
