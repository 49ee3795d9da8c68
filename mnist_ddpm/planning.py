"""What to train, and how, in the time there is: measured on this machine for a few seconds."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from functools import partial

import torch
from torch import Tensor

from mnist_ddpm import ddpm, machine, presets, runs
from mnist_ddpm.resumable import first_line, out_of_memory

DIGITS = "mnist", "mnist-small"  # presets, the largest network first
FACES = "faces-64", "faces-64-small", "faces-32"
# Images that a network should see at least, lest a smaller one be better (digits: benchmarks/README.md, How wide?)
ENOUGH = {DIGITS: 300_000, FACES: 150_000}
STEPS = 750  # that a short training should have at least, by smaller batches (the same page, A few minutes)
KEPT = "dataset", "channels", "classes", "attributes", "seed"  # settings that a plan leaves as they are
FEWEST = 20  # steps worth a training
COMPILING = 1200  # seconds of which a minute or two may go into compiling the network
YEAR = 366 * 24 * 3600  # seconds
MARGIN = 0.95  # of the time is planned for
SAMPLER, SAMPLING_STEPS = {DIGITS: "--sampler dpmpp --eta 1", FACES: "--sampler dpmpp"}, 20  # README, How good
# The preset of a worse network to keep away from, one step of it for how many of the other's, how far, and in which
# interval of times (benchmarks/README.md, A plan for the time there is)
GUIDE, EVERY, GUIDANCE = "mnist-small", 10, "--guidance 1.5 --guidance-interval 0 500"
FEWEST_OF_GUIDE = 200  # steps: with fewer it has not been tried


@dataclass(frozen=True)
class Plan:
    """Settings, and what is expected of them."""

    preset: str
    settings: ddpm.Settings
    pace: float  # images trained a second
    seconds: float  # that training will take, previews included
    deadline: float  # when the time is up, by time.monotonic()
    sampling: float  # seconds an image, with the sampler in SAMPLING_STEPS
    sampler: str  # flags of sample; none for a guide, which is not drawn from

    @property
    def finish(self) -> str:
        """The time of day it ends, if begun now."""
        return f"{datetime.now() + timedelta(seconds=MARGIN * (self.deadline - time.monotonic())):%H:%M}"

    def lines(self, places: Sequence[str] = ()) -> list[str]:
        """In words. places: more flags for train."""
        s, base = self.settings, presets.preset(self.preset)
        flags = ["--preset", self.preset]
        for name, value in asdict(s).items():
            if value != getattr(base, name):
                values = [] if value is True else value if isinstance(value, tuple) else [value]
                flags += [f"--{name.replace('_', '-')}", *map(str, values)]
        precision = f"{s.precision}, compiled" if s.compile else s.precision
        drawing = f"then 64 images, {self.sampler} --steps {SAMPLING_STEPS}, take about {64 * self.sampling:.1f} s"
        return [
            f"preset {self.preset}, {s.epochs:g} epochs in batches of {s.batch_size}, {precision}: {self.pace:.0f} "
            f"images/s measured, about {self.seconds / 60:.1f} minutes, until {self.finish}",
            *([drawing] if self.sampler else []),
            f"the same without planning: {machine.own_command(['train', *flags, *places])}",
        ]


def per_second(work: Callable[[], object], seconds: float) -> float:
    """How many times a second it can be done, after two to warm up; at least two are timed."""
    times, began = -2, 0.0
    while times < 2 or time.perf_counter() - began < seconds:
        if times == 0:
            began = time.perf_counter()
        work()
        times += 1
    return times / (time.perf_counter() - began)


def measured_pace(settings: ddpm.Settings, device: ddpm.Device, seconds: float = 2.0) -> float:
    """Images trained a second with these settings."""
    run, schedule = ddpm.start_run(settings, device), ddpm.make_schedule(settings).to(device)
    objective = ddpm.make_objective(settings)
    x0, labels = torch.zeros(settings.batch_size, *settings.shape, device=device), None
    if settings.classes:
        labels = torch.zeros(settings.batch_size, dtype=torch.long, device=device)
    step = partial(ddpm.training_step, run, x0, labels, schedule, objective, 0.0)  # which waits for its loss
    return settings.batch_size * per_second(step, seconds)


def measured_compiled(settings: ddpm.Settings, device: ddpm.Device) -> float:
    """measured_pace of the compiled network; 0 where compiling fails, which it says."""
    try:
        machine.try_compiler(device)
        return measured_pace(settings, device)
    except Exception as error:  # of many kinds: none is a reason not to train
        print(f"not compiled, since that failed: {first_line(error)}")
        return 0.0


def measured_sampling(settings: ddpm.Settings, device: ddpm.Device) -> float:
    """Seconds an image, in a batch of 36, of one network evaluation."""
    model = ddpm.make_model(settings).to(device).eval()
    x = torch.zeros(36, *settings.shape, device=device)
    t = torch.ones(36, dtype=torch.long, device=device)
    with torch.no_grad():
        return 1 / (36 * per_second(lambda: model(x, t).sum().item(), 0.0))


def precisions(device: torch.device) -> list[str]:
    """The ones worth measuring."""
    try:
        machine.check_precision("bfloat16", device)
    except ValueError:
        return ["float32", "float16"]
    return ["float32", "bfloat16"]


def make_plan(
    values: ddpm.Settings, load: Callable[[ddpm.Settings], Tensor], seconds: float, device: torch.device
) -> tuple[Plan, Tensor]:
    """The best use of so many seconds, and the images to train on. values: its data, labels and seed are kept.

    load: the images for settings, as load_images; what it takes (decoding, the first time) does not count.
    Raises ValueError where the time is too short for a few steps, or longer than a year.
    """
    if not 0 < seconds <= YEAR:
        raise ValueError(f"minutes is {seconds / 60:g}: it must be above 0, and at most a year")
    began = time.monotonic()
    kept = {name: getattr(values, name) for name in KEPT}
    digits = values.dataset == "mnist"
    if digits:  # P2's weights: benchmarks/README.md, A few minutes
        kept["objective"] = "p2"
    name, settings, pace = choose(DIGITS if digits else FACES, kept, seconds, device)
    each, measuring = measured_sampling(settings, device), time.monotonic() - began
    images = load(settings)
    deadline, n = time.monotonic() + seconds - measuring, len(images)
    if n < settings.batch_size:
        settings = replace(settings, batch_size=n)
        pace = measured_pace(settings, device)
    steps, preview = n // settings.batch_size, preview_seconds(settings, each)
    epoch = steps * settings.batch_size / pace
    planned, each_epoch = MARGIN * (deadline - time.monotonic()), preview / max(1, runs.PREVIEW_EVERY // steps)
    # as fit does it, in no more than 3 s and a twentieth of the time, and at the end
    epochs = max(planned / (epoch + each_epoch), (planned - 3 - preview) / (1.05 * epoch))
    total = round(epochs * steps)
    if total < FEWEST:
        raise ValueError(f"{seconds / 60:.3g} minutes are enough for {max(0, total)} steps here: give it more")
    sampler = SAMPLER[DIGITS if digits else FACES]
    return Plan(name, paced(settings, epochs, steps), pace, planned, deadline, SAMPLING_STEPS * each, sampler), images


def preview_seconds(settings: ddpm.Settings, each: float) -> float:
    """What ddpm.preview and its file take, of so many seconds an evaluation of one image."""
    return 36 * min(20, settings.T) * each + 0.5


def paced(settings: ddpm.Settings, epochs: float, steps: int) -> ddpm.Settings:
    """The settings for so many epochs of so many steps, with warm-up and average as suit their number."""
    epochs = float(f"{epochs:.4g}")
    total = max(1, round(epochs * steps))
    decay = round(min(settings.ema_decay, max(0.9, 1 - 20 / total)), 5)
    return replace(settings, epochs=epochs, warmup_steps=min(500, total // 10), ema_decay=decay)


def check_guided(dataset: str) -> None:
    """Raises ValueError for other images than digits."""
    if dataset != "mnist":
        raise ValueError(f"a guide is planned for mnist alone: its share of the time was not tried for {dataset}")


def with_guide(plan: Plan, n: int, folder: ddpm.PathLike, device: torch.device) -> tuple[Plan, Plan]:
    """The plan, and that of a guide in folder (guidance.autoguided), in the time of the first alone, on n images.

    Raises ValueError where too few steps are left for the guide, and as check_guided.
    """
    s = plan.settings
    check_guided(s.dataset)
    kept = *KEPT, "objective", "precision", "batch_size"
    weak = replace(presets.preset(GUIDE), **{name: getattr(s, name) for name in kept})
    pace, each = measured_pace(weak, device), measured_sampling(weak, device)
    preview, steps = preview_seconds(weak, each), n // s.batch_size
    share = (1 - preview / plan.seconds) / (1 + plan.pace / pace / EVERY)  # of the time, for the network itself
    if share * s.epochs * steps / EVERY < FEWEST_OF_GUIDE:
        raise ValueError(f"in {plan.seconds / 60:.3g} minutes a guide has too few steps: give it more, or none")
    seconds, rest = share * plan.seconds, (1 - share) * plan.seconds
    guided = replace(
        plan, settings=paced(s, share * s.epochs, steps), seconds=seconds, deadline=plan.deadline - rest / MARGIN,
        sampling=plan.sampling + SAMPLING_STEPS // 2 * each,  # it guides in the second half of the steps
        sampler=machine.shell([*plan.sampler.split(), "--guide", str(folder), *GUIDANCE.split()]),
    )  # fmt: skip
    guide = paced(weak, share * s.epochs / EVERY, steps)
    return guided, Plan(GUIDE, guide, pace, rest, plan.deadline, SAMPLING_STEPS * each, "")


def choose(
    names: tuple[str, ...], kept: dict, seconds: float, device: torch.device
) -> tuple[str, ddpm.Settings, float]:
    """The largest preset that gets to see enough in the time, else the smallest; precision, batch, and its pace.

    Where there is time enough for it the network is compiled too, if that pays.
    """
    smallest, enough = replace(presets.preset(names[-1]), **kept), ENOUGH[names]
    most = measured_pace(smallest, device, 1.0) * seconds  # images; twice as many in a lower precision
    for name in names:
        settings = replace(presets.preset(name), **kept)
        if name != names[-1]:
            if most < enough / 2:
                continue  # not even the smallest sees enough
            heavier = presets.cost(settings).flops / presets.cost(smallest).flops
            if device.type == "cpu" and heavier > 2 and most / heavier < enough / 2:
                continue  # so far off that measuring it would cost more than it tells
        try:
            paces = {
                precision: measured_pace(replace(settings, precision=precision), device)
                for precision in precisions(device)
            }
        except RuntimeError as error:
            if name == names[-1] or not out_of_memory(error):
                raise
            continue
        precision = max(paces, key=paces.get)
        if paces[precision] * seconds > enough:
            break
    batch_size = settings.batch_size
    while batch_size > 32 and paces[precision] * seconds / batch_size < STEPS:
        batch_size //= 2
    chosen, pace = replace(settings, precision=precision, batch_size=batch_size), paces[precision]
    if batch_size < settings.batch_size:
        pace = measured_pace(chosen, device)
    if device.type != "mps" and seconds >= COMPILING:
        compiled = replace(chosen, compile=True)
        faster = measured_compiled(compiled, device)
        if faster > 1.05 * pace and faster > 1.05 * measured_pace(chosen, device):  # beside it, since paces vary
            return name, compiled, faster
    return name, chosen, pace
