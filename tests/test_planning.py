"""Plans for the time there is, with the speed of the machine made up."""

import json
import shlex
import shutil
import time
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT

from mnist_ddpm import ddpm, planning, presets, runs
from mnist_ddpm.__main__ import main

PLANNED = (2, "mnist"), (30, "mnist"), (10, "celeba")
CPU = torch.device("cpu")
# An evaluation by image size, channels and width (test_presets counts them): to count takes seconds
GFLOP = {(32, 1, 32): 0.19, (32, 1, 16): 0.05, (64, 3, 128): 12.5, (64, 3, 64): 0.52, (32, 3, 64): 0.5}


@pytest.fixture
def machine(monkeypatch):
    """Trains 300 images/s of faces-64-small's cost in bfloat16, half as many in float32; draws 1000 a second.

    Its clock stands still.
    """
    speed = {"images": 300.0, "now": 100.0}

    def cost(settings):
        return SimpleNamespace(flops=1e9 * GFLOP[settings.image_size, settings.channels, settings.base_channels])

    def pace(settings, device, seconds=2.0):
        work = cost(settings).flops / cost(presets.preset("faces-64-small")).flops
        return speed["images"] / work / (1 if settings.precision == "bfloat16" else 2)

    clocks = dict.fromkeys(("monotonic", "perf_counter"), lambda: speed["now"])
    monkeypatch.setattr(planning, "time", SimpleNamespace(**clocks))
    monkeypatch.setattr(presets, "cost", cost)
    monkeypatch.setattr(planning, "measured_pace", pace)
    monkeypatch.setattr(planning, "measured_sampling", lambda settings, device: 1e-3)
    monkeypatch.setattr(planning.machine, "try_compiler", lambda device: None)
    return speed


def images(n):
    return lambda settings: torch.zeros(n, settings.channels, 8, 8, dtype=torch.uint8)


def plan(minutes, n=9000, **values):
    return planning.make_plan(ddpm.Settings(**{"dataset": "celeba", **values}), images(n), 60 * minutes, CPU)[0]


def test_the_time_is_filled_to_a_few_percent(machine):
    """9000 images at 300/s are 30 s an epoch, and a preview 1.22 s."""
    for minutes in (1, 3, 10, 60):
        made = plan(minutes)
        assert made.seconds == pytest.approx(0.95 * 60 * minutes, rel=0.03)
        assert made.settings.epochs * (9000 / made.pace + 1.22) == pytest.approx(made.seconds, rel=0.01)
        assert made.deadline == 100 + 60 * minutes


@pytest.mark.parametrize("n", [100, 127, 1700, 5_000_000])
def test_what_is_planned_is_what_fit_will_do(machine, n):
    """Whole batches only, and a preview after each epoch, or where these are short, after some."""
    made = plan(60, n)
    steps, batch = n // made.settings.batch_size, made.settings.batch_size
    done = round(made.settings.epochs * steps)
    training = done * batch / made.pace
    previews = done / (steps * max(1, runs.PREVIEW_EVERY // steps))
    assert training + min(1.22 * previews, 4.22 + training / 20) == pytest.approx(made.seconds, rel=0.01)
    assert made.seconds == pytest.approx(0.95 * 3600, rel=0.01)


def test_measuring_is_part_of_the_time(machine, monkeypatch):
    whole = plan(1).seconds

    def slow(settings, device):
        machine["now"] += 30
        return 1e-3

    monkeypatch.setattr(planning, "measured_sampling", slow)
    made = plan(1)
    assert made.deadline == 100 + 60 and made.seconds == pytest.approx(whole / 2, rel=0.1)


def test_decoding_is_no_part_of_the_time(machine):
    def decoding(settings):
        machine["now"] += 30
        return images(9000)(settings)

    made, _ = planning.make_plan(ddpm.Settings(dataset="celeba"), decoding, 60, CPU)
    assert made.deadline == 100 + 30 + 60 and made.seconds == pytest.approx(plan(1).seconds, rel=0.01)


def test_the_largest_network_that_sees_enough_is_taken(machine):
    assert plan(10).preset == "faces-64-small" and plan(2).preset == "faces-32"
    digits = [plan(minutes, dataset="mnist").preset for minutes in (2, 30)]
    assert digits == ["mnist-small", "mnist"], "of 100,000 and 1,500,000 images"
    machine["images"] = 20_000.0
    assert plan(10).preset == "faces-64" and plan(2, dataset="mnist").preset == "mnist", "on a GPU"


def test_precision_batch_and_averaging_suit_the_machine_and_the_time(machine):
    long, short = plan(60), plan(2)
    assert long.settings.precision == "bfloat16" and long.settings.batch_size == 64
    assert short.settings.batch_size == 32 and short.settings.warmup_steps < long.settings.warmup_steps
    assert 0.9 <= short.settings.ema_decay < long.settings.ema_decay <= 0.999
    assert planning.precisions(CPU) == ["float32", "bfloat16"]


@pytest.mark.parametrize(
    ("gain", "device", "minutes", "compiled"),
    [
        (1.5, "cuda", 60, True),
        (1.02, "cuda", 60, False),
        (1.5, "cuda", 10, False),
        (1.5, "cpu", 60, True),
        (1.5, "mps", 60, False),
    ],
)
def test_a_plan_compiles_where_there_is_time_and_it_pays(machine, monkeypatch, gain, device, minutes, compiled):
    eager = planning.measured_pace
    monkeypatch.setattr(planning, "measured_pace", lambda s, *rest: eager(s, *rest) * (gain if s.compile else 1))
    monkeypatch.setattr(planning, "precisions", lambda device: ["float32", "bfloat16"])
    settings = ddpm.Settings(dataset="celeba")
    made, _ = planning.make_plan(settings, images(9000), 60 * minutes, torch.device(device))
    first, *_, command = made.lines()
    assert made.settings.compile is compiled
    assert (", bfloat16, compiled: 450 images/s" in first) is compiled
    assert ("--compile" in command) is compiled and "True" not in command, "a flag without a value"


def test_a_plan_outlives_a_compiler_that_fails(machine, monkeypatch, capsys):
    eager = planning.measured_pace

    def failing(settings, *rest):
        if settings.compile:
            raise RuntimeError("BackendCompilerFailed: no\nmore")
        return eager(settings, *rest)

    monkeypatch.setattr(planning, "measured_pace", failing)
    monkeypatch.setattr(planning, "precisions", lambda device: ["float32"])
    made, _ = planning.make_plan(ddpm.Settings(dataset="celeba"), images(9000), 3600, torch.device("cuda"))
    assert not made.settings.compile and "that failed: BackendCompilerFailed: no\n" in capsys.readouterr().out


def test_without_a_compiler_nothing_is_called_compiled(machine, monkeypatch, capsys):
    """Even where the second measurement happens to be the faster one."""
    eager = planning.measured_pace
    monkeypatch.setattr(planning, "measured_pace", lambda s, *rest: eager(s, *rest) * (1.5 if s.compile else 1))

    def missing(device):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(planning.machine, "try_compiler", missing)
    assert not plan(60).settings.compile and "that failed: no compiler" in capsys.readouterr().out


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("MPS backend out of memory (MPS allocated: 1)")],
)
def test_a_network_too_large_for_the_memory_leaves_the_place_to_a_smaller_one(machine, monkeypatch, error):
    eager = planning.measured_pace
    machine["images"] = 20_000.0

    def measured(settings, *rest):
        if settings.base_channels == presets.preset("faces-64").base_channels:
            raise error
        return eager(settings, *rest)

    assert plan(10).preset == "faces-64"
    monkeypatch.setattr(planning, "measured_pace", measured)
    assert plan(10).preset == "faces-64-small"


@pytest.mark.parametrize("real, half", [(True, "bfloat16"), (False, "float16")])
def test_emulated_bfloat16_is_not_worth_a_measurement(monkeypatch, real, half):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: real or including_emulation)
    assert planning.precisions(torch.device("cuda")) == ["float32", half]


def test_what_the_user_asked_for_is_kept(machine):
    settings = plan(10, attributes=("Smiling", "Male"), seed=7).settings
    assert (settings.attributes, settings.classes, settings.seed, settings.channels) == (("Smiling", "Male"), 4, 7, 3)
    assert plan(10, dataset="mnist", classes=10).settings.classes == 10


def test_digits_are_planned_with_the_weights_of_p2(machine):
    objectives = [plan(minutes, dataset=name).settings.objective for minutes, name in PLANNED]
    assert objectives == ["p2", "p2", "min-snr"]


def test_few_images_make_a_small_batch(machine):
    settings = plan(60, n=40).settings
    assert settings.batch_size == 40 and settings.epochs > 1000, "one step each"


def test_the_command_that_a_plan_tells_is_one_for_a_shell(machine):
    *_, line = plan(10, dataset="my faces & others").lines()
    words = shlex.split(line)
    assert words[words.index("--dataset") + 1] == "my faces & others"


def test_a_plan_tells_when_it_will_be_done(machine):
    made, now = plan(90), datetime.now()
    ends = {f"{now + timedelta(seconds=made.seconds + late):%H:%M}" for late in (0, 1)}
    assert made.lines()[0].rsplit(" ", 1)[1] in ends


def test_a_plan_advises_fresh_noise_for_digits_and_none_for_faces(machine):
    assert [" --eta 1 " in plan(10, dataset=name).lines()[1] for name in ("mnist", "celeba")] == [True, False]


def test_a_guide_is_trained_in_the_time_of_the_network_alone(machine):
    alone = plan(30, 60_000, dataset="mnist", classes=10, seed=7)
    network, guide = planning.with_guide(alone, 60_000, "my runs/guide", CPU)
    assert (network.preset, guide.preset) == ("mnist", "mnist-small")
    assert (
        network.seconds + guide.seconds == pytest.approx(alone.seconds) and 0.02 < guide.seconds / alone.seconds < 0.1
    )
    for made in (network, guide):
        training = made.settings.epochs * 468 * 128 / made.pace
        assert training < made.seconds < 1.06 * training, "but for previews"
    assert network.settings.epochs == pytest.approx(10 * guide.settings.epochs, rel=1e-3)
    assert guide.deadline == alone.deadline and alone.deadline - network.deadline == pytest.approx(guide.seconds / 0.95)
    told = {
        name: getattr(network.settings, name) for name in ("objective", "precision", "batch_size", "classes", "seed")
    }
    assert guide.settings == replace(guide.settings, **told) and guide.settings.base_channels == 16
    assert 30 < guide.settings.warmup_steps < 500 and guide.settings.ema_decay < network.settings.ema_decay
    words = shlex.split(network.lines()[1])
    assert words[words.index("--guide") + 1 : words.index("--steps")] == ["my runs/guide", *planning.GUIDANCE.split()]


def test_a_guide_is_refused_where_it_would_not_help(machine):
    with pytest.raises(ValueError, match="planned for mnist alone: its share of the time was not tried for celeba"):
        planning.with_guide(plan(30), 9000, "guide", CPU)
    short = plan(0.3, 60_000, dataset="mnist")
    with pytest.raises(ValueError, match=r"in 0\.\d+ minutes a guide has too few steps: give it more, or none"):
        planning.with_guide(short, 60_000, "guide", CPU)


def test_too_little_time_is_said(machine):
    with pytest.raises(ValueError, match=r"0\.02 minutes are enough for \d+ steps here: give it more"):
        plan(0.02)


@pytest.mark.parametrize(("minutes", "name"), PLANNED)
def test_the_command_of_a_plan_makes_the_same_settings(machine, fits, monkeypatch, tmp_path, minutes, name):
    made = plan(minutes, dataset=name, attributes=("Smiling", "Male") if name == "celeba" else (), seed=7)
    command = made.lines()[-1].split("python -m mnist_ddpm ")[1].split()

    monkeypatch.setattr(ddpm, "load_images", lambda s, data: torch.zeros(64, *s.shape, dtype=torch.uint8))
    monkeypatch.setattr("mnist_ddpm.guidance.load_labels", lambda settings, data: torch.zeros(64, dtype=torch.long))
    assert main([*command, "--out", str(tmp_path)]) == 0
    assert [run.settings for run, _, _ in fits] == [made.settings]


def test_speeds_are_images_a_second_and_seconds_an_image(tiny, monkeypatch):
    now, step = [0.0], ddpm.training_step

    def takes(seconds, function):
        def slow(*arguments):
            now[0] += seconds
            return function(*arguments)

        return slow

    monkeypatch.setattr(planning, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(ddpm, "training_step", takes(0.5, step))
    assert planning.measured_pace(tiny, CPU, 1.0) == 32, "two steps of 16 in a second"
    monkeypatch.setattr(ddpm.UNet, "forward", takes(0.72, ddpm.UNet.forward))
    assert planning.measured_sampling(tiny, CPU) == pytest.approx(0.02), "36 images at once"


def test_speeds_are_measured(tiny):
    pace = planning.measured_pace(replace(tiny, classes=3), CPU, 0.05)
    assert 10 < pace < 1e6 and 0 < planning.measured_sampling(tiny, CPU) < 1


def test_plan_trains_and_says_how_long_it_took(tmp_path, monkeypatch, capsys):
    tiny = {"base_channels": 8, "channel_mults": (1, 2), "attention_resolutions": (8,), "T": 20, "batch_size": 32}
    for name in planning.DIGITS:
        monkeypatch.setitem(presets.PRESETS, name, tiny)
    digits = ddpm.load_images(ddpm.Settings(), ROOT / "data")[:256]
    monkeypatch.setattr(ddpm, "load_images", lambda settings, root: digits)
    real = planning.measured_pace
    monkeypatch.setattr(planning, "measured_pace", lambda settings, device, seconds=2.0: real(settings, device, 0.1))
    for name in ("FEWEST", "FEWEST_OF_GUIDE"):
        monkeypatch.setattr(planning, name, 1)  # on a slow machine too
    out = ["--out", str(tmp_path / "run"), "--device", "cpu"]
    assert main(["plan", "--minutes", "0.08", "--dry-run", *out]) == 0 and not (tmp_path / "run").exists()
    assert f"--out {tmp_path / 'run'} --device cpu" in capsys.readouterr().out, "in the command that it tells"
    with monkeypatch.context() as early:
        early.setattr(planning, "make_plan", lambda *arguments: pytest.fail("nothing is measured for that"))
        assert main(["plan", "--minutes", "0.08", "--classes", "5", "--dry-run", *out]) == 1
    assert "set classes to 10, not 5" in capsys.readouterr().err, "before it is planned, not when it is to be trained"
    assert main(["plan", "--minutes", "0.08", *out]) == 0
    assert "expected)" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "config.json").read_text())["settings"]["T"] == 20
    assert main(["plan", "--minutes", "0.08", *out]) == 1 and "holds a checkpoint already" in capsys.readouterr().err
    out[1] += "-with-guide"
    monkeypatch.setattr(planning, "EVERY", 2)
    assert main(["plan", "--minutes", "0.12", "--guide", *out]) == 0
    said, folders = capsys.readouterr().out, [Path(out[1]), Path(out[1], "guide")]
    steps = [ddpm.load_config(folder)[1]["steps"] for folder in folders]
    assert steps[0] > steps[1] > 0 and f"--guide {folders[1]}" in said
    assert [said.index(f"{folder}: {n} steps in") for folder, n in zip(folders, steps)]
    shutil.rmtree(folders[0] / "previews")
    (folders[0] / "config.json").unlink()
    (folders[0] / "training_state.pt").unlink()
    assert main(["plan", "--minutes", "0.12", "--guide", *out]) == 1, "its guide would be overwritten"
    assert f"{folders[1]} holds a checkpoint already" in capsys.readouterr().err
    out[1] += "-2"
    seen, latest = {}, time.monotonic() + 4.8

    def fit(run, *arguments, **options):
        seen.update(options, seed=run.settings.seed, channels=run.settings.channels)
        return run

    monkeypatch.setattr(runs, "fit", fit)
    assert main(["plan", "--minutes", "0.08", "--seed", "7", "--classes", "10", "--channels", "1", *out]) == 0
    assert seen["seed"] == 7 and time.monotonic() < seen["deadline"] < latest + 1 and len(seen["labels"]) > 256
    for minutes in ("0", "inf", "nan", "1e9"):
        assert main(["plan", "--minutes", minutes, *out]) == 1
        assert f"minutes is {float(minutes):g}: it must be" in capsys.readouterr().err
