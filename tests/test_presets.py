"""Presets, and the counts of what a network costs."""

from dataclasses import asdict, replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mnist_ddpm.ddpm import Settings, l_simple, make_model, make_schedule, start_run
from mnist_ddpm.presets import PRESETS, LiveTensors, cost, fill_in, preset


@pytest.mark.parametrize(
    ("name", "parameters", "gflop", "gigabytes"),
    [
        ("mnist", 2_736_676, 0.19, 0.32),
        ("mnist-small", 687_636, 0.05, 0.15),
        ("mnist-fast", 2_510_848, 0.07, 0.13),
        ("faces-32", 4_448_076, 0.50, 0.30),
        ("faces-64-small", 4_489_584, 0.52, 0.32),
        ("faces-64", 35_767_052, 12.49, 2.36),
        ("ddpm-cifar10", 35_746_307, 12.44, 7.70),
        ("ddpm-celebahq", 113_673_219, 497.03, 7.85),
    ],
)
def test_what_each_preset_costs(name, parameters, gflop, gigabytes):
    assert name in PRESETS and len(PRESETS) == 8
    found = cost(preset(name))
    assert found.parameters == parameters
    assert found.flops / 1e9 == pytest.approx(gflop, abs=5e-3) and found.memory / 1e9 == pytest.approx(
        gigabytes, abs=5e-3
    )


def test_operations_are_those_of_the_layers_shapes():
    """By hand: 2 x (values out) x (values in that each depends on), for every convolution and product."""
    settings = Settings(
        channels=3, image_size=16, patch_size=2, base_channels=8, channel_mults=(1,), attention_resolutions=()
    )

    def conv(c_in, c_out, kernel):
        return 2 * 64 * c_in * c_out * kernel**2

    def block(c_in):
        return conv(c_in, 8, 3) + conv(8, 8, 3) + (conv(c_in, 8, 1) if c_in != 8 else 0) + 2 * 32 * 8

    attention = conv(8, 24, 1) + conv(8, 8, 1) + 2 * 2 * 64 * 64 * 8
    ends = conv(12, 8, 3) + conv(8, 12, 3) + 2 * (8 * 32 + 32 * 32)
    expected = ends + 3 * block(8) + 2 * block(16) + attention
    assert cost(settings).flops == expected
    with FlopCounterMode(display=False) as counter:  # on real tensors
        make_model(settings)(torch.randn(1, 3, 16, 16), torch.tensor([5]))
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
    settings = replace(preset("mnist"), batch_size=8)
    run, schedule = start_run(settings), make_schedule(settings)
    x0 = torch.zeros(8, 1, 32, 32)
    with LiveTensors() as memory:
        memory.seen.update(p.untyped_storage() for p in run.model.parameters())
        l_simple(run.model, schedule, x0, torch.arange(1, 9), x0).mean().backward()
    found = cost(settings)
    assert found.memory - 16 * found.parameters == pytest.approx(memory.peak, rel=0.02)


def test_memory_grows_with_the_part_of_a_batch_and_shrinks_with_checkpointing():
    whole = replace(preset("ddpm-cifar10"), batch_size=32)
    costs = {
        (parts, again): cost(replace(whole, accumulation=parts, gradient_checkpointing=again)).memory
        for parts in (1, 2, 4)
        for again in (False, True)
    }
    halves = costs[1, False] - costs[2, False], costs[2, False] - costs[4, False]
    assert halves[0] == pytest.approx(2 * halves[1], rel=0.05) and halves[0] > 5e8
    assert costs[1, True] < 0.6 * costs[1, False]
    assert cost(whole).flops == cost(replace(whole, accumulation=4)).flops


def test_costs_know_labels_and_a_learned_variance():
    plain = Settings(base_channels=8, batch_size=4)
    labelled, learned = replace(plain, classes=10), replace(plain, objective="hybrid")
    assert cost(labelled).parameters - cost(plain).parameters == 11 * 32
    assert cost(learned).flops > cost(plain).flops


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_settings_of_networks_that_fit_together(name):
    with torch.device("meta"):
        make_model(preset(name))
    assert asdict(preset(name)).items() >= PRESETS[name].items()
    assert preset(name).channels == (1 if name.startswith("mnist") else 3)


def test_what_is_left_at_its_default_is_filled_in():
    values = {"epochs": 3, "image_size": 32, "T": 1000}
    filled = fill_in(values, {"image_size": 64, "epochs": 90, "T": 250})
    assert filled == {"epochs": 3, "image_size": 64, "T": 250}
    assert fill_in(values, {}) == values


def test_an_unknown_preset_is_named():
    names = "mnist, mnist-small, mnist-fast, faces-32"
    with pytest.raises(ValueError, match=f'preset "faces-128" is unknown: take one of {names}'):
        preset("faces-128")


def test_what_comes_with_a_preset_gives_way_to_what_is_asked_for():
    rate = fill_in({"optimizer": "muon", "learning_rate": None}, PRESETS["faces-64"])["learning_rate"]
    assert Settings(optimizer="muon", learning_rate=rate).learning_rate == 5e-3, "not Adam's, of the preset"
    base = {"attributes": ("Smiling", "Male"), "classes": 4}
    assert fill_in({"attributes": ("Smiling",), "classes": 0}, base)["classes"] == 0, "to be counted anew"
    assert fill_in({"attributes": (), "classes": 0}, base) == base
