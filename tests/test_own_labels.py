"""Labels of one's own: subfolders by name, trained with, drawn, guided and judged."""

import json
import sys
import unicodedata
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from command_helpers import SMALL, error_of, run, skip_films
from helpers import untrained_judge
from picture_helpers import image_recipe, plain, save
from PIL import Image

from mnist_ddpm.commands.drawing import labels_in_turn
from mnist_ddpm.commands.flags import SampleFlags
from mnist_ddpm.commands.sample import sample
from mnist_ddpm.data import loading
from mnist_ddpm.data.folders import folder_labels, load_own_folder
from mnist_ddpm.data.labels import distinct_names, label_number
from mnist_ddpm.evaluation import distances
from mnist_ddpm.evaluation.extractors import save_extractor
from mnist_ddpm.training.throughput import ThroughputMeter

COLOURS = {"red": (250, 10, 10), "green": (10, 250, 10), "blue": (10, 10, 250)}


def save_colours(folder, n=12):
    """n images of each colour, in a subfolder of its name."""
    for name, colour in COLOURS.items():
        for k in range(n):
            save(folder / name / f"{k}.png", Image.new("RGB", (16, 16), colour))
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A network trained for some steps on three colours, and what was printed of it."""
    place = tmp_path_factory.mktemp("colours")
    for split in ("train", "valid"):
        save_colours(place / "mine" / split)
    data = ["--dataset", place / "mine", "--data", place / "data", "--device", "cpu"]
    training = [*SMALL, "--epochs", 15, "--classes", "auto", "--mirrored", "--prediction", "x0"]
    to_noise = ["--beta-T", 0.5]  # else a colour is left in the last state, beside the label's
    assert run("train", *data, *training, *to_noise, "--out", place / "run") == 0
    return place


def test_labels_are_counted_named_and_kept_in_the_checkpoint(trained):
    recipe = json.loads((trained / "run" / "config.json").read_text())
    assert recipe["settings"]["classes"] == 3
    assert recipe["recipe"]["label_names"] == ["blue", "green", "red"]
    assert recipe["recipe"]["mirrored"] is True


def test_before_the_first_step_a_training_says_and_shows_what_it_read(tmp_path, capsys):
    folder = save_colours(tmp_path / "mine", 5)
    save(folder / "red" / "other.png", Image.new("RGB", (16, 16), "white"))
    data = ["--dataset", folder, "--data", tmp_path, "--classes", "auto", "--device", "cpu"]
    assert run("train", *data, *SMALL, "--epochs", 1, "--out", tmp_path / "run") == 0
    printed = capsys.readouterr().out
    for figure in ("16 images", "16 high", "10 to 255", "12 exact", "blue: 5", "red: 6"):
        assert figure in printed
    picture = np.array(Image.open(tmp_path / "run" / "training_images.png"))
    shown = {tuple(pixel) for pixel in picture[2::4, 2::4].reshape(-1, 3)}
    assert shown >= {*COLOURS.values(), (255, 255, 255)}


@pytest.mark.parametrize(("brightest", "named"), [(255, "the same"), (50, "is read as")])
def test_images_that_are_all_the_same_or_faint_are_refused(tmp_path, capsys, brightest, named):
    for k in range(20):
        image = Image.linear_gradient("L").point(lambda value: value * brightest // 255)
        save(tmp_path / "mine" / f"{k}.png", image)
    data = ["--dataset", tmp_path / "mine", "--data", tmp_path, "--device", "cpu"]
    assert named in error_of(capsys, "train", *data, *SMALL, "--out", tmp_path / "run")


def test_labels_are_drawn_by_their_names(trained, capsys):
    options = {"steps": 2, "batch_size": 4, "guidance": 2.0}
    by_name = sample(trained / "run", labels=["red", "blue"], n=3, **options)
    assert torch.equal(by_name, sample(trained / "run", labels=[2, 0], n=3, **options))
    assert not torch.equal(by_name[0], sample(trained / "run", labels="green", **options)[0])
    line = error_of(capsys, "sample", "--checkpoint", trained / "run", "--label", "pink")
    assert "pink" in line and "blue, green, red" in line


def test_a_trained_network_knows_its_labels(trained):
    images = sample(trained / "run", labels=["red", "green", "blue"], n=30, steps=10).float()
    means = images.mean(dim=(2, 3))
    strongest = means.argmax(dim=1)
    assert (strongest == torch.arange(30) % 3).float().mean() > 0.8


def test_evaluation_draws_the_labels_of_training_and_sees_the_other_split(
    trained, monkeypatch, capsys
):
    skip_films(monkeypatch)
    monkeypatch.setattr(distances, "RESAMPLES", 4)
    judge = untrained_judge("celeba").network
    save_extractor(trained / "judge.safetensors", judge, {})
    out = trained / "card.json"
    extractor = ["--extractor", trained / "judge.safetensors", "--data", trained / "data"]
    assert run("evaluate", "--checkpoint", trained / "run", *extractor, "--n", 9, "--out", out) == 0
    card = json.loads(out.read_text())
    assert card["sampler"]["labels"] == "as in training"
    assert "held out against training" in card["floor"]


def test_a_plan_counts_them_too(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained)
    monkeypatch.setattr(ThroughputMeter, "pace", lambda *_: 64.0)
    monkeypatch.setattr(ThroughputMeter, "seconds_per_evaluation", lambda *_: 1e-3)
    plan = ["--dataset", "mine", "--minutes", 9, "--classes", "auto", "--dry-run"]
    assert run("plan", *plan, "--image-size", 16, "--device", "cpu") == 0
    assert "--classes 3" in capsys.readouterr().out


def test_a_run_goes_on_with_its_labels(trained, tmp_path):
    again = ["--out", trained / "run", "--data", trained / "data", "--epochs", 16]
    assert run("train", "--resume", "--classes", "auto", *again, "--device", "cpu") == 0


# Which label an image has


def own_recipe(folder, **settings):
    return replace(image_recipe(str(folder)), **settings)


def test_labels_are_those_of_the_images_that_can_be_read(tmp_path):
    folder = save_colours(tmp_path / "mine", 5)
    (folder / "green" / "2.png").write_bytes(b"no image")
    recipe = own_recipe(folder, classes=3)
    images = load_own_folder(recipe, tmp_path)
    labels = folder_labels(recipe, tmp_path)
    names = ["blue", "green", "red"]
    assert len(images) == 14
    for image, label in zip(images, labels):
        assert tuple(image[:, 0, 0].tolist()) == COLOURS[names[label]]


@pytest.mark.parametrize(
    ("train", "test"), [("Train", "TEST"), ("training", "testing"), ("Training", "val")]
)
def test_splits_are_no_labels_whatever_their_case_and_are_said(tmp_path, capsys, train, test):
    folder = tmp_path / "mine"
    save_colours(folder / train, 4)
    save_colours(folder / test, 3)
    assert len(loading.data_settings(str(folder), tmp_path, "auto")["label_names"]) == 3
    assert len(loading.load_images(own_recipe(folder), tmp_path)) == 12
    assert len(loading.held_out(own_recipe(folder), tmp_path)) == 9
    printed = capsys.readouterr().out
    assert all(f"in {folder / split}" in printed for split in (train, test))
    assert f"not in {test}" in printed


def test_files_that_are_left_out_are_counted_at_every_start(tmp_path, monkeypatch, capsys):
    registered = []
    heif = SimpleNamespace(register_heif_opener=lambda: registered.append(1))
    folder = save_colours(tmp_path / "mine", 5)
    (folder / "red" / "2.png").write_bytes(b"no image")
    for name in ("a.HEIC", "b.heic", "notes.txt"):
        (folder / "red" / name).write_bytes(b"?")
    for _ in range(2):
        assert len(load_own_folder(own_recipe(folder), tmp_path)) == 14
        printed = capsys.readouterr().out
        assert all(each in printed for each in ("2 .heic", "1 .txt", "pillow-heif", "2.png"))
        monkeypatch.setitem(sys.modules, "pillow_heif", heif)
    assert registered, "where it is installed, it is asked for its format"


def test_names_of_labels_are_the_same_however_their_letters_are_composed(tmp_path):
    folder = tmp_path / "mine"
    for name in (unicodedata.normalize("NFD", "Ångström"), "meter"):
        save(folder / name / "0.png", plain(3))
    settings = loading.data_settings(str(folder), tmp_path, "auto")
    for name in ("NFC", "NFD"):
        names = tuple(unicodedata.normalize(name, each) for each in settings["label_names"])
        recipe = own_recipe(folder, classes=2, label_names=names)
        assert sorted(loading.load_labels(recipe, tmp_path).tolist()) == [0, 1]
        assert {label_number("Ångström", recipe), label_number("meter", recipe)} == {0, 1}
        assert label_number(unicodedata.normalize("NFD", "Ångström"), recipe) >= 0


def test_names_that_are_numbers_are_sorted_by_size_and_always_names():
    assert distinct_names(["10", "9", "10", "-1"]) == ("-1", "9", "10")
    assert distinct_names(["10", "9", "x"]) == ("10", "9", "x")
    gaps = own_recipe("x", classes=3, label_names=("1", "5", "9"))
    assert label_number("5", gaps) == 1
    for typed in ("0", "2", "five"):
        with pytest.raises(ValueError, match=typed):
            label_number(typed, gaps)
    named = own_recipe("x", classes=2, label_names=("cat", "dog"))
    assert [label_number(typed, named) for typed in ("dog", "1", "0")] == [1, 1, 0]
    assert labels_in_turn(SampleFlags(n=3, label=("9", "1")), gaps).tolist() == [2, 0]
    many = own_recipe("x", classes=10)
    assert label_number("7", many) == 7
    with pytest.raises(ValueError, match="0 to 9"):
        label_number("10", many)


def break_nothing_beside(folder):
    save(folder / "beside.png", plain(3))


def break_with_an_empty_class(folder):
    (folder / "pink").mkdir()


def no_images(folder):
    for path in folder.rglob("*.png"):
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "classes", "named"),
    [
        (break_nothing_beside, "auto", "beside.png"),
        (break_with_an_empty_class, "auto", "pink"),
        (no_images, "auto", "no images"),
        (lambda folder: None, "4", "3 labels"),
    ],
)
def test_folders_without_clear_labels_are_refused_before_training(
    tmp_path, capsys, damage, classes, named
):
    folder = save_colours(tmp_path / "mine", 2)
    damage(folder)
    data = ["--dataset", folder, "--data", tmp_path / "data", "--out", tmp_path / "run"]
    assert named in error_of(capsys, "train", *data, *SMALL, "--classes", classes)
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "data").exists(), "and no image was decoded"


def test_a_label_that_training_never_saw_is_refused(tmp_path):
    for split in ("train", "test"):
        save_colours(tmp_path / "mine" / split, 2)
    save(tmp_path / "mine" / "test" / "pink" / "0.png", plain(1))
    recipe = own_recipe(tmp_path / "mine", classes=3)
    load_own_folder(recipe, tmp_path, "test")
    with pytest.raises(ValueError, match="pink"):
        folder_labels(recipe, tmp_path, "test")


def test_splits_are_kept_apart_and_other_folders_have_none(tmp_path):
    for split, n in (("train", 4), ("test", 2)):
        save_colours(tmp_path / "mine" / split, n)
    recipe = own_recipe(tmp_path / "mine")
    assert len(loading.load_images(recipe, tmp_path)) == 12
    assert len(loading.held_out(recipe, tmp_path)) == 6
    alone = own_recipe(tmp_path / "mine" / "train")
    assert loading.held_out(alone, tmp_path) is None


@pytest.mark.parametrize("name", ["celeba", "ffhq"])
def test_labels_without_names_cannot_be_counted(capsys, tmp_path, name):
    line = error_of(capsys, "train", "--dataset", name, "--classes", "auto", "--data", tmp_path)
    assert name in line


def test_digits_are_counted_by_their_record():
    assert loading.data_settings("mnist", "data", "auto")["classes"] == 10
    assert np.array_equal(loading.data_settings("mnist", "data", 0), {})
