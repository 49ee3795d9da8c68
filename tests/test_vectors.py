"""Vectors of one's own: read, standardised, trained on, drawn in their units, and judged."""

import csv
import json
from dataclasses import replace

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from command_helpers import error_of, run
from helpers import with_random_weights

from mnist_ddpm import catalogue, ddpm, trainer
from mnist_ddpm.commands.sample import sample
from mnist_ddpm.data import loading
from mnist_ddpm.data.vectors import to_network
from mnist_ddpm.datasets import VECTOR_SETTINGS
from mnist_ddpm.evaluation import distances
from mnist_ddpm.methods.residual_mlp import ResidualMLP
from mnist_ddpm.training.planning import DECIDED
from mnist_ddpm.training.recipe import Recipe
from mnist_ddpm.training.run import training_step
from mnist_ddpm.training.throughput import ThroughputMeter
from mnist_ddpm.training.vector_samples import to_units

TINY = ["--base-channels", 8, "--T", 50, "--device", "cpu"]
COLUMNS = (("a", 100.0, 20.0), ("b", -3.0, 0.5))
VECTORS = Recipe(
    dataset="points.csv", channels=2, columns=COLUMNS, base_channels=8, T=50, **VECTOR_SETTINGS
)


def points(n=400, seed=0):
    """Two clusters: (N, 2), and which each belongs to."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 2, n)
    centres = np.array([[80.0, -3.5], [120.0, -2.5]])
    return centres[kind] + rng.normal(size=(n, 2)) * [2.0, 0.05], kind


def save_table(path, header=True):
    values, kind = points()
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        if header:
            table.writerow(["a", "b", "kind"])
        table.writerows([*row, ("low", "high")[k]] for row, k in zip(values.tolist(), kind))
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A network of two labelled clusters in the plane."""
    place = tmp_path_factory.mktemp("vectors")
    table = save_table(place / "mine.csv")
    training = ["--classes", "auto", "--epochs", 60, "--batch-size", 120, *TINY]
    assert run("train", "--dataset", table, *training, "--out", place / "run") == 0
    return place


def test_a_checkpoint_keeps_means_scales_and_names(trained):
    recipe = json.loads((trained / "run" / "config.json").read_text())["recipe"]
    assert [name for name, _, _ in recipe["columns"]] == ["a", "b"]
    assert recipe["label_names"] == ["high", "low"]
    loaded = trainer.Recipe(**VECTORS.__dict__ | {"columns": recipe["columns"]})
    seen = loading.load_images(replace(loaded, dataset=str(trained / "mine.csv"), classes=2))
    assert seen.shape == (360, 2, 1, 1) and seen.dtype == torch.float32
    assert seen.mean(dim=0).abs().max() < 1e-6
    assert (seen.std(dim=0, correction=0) - 1).abs().max() < 1e-5


def test_samples_have_the_data_s_units_and_the_labels_asked_for(trained):
    drawn = sample(trained / "run", n=200, labels=["low", "high"], steps=20)
    assert drawn.shape == (200, 2)
    centres = drawn.view(100, 2, 2).median(dim=0).values
    assert torch.allclose(centres[:, 0], torch.tensor([80.0, 120.0]).double(), atol=6)
    assert torch.allclose(centres[:, 1], torch.tensor([-3.5, -2.5]).double(), atol=0.2)
    assert torch.equal(
        drawn, sample(trained / "run", n=200, labels=[1, 0], steps=20, batch_size=64)
    )


def test_the_files_of_samples_can_be_read_again(trained, tmp_path):
    out = tmp_path / "out"
    drawing = ["--checkpoint", trained / "run", "--n", 30, "--steps", 5, "--device", "cpu"]
    assert run("sample", *drawing, "--out", out) == 0
    rows = np.load(out / "samples.npy")
    with (out / "samples.csv").open() as file:
        header, *lines = csv.reader(file)
    assert header == ["a", "b", "label"] and [line[-1] for line in lines[:3]] == [
        "high",
        "low",
        "high",
    ]
    assert np.array_equal(rows, np.array([line[:-1] for line in lines], float))
    for name in ("samples.png", "steps.png"):
        picture = imageio.imread(out / name)
        assert picture.std() > 5
    settings = loading.data_settings(str(out / "samples.csv"), tmp_path, "auto")
    assert settings["label_names"] == ("high", "low") and settings["channels"] == 2


def test_judged_by_their_columns_against_rows_that_were_not_seen(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(distances, "RESAMPLES", 4)
    base = ["--checkpoint", trained / "run", "--data", tmp_path, "--device", "cpu", "--steps", 10]
    assert run("evaluate", *base, "--n", 200, "--out", tmp_path / "card.json") == 0
    card = json.loads((tmp_path / "card.json").read_text())
    assert "40 unseen rows of 2 columns" in card["reference"]
    assert "training against held out" in card["floor"]
    assert "nearest_training_image_in_pixels" not in card and card["L_simple"]["n"] == 40
    good = card["metrics"]["frechet_distance"]["value"]
    noise = np.random.default_rng(0).normal([100, -3], [20, 0.5], (200, 2))
    np.save(tmp_path / "noise.npy", noise)
    judging = [*base[:-2], "--images", tmp_path / "noise.npy", "--n", 200]
    assert run("evaluate", *judging, "--out", tmp_path / "noise.json") == 0
    noisy = json.loads((tmp_path / "noise.json").read_text())
    assert good < 0.5 * noisy["metrics"]["frechet_distance"]["value"]
    assert good < 0.5 * distances.frechet_distance(*(torch.tensor(x) for x in (noise, points()[0])))


def test_the_frechet_distance_of_columns_is_that_of_gaussians():
    """Also of one column: (m - m')² + (s - s')²."""
    rng = torch.Generator().manual_seed(0)
    a = torch.randn(500, 1, generator=rng, dtype=torch.float64)
    b = 3 + 2 * torch.randn(400, 1, generator=rng, dtype=torch.float64)
    expected = (a.mean() - b.mean()) ** 2 + (a.std() - b.std()) ** 2
    assert distances.frechet_distance(a, b) == pytest.approx(expected.item())
    assert distances.frechet_estimate(a, b).value == pytest.approx(expected.item())


def test_a_plan_trains_vectors(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ThroughputMeter, "pace", lambda *_: 1000.0)
    monkeypatch.setattr(ThroughputMeter, "seconds_per_evaluation", lambda *_: 1e-5)
    plan = ["plan", "--dataset", trained / "mine.csv", "--classes", "auto", "--minutes", 0.1]
    assert run(*plan, "--dry-run", "--out", tmp_path / "run", "--device", "cpu") == 0
    printed = capsys.readouterr().out
    assert "--network mlp" in printed and not any(f"--{name}" in printed for name in DECIDED)


def test_a_run_of_vectors_goes_on_and_moves(trained, tmp_path):
    moved = save_table(tmp_path / "moved.csv")
    again = ["--resume", "--dataset", moved, "--epochs", 61, "--out", trained / "run"]
    assert run("train", *again, "--device", "cpu") == 0


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("sample --init-image x.png", "--init-image"),
        ("evaluate --extractor inception", "--extractor"),
        ("evaluate --bits 4", "--bits"),
        ("likelihood", "vectors"),
        ("push --to me/points", "vectors"),
        ("export --format onnx --out x.onnx", "vectors"),
        ("export --out x", "network"),
    ],
)
def test_what_is_for_images_alone_is_refused(
    trained, tmp_path, monkeypatch, capsys, command, named
):
    monkeypatch.chdir(tmp_path)
    name, *flags = command.split()
    assert named in error_of(capsys, name, "--checkpoint", trained / "run", *flags)


# --- reading


def test_tables_are_read_with_and_without_names(tmp_path):
    for header in (True, False):
        table = save_table(tmp_path / "mine.csv", header)
        settings = loading.data_settings(str(table), tmp_path, "auto")
        names, means, scales = zip(*settings["columns"])
        assert names == (("a", "b") if header else ("column 1", "column 2"))
        assert means == pytest.approx([100, -3], abs=3) and scales == pytest.approx([20, 0.5], 0.1)
    (tmp_path / "mine.csv").write_text("x;y\n1;2\n3;5\n\n", encoding="utf-8-sig")
    (x, *_), _ = loading.data_settings(str(tmp_path / "mine.csv"), tmp_path, 0)["columns"]
    assert x == "x"


@pytest.mark.parametrize("labels_beside", [True, False])
def test_arrays_of_vectors_with_labels(tmp_path, labels_beside):
    values, kind = points(30)
    path = tmp_path / "mine.npz"
    if labels_beside:
        np.savez(path, data=values, labels=kind + 4)
    else:
        path = tmp_path / "mine.npy"
        np.save(path, np.column_stack([values, kind + 4]))
    settings = loading.data_settings(str(path), tmp_path, "auto")
    assert settings["label_names"] == ("4", "5") and settings["channels"] == 2
    recipe = Recipe(dataset=str(path), **settings)
    seen, unseen = (loading.load_labels(recipe, tmp_path, split) for split in ("train", "test"))
    rows = torch.cat([loading.load_images(recipe, tmp_path), loading.held_out(recipe, tmp_path)])
    units = to_units(rows, recipe.columns)
    labels = torch.cat([seen, unseen]).numpy()
    assert (len(seen), len(unseen)) == (27, 3)
    assert np.allclose(units[np.lexsort(units.T)], values[np.lexsort(values.T)], atol=1e-4)
    assert np.array_equal(labels, units[:, 0] > 100)


def test_rows_to_test_in_the_file_are_those_held_out(tmp_path):
    np.savez(tmp_path / "mine.npz", x_train=points(20)[0], x_test=points(5, 1)[0])
    settings = loading.data_settings(str(tmp_path / "mine.npz"), tmp_path, 0)
    recipe = Recipe(dataset=str(tmp_path / "mine.npz"), **settings)
    held_out = to_units(loading.held_out(recipe), recipe.columns)
    assert np.allclose(held_out, points(5, 1)[0], atol=1e-4)
    assert len(loading.load_images(recipe)) == 20


def table(text):
    return lambda path: path.with_suffix(".csv").write_text(text)


def array(values):
    return lambda path: np.save(path.with_suffix(".npy"), values)


GOOD = "1,2\n3,4\n"
HIDDEN = np.where(np.arange(40).reshape(20, 2) == 7, np.nan, 1.0 * np.arange(40).reshape(20, 2))


@pytest.mark.parametrize(
    ("write", "classes", "named"),
    [
        (table(""), 0, "empty"),
        (table("a,b\n"), 0, "0 row"),
        (table("a,b\n1,2\n"), 0, "1 row"),
        (table(f"{GOOD}5\n6,7\n"), 0, "row 3"),
        (table(f"{GOOD}5,six\n6,7\n"), 0, "row 3"),
        (table(f"{GOOD}5,\n6,7\n"), 0, "row 3"),
        (table(f"x,y\n{GOOD}nan,1\n"), 0, "x of row 3"),
        (table(f"x,y\n{GOOD}1,-inf\n"), 0, "y of row 3"),
        (table("x,y\n1,0.1\n3,0.1\n4,0.1\n"), 0, "y of"),
        (table("x,y\n1e308,1\n-1e308,2\n"), 0, "largest"),
        (table("1\n2\n3\n"), "auto", "labels"),
        (table("x,k\n1,2.5\n3,2\n4,2\n"), 7, "2 labels"),
        (array(HIDDEN), 0, "column 2"),
        (array(np.array([["1", "2"], ["3", "4"]])), 0, "<U1"),
        (array(np.zeros((0, 3))), 0, "(0, 3)"),
        (array(np.array([[1, 2], [None, 3]])), 0, "objects"),
        (array(np.column_stack([points(9)[0], np.linspace(0, 1, 9)])), "auto", "whole"),
    ],
)
def test_bad_vectors_are_refused_in_one_line(tmp_path, capsys, write, classes, named):
    write(tmp_path / "mine")
    (path,) = tmp_path.glob("mine.*")
    data = ["--dataset", path, "--classes", classes, "--out", tmp_path / "run"]
    line = error_of(capsys, "train", *data, *TINY)
    assert named in line and path.name in line and not (tmp_path / "run").exists()


def test_another_number_of_columns_is_refused(tmp_path):
    np.save(tmp_path / "mine.npy", np.random.default_rng(0).normal(size=(20, 3)))
    with pytest.raises(ValueError, match="3 columns"):
        loading.load_images(replace(VECTORS, dataset=str(tmp_path / "mine.npy")))


# --- the network and its recipe


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"columns": ()}, "vectors"),
        ({"channels": 3}, "vectors"),
        ({"image_size": 2}, "vectors"),
        ({"network": "unet"}, "channels"),
        ({"condition": "grey"}, "condition"),
        ({"critic": 0.1}, "critic"),
        ({"augment": ("shift",)}, "augment"),
        ({"columns": (("a", 0.0, 0.0), ("b", 0.0, 1.0))}, "columns"),
        ({"columns": (("a", 0.0, 1.0), ("b", float("nan"), 1.0))}, "columns"),
        ({"columns": (("a", 0.0), ("b", 0.0))}, "columns"),
    ],
)
def test_recipes_of_vectors_that_do_not_fit_are_refused(changes, named):
    with pytest.raises(ValueError, match=named):
        replace(VECTORS, **changes)


def test_units_come_back():
    values = np.random.default_rng(0).normal([100, -3], [20, 0.5], (50, 2))
    assert np.allclose(to_units(to_network(values, VECTORS), COLUMNS), values, atol=1e-4)


def test_the_network_is_one_of_vectors_times_and_labels():
    network = with_random_weights(ResidualMLP(3, 8, blocks=2, classes=4))
    x = torch.randn(5, 3, 1, 1)
    t = torch.tensor([1, 2, 3, 4, 5])
    labels = torch.tensor([0, 1, 2, 3, 4])
    output = network(x, t, labels)
    assert output.shape == x.shape
    for k in range(5):  # a batch is its vectors, one by one
        alone = network(x[k : k + 1], t[k : k + 1], labels[k : k + 1])
        assert torch.allclose(output[k : k + 1], alone, atol=1e-5)
    assert torch.equal(network(x, t), network(x, t, torch.full((5,), 4))), "None is unknown"
    for other in (
        network(x, t + 1, labels),
        network(x, t, labels.flip(0)),
        network(x.flip(1), t, labels),
    ):
        assert not torch.allclose(output[0], other[0])


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": "min-snr", "schedule": "cosine", "prediction": "x0"},
        {"schedule": "flow", "prediction": "velocity"},
        {"prediction": "edm", "objective": "edm", "times": "log-normal"},
        {"prediction": "v", "objective": "p2", "optimizer": "muon"},
    ],
)
def test_objectives_schedules_and_optimisers_are_those_of_images(changes):
    """And so a recipe learns: the loss falls where all vectors are one."""
    recipe = replace(VECTORS, **changes, learning_rate=None)
    run_of_vectors = trainer.start_run(recipe)
    schedule = catalogue.make_schedule(recipe)
    x0 = torch.ones(64, 2, 1, 1)
    losses = [
        training_step(run_of_vectors, x0, schedule, ddpm.random_generator(0, k)) for k in range(60)
    ]
    assert np.mean(losses[-20:]) < 0.8 * np.mean(losses[:20]) or losses[-1] < 1e-3


@pytest.mark.parametrize("objective", ["hybrid", "vlb"])
def test_a_variance_for_eight_bits_is_not_learned_of_vectors(objective):
    with pytest.raises(ValueError, match=objective):
        catalogue.make_network(replace(VECTORS, objective=objective))


def test_samplers_are_those_of_images_and_clip_nothing(trained):
    for sampler in ("ddpm", "ddim", "dpmpp", "heun"):
        drawn = sample(trained / "run", n=50, sampler=sampler, steps=10, labels=["low"])
        assert abs(drawn[:, 0].median() - 80) < 8, sampler
    far = sample(trained / "run", n=500, steps=20)
    assert far[:, 0].std() > 10
