"""The papers in miniature: bookkeeping, statistics, plots, and one experiment from end to end."""

import csv
import json
import math
import shutil
from dataclasses import replace

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from conftest import ROOT
from matplotlib.figure import Figure

from mnist_ddpm import ddpm, experiments, resumable, runs
from mnist_ddpm.experiments import EXPERIMENTS, QUICK, Lab, Scale, column, interval, number, paired, verdict, verdicts
from mnist_ddpm.extractors import Extractor, Judge

TINY = replace(QUICK, epochs=2, n=8, bits=2, seeds=2, long=20)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Little data, and an untrained extractor."""
    torch.manual_seed(0)
    judge = Judge(Extractor("mnist", 10, (8, 8)).eval().requires_grad_(False), "untrained")
    images = ddpm.load_images(ddpm.Settings(), ROOT / "data")[:64]
    monkeypatch.setattr(Lab, "judge", judge)
    monkeypatch.setattr(Lab, "training", images)
    monkeypatch.setattr(Lab, "unseen", images.flip(0))
    monkeypatch.setattr(experiments, "QUICK", TINY)
    settings = lambda lab, seed, **changes: ddpm.Settings(  # noqa: E731
        **{"base_channels": 8, "channel_mults": (1, 2), "T": 60, "batch_size": 32, "epochs": 3, "seed": seed, **changes}
    )
    monkeypatch.setattr(Lab, "settings", settings)
    monkeypatch.setattr(Lab, "known", judge.features(images))


def test_rows_come_back_from_the_file_as_they_were(tmp_path):
    lab = Lab(tmp_path, TINY, ROOT / "data", torch.device("cpu"), experiments.BRIEFLY)
    rows = [
        {"arm": "a, b", "seed": 0, "S": 10, "frechet": 0.1 + 0.2}, {"arm": "real", "n": 500, "scale": 1.0},
        {"arm": "2e-3", "n": 500},
    ]  # fmt: skip
    for row in rows:
        lab.measured({"arm": row["arm"]}, lambda row=row: row)
    again = Lab(tmp_path, TINY, ROOT / "data", torch.device("cpu"), experiments.BRIEFLY)
    assert [{k: v for k, v in row.items() if v != ""} for row in again.rows] == rows
    for row in rows:
        again.measured(row, lambda: pytest.fail("it is there already"))
    assert [number(text) for text in ("3", "3.0", "-1e-5", "x0, L", "")] == [3, 3.0, -1e-5, "x0, L", ""]


def test_an_experiment_says_how_long_its_networks_train_unless_told(tmp_path):
    for training in (experiments.BRIEFLY, experiments.LONGER):
        for epochs, expected in ((None, training["epochs"]), (0.5, 0.5)):
            lab = Lab(tmp_path, Scale(epochs=epochs), ROOT / "data", torch.device("cpu"), training)
            assert lab.common == {**training, "base_channels": 16, "epochs": expected}
            assert lab.scale.epochs == expected


def test_intervals_over_seeds_are_students():
    """Of 1, 2, 6: mean 3, deviation sqrt(7), so half a width of 4.303 sqrt(7 / 3)."""
    rows = [{"arm": "a", "seed": k, "d": d} for k, d in enumerate([1, 2, 6])] + [{"arm": "b", "d": 9}, {"arm": "a"}]
    mean, half = interval(column(rows, "d", arm="a"))
    assert mean == 3 and half == pytest.approx(4.303 * math.sqrt(7 / 3))
    assert interval(column(rows, "d", arm="b"))[0] == 9 and math.isnan(interval([9])[1])
    for n, quantile in ((9, 2.306), (20, 2.093), (100, 1.984)):
        values = [-1.0, 1.0, *[0.0] * (n - 2)]
        assert interval(values)[1] == pytest.approx(quantile * np.std(values, ddof=1) / math.sqrt(n), rel=0.005)
    assert column(rows, "d", arm="c") == [] and math.isnan(interval([])[0])


def test_lines_show_intervals_of_logarithms_where_the_scale_is_one_of_them():
    rows = [{"arm": "a", "x": 1, "d": d} for d in (1, 10, 100)]
    ends = {}
    for log in (False, True):
        ax = Figure().subplots()
        experiments.lines(ax, rows, "d", "x", {"a": {"arm": "a"}}, log)
        ((_, low), (_, high)) = ax.collections[0].get_segments()[0]
        ends[log] = low, high
    half = 4.303 / math.sqrt(3)  # in factors of ten
    assert ends[True] == pytest.approx((10 ** (1 - half), 10 ** (1 + half))) and ends[False][0] < 0


def test_verdicts_say_what_the_differences_bear_out():
    assert verdict("A", [-1.0, -1.1, -0.9]) == "A: holds here"
    assert verdict("A", [1.0, 1.1, 0.9]) == "A: the other way round here"
    assert verdict("A", [-1.0, 0.5, -0.3]) == "A: seen here, within the noise of 3 seeds"
    assert verdict("A", [1.0, -0.5, 0.3]) == "A: not seen here, within the noise of 3 seeds"
    assert "within the noise of 1 seed" in verdict("A", [-1.0])


def test_differences_are_of_the_same_seed():
    rows = [{"arm": arm, "seed": seed, "d": 10 * seed + (arm == "b")} for arm in "ab" for seed in (2, 0, 1)]
    assert paired(rows, "d", {"arm": "b"}, {"arm": "a"}) == [1, 1, 1]
    assert paired(rows[:4], "d", {"arm": "b"}, {"arm": "a"}) == [1]
    assert paired(rows[:4], "d", {"arm": "a"}, {"arm": "b"}) == [-1]
    others = [{"arm": "a", "seed": 1, "d": ""}, {"arm": "b", "seed": 0}]  # rows about something else
    assert paired([*rows, *others], "d", {"arm": "b"}, {"arm": "a"}) == [1, 1, 1]


def test_a_claim_is_that_the_first_kind_has_less():
    rows = [{"arm": arm, "seed": seed, "d": seed + (arm == "b")} for arm in "ab" for seed in range(3)]
    a, b = {"arm": "a"}, {"arm": "b"}
    found = verdicts(rows, "d", ("a below b", a, b), ("b below a", b, a))
    assert found == "a below b: holds here\nb below a: the other way round here"


FIGURES = "frechet", "recall", "agreement", "reconstruction", "bits_per_dim"
CLAIMS = {  # kinds of rows: that which the claim names, and the other
    ("ddpm-table2", "L_simple beats L"): ({"arm": "eps, L_simple"}, {"arm": "eps, L"}),
    ("iddpm-schedules", "vlb fewest"): (
        {"arm": "4k cosine, vlb", "measure": "bound"},
        {"arm": "4k cosine, hybrid", "measure": "bound"},
    ),
    ("iddpm-schedules", "vlb draws worse than hybrid"): (
        {"arm": "4k cosine, hybrid", "steps": 100},
        {"arm": "4k cosine, vlb", "steps": 100},
    ),
    ("iddpm-schedules", "hybrid: 4000 steps beat 100"): (
        {"arm": "4k cosine, hybrid", "steps": 4000, "skipped": 0.0},
        {"arm": "4k cosine, hybrid", "steps": 100},
    ),
    ("ddim-table1", "10 steps: η = 0 beats η = 1"): ({"arm": "η = 0", "S": 10}, {"arm": "η = 1", "S": 10}),
    ("ddim-table1", "more steps, smaller error"): (
        {"arm": "reconstruction", "S": 100},
        {"arm": "reconstruction", "S": 10},
    ),
    ("ema", "steady rate: averaging helps"): ({"arm": "averaged, steady rate"}, {"arm": "raw, steady rate"}),
    ("guidance", "2 beats 8"): ({"arm": "guided", "scale": 2.0}, {"arm": "guided", "scale": 8.0}),
    ("guidance", "8 costs variety"): ({"arm": "guided", "scale": 8.0}, {"arm": "guided", "scale": 1.0}),
}


@pytest.fixture
def rows_of(tmp_path, monkeypatch):
    """The rows that an experiment makes, of random figures: nothing is trained or drawn."""
    rng = np.random.default_rng(0)

    def measured(lab, key, measure):
        lab.rows.append({"n": 8, **dict.fromkeys(["frechet", "recall", "agreement"], 0.0), **key})
        lab.rows[-1] |= {figure: float(rng.uniform(1, 2)) for figure in FIGURES}
        return lab.rows[-1]

    def network(lab, name, seed, **changes):
        settings = ddpm.Settings(**{"seed": seed, **changes})
        return None, ddpm.make_schedule(settings), settings

    monkeypatch.setattr(Lab, "measured", measured)
    monkeypatch.setattr(Lab, "network", network)
    monkeypatch.setattr(ddpm, "training_loop", lambda *arguments: iter(()))

    def make(name):
        lab = Lab(tmp_path, Scale(), ROOT / "data", torch.device("cpu"), experiments.BRIEFLY)
        EXPERIMENTS[name].run(lab)
        return lab.rows

    return make


@pytest.mark.parametrize(("name", "claim"), CLAIMS)
def test_claims_hold_where_the_one_that_is_named_has_less(name, claim, rows_of):
    rows = rows_of(name)
    for key, value in zip(CLAIMS[name, claim], (1.0, 2.0)):
        chosen = [row for row in rows if all(row.get(name) == wanted for name, wanted in key.items())]
        assert len(chosen) >= 3
        for row in chosen:
            row |= dict.fromkeys(FIGURES, value + row["seed"] / 9)
    figure = Figure(figsize=(12, 4))
    EXPERIMENTS[name].plot(rows, figure)
    assert f"{claim}: holds here" in "\n".join(ax.get_title() for ax in figure.axes)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_plot_finds_the_rows_that_its_experiment_makes(name, rows_of, tmp_path):
    rows, experiment = rows_of(name), EXPERIMENTS[name]
    assert {row.get("seed") for row in rows} == {0, 1, 2, None}
    figure = Figure(figsize=(experiment.width, 4))
    experiment.plot(rows, figure)
    titles = " ".join(ax.get_title() for ax in figure.axes)
    assert "here" in titles and "nan" not in titles and "of 0 seeds" not in titles and "of 3 seeds" in titles
    experiments.draw_plot(name, rows, tmp_path / "plot.png")
    assert imageio.imread(tmp_path / "plot.png").std() > 10


@pytest.mark.parametrize("name", ["guidance", "ddim-table1"])
def test_an_experiment_runs_and_does_nothing_twice(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(experiments.evaluation, "NEIGHBOURS", 1)
    flags = [name, "--quick", "--out", str(tmp_path), "--device", "cpu", "--data", str(ROOT / "data")]
    if name == "ddim-table1":
        monkeypatch.setattr(experiments, "METHODS", dict(list(experiments.METHODS.items())[:1]))
        plain = EXPERIMENTS[name]._replace(plot=lambda rows, figure: figure.subplots())
        monkeypatch.setitem(EXPERIMENTS, name, plain)
        monkeypatch.setattr(ddpm, "timesteps", lambda T, steps, spacing="trailing": [20, 10, 5])
    assert experiments.main(flags) == 0
    out = tmp_path / f"{name}-quick"
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["seed"] for row in rows} == {"0", "1", ""} and all(
        row["frechet"] or row["reconstruction"] for row in rows
    )
    record = json.loads((out / "record.json").read_text())
    assert record["command"].startswith(f"python -m mnist_ddpm.experiments {name} --quick")
    assert record["seeds"] == [0, 1] and record["extractor"] == "untrained" and record["device"] == "cpu"
    assert record["training"] == {**experiments.LONGER, "base_channels": 16, "epochs": TINY.epochs}
    trained = {folder.name.rpartition("-")[0] for folder in (tmp_path / "runs-quick").iterdir()}
    assert {experiments.slug(network) for network in record["networks"]} == trained, "with what each changes"
    (out / "plot.png").unlink()
    shutil.rmtree(tmp_path / "runs-quick")
    monkeypatch.setattr(Lab, "draw", lambda *arguments, **options: pytest.fail("it is done already"))
    monkeypatch.setattr(runs, "fit", lambda *arguments, **options: pytest.fail("nothing asks for a network"))
    assert experiments.main(flags) == 0 and (out / "plot.png").is_file()
    assert json.loads((out / "record.json").read_text()) == record, "it says how the results came about"
    assert experiments.main([*flags, "--n", "9"]) == 1 and "leave out the others" in capsys.readouterr().err
    with monkeypatch.context() as other:
        other.setattr(experiments, "QUICK", replace(TINY, n=9))
        assert experiments.main(flags) == 1 and "holds results of another scale" in capsys.readouterr().err
    with monkeypatch.context() as other:
        other.setitem(experiments.LONGER, "batch_size", 127)
        assert experiments.main(flags) == 1 and "holds results of another training" in capsys.readouterr().err


def test_a_network_whose_last_save_was_cut_short_is_measured_as_it_was_trained(tmp_path):
    lab = Lab(tmp_path / "mine", replace(TINY, seeds=1), ROOT / "data", torch.device("cpu"), experiments.BRIEFLY)
    network, _, settings = lab.network("eps", 0)
    trained = network().state_dict()
    ddpm.save_checkpoint(tmp_path / "runs" / "eps-0", ddpm.make_model(settings), settings, {"steps": 1})
    again = lab.network("eps", 0)[0]().state_dict()
    assert all(torch.equal(again[name], weights) for name, weights in trained.items())


def test_a_record_keeps_the_machine_of_earlier_rows(tmp_path):
    options = Scale(seeds=1), ROOT / "data", torch.device("cpu"), experiments.BRIEFLY
    path, record = tmp_path / "record.json", Lab(tmp_path, *options).record()
    path.write_text(json.dumps(record | {"device": "cuda"}))
    lab = Lab(tmp_path, *options)
    for x in range(2):
        lab.measured({"x": x}, dict)
    there = {name: record[name] for name in ("hardware", "threads", "versions")} | {"device": "cuda"}
    assert json.loads(path.read_text()) == record | {"earlier": [there]}
    assert Lab(tmp_path, *options).record()["earlier"] == [there]


def test_averaged_weights_are_measured_beside_the_raw_ones_of_the_same_run(tmp_path, monkeypatch):
    monkeypatch.setattr(ddpm, "timesteps", lambda T, steps, spacing="trailing": [20, 10, 5])
    scale = replace(TINY, seeds=1)
    lab = Lab(
        resumable.writable_folder(tmp_path / "ema"), scale, ROOT / "data", torch.device("cpu"), experiments.BRIEFLY
    )
    frozen, draw = [], Lab.draw

    def watched(lab, model, *rest, **more):
        frozen.append(not any(p.requires_grad for p in model.parameters()))
        return draw(lab, model, *rest, **more)

    monkeypatch.setattr(Lab, "draw", watched)
    experiments.ema(lab)
    assert frozen == [row["arm"].startswith("averaged") for row in lab.rows if "step" in row]
    networks = json.loads((tmp_path / "ema" / "record.json").read_text())["networks"]
    assert networks["steady rate"] == {"epochs": 100 * scale.epochs, "learning_rate": 2.5e-3}, "as it was trained"
    run = runs.resume_run(tmp_path / "runs" / "steady-rate-0")
    assert run.step == 6 and {(row["arm"], row["step"]) for row in lab.rows if "step" in row} == {
        (f"{weights}, {rate} rate", step)
        for weights in ("raw", "averaged")
        for rate in ("falling", "steady")
        for step in range(1, 7)
    }


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["ema", "--quick", "--device", "nonsense"], 'device "nonsense" is not to be had'),
        (["ema", "--bits", "1"], "--seeds must be at least 1, --n 4, --bits 2, and --long from 1 to 1000"),
        (["fly"], 'experiment "fly" is unknown: take one of ddpm-table2, iddpm-schedules, ddim-table1, ema, guidance'),
    ],
)
def test_bad_requests_end_in_one_line(flags, message, tmp_path, capsys):
    assert experiments.main([*flags, "--out", str(tmp_path)]) == 1 and message in capsys.readouterr().err


def test_a_network_of_other_settings_is_not_taken_for_this_one(tmp_path):
    lab = Lab(tmp_path / "ema", TINY, ROOT / "data", torch.device("cpu"), experiments.BRIEFLY)
    network, _, settings = lab.network("net", 0)
    assert settings == lab.settings(0) and not (tmp_path / "runs-quick").exists(), "trained when it is needed"
    assert network() is network() and (tmp_path / "runs-quick" / "net-0" / "model.safetensors").is_file()
    lab.network("net", 0)[0]()
    with pytest.raises(ValueError, match="net-0 was trained with other settings: remove it"):
        lab.network("net", 0, prediction="v")[0]()
