"""`train` and `plan`: which flag wins, and what is reported before images are read."""

import json
import math
import shlex
import shutil
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from command_helpers import (
    DIGITS,
    NETWORK,
    SMALL,
    blobs,
    error_of,
    run,
    save_network,
    save_pictures,
)
from conftest import ROOT
from safetensors.torch import load_file
from training_helpers import stopped_clock

from mnist_ddpm import catalogue
from mnist_ddpm.commands.command_line import typed_flags
from mnist_ddpm.data import loading
from mnist_ddpm.datasets import CELEBA, MNIST
from mnist_ddpm.ddpm import total_steps
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.machine import devices, folder_lock, processes
from mnist_ddpm.machine.processes import ProcessGroup
from mnist_ddpm.recipe import PRESETS, Recipe, preset
from mnist_ddpm.training import loop, planning, saving, throughput
from mnist_ddpm.training.loop import measured_defaults
from mnist_ddpm.training.run import training_step

FACES = Recipe(dataset="celeba", attributes=("Smiling",), **NETWORK)
GREY = "--channels 1 --image-size 32 --accumulation 1"


@pytest.fixture(scope="module")
def checkpoint(pictures, tmp_path_factory):
    """A network that was trained for one epoch, and can be resumed."""
    folder = tmp_path_factory.mktemp("trained")
    data = ["--dataset", pictures, "--data", folder / "data", "--out", folder / "run"]
    assert run("train", *data, *SMALL, "--epochs", 1) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """An untrained checkpoint for MNIST with labels and a learned variance."""
    return save_network(tmp_path_factory.mktemp("digits"), DIGITS)


def random_images(recipe, n):
    draw = torch.Generator().manual_seed(0)
    return torch.randint(256, (n, *recipe.shape), dtype=torch.uint8, generator=draw)


@pytest.fixture
def trainings(monkeypatch):
    """What was to be trained, each time, on random images with labels of 0: nothing is trained."""
    calls = []

    def fit(run, images, folder, labels, deadline=math.inf, **options):
        calls.append(SimpleNamespace(recipe=run.settings, network=run.network))
        calls[-1].labels = labels
        calls[-1].deadline = deadline
        run.step = 1
        return run

    monkeypatch.setattr(loop, "fit", fit)
    monkeypatch.setattr(loading, "load_images", lambda recipe, *_: random_images(recipe, 64))
    monkeypatch.setattr(loading, "load_labels", lambda *_: torch.zeros(64, dtype=torch.long))
    return calls


@pytest.fixture
def no_images(monkeypatch):
    """Images may take minutes to decode."""
    monkeypatch.setattr(loading, "load_images", lambda *_: pytest.fail("images are read"))


def test_flags_are_known_however_they_are_typed():
    typed = "train --base-channels 8 --beta_1=1e-3 --no-compile --attributes A --T 5 -x".split()
    assert {*typed_flags(typed)} == {"base_channels", "beta_1", "compile", "attributes", "T"}


SMALL_FACES = PRESETS["faces-64-small"]
PAPER = {"schedule": "linear", "prediction": "eps", "objective": "simple", "optimizer": "adam"}
PAPER_FLAGS = " ".join(f"--{name} {value}" for name, value in PAPER.items())
FACES_64 = "faces-64 --base-channels 8 --image-size 32 --batch-size 4 --accumulation 1"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("faces-64-small --epochs 3", SMALL_FACES | {"epochs": 3}),
        ("faces-64-small --dataset ffhq --T 50", {"dataset": "ffhq", "T": 50, "patch_size": 4}),
        (f"faces-64-small {PAPER_FLAGS}", SMALL_FACES | PAPER | {"learning_rate": 2e-3}),
        (FACES_64, {"optimizer": "adam", "learning_rate": 2e-4}),
        (f"{FACES_64} --optimizer=muon", {"learning_rate": 5e-3}),
        (f"{FACES_64} --optimizer muon --learning-rate 2e-4", {"learning_rate": 2e-4}),
    ],
)
def test_a_typed_flag_wins_and_the_preset_decides_all_others(trainings, tmp_path, flags, expected):
    """Also where a flag equals the default; the preset's learning rate is its optimizer's."""
    assert run("train", "--out", tmp_path, "--preset", *flags.split()) == 0
    recipe = trainings[0].recipe
    assert {name: getattr(recipe, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("default", "flags", "precision"),
    [
        ("float32", "", "float32"),
        ("bfloat16", "", "bfloat16"),
        ("bfloat16", "--precision float32", "float32"),
    ],
)
def test_a_typed_precision_wins(trainings, monkeypatch, tmp_path, default, flags, precision):
    monkeypatch.setattr(devices, "default_precision", lambda device: default)
    assert run("train", "--base-channels", 8, "--out", tmp_path, *flags.split()) == 0
    assert trainings[0].recipe.precision == precision


def test_a_resumed_run_keeps_its_precision(trainings, monkeypatch, tmp_path):
    """As in Colab, which may give an A100 one day and a T4 the next."""
    begun = loop.start_run(Recipe(**NETWORK, precision="bfloat16"))
    saving.save_run(tmp_path, begun)
    resume = ["train", "--resume", "--out", tmp_path]
    assert run(*resume) == 0
    monkeypatch.setattr(devices, "emulates", lambda precision, _: precision == "bfloat16")
    assert run(*resume) == run(*resume, "--precision", "float16") == 0
    assert [each.recipe.precision for each in trainings] == ["bfloat16", "float32", "float16"]
    assert run(*resume, "--precision", "bfloat16") == 1


def test_labels_are_passed_to_the_training(trainings, monkeypatch, tmp_path):
    monkeypatch.setattr(loading, "load_labels", lambda *_: torch.arange(64) % 10)
    assert run("train", "--classes", 10, "--base-channels", 8, "--out", tmp_path) == 0
    assert trainings[0].labels[:12].tolist() == [*range(10), 0, 1]


@pytest.mark.parametrize(
    ("flags", "classes"),
    [
        ("", 10),
        ("--classes 0", 0),
        ("--dataset {pictures} --data {data}", 0),
        (f"--preset faces-32 {GREY}", 10),
        (f"--preset ddpm-celebahq {GREY}", 0),  # FFHQ has no labels
    ],
)
def test_labels_stay_where_the_data_have_some(
    digits, pictures, trainings, tmp_path, flags, classes
):
    flags = flags.format(pictures=pictures, data=tmp_path).split()
    start = ["train", "--init-from", digits, "--out", tmp_path / "out", "--batch-size", 4]
    assert run(*start, *flags) == 0
    assert [each.recipe.classes for each in trainings] == [classes]
    assert hasattr(trainings[0].network, "label") == (classes > 0)


def test_classes_0_removes_the_attributes_of_the_network_to_start_from(trainings, tmp_path):
    faces = save_network(tmp_path / "faces", FACES)
    start = ["train", "--init-from", faces, "--dataset", "celeba", "--classes", 0]
    assert run(*start, "--batch-size", 4, "--out", tmp_path / "out") == 0
    assert (trainings[0].recipe.classes, trainings[0].recipe.attributes) == (0, ())


def test_training_goes_on_from_other_weights_on_other_data(checkpoint, pictures, tmp_path, capsys):
    """The network and its path are the checkpoint's; with hardly a rate the weights stay."""
    initial = load_file(checkpoint / "model.safetensors")
    out = tmp_path / "tuned"
    other = ["--dataset", pictures / ".." / pictures.name, "--data", tmp_path / "data"]
    start = ["train", "--init-from", checkpoint, "--out", out, *other, "--learning-rate", 1e-9]
    assert run(*start, "--epochs", 1, "--batch-size", 16) == 0
    tuned = checkpoints.load_config(out)[0]
    assert (tuned.base_channels, tuned.T, tuned.init_from) == (8, 20, str(checkpoint))
    weights = load_file(out / "model.safetensors")
    assert all((weights[name] - initial[name]).abs().max() < 1e-6 for name in initial)
    assert run("train", "--resume", "--out", out, "--epochs", 2, "--data", tmp_path / "data") == 0
    assert "nowhere" in error_of(capsys, "train", "--init-from", "nowhere", "--out", tmp_path)


def test_other_channels_and_labels_begin_anew_and_are_listed(
    checkpoint, pictures, trainings, tmp_path, capsys
):
    start = ["train", "--batch-size", 4, "--out", tmp_path / "out"]
    grey = ["--init-from", checkpoint, "--dataset", pictures, "--channels", 1, "--image-size", 16]
    assert run(*start, *grey) == 0
    said = capsys.readouterr().out
    assert "conv_in.weight" in said and "conv_out.weight" in said and "time.0" not in said
    initial = load_file(checkpoint / "model.safetensors")
    taken = trainings[0].network.state_dict()
    assert torch.equal(taken["time.0.weight"], initial["time.0.weight"])
    assert taken["conv_in.weight"].shape[1] * 3 == initial["conv_in.weight"].shape[1]
    faces = ["--init-from", save_network(tmp_path / "faces", FACES), "--dataset", "celeba"]
    assert run(*start, *faces, "--attributes", "Smiling", "Male") == 0
    assert capsys.readouterr().out.count("label.weight") == 1
    assert trainings[1].network.label.weight.shape[0] == 5


def test_flags_override_the_settings_of_a_run(checkpoint, tmp_path, capsys, monkeypatch):
    out = tmp_path / "run"
    shutil.copytree(checkpoint, out)
    resume = ["train", "--resume", "--out", out, "--data", tmp_path / "data"]
    assert run(*resume, "--epochs", 2) == 0
    assert "6 steps" in capsys.readouterr().out
    assert "base_channels was 8" in error_of(capsys, *resume, "--base-channels", 16)
    assert "base_channels was 8" in error_of(capsys, *resume, "--base-channels", 32), "the default"
    assert "--preset" in error_of(capsys, *resume, "--preset", "mnist")
    assert "gone" in error_of(capsys, *resume, "--dataset", "gone")
    for name in ("config.json", "model.safetensors"):  # as after a kill in the first save
        (out / name).unlink()
    assert run(*resume, "--epochs", 3) == 0
    assert checkpoints.load_config(out)[0].epochs == 3


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--dataset minst", '"minst"'),
        ("--dataset empty", "empty holds no images"),
        ("--batch-size 49", "48"),
        ("--classes 10", "has no labels"),
        ("--label-dropout 0.1", "--label-dropout"),  # the default
        ("--schedule cosine --beta-T 0.03", "--beta-T"),
        ("--preset faces-32 --beta-1 1e-4", "schedule cosine"),
        (f"--dataset mnist --image-size 32 --data {ROOT / 'data'} --classes 3", "3"),
        ("--out file/run", "file/run"),
        ("--dataset . --out run/mine", "run/mine is in the folder of images ."),
        ("--preset faces-64 --image-size 50", "image_size"),
    ],
)
def test_bad_requests_to_train(pictures, tmp_path, monkeypatch, capsys, flags, named):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    base = ["train", *SMALL, "--dataset", pictures, "--out", "run", "--data", tmp_path / "data"]
    assert named in error_of(capsys, *base, *flags.split())


def test_what_does_not_fit_is_refused_at_once(
    checkpoint, digits, pictures, no_images, tmp_path, capsys
):
    out = ["--out", tmp_path / "out"]
    for name in ("schedule", "objective", "optimizer", "prediction"):
        line = error_of(capsys, "train", *out, "--dataset", pictures, f"--{name}", "none")
        assert f'{name} "none"' in line
    start = ["train", "--init-from", checkpoint, *out, "--dataset", pictures]
    wide = error_of(capsys, *start, "--base-channels", 16)
    assert "time.0.weight is (32, 8), should be (64, 16)" in wide and str(checkpoint) in wide
    (checkpoint / "training_state.pt").rename(tmp_path / "state")  # as in one that is shipped
    line = error_of(capsys, "train", "--resume", "--out", checkpoint)
    (tmp_path / "state").rename(checkpoint / "training_state.pt")
    assert "nothing to resume" in line
    for resume in ([], ["--resume"]):
        folder = checkpoint if resume else tmp_path
        with folder_lock.locked_folder(folder, ProcessGroup()):
            line = error_of(capsys, "train", *resume, "--dataset", pictures, "--out", folder)
        assert f"another training is at work in {folder}" in line


@pytest.fixture
def measured(monkeypatch):
    """A machine that was measured."""
    meter = throughput.ThroughputMeter
    monkeypatch.setattr(meter, "pace", lambda *_: 64.0)
    monkeypatch.setattr(meter, "seconds_per_evaluation", lambda *_: 1e-6)


@pytest.fixture
def tiny_plans(monkeypatch, measured):
    """Presets of tiny networks, each of whose steps takes half a second."""
    now = stopped_clock(monkeypatch)
    for name in MNIST.planning.presets:
        monkeypatch.setitem(PRESETS, name, {**NETWORK, "batch_size": 32})
    monkeypatch.setattr(planning, "MIN_STEPS", 1)

    make_plan = planning.make_plan

    def slow_step(*arguments):
        now[0] += 0.5
        return training_step(*arguments)

    def make_plan_now(*arguments, began, size):
        return make_plan(*arguments, clock=lambda: now[0], began=now[0], size=size)

    monkeypatch.setattr(planning, "make_plan", make_plan_now)
    monkeypatch.setattr(loop, "training_step", slow_step)
    monkeypatch.setattr(loading, "load_images", lambda *_, **__: blobs(64))


def test_plan_trains_what_it_says(tiny_plans, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    out = ["--out", folder, "--device", "cpu", "--minutes", 0.1]
    monkeypatch.setattr(loading, "load_labels", lambda *_: torch.arange(64) % 10)
    assert run("plan", "--dry-run", *out) == 0 and not folder.exists()
    assert f"--out {folder} --device cpu" in capsys.readouterr().out
    assert run("plan", *out, "--log", "tensorboard") == 0
    printed = capsys.readouterr().out
    recipe, record = checkpoints.load_config(folder)
    assert recipe.T == 20 and f"{folder}: {record['steps']} steps in" in printed
    assert recipe.classes == 10, "the labels that the data have"
    assert total_steps(recipe, 64) == record["steps"] and record["steps"] in (11, 12, 13)
    assert any((folder / "log").iterdir())
    assert f"--epochs {recipe.epochs} " in printed and f"--out {folder} --device cpu" in printed
    monkeypatch.setattr(planning, "make_plan", lambda *_: pytest.fail("it is planned"))
    assert f"{folder} holds a checkpoint" in error_of(capsys, "plan", *out)


def test_a_plan_keeps_the_settings_of_its_flags(trainings, tiny_plans, tmp_path):
    flags = ["--seed", 7, "--classes", 10, "--channels", 1, "--minutes", 0.1]
    assert run("plan", *flags, "--out", tmp_path / "run", "--device", "cpu") == 0
    recipe = trainings[0].recipe
    assert (recipe.seed, recipe.classes, recipe.channels) == (7, 10, 1)
    assert len(trainings[0].labels) == 64 and trainings[0].deadline < float("inf")


def test_few_images_make_smaller_batches(trainings, measured, monkeypatch, tmp_path, capsys):
    few = save_pictures(tmp_path / "few", 10)
    monkeypatch.setattr(loading, "load_images", lambda recipe, *_, **__: random_images(recipe, 10))
    base = ["--dataset", few, "--out", tmp_path / "run", "--data", tmp_path, "--device", "cpu"]
    for command in (["train"], ["train", "--preset", "faces-64-small"], ["plan", "--minutes", 1]):
        assert run(*command, *base) == 0
        assert trainings[-1].recipe.batch_size == 10 and "10 images" in capsys.readouterr().out
    for batch_size in (5, 11):
        assert run("train", *base, "--batch-size", batch_size) == 0
        assert trainings[-1].recipe.batch_size == batch_size
        assert "images are fewer" not in capsys.readouterr().out
    world = ProcessGroup()
    world.size = 4
    monkeypatch.setattr(processes, "connect_world", lambda *_: world)
    monkeypatch.setattr(processes, "main_process_first", lambda world: nullcontext())
    assert run("train", *base) == 0
    assert trainings[-1].recipe.batch_size == 8, "that 4 processes can share"


def test_a_network_too_narrow_for_its_patches_is_reported(trainings, measured, tmp_path, capsys):
    base = ["--dataset", save_pictures(tmp_path / "few", 10), "--data", tmp_path, "--device", "cpu"]
    narrow = "--patch-size 4 --base-channels 32".split()  # a patch in colour has 48 numbers
    for others, is_narrow in (
        ([], True),
        (["--base-channels", 48], False),
        (["--patch-size", 2], False),
        (["--prediction", "x0"], False),
    ):
        assert run("train", *base, *narrow, *others, "--out", tmp_path / "run") == 0
        assert ("48 numbers" in capsys.readouterr().out) is is_narrow


def test_a_training_too_short_for_its_optimizer_is_reported(trainings, tmp_path, capsys):
    """64 images in batches of 32: 1,000 steps."""
    flags = "--base-channels 8 --channel-mults 1 --batch-size 32 --epochs 500 --device cpu".split()
    for optimizer, enough in (("adam", "2,000"), ("muon", None)):
        assert run("train", *flags, "--optimizer", optimizer, "--out", tmp_path / "run") == 0
        printed = capsys.readouterr().out
        assert ("1000 steps in 500 epochs" in printed) is (enough is not None)
        assert enough is None or (enough in printed and "--epochs 1000" in printed)


def test_predicted_noise_is_reported_for_colours_alone(trainings, measured, tmp_path, capsys):
    base = ["--dataset", save_pictures(tmp_path / "few", 10), "--data", tmp_path, "--device", "cpu"]
    for others, is_reported in (
        ([], True),
        (["--prediction", "v"], False),
        (["--channels", 1], False),
    ):
        assert run("train", *base, *others, "--out", tmp_path / "run") == 0
        assert ("--prediction v" in capsys.readouterr().out) is is_reported


def test_what_is_trained_advises_how_to_draw_it_best(tmp_path, monkeypatch, capsys):
    """By what was measured of such networks: digits, and faces of celeba, with 1,000 times."""
    monkeypatch.setattr(loading, "load_images", lambda *_, **__: blobs(64))
    tiny = "--base-channels 8 --channel-mults 1 --batch-size 32 --epochs 1 --device cpu".split()
    mine = tmp_path / "mine"
    other = tmp_path / "other"
    assert run("train", *tiny, "--out", mine) == 0
    assert checkpoints.sampling_defaults(mine) == MNIST.draw["linear", 1000]
    config = json.loads((mine / "config.json").read_text())
    (mine / "config.json").write_text(json.dumps(config | {"draw": {"steps": 7}}))
    assert run("train", "--resume", "--epochs", 2, "--out", mine, "--device", "cpu") == 0
    assert checkpoints.sampling_defaults(mine) == {"steps": 7}, "your own is kept"
    assert run("train", *tiny, "--schedule", "cosine", "--out", other) == 0
    assert "draw" not in json.loads((other / "config.json").read_text())
    assert measured_defaults(preset("faces-64-small")) == CELEBA.draw["cosine", 1000]
    assert measured_defaults(preset("faces-64-small", dataset="ffhq")) == {}
    method = catalogue.make_method(preset("mnist", objective="consistency"))
    assert method.sampling_defaults["sampler"] == "consistency"


def test_what_cannot_be_planned_is_reported_before_measuring(tmp_path, monkeypatch, capsys):
    meter = throughput.ThroughputMeter
    monkeypatch.setattr(meter, "pace", lambda *_: pytest.fail("it is measured"))
    base = ["plan", "--out", tmp_path / "run", "--device", "cpu", "--data", ROOT / "data"]
    assert "5" in error_of(capsys, *base, "--classes", 5, "--dry-run")
    assert '"minst"' in error_of(capsys, *base, "--dataset", "minst")
    assert "minutes is nan" in error_of(capsys, *base, "--minutes", "nan")


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("mnist-small", {"classes": 10, "objective": "p2"}),
        ("faces-64", {"attributes": ("Smiling", "Male"), "image_size": (64, 96)}),
    ],
)
def test_the_command_of_a_plan_makes_the_same_recipe(trainings, tmp_path, name, settings):
    recipe = preset(name, seed=7, epochs=1.5, batch_size=32, warmup_steps=5, **settings)
    plan = planning.Plan(name, recipe, 1.0, 60.0, 0.0, 1.0, {}, 1.0, 1.0)
    command = shlex.split(plan.equivalent_command(recipe).split("python -m mnist_ddpm ")[1])
    assert run(*command, "--out", tmp_path) == 0
    assert trainings[0].recipe == recipe
