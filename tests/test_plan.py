"""Plans for the time there is, with a machine and a clock that are made up."""

import math
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest
import torch
from training_helpers import PATH, TINY, start_simple

from mnist_ddpm.datasets import MNIST
from mnist_ddpm.recipe import Recipe, format_size, preset
from mnist_ddpm.training import planning, session, throughput
from mnist_ddpm.training.throughput import ThroughputMeter

GFLOP = {128: 3.1, 64: 0.52, 32: 0.19, 16: 0.05}  # by width: to evaluate 16 x 16 positions


@dataclass
class Machine:
    """Trains 300 images/s of faces-64-small's cost in bfloat16, half as many in float32.

    Draws 1000 a second. Its clock stands still, except for what is said to take time.
    """

    images: float = 300.0
    now: float = 100.0
    gain: float = 1.0  # of compiling
    takes: float = 0.0  # seconds to measure
    allowed: float = 0.0  # seconds for measuring
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def flops(self, recipe):
        return GFLOP[recipe.base_channels] * 1e9 * math.prod(recipe.positions[0]) / 256

    def warm_up(self, recipe):
        pass

    def allow(self, seconds):
        self.allowed = seconds

    def pace(self, recipe):
        work = self.flops(recipe) / self.flops(preset("faces-64-small"))
        return self.images / work / (1 if recipe.precision == "bfloat16" else 2)

    def compiled_pace(self, recipe):
        return self.gain * self.pace(recipe)

    def seconds_per_evaluation(self, recipe):
        self.now += self.takes
        return 1e-3

    def precisions(self):
        return ["float32", "bfloat16"]

    def clock(self):
        return self.now


@pytest.fixture
def machine(short_previews, monkeypatch):
    """A machine whose previews take their time in full."""
    monkeypatch.setattr(session, "STEPS", short_previews)
    return Machine()


def make_plan(machine, minutes, n=9000, decoding=0.0, began=None, size=None, **settings):
    def load(recipe):
        machine.now += decoding
        return torch.zeros(1, recipe.channels, 8, 8, dtype=torch.uint8).expand(n, -1, -1, -1)

    request = Recipe(**{"dataset": "celeba"} | settings)
    options = {"clock": machine.clock, "began": began, "size": size}
    return planning.make_plan(request, load, 60 * minutes, machine, **options)[0]


@pytest.mark.parametrize("minutes, n", [(0.5, 9000), (3, 9000), (60, 127), (60, 5_000_000)])
def test_the_plan_fills_the_time_with_what_fit_will_do(machine, minutes, n):
    """Whole batches only, and a preview after each epoch, or where these are short, after some."""
    plan = make_plan(machine, minutes, n)
    batch = plan.recipe.batch_size
    steps = n // batch
    total = round(plan.recipe.epochs * steps)
    training = total * batch / plan.pace
    preview_every = steps * max(1, session.PREVIEW_EVERY // steps)
    drawing = min(1.22 * total / preview_every, 4.22 + training / 20)  # 1.22 s a preview
    assert training + drawing == pytest.approx(plan.seconds, rel=0.03 if minutes < 60 else 0.01)
    assert plan.seconds == pytest.approx(0.99 * 60 * minutes)
    assert plan.deadline == pytest.approx(100 + plan.seconds)
    assert plan.minutes == minutes
    assert 2 <= machine.allowed <= min(20, 0.07 * 60 * minutes)
    assert machine.allowed == planning.measuring_seconds(60 * minutes)


def test_starting_and_measuring_are_part_of_the_time_and_decoding_is_not(machine):
    whole = make_plan(machine, 1)
    decoded = make_plan(machine, 1, decoding=30)
    assert decoded.seconds == pytest.approx(whole.seconds)
    assert decoded.deadline == pytest.approx(whole.deadline + 30)
    digits = make_plan(machine, 1, decoding=30, dataset="mnist")
    assert digits.deadline == pytest.approx(machine.now - 30 + 0.99 * 60), "which are read at once"
    slow = make_plan(Machine(takes=30), 1)
    assert slow.deadline == whole.deadline and slow.measured == 30
    assert slow.seconds == pytest.approx(whole.seconds - 30)
    assert make_plan(Machine(), 1, began=90.0).deadline == pytest.approx(whole.deadline - 10)


@pytest.mark.parametrize(
    "images, minutes, dataset, expected",
    [
        (300, 10, "celeba", "faces-64-small"),
        (300, 2, "celeba", "faces-32"),
        (300, 2, "mnist", "mnist-small"),  # mnist would see 100,000 images
        (300, 3, "mnist", "mnist-small"),  # 150,000
        (300, 4, "mnist", "mnist"),
        (300, 30, "mnist", "mnist"),  # 1,500,000
        (20_000, 10, "celeba", "faces-64"),
        (20_000, 2, "mnist", "mnist"),
    ],
)
def test_the_largest_network_that_sees_enough_is_planned(images, minutes, dataset, expected):
    plan = make_plan(Machine(images=images), minutes, dataset=dataset)
    assert plan.preset == expected
    digits = dataset == "mnist"
    assert (plan.recipe.times == "logit-normal") == digits
    assert (plan.recipe.schedule == "flow") == (expected == "mnist-small")
    assert plan.sampling_defaults["eta"] == digits and plan.recipe.warmup_steps <= 500


@pytest.mark.parametrize(
    "dataset, channels, size, presets",
    [
        ("torchvision:FashionMNIST", 1, 32, MNIST.planning.presets),
        ("grey.npz", 1, 32, MNIST.planning.presets),
        ("torchvision:CIFAR10", 3, 32, ("faces-32", "cifar-32")),
        ("colour.npz", 3, 64, ("faces-64", "faces-64-small")),
    ],
)
def test_the_network_follows_channels_and_size_of_the_images(dataset, channels, size, presets):
    for images in (300, 20_000):
        plan = make_plan(Machine(images=images), 10, dataset=dataset, channels=channels)
        assert plan.preset in presets and plan.recipe.image_size == size
        assert plan.recipe.channels == channels and plan.recipe.dataset == dataset


def test_precision_batch_and_ema_suit_the_machine_and_the_time(machine):
    long, short = make_plan(machine, 60).recipe, make_plan(machine, 2).recipe
    assert long.precision == "bfloat16" and (long.batch_size, short.batch_size) == (64, 32)
    assert 0.9 <= short.ema_decay < long.ema_decay <= 0.999
    few_images = make_plan(machine, 60, n=40).recipe
    assert few_images.batch_size == 40 and few_images.epochs > 1000, "one step each"


@pytest.mark.parametrize(
    "gain, device, minutes, compiles",
    [
        (1.5, "cuda", 60, True),
        (1.02, "cuda", 60, False),
        (1.5, "cuda", 10, False),
        (1.5, "cpu", 60, True),
        (1.5, "mps", 60, False),
        (0.0, "cuda", 60, False),
    ],
)
def test_a_plan_compiles_if_there_is_time_and_it_pays(gain, device, minutes, compiles):
    plan = make_plan(Machine(gain=gain, device=torch.device(device)), minutes)
    assert plan.recipe.compile is compiles
    assert plan.pace == pytest.approx(450 if compiles else 300)
    assert ("--compile" in plan.flags()) is compiles
    assert "True" not in plan.flags(), "a flag without a value"


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("MPS backend out of memory (1)")],
)
def test_a_network_too_large_for_the_memory_gives_way_to_a_smaller_one(error):
    class Small(Machine):
        def pace(self, recipe):
            if recipe.base_channels == 128:
                raise error
            return super().pace(recipe)

    assert make_plan(Small(images=20_000.0), 10).preset == "faces-64-small"


@pytest.mark.parametrize("size", [64, (64, 96)])
def test_a_size_that_is_asked_for_is_planned(machine, size):
    plan = make_plan(machine, 2, size=size, attributes=("Smiling", "Male"), seed=7)
    assert (plan.recipe.attributes, plan.recipe.seed) == (("Smiling", "Male"), 7)
    assert (plan.preset, plan.recipe.image_size) == ("faces-64-small", size), "in no time faces-32"
    flags = dict(zip(plan.flags(), plan.flags()[1:]))
    assert flags.get("--image-size", "64") == format_size(size)
    with pytest.raises(ValueError, match="^image_size is 64x90"):
        make_plan(machine, 2, size=(64, 90))


@pytest.mark.parametrize("minutes", [0.02, 0.0, -1.0, float("inf"), float("nan"), 600_000])
def test_too_little_or_too_much_time_is_refused(machine, minutes):
    with pytest.raises(ValueError, match=f"{minutes:g}"):
        make_plan(machine, minutes)


@pytest.fixture
def slow(monkeypatch):
    """Measures with a clock that steps and evaluations move, by a cost and one for each image."""
    now, step, costs = [0.0], throughput.training_step, SimpleNamespace(fixed=0.0, each=1 / 32)

    def slow_step(run, x0, *given):
        step(run, x0, *given)
        now[0] += costs.fixed + costs.each * len(x0)

    class Slow(torch.nn.Module):
        def forward(self, x, t):
            now[0] += costs.fixed + costs.each * len(x)
            return x

    monkeypatch.setattr(throughput, "training_step", slow_step)
    monkeypatch.setattr(throughput, "start_run", lambda recipe, device: start_simple(recipe))
    monkeypatch.setattr(throughput.catalogue, "make_schedule", lambda recipe: PATH)
    monkeypatch.setattr(throughput.catalogue, "make_network", lambda recipe: Slow())
    made = ThroughputMeter(torch.device("cpu"), lambda: now[0])
    made.costs = costs
    return made


@pytest.mark.parametrize("fixed", [0.0, 0.25])
@pytest.mark.parametrize("seconds", [0.0, 1.0, 4.0])
def test_paces_are_those_of_whole_batches(slow, fixed, seconds):
    """Also where there is time for smaller ones alone: what each image adds is known then."""
    slow.costs.fixed = fixed
    expected = 16 / (fixed + 16 * slow.costs.each)
    assert slow.pace(TINY, seconds) == pytest.approx(expected)
    assert slow.pace(replace(TINY, classes=3), seconds) == pytest.approx(expected), "with labels"
    assert slow.seconds_per_evaluation(TINY) == pytest.approx(slow.costs.each + fixed / 36)


@pytest.mark.parametrize("each", [1e-3, 0.05, 1.0])
def test_measuring_takes_what_it_says_also_on_a_slow_machine(slow, each):
    """What a plan measures: at most some ten figures, the largest batch being 128."""
    slow.costs.each, recipe, began = each, replace(TINY, batch_size=128), slow.clock()
    slow.allow(20.0)
    for _ in range(7):
        slow.pace(recipe)
    slow.seconds_per_evaluation(recipe)
    assert slow.clock() - began < 20 + 8 * 6 * each, "a step with one image, two, with four one"


def test_a_compiler_that_fails_is_told_and_no_reason_to_stop(slow, monkeypatch, capsys):
    """Even where the second measurement happens to be the faster one."""
    tried = SimpleNamespace(fails=False)

    def try_compiler(device, precision):
        if tried.fails:
            raise RuntimeError("BackendCompilerFailed: no\nmore")

    monkeypatch.setattr(throughput.devices, "try_compiler", try_compiler)
    assert slow.compiled_pace(TINY) == pytest.approx(32)
    tried.fails = True
    assert slow.compiled_pace(TINY) == 0
    assert capsys.readouterr().out.endswith("BackendCompilerFailed: no\n")
