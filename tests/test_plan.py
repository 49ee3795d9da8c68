"""Plans for the time there is, with a machine and a clock that are made up."""

import shlex
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from trained import PATH, TINY, start_simple

from mnist_ddpm import ddpm, trainer
from mnist_ddpm.training import loop, planning, sampling_defaults, throughput
from mnist_ddpm.training.options import size_in_words
from mnist_ddpm.training.presets import preset
from mnist_ddpm.training.recipe import Recipe
from mnist_ddpm.training.throughput import ThroughputMeter

PLANNED = (2, "mnist"), (30, "mnist"), (10, "celeba")
# GFLOP of an evaluation by image size, channels and width
GFLOP = {
    (32, 1, 32): 0.19,
    (32, 1, 16): 0.05,
    (64, 3, 128): 12.5,
    (64, 3, 64): 0.52,
    (32, 3, 64): 0.5,
    ((64, 96), 3, 128): 18.8,
    ((64, 96), 3, 64): 0.8,
    ((32, 40), 1, 32): 0.24,
    ((32, 40), 1, 16): 0.06,
}


@dataclass
class Machine:
    """Trains 300 images/s of faces-64-small's cost in bfloat16, half as many in float32.

    Draws 1000 a second. Its clock stands still unless it is told what things take.
    """

    images: float = 300.0
    now: float = 100.0
    gain: float = 1.0  # of compiling
    takes: float = 0.0  # seconds to measure
    allowed: float = 0.0  # seconds for measuring
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def flops(self, recipe):
        return 1e9 * GFLOP[recipe.image_size, recipe.channels, recipe.base_channels]

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
def machine():
    return Machine()


def make_plan(machine, minutes, n=9000, decoding=0.0, began=None, size=None, **asked):
    def load(recipe):
        machine.now += decoding
        return torch.zeros(1, recipe.channels, 8, 8, dtype=torch.uint8).expand(n, -1, -1, -1)

    asked = Recipe(**{"dataset": "celeba", **asked})
    return planning.make_plan(
        asked, load, 60 * minutes, machine, machine.clock, began=began, size=size
    )[0]


def test_the_time_is_filled_to_a_few_percent(machine):
    """9000 images at 300/s are 30 s an epoch, and a preview 1.22 s."""
    for minutes in (1, 3, 10, 60):
        made = make_plan(machine, minutes)
        assert made.seconds == pytest.approx(0.99 * 60 * minutes)
        took = made.recipe.epochs * (9000 / made.pace + 1.22)
        assert took == pytest.approx(made.seconds, rel=0.03)
        assert made.deadline == pytest.approx(100 + 0.99 * 60 * minutes)
        assert made.preview == pytest.approx(1.22) and made.minutes == minutes


@pytest.mark.parametrize("n", [100, 127, 1700, 5_000_000])
def test_what_is_planned_is_what_fit_will_do(machine, n):
    """Whole batches only, and a preview after each epoch, or where these are short, after some."""
    made = make_plan(machine, 60, n)
    batch = made.recipe.batch_size
    steps = n // batch
    done = round(made.recipe.epochs * steps)
    training, every = done * batch / made.pace, steps * max(1, loop.PREVIEW_EVERY // steps)
    drawing = min(1.22 * done / every, 4.22 + training / 20)
    assert training + drawing == pytest.approx(made.seconds, rel=0.01)
    assert made.seconds == pytest.approx(0.99 * 3600, rel=0.01)


def test_starting_and_measuring_are_part_of_the_time_and_decoding_is_not(machine):
    whole = make_plan(machine, 1)
    decoded = make_plan(machine, 1, decoding=30)
    assert decoded.seconds == pytest.approx(whole.seconds)
    assert decoded.deadline == pytest.approx(whole.deadline + 30)
    digits = make_plan(machine, 1, decoding=30, dataset="mnist")
    assert digits.deadline == pytest.approx(machine.now - 30 + 0.99 * 60), "which are read at once"
    slow = Machine(takes=30)
    made = make_plan(slow, 1)
    assert made.deadline == whole.deadline and made.measured == 30
    assert made.seconds == pytest.approx(whole.seconds - 30)
    assert make_plan(Machine(), 1, began=90.0).deadline == pytest.approx(whole.deadline - 10)


@pytest.mark.parametrize("minutes", [0.5, 1, 10, 600])
def test_measuring_is_allowed_a_small_part_of_the_time(machine, minutes):
    make_plan(machine, minutes)
    assert 2 <= machine.allowed <= min(20, 0.07 * 60 * minutes)
    assert machine.allowed == planning.measuring_seconds(60 * minutes)


def test_the_largest_network_that_sees_enough_is_taken(machine):
    assert make_plan(machine, 10).preset == "faces-64-small"
    assert make_plan(machine, 2).preset == "faces-32"
    digits = [make_plan(machine, minutes, dataset="mnist").preset for minutes in (2, 30)]
    assert digits == ["mnist-small", "mnist"], "of 100,000 and 1,500,000 images"
    machine.images = 20_000.0
    assert make_plan(machine, 10).preset == "faces-64"
    assert make_plan(machine, 2, dataset="mnist").preset == "mnist", "on a GPU"


def test_precision_batch_and_averaging_suit_the_machine_and_the_time(machine):
    long, short = make_plan(machine, 60).recipe, make_plan(machine, 2).recipe
    assert long.precision == "bfloat16" and (long.batch_size, short.batch_size) == (64, 32)
    assert 0.9 <= short.ema_decay < long.ema_decay <= 0.999
    machine.images = 20_000.0
    assert make_plan(machine, 10).recipe.warmup_steps == 500, "not the 5000 of a long training"


@pytest.mark.parametrize(
    ("gain", "device", "minutes", "compiled"),
    [
        (1.5, "cuda", 60, True), (1.02, "cuda", 60, False), (1.5, "cuda", 10, False),
        (1.5, "cpu", 60, True), (1.5, "mps", 60, False), (0.0, "cuda", 60, False),
    ],
)  # fmt: skip
def test_a_plan_compiles_where_there_is_time_and_it_pays(gain, device, minutes, compiled):
    made = make_plan(Machine(gain=gain, device=torch.device(device)), minutes)
    assert made.recipe.compile is compiled
    assert made.pace == pytest.approx(450 if compiled else 300)
    assert ("--compile" in made.flags()) is compiled
    assert "True" not in made.flags(), "a flag without a value"


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("MPS backend out of memory (1)")],
)
def test_a_network_too_large_for_the_memory_leaves_the_place_to_a_smaller_one(error):
    class Small(Machine):
        def pace(self, recipe, *rest):
            if recipe.base_channels == 128:
                raise error
            return super().pace(recipe, *rest)

    assert make_plan(Machine(images=20_000.0), 10).preset == "faces-64"
    assert make_plan(Small(images=20_000.0), 10).preset == "faces-64-small"


def test_what_was_asked_for_is_kept(machine):
    recipe = make_plan(machine, 10, attributes=("Smiling", "Male"), seed=7).recipe
    assert (recipe.attributes, recipe.classes, recipe.seed) == (("Smiling", "Male"), 4, 7)
    assert recipe.channels == 3
    assert make_plan(machine, 10, dataset="mnist", classes=10).recipe.classes == 10


def test_digits_are_planned_with_the_weights_of_p2(machine):
    made = [make_plan(machine, minutes, dataset=name) for minutes, name in PLANNED]
    assert [each.recipe.objective for each in made] == ["p2", "p2", "min-snr"]
    assert [each.draw["eta"] for each in made] == [1, 1, 0]


def test_few_images_make_a_small_batch(machine):
    recipe = make_plan(machine, 60, n=40).recipe
    assert recipe.batch_size == 40 and recipe.epochs > 1000, "one step each"


def test_a_plan_tells_a_command_and_when_it_will_be_done(machine):
    made = make_plan(machine, 90, dataset="my faces & others")
    clocks = {"clock": machine.clock, "now": lambda: datetime(2024, 5, 6, 22)}
    first = made.lines(Path("a b"), **clocks)[0]
    ends = datetime(2024, 5, 6, 22) + timedelta(seconds=made.seconds)
    assert f"{ends:%H:%M}" in first
    done = replace(made.recipe, epochs=1.2345)
    words = shlex.split(made.equivalent_command(done, ["--out", "a b"]))
    assert words[words.index("--epochs") + 1] == "1.2345", "those that were done"
    assert words[words.index("--dataset") + 1] == "my faces & others"
    assert words[-2:] == ["--out", "a b"]


@pytest.mark.parametrize(("minutes", "name"), PLANNED)
def test_the_flags_of_a_plan_make_the_same_recipe(machine, minutes, name):
    attributes = ("Smiling", "Male") if name == "celeba" else ()
    made = make_plan(machine, minutes, dataset=name, attributes=attributes, seed=7)
    flags, given = iter(made.flags()), {}
    for word in flags:
        if word.startswith("--"):
            given[key := word[2:].replace("-", "_")] = []
        else:
            given[key].append(word)
    named = given.pop("preset")[0]
    typed = {}
    for key, words in given.items():
        like = getattr(made.recipe, key)
        typed[key] = tuple(words) if isinstance(like, tuple) else type(like)(words[0])
    assert preset(named, **typed) == made.recipe


@pytest.mark.parametrize("size", [64, (64, 96)])
def test_a_size_that_is_asked_for_is_planned_and_told(machine, size):
    made = make_plan(machine, 2, size=size)
    assert (made.preset, made.recipe.image_size) == ("faces-64-small", size), "in no time faces-32"
    flags = dict(zip(made.flags(), made.flags()[1:]))
    assert flags.get("--image-size", "64") == size_in_words(size)
    with pytest.raises(ValueError, match="^image_size is 64x90"):
        make_plan(machine, 2, size=(64, 90))


def with_guide(machine, made, n=60_000):
    return planning.with_guide(made, n, "guide", machine)


def test_a_guide_is_trained_in_the_time_of_the_network_alone(machine):
    alone = make_plan(machine, 30, 60_000, dataset="mnist", classes=10, seed=7)
    (network, guide), told = with_guide(machine, alone)
    assert (network.preset, guide.preset, told) == ("mnist", "mnist-small", "")
    assert network.seconds + guide.seconds == pytest.approx(alone.seconds)
    assert 0.02 < guide.seconds / alone.seconds < 0.1
    for made in (network, guide):
        training = made.recipe.epochs * 468 * 128 / made.pace
        assert training < made.seconds < 1.06 * training, "previews are the rest"
    assert network.recipe.epochs == pytest.approx(10 * guide.recipe.epochs, rel=1e-3)
    assert guide.deadline == alone.deadline
    assert alone.deadline - network.deadline == pytest.approx(guide.seconds)
    shared = "objective", "precision", "batch_size", "classes", "seed"
    told = {name: getattr(network.recipe, name) for name in shared}
    assert guide.recipe == replace(guide.recipe, **told) and guide.recipe.base_channels == 16
    assert guide.recipe.ema_decay < network.recipe.ema_decay
    assert (
        network.draw == alone.draw | {"guide": "guide"} | sampling_defaults.GUIDED
        and guide.draw == {}
    )


@pytest.mark.parametrize("minutes", [0.4, 1, 1.5])
def test_where_a_guide_has_too_few_steps_the_network_is_trained_alone(machine, minutes):
    """3,120 digits/s, in batches of 128: 2,000 steps take 1.4 minutes, and the guide's a tenth."""
    alone = make_plan(machine, minutes, 60_000, dataset="mnist")
    plans, told = with_guide(machine, alone)
    assert plans == [alone] and f"{minutes:g} minutes" in told
    assert len(with_guide(machine, make_plan(machine, 1.7, 60_000, dataset="mnist"))[0]) == 2


def test_a_guide_draws_images_of_the_same_shape(machine):
    made = make_plan(machine, 30, 60_000, dataset="mnist", size=(32, 40))
    assert [each.recipe.shape for each in with_guide(machine, made)[0]] == [(1, 32, 40)] * 2


def test_only_digits_have_a_guide(machine):
    with pytest.raises(ValueError, match="celeba"):
        with_guide(machine, make_plan(machine, 30), 9000)


@pytest.mark.parametrize("minutes", [0.02, 0.0, -1.0, float("inf"), float("nan"), 600_000])
def test_too_little_or_too_much_time_is_said(machine, minutes):
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
    made = ThroughputMeter(
        torch.device("cpu"), start_simple, lambda recipe: PATH, lambda recipe: ddpm.l_simple,
        lambda recipe: Slow(), lambda: now[0],
    )  # fmt: skip
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
    """What a plan and a guide measure: at most some ten figures, the largest batch being 128."""
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


def test_operations_are_counted():
    measured = trainer.measure(torch.device("cpu"))
    assert measured.flops(TINY) > 0 and measured.precisions() == ["float32", "bfloat16"]
