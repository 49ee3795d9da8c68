"""What to train, and how, in the time there is, as this machine was measured."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from torch import Tensor

from mnist_ddpm.ddpm import check
from mnist_ddpm.training import loop, machine, previews
from mnist_ddpm.training.files import out_of_memory
from mnist_ddpm.training.measuring import Measuring
from mnist_ddpm.training.presets import preset
from mnist_ddpm.training.recipe import Recipe

DIGITS = "mnist", "mnist-small"  # presets, the largest network first
FACES = "faces-64", "faces-64-small", "faces-32"
# Images that a network sees at least: with fewer, a smaller one is better
ENOUGH = {DIGITS: 300_000, FACES: 150_000}
STEPS = 750  # that a short training has at least, by smaller batches
WARMUP = 500  # steps at most
KEPT = "dataset", "channels", "classes", "attributes", "seed"  # that a plan leaves as they are
FEWEST = 20  # steps worth a training
COMPILING = 1200  # seconds of which a minute or two may go into compiling the network
YEAR = 366 * 24 * 3600  # seconds
MARGIN = 0.95  # of the time is planned for
SAMPLER, SAMPLING_STEPS = {DIGITS: "--sampler dpmpp --eta 1", FACES: "--sampler dpmpp"}, 20
# The preset of a worse network to keep away from, one step of it for how many of the other's, how
# far, and in which interval of times
GUIDE, EVERY, GUIDANCE = "mnist-small", 10, "--guidance 1.5 --guidance-interval 0 500"
FEWEST_OF_GUIDE = 200  # steps: with fewer it has not been tried


@dataclass(frozen=True)
class Plan:
    """A recipe, and what is expected of it."""

    preset: str
    recipe: Recipe
    pace: float  # images trained a second
    seconds: float  # that training will take, previews included
    deadline: float  # when the time is up, by time.monotonic()
    sampling: float  # seconds an image, with the sampler in SAMPLING_STEPS
    sampler: str  # flags of sample; none for a guide, which is not drawn from

    def finish(self, clock=time.monotonic, now=datetime.now) -> datetime:
        """When it ends, if it begins now."""
        return now() + timedelta(seconds=MARGIN * (self.deadline - clock()))

    def flags(self) -> list[str]:
        """Those of train that make the same recipe."""
        base, flags = preset(self.preset), ["--preset", self.preset]
        for name, value in asdict(self.recipe).items():
            if value != getattr(base, name) or name == "precision":  # which depends on the device
                values = value if isinstance(value, tuple) else [value]
                values = [] if value is True else values
                flags += [f"--{name.replace('_', '-')}", *map(str, values)]
        return flags

    def lines(self, places: Sequence[str] = (), **clocks) -> list[str]:
        """In words. places: more flags for train. clocks: as of finish."""
        r = self.recipe
        what = f"preset {self.preset}, {r.epochs:g} epochs in batches of {r.batch_size}"
        how = f"{r.precision}, compiled" if r.compile else r.precision
        speed = f"{self.pace:.0f} images/s measured"
        ends = f"about {self.seconds / 60:.1f} minutes, until {self.finish(**clocks):%H:%M}"
        drawing = f"then 64 images, {self.sampler} --steps {SAMPLING_STEPS}"
        drawing = [f"{drawing}, take about {64 * self.sampling:.1f} s"] if self.sampler else []
        command = machine.own_command(["train", *self.flags(), *places])
        again = f"the same without planning: {command}"
        return [f"{what}, {how}: {speed}, {ends}", *drawing, again]


def make_plan(
    asked: Recipe, load: Callable[[Recipe], Tensor], seconds: float, measuring: Measuring,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[Plan, Tensor]:  # fmt: skip
    """The best use of so many seconds, and the images to train on.

    asked: its data, labels and seed are kept. load: the images for a recipe; what it takes
    (decoding, the first time) does not count. Raises ValueError where the time is too short for a
    few steps, or longer than a year.
    """
    problem = f"minutes is {seconds / 60:g}"
    check(0 < seconds <= YEAR, f"{problem}: it must be above 0, and at most a year")
    began, digits = clock(), asked.dataset == "mnist"
    kept = {name: getattr(asked, name) for name in KEPT}
    kept |= {"objective": "p2"} if digits else {}
    names = DIGITS if digits else FACES
    name, recipe, pace = choose(names, kept, seconds, measuring)
    each = measuring.evaluation(recipe)
    spent = clock() - began
    images = load(recipe)
    deadline, n = clock() + seconds - spent, len(images)
    if n < recipe.batch_size:
        recipe = replace(recipe, batch_size=n, accumulation=min(recipe.accumulation, n))
        pace = measuring.pace(recipe)
    planned, steps = MARGIN * (deadline - clock()), n // recipe.batch_size
    epochs = epochs_within(planned, recipe, steps, pace, preview_seconds(recipe, each))
    few = f"{seconds / 60:.3g} minutes are enough for {max(0, round(epochs * steps))} steps here"
    check(round(epochs * steps) >= FEWEST, f"{few}: give it more")
    drawing = SAMPLING_STEPS * each
    recipe = paced(recipe, epochs, steps)
    return Plan(name, recipe, pace, planned, deadline, drawing, SAMPLER[names]), images


def epochs_within(seconds: float, recipe: Recipe, steps: int, pace: float, preview: float) -> float:
    """Epochs of so many steps, with the previews that loop.fit draws, of so many seconds each."""
    epoch = steps * recipe.batch_size / pace
    rarely = preview / max(1, loop.PREVIEW_EVERY // steps)  # seconds an epoch
    # fit draws no more than take 3 s and a twentieth of the time, and one at the end
    return max(seconds / (epoch + rarely), (seconds - 3 - preview) / (1.05 * epoch))


def preview_seconds(recipe: Recipe, each: float) -> float:
    """What a preview and its file take, of so many seconds an evaluation of one image."""
    return previews.IMAGES * min(previews.STEPS, recipe.T) * each + 0.5


def paced(recipe: Recipe, epochs: float, steps: int) -> Recipe:
    """The recipe for so many epochs of so many steps, its average as suits their number."""
    epochs = float(f"{epochs:.4g}")
    total = max(1, round(epochs * steps))
    decay = round(min(recipe.ema_decay, max(0.9, 1 - 20 / total)), 5)
    warmup = min(WARMUP, recipe.warmup_steps)
    return replace(recipe, epochs=epochs, warmup_steps=warmup, ema_decay=decay)


def check_guided(dataset: str) -> None:
    """Raises ValueError for other images than digits."""
    problem = f"a guide is planned for mnist alone, and not for {dataset}"
    check(dataset == "mnist", f"{problem}: its share of the time was not tried there")


def with_guide(plan: Plan, n: int, folder: str | Path, measuring: Measuring) -> tuple[Plan, Plan]:
    """The plan, and that of a guide in folder, in the time of the first alone, on n images.

    Raises ValueError where too few steps are left for the guide, and as check_guided.
    """
    r = plan.recipe
    check_guided(r.dataset)
    names = *KEPT, "objective", "precision", "batch_size"
    weak = preset(GUIDE, **{name: getattr(r, name) for name in names})
    pace, each = measuring.pace(weak), measuring.evaluation(weak)
    preview, steps = preview_seconds(weak, each), n // r.batch_size
    # The network's own part of the time
    share = (1 - preview / plan.seconds) / (1 + plan.pace / pace / EVERY)
    few = f"in {plan.seconds / 60:.3g} minutes a guide has too few steps"
    check(share * r.epochs * steps / EVERY >= FEWEST_OF_GUIDE, f"{few}: give it more, or none")
    rest = (1 - share) * plan.seconds
    guided = replace(
        plan, recipe=paced(r, share * r.epochs, steps), seconds=share * plan.seconds,
        deadline=plan.deadline - rest / MARGIN,
        sampling=plan.sampling + SAMPLING_STEPS // 2 * each,  # it guides in half of the steps
        sampler=machine.shell([*plan.sampler.split(), "--guide", str(folder), *GUIDANCE.split()]),
    )  # fmt: skip
    guide = paced(weak, share * r.epochs / EVERY, steps)
    return guided, Plan(GUIDE, guide, pace, rest, plan.deadline, SAMPLING_STEPS * each, "")


def choose(
    names: tuple[str, ...], kept: dict, seconds: float, measuring: Measuring
) -> tuple[str, Recipe, float]:
    """The largest preset that gets to see enough in the time, else the smallest, and its pace.

    With precision and batch. The network is compiled too, if there is time and that pays.
    """
    name, recipe, pace = largest(names, kept, seconds, measuring)
    whole = recipe.batch_size
    while recipe.batch_size > 32 and pace * seconds / recipe.batch_size < STEPS:
        recipe = replace(recipe, batch_size=recipe.batch_size // 2)
    if recipe.batch_size < whole:
        pace = measuring.pace(recipe)
    if measuring.device.type != "mps" and seconds >= COMPILING:
        compiled = replace(recipe, compile=True)
        faster = measuring.compiled_pace(compiled)
        # beside it, since paces vary
        if faster > 1.05 * pace and faster > 1.05 * measuring.pace(recipe):
            return name, compiled, faster
    return name, recipe, pace


def largest(
    names: tuple[str, ...], kept: dict, seconds: float, measuring: Measuring
) -> tuple[str, Recipe, float]:
    """The largest preset that gets to see enough, in its fastest precision, and its pace."""
    smallest, enough = preset(names[-1], **kept), ENOUGH[names]
    # Images that the smallest would see, in float32; twice as many in a lower precision
    most = measuring.pace(smallest, 1.0) * seconds
    for name in names[:-1]:
        if most < enough / 2:
            break  # not even the smallest sees enough
        recipe = preset(name, **kept)
        heavier = measuring.flops(recipe) / measuring.flops(smallest)
        if measuring.device.type == "cpu" and heavier > 2 and most / heavier < enough / 2:
            continue  # measuring it would cost more than it tells
        try:
            recipe, pace = fastest(recipe, measuring)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            continue
        if pace * seconds > enough:
            return name, recipe, pace
    return names[-1], *fastest(smallest, measuring)


def fastest(recipe: Recipe, measuring: Measuring) -> tuple[Recipe, float]:
    """The recipe in its fastest precision, and its pace."""
    recipes = [replace(recipe, precision=precision) for precision in measuring.precisions()]
    paces = [measuring.pace(each) for each in recipes]
    return recipes[paces.index(max(paces))], max(paces)
