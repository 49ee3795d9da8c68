"""Recipes: what they accept and fill in; presets; what a network costs."""

import math
import re
from dataclasses import asdict, fields, replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mnist_ddpm import ddpm
from mnist_ddpm.catalogue import make_network
from mnist_ddpm.machine import devices
from mnist_ddpm.recipe import PRESETS, Recipe, fit_batch_size, preset, resolve
from mnist_ddpm.training.cost import (
    LiveTensors,
    check_drawing,
    check_network,
    check_training,
    count_parameters,
    network_cost,
)


def test_a_recipe_is_the_notebooks_settings_and_more():
    plain, recipe = ddpm.Settings(label_dropout=0.1), Recipe()  # the notebook hides more labels
    assert {f.name: getattr(recipe, f.name) for f in fields(plain)} == asdict(plain)
    assert (recipe.schedule, recipe.prediction, recipe.objective) == ("linear", "eps", "simple")
    assert recipe.shape == (1, 32, 32) and recipe.attention == (2,)


def test_what_is_left_open_is_filled_in():
    assert (Recipe(dataset="celeba").channels, Recipe(dataset="celeba").optimizer) == (3, "adam")
    assert Recipe(channels=3).channels == 3
    assert Recipe(optimizer="muon").learning_rate == 5e-3 and Recipe().learning_rate == 2e-3
    assert Recipe(attributes=("Smiling", "Male")).classes == 4
    listed = Recipe(channel_mults=[1, 2], attention_resolutions=[8], attributes=["Male"])
    assert (listed.channel_mults, listed.attributes) == ((1, 2), ("Male",)), "as JSON has them"
    assert listed.attention == (1,) and replace(listed, attention_resolutions=()).attention == ()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("base_channels", 0), ("base_channels", 1.5), ("base_channels", True), ("epochs", 0),
        ("epochs", math.inf), ("epochs", "3"), ("learning_rate", math.nan), ("dropout", 1.0),
        ("ema_decay", -0.1), ("label_dropout", 1), ("channels", 2), ("channels", 1.0),
        ("precision", "float64"), ("compile", 1), ("channel_mults", ()), ("channel_mults", (1, 0)),
        ("channel_mults", (1, 1.5)), ("attributes", (1,)), ("attributes", "Male"), ("seed", -1),
        ("seed", 2**32), ("beta_1", 0.5), ("beta_T", 1.0), ("T", 0), ("accumulation", 0),
        ("warmup_steps", -1), ("classes", -1), ("gradient_clip", 0.0), ("image_size", 28.0),
        ("image_size", 30), ("attention_resolutions", (5,)), ("patch_size", 3),
        ("epochs", 1e308), ("epochs", 1e-320), ("learning_rate", 1e308), ("beta_1", 1e-320),
        ("T", 10**23), ("base_channels", 10**9), ("blocks_per_level", 10**8), ("classes", 10**20),
        ("image_size", 2**20), ("accumulation", 129), ("gradient_clip", 10**400), ("beta_T", 2.0),
        ("channel_mults", (1,) * 40), ("attributes", tuple("abcdefghijklmnopq")),
        ("attributes", ("a\n",)), ("dataset", ""), ("dataset", "a\x1b[2J"), ("optimizer", []),
        ("schedule", None), ("prediction", 3), ("norm_groups", 5), ("norm_groups", -1),
    ],
)  # fmt: skip
def test_a_value_that_cannot_work_is_named(name, value):
    named = "image_size" if name == "patch_size" else name
    with pytest.raises(ValueError, match=f"^{named} ") as raised:
        Recipe(**{name: value})
    assert "\x1b" not in str(raised.value)


@pytest.mark.parametrize("dataset", ["mnist", "celeba"])
@pytest.mark.parametrize("levels", [1, 3, 5])
def test_the_advice_for_a_size_works(dataset, levels):
    options = {"dataset": dataset, "channel_mults": (1,) * levels}
    with pytest.raises(ValueError, match="^image_size ") as raised:
        Recipe(image_size=23, **options)
    unit, least = map(int, re.search(r"multiple of (\d+), from (\d+)", str(raised.value)).groups())
    for size in (least, least + unit):
        assert Recipe(image_size=size, **options).image_size == size
    assert dataset != "mnist" or 28 <= least < 28 + unit


def test_what_no_memory_can_hold_is_refused_before_it_is_made(monkeypatch):
    with pytest.raises(ValueError, match="channel_mults"):
        make_network(Recipe(channel_mults=(1, 10**18)))
    small = Recipe(image_size=256, patch_size=1, batch_size=64)
    monkeypatch.setattr(devices, "total_memory", lambda: 2**30)
    with pytest.raises(ValueError, match="batch_size"):
        check_training(small)
    check_training(replace(small, accumulation=64))
    check_drawing(small, 100, 8)
    with pytest.raises(ValueError, match="^n is 100,000"):
        check_drawing(small, 100_000, 8)
    with pytest.raises(ValueError, match="^batch_size is 1,000"):
        check_drawing(small, 1000, 1000)


PARAMETERS = {
    "mnist": 2_736_676, "mnist-small": 687_636, "mnist-fast": 2_510_848, "faces-32": 4_448_076,
    "faces-64-small": 4_489_584, "faces-64": 35_767_052, "ddpm-cifar10": 35_746_307,
    "ddpm-celebahq": 113_673_219, "cifar-32": 4_492_400,
}  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_recipes_of_networks_that_fit_together(name):
    with torch.device("meta"):
        assert count_parameters(make_network(preset(name))) == PARAMETERS[name]
    assert preset(name).channels == (1 if name.startswith("mnist") else 3)


@pytest.mark.parametrize(
    ("name", "gflop", "gigabytes"),
    [("mnist", 0.19, 0.31), ("mnist-fast", 0.07, 0.13), ("faces-64", 12.49, 2.23)],
)
def test_what_presets_cost(monkeypatch, name, gflop, gigabytes):
    found, needs = network_cost(preset(name), make_network), []
    monkeypatch.setattr(devices, "check_memory", lambda needed, *rest: needs.append(needed))
    check_network(preset(name))
    check_training(preset(name))
    weights, step = needs
    assert 0.4 * found.parameters < weights / 4 < found.parameters, "the least, not a small part"
    assert 0.1 * found.memory < step < found.memory
    assert found.parameters == PARAMETERS[name]
    assert found.flops / 1e9 == pytest.approx(gflop, abs=5e-3)
    assert found.memory / 1e9 == pytest.approx(gigabytes, abs=5e-3)


def test_operations_are_those_of_the_layers_shapes():
    """By hand: 2 x (values out) x (values in that each depends on), for each product."""
    sizes = {"dataset": "squares", "image_size": 16, "patch_size": 2, "base_channels": 8}
    recipe = Recipe(**sizes, channel_mults=(1,), attention_resolutions=())

    def conv(c_in, c_out, kernel):
        return 2 * 64 * c_in * c_out * kernel**2

    def block(c_in):
        skip = conv(c_in, 8, 1) if c_in != 8 else 0
        return conv(c_in, 8, 3) + conv(8, 8, 3) + skip + 2 * 32 * 8

    attention = conv(8, 24, 1) + conv(8, 8, 1) + 2 * 2 * 64 * 64 * 8
    ends = conv(12, 8, 3) + conv(8, 12, 3) + 2 * (8 * 32 + 32 * 32)
    expected = ends + 3 * block(8) + 2 * block(16) + attention
    assert network_cost(recipe, make_network).flops == expected
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # on real tensors
        make_network(recipe)(torch.randn(1, 3, 16, 16), torch.tensor([5]))
    assert counter.get_total_flops() == expected


def test_live_tensors_are_counted_once_and_forgotten():
    with LiveTensors() as memory:
        a = torch.zeros(1000)  # 4,000 bytes
        view = a.view(10, 100)
        b = a + 1
        assert memory.live == memory.peak == 8000
        del a, view
        assert memory.live == 4000 and memory.peak == 8000
        b += 1
    assert memory.peak == 8000 and b[0] == 2


def test_counted_memory_is_that_of_a_real_step():
    """The same count around a real forward and backward pass, with real tensors."""
    recipe = Recipe(batch_size=8, channel_mults=(1, 2), blocks_per_level=1)
    network, x0 = make_network(recipe), torch.zeros(8, 1, 32, 32)
    schedule = ddpm.beta_schedule(ddpm.linear_beta())
    with LiveTensors() as memory:
        memory.seen.update(p.untyped_storage() for p in network.parameters())
        ddpm.l_simple(network, schedule, x0, torch.arange(1, 9), x0).mean().backward()
    found = network_cost(recipe, make_network)
    assert found.memory - 16 * found.parameters == pytest.approx(memory.peak, rel=0.02)


def test_memory_grows_with_the_part_of_a_batch_and_shrinks_with_checkpointing():
    whole = Recipe(batch_size=32, channel_mults=(1,), blocks_per_level=1)
    changes = {parts: {"accumulation": parts} for parts in (1, 2, 4)}
    changes["again"] = {"gradient_checkpointing": True}
    costs = {
        key: network_cost(replace(whole, **each), make_network) for key, each in changes.items()
    }
    memory = {key: found.memory for key, found in costs.items()}
    halves = memory[1] - memory[2], memory[2] - memory[4]
    assert halves[0] == pytest.approx(2 * halves[1], rel=0.05)
    assert memory[1] > 1.5 * memory[2]
    assert memory["again"] < 0.6 * memory[1]
    assert costs[1].flops == costs[4].flops


@pytest.mark.parametrize(
    ("n", "processes", "fitted"),
    [(10, 1, (10, 10)), (10, 4, (8, 8)), (3, 4, (32, 16)), (99, 4, (32, 16))],
)
def test_a_batch_of_few_images_can_be_shared_by_all_processes(n, processes, fitted):
    recipe = fit_batch_size(Recipe(batch_size=32, accumulation=16), n, processes)
    assert (recipe.batch_size, recipe.accumulation) == fitted


def test_what_comes_with_a_preset_gives_way_to_what_is_asked_for():
    assert resolve({}, PRESETS["faces-64"]) == preset("faces-64")
    with pytest.raises(ValueError, match="faces-128"):
        preset("faces-128")
    base = asdict(Recipe(attributes=("Smiling", "Male")))
    assert resolve({}, base).classes == 4
    assert resolve({"attributes": ("Smiling",)}, base).classes == 2, "counted anew"
    assert resolve({"attributes": ()}, base).classes == 0
    without = resolve({"classes": 0}, base)
    assert (without.classes, without.attributes) == (0, ()), "or they would bring the labels back"
