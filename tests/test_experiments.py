"""The papers in miniature: bookkeeping, statistics, pictures, and experiments from end to end."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from conftest import ROOT
from helpers import equal, untrained_judge
from matplotlib.figure import Figure

from experiments import __main__, ddim_table1, guidance_scale, one_step, registry, runner, steps
from experiments.experiment_flags import Scale
from experiments.one_step import SecondJudge, classifier_features
from experiments.plots import caption, plot_lines, write_plot
from experiments.registry import EXPERIMENTS
from experiments.results import (
    Claim,
    column_values,
    mean_and_half_interval,
    parse_cell,
    read_rows,
    select_rows,
)
from experiments.runner import ExperimentRun, TrainedNetwork
from experiments.small_sets import compare_with_unseen
from mnist_ddpm import catalogue, ddpm
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.method import PlainMethod
from mnist_ddpm.recipe import Recipe
from mnist_ddpm.training import loop, saving

TINY = replace(runner.QUICK, epochs=2, n=8, bits=2, seeds=2, long=20)
ONE_SEED = replace(TINY, seeds=1)
NETWORK = {"base_channels": 8, "channel_mults": (1,), "patch_size": 8}
SMALL = NETWORK | {"T": 60, "batch_size": 32, "epochs": 3}


@pytest.fixture(scope="module")
def judged(digits):
    """An untrained extractor, few images, and their features."""
    judge = untrained_judge()
    images = digits[:64]
    return judge, images, judge.features(images)


@pytest.fixture(autouse=True)
def small(judged, monkeypatch):
    """Few images, small networks, and an untrained extractor."""
    torch.manual_seed(0)
    judge, images, features = judged
    monkeypatch.setattr(ExperimentRun, "judge", judge)
    monkeypatch.setattr(ExperimentRun, "training_images", images)
    monkeypatch.setattr(ExperimentRun, "training_features", features)
    monkeypatch.setattr(ExperimentRun, "test_images", images.flip(0)[:16])
    recipe = lambda run, seed, **changes: Recipe(**SMALL | {"seed": seed} | changes)  # noqa: E731
    monkeypatch.setattr(ExperimentRun, "recipe", recipe)
    monkeypatch.setattr(runner, "QUICK", TINY)


@pytest.fixture
def start(tmp_path):
    """Starts a run in a folder of this name."""

    def start(name="mine", scale=TINY, training=runner.SHORT_TRAINING):
        return ExperimentRun(tmp_path / name, scale, ROOT / "data", torch.device("cpu"), training)

    return start


def weights_of(trained: TrainedNetwork) -> dict:
    return trained.network().state_dict()


def test_rows_come_back_from_the_file_as_they_were(start):
    rows = [
        {"arm": "a, b", "seed": 0, "S": 10, "frechet": 0.1 + 0.2},
        {"arm": "real", "n": 500, "scale": 1.0},
        {"arm": "2e-3", "n": 500},
    ]
    first = start()
    for row in rows:
        first.measure_once({"arm": row["arm"]}, lambda row=row: row)
    resumed = start()
    assert [{k: v for k, v in row.items() if v != ""} for row in resumed.rows] == rows
    for row in rows:
        resumed.measure_once(row, lambda: pytest.fail("it is there already"))
    cells = [parse_cell(text) for text in ("3", "3.0", "-1e-5", "x0, L", "")]
    assert cells == [3, 3.0, -1e-5, "x0, L", ""] and isinstance(cells[0], int)


def test_intervals_over_seeds_are_students():
    """Of 1, 2, 6: mean 3, deviation sqrt(7), so half a width of 4.303 sqrt(7 / 3)."""
    rows = [{"arm": "a", "seed": k, "d": d} for k, d in enumerate([1, 2, 6])]
    rows += [{"arm": "b", "d": 9}, {"arm": "a"}]
    assert [column_values(rows, "d", {"arm": arm}) for arm in "abc"] == [[1, 2, 6], [9], []]
    expected = 3, 4.303 * math.sqrt(7 / 3)
    assert mean_and_half_interval([1, 2, 6]) == pytest.approx(expected)
    assert mean_and_half_interval([9]) == pytest.approx((9, math.nan), nan_ok=True)
    assert math.isnan(mean_and_half_interval([])[0])
    for n, quantile in ((9, 2.306), (20, 2.093), (100, 1.984)):
        values = [-1.0, 1.0, *[0.0] * (n - 2)]
        expected = quantile * np.std(values, ddof=1) / math.sqrt(n)
        assert mean_and_half_interval(values)[1] == pytest.approx(expected, rel=0.005)


def test_lines_show_intervals_of_logarithms_where_the_scale_is_one_of_them():
    rows = [{"arm": "a", "x": 1, "d": d} for d in (1, 10, 100)]
    ends = {}
    for log in (False, True):
        ax = Figure().subplots()
        plot_lines(ax, rows, "d", "x", {"a": {"arm": "a"}}, log)
        ((_, low), (_, high)) = ax.collections[0].get_segments()[0]
        ends[log] = low, high
    half = 4.303 / math.sqrt(3)  # in factors of ten
    assert ends[True] == pytest.approx((10 ** (1 - half), 10 ** (1 + half)))
    assert ends[False][0] < 0


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([-1.0, -1.1, -0.9], "holds here"),
        ([1.0, 1.1, 0.9], "the other way round here"),
        ([-1.0, 0.5, -0.3], "seen here, within the noise of 3 seeds"),
        ([1.0, -0.5, 0.3], "not seen here, within the noise of 3 seeds"),
        ([-1.0], "seen here, within the noise of 1 seed"),
    ],
)
def test_a_verdict_follows_from_the_interval_of_the_differences(differences, verdict):
    zeros = dict.fromkeys(range(len(differences)), 0.0)
    assert Claim("A", dict(enumerate(differences)), zeros).verdict == verdict


def test_differences_are_of_the_same_seed():
    rows = [{"arm": "a", "seed": seed, "d": 10 * seed} for seed in (2, 0, 1)]
    rows += [{"arm": "b", "seed": seed, "d": 10 * seed + 1} for seed in (1, 2, 0)]
    a, b = {"arm": "a"}, {"arm": "b"}
    assert Claim.of(rows, "d", "", b, a).differences == [1, 1, 1]
    assert Claim.of(rows, "d", "", a, b).differences == [-1, -1, -1]
    assert Claim.of(rows[:4], "d", "", b, a).differences == [1]
    others = [{"arm": "a", "seed": 1, "d": ""}, {"arm": "b", "seed": 0}]  # about something else
    assert Claim.of([*rows, *others], "d", "", b, a).differences == [1, 1, 1]


FIGURES = (
    "frechet",
    "unsure",
    "recall",
    "agreement",
    "reconstruction",
    "bits_per_dim",
    "unseen",
    "copied",
    "faces",
)


@pytest.fixture
def rows_of(start, monkeypatch):
    """The rows that an experiment has, of random figures: nothing is trained or drawn."""
    rng = np.random.default_rng(0)
    training_run = ddpm.start_run(Recipe())

    def measure_once(run, key, measure):
        figures = {figure: float(rng.uniform(1, 2)) for figure in FIGURES}
        if not select_rows(run.rows, key):
            run.rows.append({"n": 8, **key, **figures})
        return select_rows(run.rows, key)[0]

    def network(run, name, seed=0, images=None, make_method=None, **changes):
        return TrainedNetwork(Recipe(seed=seed, **changes), None)

    monkeypatch.setattr(ExperimentRun, "measure_once", measure_once)
    monkeypatch.setattr(ExperimentRun, "network", network)
    monkeypatch.setattr(ExperimentRun, "shipped_network", network)
    monkeypatch.setattr(ExperimentRun, "train_until", lambda *key, **changes: training_run)

    def rows_of(name):
        run = start(scale=Scale())
        for seed in range(3):
            EXPERIMENTS[name].measure(run, seed)
        run.measure_real_images()
        return run.rows

    return rows_of


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_picture_finds_the_rows_that_its_experiment_makes(name, rows_of):
    rows = rows_of(name)
    experiment = EXPERIMENTS[name]
    assert {row.get("seed") for row in rows} == {0, 1, 2, None}
    claims = experiment.claims(rows)
    assert all(len(claim.differences) == 3 for claim in claims)
    figure = Figure()
    experiment.plot(rows, figure)
    for ax in figure.axes:
        assert ax.get_title().endswith("?") and "\n" not in ax.get_title()
        assert len(ax.containers) > 0
    text = caption(experiment, rows)
    assert "nan" not in text and all(claim.text in text for claim in claims)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_committed_results_are_still_read(name, start, tmp_path):
    committed = ROOT / "experiments" / name
    experiment = EXPERIMENTS[name]
    write_plot(experiment, read_rows(committed / "results.csv"), tmp_path, "a note")
    assert imageio.imread(tmp_path / "plot.png").std() > 10
    text = (committed / "caption.md").read_text()
    assert (tmp_path / "caption.md").read_text() == f"a note.\n\n{text}"
    now = start(scale=Scale(), training=experiment.training).record()
    record = json.loads((committed / "record.json").read_text())
    assert [record[key] for key in ("scale", "training")] == [now["scale"], now["training"]]


@pytest.mark.parametrize("name", ["guidance", "ddim-table1"])
def test_an_experiment_runs_and_does_nothing_twice(name, tmp_path, monkeypatch, capsys):
    flags = [name, "--quick", "--out", str(tmp_path), "--device", "cpu"]
    flags += ["--data", str(ROOT / "data")]
    monkeypatch.setattr(ddpm, "timesteps", lambda T, steps: [20, 10, 5])
    monkeypatch.setattr(guidance_scale, "SCALES", (1.0, 2.0, 8.0))
    if name == "ddim-table1":
        monkeypatch.setattr(ddim_table1, "SAMPLERS", {"η = 0": ddpm.ddim_sampler})
        monkeypatch.setattr(EXPERIMENTS[name], "plot", lambda rows, figure: None)
        monkeypatch.setattr(EXPERIMENTS[name], "claims", lambda rows: [])
    assert __main__.main(flags) == 0
    out = tmp_path / f"{name}-quick"
    rows = read_rows(out / "results.csv")
    assert {row["seed"] for row in rows} == {0, 1, ""}
    assert all(row["frechet"] != "" or row["reconstruction"] != "" for row in rows)
    record = json.loads((out / "record.json").read_text())
    assert record["command"].startswith(f"python -m experiments {name} --quick")
    assert record["seeds"] == [0, 1] and record["extractor"] == "untrained"
    settings = runner.LONG_TRAINING | {"base_channels": 16, "epochs": TINY.epochs}
    assert record["training"] == settings
    (network,) = record["networks"]
    stem = network.replace(", ", "-")
    folders = {folder.name for folder in (tmp_path / "runs-quick").iterdir()}
    assert folders == {f"{stem}-0", f"{stem}-1"}
    (out / "plot.png").unlink()
    shutil.rmtree(tmp_path / "runs-quick")
    monkeypatch.setattr(ExperimentRun, "draw", lambda *_, **options: pytest.fail("drawn again"))
    monkeypatch.setattr(loop, "fit", lambda *_, **options: pytest.fail("trained again"))
    assert __main__.main(flags) == 0 and (out / "plot.png").is_file()
    assert json.loads((out / "record.json").read_text()) == record
    assert __main__.main([*flags, "--n", "9"]) == 1
    changes = (vars(runner), "QUICK", replace(TINY, n=9)), (runner.LONG_TRAINING, "batch_size", 127)
    for table, key, value in changes:
        with monkeypatch.context() as patch:
            patch.setitem(table, key, value)
            capsys.readouterr()
            assert __main__.main(flags) == 1
            assert str(out) in capsys.readouterr().err, "it holds other results"


def test_a_network_whose_last_save_was_cut_short_is_measured_as_it_was_trained(start, tmp_path):
    run = start(scale=ONE_SEED)
    trained = weights_of(run.network("eps", 0))
    recipe = run.recipe(0)
    untrained = catalogue.make_network(recipe)
    checkpoints.save_checkpoint(tmp_path / "runs" / "eps-0", untrained, recipe, {"steps": 1})
    assert equal(weights_of(run.network("eps", 0)), trained)


def test_a_network_learns_from_its_teacher(start):
    run = start(scale=ONE_SEED)
    alone = weights_of(run.network("eps", 0))
    taught = weights_of(run.network("taught", 0, teacher=str(run.network_folder("eps", 0))))
    assert not torch.equal(taught["conv_out.weight"], alone["conv_out.weight"])


def test_a_network_learns_from_the_images_that_it_is_given(start):
    run = start(scale=ONE_SEED)
    few = run.training_images[:32]  # one batch in each of three epochs
    learned = weights_of(run.network("few", 0, few))
    assert checkpoints.saved_step(run.network_folder("few", 0)) == 3
    inverted = weights_of(run.network("inverted", 0, 255 - few))
    assert not torch.equal(learned["conv_out.weight"], inverted["conv_out.weight"])


def test_a_network_is_trained_by_the_method_that_it_is_given(start):
    run = start(scale=ONE_SEED)
    flat = PlainMethod(lambda network, schedule, x0, t, eps: 0 * network(x0, t).mean((1, 2, 3)))
    kept = weights_of(run.network("flat", 0, make_method=lambda recipe: flat))
    assert equal(kept, catalogue.make_network(run.recipe(0)).state_dict())
    learned = weights_of(run.network("eps", 0))
    assert not torch.equal(learned["conv_out.weight"], kept["conv_out.weight"])


def test_features_to_drift_in_are_those_that_a_classifier_averages(digits):
    classifier = untrained_judge().network
    images = ddpm.to_float(digits[:6]).requires_grad_()
    sets = classifier_features(classifier, images)
    assert all(features.shape[1] == 6 for features in sets)
    means, deviations = sets[-1]
    torch.testing.assert_close(means, classifier(digits[:6]))
    assert (deviations >= 0).all() and not torch.equal(means, deviations)
    (gradient,) = torch.autograd.grad(means.sum(), images)
    assert gradient.abs().max() > 0


def test_the_classifier_to_drift_by_is_trained_once_with_labels(start, monkeypatch):
    fitted = []

    def fit(dataset, *data, **options):
        fitted.append(data)
        return untrained_judge().network, 0.5

    monkeypatch.setattr(one_step, "fit_extractor", fit)
    run = start()
    first, again = (one_step.train_classifier(run) for _ in range(2))
    (((images, labels), (unseen, unseen_labels)),) = fitted
    assert len(images) == len(labels) == 60000 and len(unseen) == len(unseen_labels) == 10000
    assert labels[:3].tolist() == [5, 0, 4] and unseen_labels[:3].tolist() == [7, 2, 1]
    assert equal(first.state_dict(), again.state_dict())


def test_the_second_judge_sees_how_digits_differ(start):
    run = start()
    judge = SecondJudge(run)
    assert abs(judge.distance(run.training_images)) < 1e-3
    assert judge.distance(255 - run.training_images) > 1


def test_only_images_that_the_network_saw_are_copied_and_only_unseen_ones_compared_with(start):
    run = start()
    seen, others = run.training_features[:8], run.training_features[8:16]
    assert compare_with_unseen(run, 8, seen)["copied"] == 1
    assert compare_with_unseen(run, 8, others)["copied"] < 1
    of_unseen = compare_with_unseen(run, 8, run.test_features)["unseen"]
    assert abs(of_unseen) < compare_with_unseen(run, 8, run.training_features)["unseen"] / 100


def test_a_network_of_other_settings_is_not_taken_for_this_one(start, tmp_path):
    run = start("ema")
    trained = run.network("net", 0)
    assert trained.recipe == run.recipe(0)
    assert not (tmp_path / "runs-quick").exists(), "trained when it is needed"
    assert trained.network() is trained.network()
    assert (tmp_path / "runs-quick" / "net-0" / "model.safetensors").is_file()
    run.network("net", 0).network()
    with pytest.raises(ValueError, match="net-0"):
        run.network("net", 0, prediction="v").network()


def test_a_record_keeps_the_machine_of_earlier_rows(start, tmp_path):
    path = tmp_path / "mine" / "record.json"
    record = start(scale=ONE_SEED).record()
    path.parent.mkdir()
    path.write_text(json.dumps(record | {"device": "cuda"}))
    run = start(scale=ONE_SEED)
    for x in range(2):
        run.measure_once({"arm": "mine", "x": x}, dict)
    earlier = {name: record[name] for name in ("hardware", "threads", "versions")}
    earlier |= {"device": "cuda"}
    assert json.loads(path.read_text()) == record | {"earlier": [earlier]}
    assert start(scale=ONE_SEED).record()["earlier"] == [earlier]


def test_raw_and_averaged_weights_are_of_one_run(start, tmp_path, monkeypatch):
    monkeypatch.setattr(ddpm, "timesteps", lambda T, steps: [20, 10, 5])
    run = start("ema", ONE_SEED)
    are_averaged = []
    draw = ExperimentRun.draw

    def watched(run, trained, *arguments, **options):
        weights = trained.network().parameters()
        are_averaged.append(not any(weight.requires_grad for weight in weights))
        return draw(run, trained, *arguments, **options)

    monkeypatch.setattr(ExperimentRun, "draw", watched)
    EXPERIMENTS["ema"].measure(run, 0)
    assert are_averaged == [row["arm"].startswith("averaged") for row in run.rows]
    networks = json.loads((tmp_path / "ema" / "record.json").read_text())["networks"]
    steady = {"epochs": 100 * ONE_SEED.epochs, "learning_rate": 2.5e-3}
    assert networks["steady rate"] == steady
    state, *_ = saving.load_state(tmp_path / "runs" / "steady-rate-0")
    assert state["step"] == 6
    assert {(row["arm"], row["step"]) for row in run.rows} == {
        (f"{weights}, {rate} rate", step)
        for weights in ("raw", "averaged")
        for rate in ("falling", "steady")
        for step in range(1, 7)
    }


def test_a_sampler_takes_as_many_steps_as_its_evaluations_allow():
    """Heun's method takes 1, 2, 4 and 7 for one to four steps."""
    schedule = catalogue.make_schedule(Recipe())
    heun = [len(steps.times_within(k, steps.SAMPLERS["Heun"], schedule)) for k in range(1, 9)]
    assert heun == [1, 2, 2, 3, 3, 3, 4, 4]
    assert len(steps.times_within(8, steps.SAMPLERS["DDIM"], schedule)) == 8


def test_a_shipped_checkpoint_is_evaluated_as_often_as_its_row_says(tmp_path, monkeypatch, capsys):
    recipe = Recipe(**NETWORK)
    network = catalogue.make_network(recipe)
    for name in (steps.NETWORK, "mnist-guide"):  # there is no mnist-few
        checkpoints.save_checkpoint(tmp_path / "checkpoints" / name, network, recipe, {"steps": 1})
    find = checkpoints.find
    monkeypatch.setattr(checkpoints, "find", lambda path: find(tmp_path / path))
    monkeypatch.setattr(steps, "BUDGETS", (1, 8))
    monkeypatch.setattr(steps, "SAMPLERS", {k: steps.SAMPLERS[k] for k in ("Heun", steps.BEST)})
    monkeypatch.setattr(steps, "OTHERS", ("mnist-guide",))
    monkeypatch.setattr(EXPERIMENTS["steps"], "plot", lambda rows, figure: None)
    monkeypatch.setattr(EXPERIMENTS["steps"], "claims", lambda rows: [])
    calls = []
    draw = ExperimentRun.draw

    def watched(run, trained, *arguments, **options):
        calls.append(0)

        def count(*_):
            calls[-1] += 1

        with trained.network().register_forward_hook(count):
            return draw(run, trained, *arguments, **options)

    monkeypatch.setattr(ExperimentRun, "draw", watched)
    flags = ["steps", "--quick", "--out", str(tmp_path), "--data", str(ROOT / "data")]
    flags += ["--device", "cpu"]
    assert __main__.main(flags) == 0
    assert "mnist-few is left out" in capsys.readouterr().out
    rows = read_rows(tmp_path / "steps-quick" / "results.csv")[:-1]  # the last is of real images
    assert calls == [row["S"] for row in rows]
    for name, expected in (("Heun", [1, 7]), (steps.BEST, [1, 8])):
        assert (
            sorted({row["S"] for row in rows if row["arm"] == f"{steps.NETWORK}, {name}"})
            == expected
        )
    folder = tmp_path / "checkpoints" / steps.NETWORK
    checkpoints.save_checkpoint(folder, network, replace(recipe, seed=1), {"steps": 2})
    calls.clear()
    assert __main__.main(flags) == 0 and calls == [], "the same weights"
    other = catalogue.make_network(replace(recipe, seed=1))
    checkpoints.save_checkpoint(folder, other, recipe, {"steps": 2})
    assert __main__.main(flags) == 1 and steps.NETWORK in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["ema", "--quick", "--device", "nonsense"], "nonsense"),
        (["ema", "--bits", "1"], "--bits is 1"),
        (["ema", "--seeds", "9" * 30], "--seeds"),
        (["ema", "--\x1b[31m"], "x1b"),
        (["fly"], "ddpm-table2, iddpm-schedules, ddim-table1, ema, guidance"),
    ],
)
def test_bad_requests_end_in_one_line(flags, named, tmp_path, capsys):
    assert __main__.main([*flags, "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert named in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("record.json", "[]"),
        ("record.json", "[" * 100_000),
        ("record.json", '{"scale": 1}'),
        ("record.json", None),
        ("results.csv", "arm,seed,frechet\nreal,0,12"),
        ("results.csv", "arm,seed,frechet\nreal,0\n"),
        ("results.csv", "arm,seed,frechet\nreal,0,NaN\n"),
        ("results.csv", None),
    ],
)
def test_damaged_results_end_in_one_line(name, content, tmp_path, capsys):
    path = tmp_path / "ema-quick" / name
    path.parent.mkdir()
    if content is None:
        os.mkfifo(path)
    else:
        path.write_text(content)
    assert __main__.main(["ema", "--quick", "--device", "cpu", "--out", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert str(path) in error and error.count("\n") == 1


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_ends_with_its_status_and_how_to_go_on(name, status, monkeypatch, capsys):
    stop = lambda flags, typed: signal.raise_signal(getattr(signal, name))  # noqa: E731
    monkeypatch.setattr(registry, "run_experiment", stop)
    assert __main__.main(["ema"]) == status
    assert "same command" in capsys.readouterr().err


def test_a_pipe_at_the_name_of_the_plot_is_replaced(rows_of, tmp_path):
    os.mkfifo(tmp_path / "plot.png")
    write_plot(EXPERIMENTS["ema"], rows_of("ema"), tmp_path)
    assert imageio.imread(tmp_path / "plot.png").ndim == 3


def test_an_experiment_outlives_its_streams():
    command = [sys.executable, "-m", "experiments", "--help"]
    with open("/dev/full", "w") as full:
        assert subprocess.run(command, stdout=full, stderr=full, cwd=ROOT).returncode == 0
