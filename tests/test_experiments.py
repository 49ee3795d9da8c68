"""The papers in miniature: bookkeeping, statistics, pictures, and experiments from end to end."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from mnist_ddpm import catalogue, ddpm, trainer
from mnist_ddpm.evaluation.extractors import Extractor, Judge
from mnist_ddpm.experiments import __main__ as command
from mnist_ddpm.experiments import ddim_table1, ema, guidance_scale, runner, steps
from mnist_ddpm.experiments.claims import Claim, claim, interval
from mnist_ddpm.experiments.experiment_flags import Scale
from mnist_ddpm.experiments.plots import caption, draw_plot, lines
from mnist_ddpm.experiments.registry import EXPERIMENTS
from mnist_ddpm.experiments.rows import column, number, read_rows
from mnist_ddpm.experiments.runner import BRIEFLY, LONGER, QUICK, Lab, Trained
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.training import loop, saving
from mnist_ddpm.training.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]
TINY = replace(QUICK, epochs=2, n=8, bits=2, seeds=2, long=20)
SMALL = {"channel_mults": (1, 2), "T": 60, "batch_size": 32, "epochs": 3}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Little data, small networks, and an untrained extractor."""
    torch.manual_seed(0)
    judge = Judge(Extractor("mnist", 10, (8, 8)).eval().requires_grad_(False), "untrained")
    images = ddpm.load_mnist(root=ROOT / "data")[:64]

    def recipe(lab: Lab, seed: int, **changes) -> Recipe:
        return Recipe(**{"base_channels": 8, **SMALL, "seed": seed, **changes})

    made = {"judge": judge, "training": images, "unseen": images.flip(0)[:16], "recipe": recipe}
    for name, value in (made | {"known": judge.features(images)}).items():
        monkeypatch.setattr(Lab, name, value)
    monkeypatch.setattr(runner, "QUICK", TINY)


@pytest.fixture
def place(tmp_path):
    """Makes a lab in a folder of this name."""

    def make(name="mine", scale=TINY, training=BRIEFLY):
        return Lab(tmp_path / name, scale, ROOT / "data", torch.device("cpu"), training)

    return make


def test_rows_come_back_from_the_file_as_they_were(place):
    rows = [
        {"arm": "a, b", "seed": 0, "S": 10, "frechet": 0.1 + 0.2},
        {"arm": "real", "n": 500, "scale": 1.0},
        {"arm": "2e-3", "n": 500},
    ]
    first = place()
    for row in rows:
        first.measured({"arm": row["arm"]}, lambda row=row: row)
    again = place()
    assert [{k: v for k, v in row.items() if v != ""} for row in again.rows] == rows
    for row in rows:
        again.measured(row, lambda: pytest.fail("it is there already"))
    texts = "3", "3.0", "-1e-5", "x0, L", ""
    assert [number(text) for text in texts] == [3, 3.0, -1e-5, "x0, L", ""]


def test_an_experiment_says_how_long_its_networks_train_unless_told(place):
    for training in (BRIEFLY, LONGER):
        for epochs, expected in ((None, training["epochs"]), (0.5, 0.5)):
            made = place(scale=Scale(epochs=epochs), training=training)
            assert made.common == {**training, "base_channels": 16, "epochs": expected}
            assert made.scale.epochs == expected


def test_intervals_over_seeds_are_students():
    """Of 1, 2, 6: mean 3, deviation sqrt(7), so half a width of 4.303 sqrt(7 / 3)."""
    rows = [{"arm": "a", "seed": k, "d": d} for k, d in enumerate([1, 2, 6])]
    rows += [{"arm": "b", "d": 9}, {"arm": "a"}]
    mean, half = interval(column(rows, "d", arm="a"))
    assert mean == 3 and half == pytest.approx(4.303 * math.sqrt(7 / 3))
    assert interval(column(rows, "d", arm="b"))[0] == 9 and math.isnan(interval([9])[1])
    for n, quantile in ((9, 2.306), (20, 2.093), (100, 1.984)):
        values = [-1.0, 1.0, *[0.0] * (n - 2)]
        expected = quantile * np.std(values, ddof=1) / math.sqrt(n)
        assert interval(values)[1] == pytest.approx(expected, rel=0.005)
    assert column(rows, "d", arm="c") == [] and math.isnan(interval([])[0])


def test_lines_show_intervals_of_logarithms_where_the_scale_is_one_of_them():
    rows = [{"arm": "a", "x": 1, "d": d} for d in (1, 10, 100)]
    ends = {}
    for log in (False, True):
        ax = Figure().subplots()
        lines(ax, rows, "d", "x", {"a": {"arm": "a"}}, log)
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
def test_verdicts_say_what_the_differences_bear_out(differences, verdict):
    zeros = dict.fromkeys(range(len(differences)), 0.0)
    assert Claim("A", dict(enumerate(differences)), zeros).verdict == verdict


def test_differences_are_of_the_same_seed():
    rows = [
        {"arm": arm, "seed": seed, "d": 10 * seed + (arm == "b")}
        for arm in "ab"
        for seed in (2, 0, 1)
    ]
    a, b = {"arm": "a"}, {"arm": "b"}
    assert claim(rows, "d", "", b, a).differences == [1, 1, 1]
    assert claim(rows, "d", "", a, b).differences == [-1, -1, -1]
    assert claim(rows[:4], "d", "", b, a).differences == [1]
    others = [{"arm": "a", "seed": 1, "d": ""}, {"arm": "b", "seed": 0}]  # about something else
    assert claim([*rows, *others], "d", "", b, a).differences == [1, 1, 1]


FIGURES = "frechet", "unsure", "recall", "agreement", "reconstruction", "bits_per_dim"
HYBRID, VLB = {"arm": "4k cosine, hybrid"}, {"arm": "4k cosine, vlb"}
STEADY = "with a steady rate, averaging helps"
CLAIMS = {  # kinds of rows: that which the claim names, and the other
    ("ddpm-table2", "L_simple beats L"): ({"arm": "eps, L_simple"}, {"arm": "eps, L"}),
    ("iddpm-schedules", "vlb needs the fewest bits"): (
        VLB | {"measure": "bound"}, HYBRID | {"measure": "bound"},
    ),
    ("iddpm-schedules", "vlb draws worse than hybrid"): (
        HYBRID | {"steps": 100}, VLB | {"steps": 100},
    ),
    ("iddpm-schedules", "with hybrid, 4000 steps beat 100"): (
        HYBRID | {"steps": 4000, "skipped": 0.0}, HYBRID | {"steps": 100},
    ),
    ("ddim-table1", "in 10 steps, η = 0 beats η = 1"): (
        {"arm": "η = 0", "S": 10}, {"arm": "η = 1", "S": 10},
    ),
    ("ddim-table1", "more steps make a smaller error"): (
        {"arm": "reconstruction", "S": 100}, {"arm": "reconstruction", "S": 10},
    ),
    ("ema", STEADY): ({"arm": "averaged, steady rate"}, {"arm": "raw, steady rate"}),
    ("guidance", "a scale of 2 draws better than 8"): ({"scale": 2.0}, {"scale": 8.0}),
    ("guidance", "a scale of 8 costs variety"): ({"scale": 8.0}, {"scale": 1.0}),
    ("plain", "a guided teacher helps"): (
        {"arm": "taught by mnist, guided"}, {"arm": "eps, L_simple"},
    ),
    ("plain", "with logit-normal times the straight path helps"): (
        {"arm": "flow matching"}, {"arm": "eps, logit-normal times"},
    ),
    ("steps", "two evaluations of mnist-few beat one"): (
        {"arm": "mnist-few, anew", "S": 2}, {"arm": "mnist-few, anew", "S": 1},
    ),
    ("steps", "in 8 evaluations, DDIM beats ancestral sampling"): (
        {"arm": "mnist, DDIM", "S": 8}, {"arm": "mnist, DDPM", "S": 8},
    ),
}  # fmt: skip


@pytest.fixture
def rows_of(place, monkeypatch):
    """The rows that an experiment makes, of random figures: nothing is trained or drawn."""
    rng = np.random.default_rng(0)

    def measured(lab: Lab, key: dict, measure) -> dict:
        lab.rows.append({"n": 8, **key})
        lab.rows[-1] |= {figure: float(rng.uniform(1, 2)) for figure in FIGURES}
        return lab.rows[-1]

    def network(lab: Lab, name: str, seed: int, **changes) -> Trained:
        return Trained(Recipe(seed=seed, **changes), None)

    monkeypatch.setattr(Lab, "measured", measured)
    monkeypatch.setattr(Lab, "network", network)
    monkeypatch.setattr(Lab, "shipped", lambda lab, name: Trained(Recipe(), None))
    run = ddpm.start_run(Recipe())
    monkeypatch.setattr(Lab, "trained_until", lambda lab, *key, **changes: run)

    def make(name: str) -> list[dict]:
        made = place(scale=Scale())
        EXPERIMENTS[name].run(made)
        return made.rows

    return make


@pytest.mark.parametrize(("name", "text"), CLAIMS)
def test_claims_hold_where_the_one_that_is_named_has_less(name, text, rows_of):
    rows = rows_of(name)
    for key, value in zip(CLAIMS[name, text], (1.0, 2.0)):
        chosen = [row for row in rows if key.items() <= row.items()]
        assert len(chosen) >= 3
        for row in chosen:
            row |= dict.fromkeys(FIGURES, value + row["seed"] / 9)
    verdicts = {each.text: each.verdict for each in EXPERIMENTS[name].claims(rows)}
    assert verdicts[text] == "holds here"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_picture_finds_the_rows_that_its_experiment_makes(name, rows_of):
    rows, experiment = rows_of(name), EXPERIMENTS[name]
    assert {row.get("seed") for row in rows} == {0, 1, 2, None}
    assert all(len(each.differences) == 3 for each in experiment.claims(rows))
    figure = Figure()
    experiment.plot(rows, figure)
    for ax in figure.axes:
        assert ax.get_title().endswith("?") and "\n" not in ax.get_title()
        assert len(ax.containers) > 0
    text = caption(experiment, rows)
    assert "nan" not in text and all(each.text in text for each in experiment.claims(rows))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_committed_results_are_still_read(name, place, tmp_path):
    rows = read_rows(ROOT / "experiments" / name / "results.csv")
    committed = ROOT / "experiments" / name
    draw_plot(EXPERIMENTS[name], rows, tmp_path, "a note")
    assert imageio.imread(tmp_path / "plot.png").std() > 10
    text = (committed / "caption.md").read_text()
    assert (tmp_path / "caption.md").read_text() == f"a note.\n\n{text}"
    made = place(scale=Scale(), training=EXPERIMENTS[name].training).record()
    record = json.loads((committed / "record.json").read_text())
    assert [record[key] for key in ("scale", "training")] == [made["scale"], made["training"]]


@pytest.mark.parametrize("name", ["guidance", "ddim-table1"])
def test_an_experiment_runs_and_does_nothing_twice(name, tmp_path, monkeypatch, capsys):
    flags = [name, "--quick", "--out", str(tmp_path), "--device", "cpu"]
    flags += ["--data", str(ROOT / "data")]
    monkeypatch.setattr(ddpm, "timesteps", lambda T, steps: [20, 10, 5])
    monkeypatch.setattr(guidance_scale, "SCALES", (1.0, 2.0, 8.0))
    if name == "ddim-table1":
        methods = dict(list(ddim_table1.METHODS.items())[:1])
        monkeypatch.setattr(ddim_table1, "METHODS", methods)
        plain = EXPERIMENTS[name]._replace(plot=lambda rows, figure: None, claims=lambda rows: [])
        monkeypatch.setitem(EXPERIMENTS, name, plain)
    assert command.main(flags) == 0
    out = tmp_path / f"{name}-quick"
    rows = read_rows(out / "results.csv")
    assert {row["seed"] for row in rows} == {0, 1, ""}
    assert all(row["frechet"] != "" or row["reconstruction"] != "" for row in rows)
    record = json.loads((out / "record.json").read_text())
    assert record["command"].startswith(f"python -m mnist_ddpm.experiments {name} --quick")
    assert record["seeds"] == [0, 1] and record["extractor"] == "untrained"
    assert record["training"] == {**LONGER, "base_channels": 16, "epochs": TINY.epochs}
    trained = {folder.name for folder in (tmp_path / "runs-quick").iterdir()}
    (network,) = record["networks"]
    stem = network.replace(", ", "-")
    assert trained == {f"{stem}-0", f"{stem}-1"}
    (out / "plot.png").unlink()
    shutil.rmtree(tmp_path / "runs-quick")
    monkeypatch.setattr(Lab, "draw", lambda *arguments, **options: pytest.fail("done already"))
    monkeypatch.setattr(loop, "fit", lambda *arguments, **options: pytest.fail("not asked for"))
    assert command.main(flags) == 0 and (out / "plot.png").is_file()
    assert json.loads((out / "record.json").read_text()) == record
    assert command.main([*flags, "--n", "9"]) == 1
    for table, key, value in (
        (vars(runner), "QUICK", replace(TINY, n=9)),
        (LONGER, "batch_size", 127),
    ):
        with monkeypatch.context() as other:
            other.setitem(table, key, value)
            capsys.readouterr()
            assert command.main(flags) == 1
            assert str(out) in capsys.readouterr().err, "it holds other results"


def test_a_network_whose_last_save_was_cut_short_is_measured_as_it_was_trained(place, tmp_path):
    made = place(scale=replace(TINY, seeds=1))
    trained = made.network("eps", 0).network().state_dict()
    fresh = catalogue.make_network(made.recipe(0))
    trainer.save_checkpoint(tmp_path / "runs" / "eps-0", fresh, made.recipe(0), {"steps": 1})
    again = made.network("eps", 0).network().state_dict()
    assert all(torch.equal(again[name], weights) for name, weights in trained.items())


def test_a_sampler_takes_as_many_steps_as_its_evaluations_allow():
    """Heun's method takes 1, 2, 4 and 7 for one to four steps."""
    schedule = catalogue.make_schedule(Recipe())
    found = {k: len(steps.times_within(k, steps.SAMPLERS["Heun"], schedule)) for k in range(1, 9)}
    assert [*found.values()] == [1, 2, 2, 3, 3, 3, 4, 4]
    assert len(steps.times_within(8, steps.SAMPLERS["DDIM"], schedule)) == 8


def test_a_network_learns_from_its_teacher(place, tmp_path):
    made = place(scale=replace(TINY, seeds=1))
    alone = made.network("eps", 0).network().state_dict()
    taught = made.network("taught", 0, teacher=str(made.folder("eps", 0))).network().state_dict()
    assert not torch.equal(taught["conv_out.weight"], alone["conv_out.weight"])


def test_a_record_keeps_the_machine_of_earlier_rows(place, tmp_path):
    path, record = tmp_path / "mine" / "record.json", place(scale=Scale(seeds=1)).record()
    path.parent.mkdir()
    path.write_text(json.dumps(record | {"device": "cuda"}))
    again = place(scale=Scale(seeds=1))
    for x in range(2):
        again.measured({"x": x}, dict)
    there = {name: record[name] for name in ("hardware", "threads", "versions")}
    there |= {"device": "cuda"}
    assert json.loads(path.read_text()) == record | {"earlier": [there]}
    assert place(scale=Scale(seeds=1)).record()["earlier"] == [there]


def test_averaged_weights_are_measured_beside_the_raw_ones_of_the_same_run(
    place, tmp_path, monkeypatch
):
    monkeypatch.setattr(ddpm, "timesteps", lambda T, steps: [20, 10, 5])
    scale = replace(TINY, seeds=1)
    made, drawn, draw = place("ema", scale), [], Lab.draw

    def watched(lab: Lab, trained: Trained, *rest, **more):
        frozen = not any(weight.requires_grad for weight in trained.network().parameters())
        drawn.append(frozen)
        return draw(lab, trained, *rest, **more)

    monkeypatch.setattr(Lab, "draw", watched)
    ema.run(made)
    rows = [row for row in made.rows if "step" in row]
    assert drawn == [row["arm"].startswith("averaged") for row in rows]
    networks = json.loads((tmp_path / "ema" / "record.json").read_text())["networks"]
    assert networks["steady rate"] == {"epochs": 100 * scale.epochs, "learning_rate": 2.5e-3}
    state, _ = saving.load_state(tmp_path / "runs" / "steady-rate-0")
    assert state["step"] == 6
    assert {(row["arm"], row["step"]) for row in rows} == {
        (f"{weights}, {rate} rate", step)
        for weights in ("raw", "averaged")
        for rate in ("falling", "steady")
        for step in range(1, 7)
    }


def test_a_shipped_checkpoint_is_asked_as_often_as_its_row_says(tmp_path, monkeypatch, capsys):
    recipe = Recipe(base_channels=8, channel_mults=(1, 2))
    for name in ("mnist", "mnist-guide"):  # there is no mnist-few
        network = catalogue.make_network(recipe)
        trainer.save_checkpoint(tmp_path / "checkpoints" / name, network, recipe, {"steps": 1})
    find, budgets = checkpoints.find, [1, 8]
    monkeypatch.setattr(checkpoints, "find", lambda path: find(tmp_path / path))
    monkeypatch.setattr(steps, "BUDGETS", (1, 8))
    monkeypatch.setattr(steps, "SAMPLERS", {k: steps.SAMPLERS[k] for k in ("Heun", steps.BEST)})
    plain = EXPERIMENTS["steps"]._replace(claims=lambda rows: [])
    monkeypatch.setitem(EXPERIMENTS, "steps", plain)
    monkeypatch.setattr(steps, "OTHERS", ("mnist-guide",))
    calls, draw = [], Lab.draw

    def watched(lab: Lab, trained: Trained, *rest, **more) -> torch.Tensor:
        calls.append(0)

        def count(*_) -> None:
            calls[-1] += 1

        with trained.network().register_forward_hook(count):
            return draw(lab, trained, *rest, **more)

    monkeypatch.setattr(Lab, "draw", watched)
    flags = ["steps", "--quick", "--out", str(tmp_path), "--data", str(ROOT / "data")]
    flags += ["--device", "cpu"]
    assert command.main(flags) == 0
    assert "mnist-few is left out" in capsys.readouterr().out
    out = tmp_path / "steps-quick"
    rows = [row for row in read_rows(out / "results.csv") if row["arm"] != "real"]
    assert calls == [row["S"] for row in rows]
    for name in steps.SAMPLERS:
        asked = sorted({row["S"] for row in rows if row["arm"] == f"mnist, {name}"})
        left = [budget - S for budget, S in zip(budgets, asked, strict=True)]
        assert {*left} <= ({0, 1} if name == "Heun" else {0})
    trainer.save_checkpoint(
        tmp_path / "checkpoints" / "mnist", network, replace(recipe, seed=1), {"steps": 2}
    )
    calls.clear()
    assert command.main(flags) == 0 and calls == [], "the same weights"
    other = catalogue.make_network(replace(recipe, seed=1))
    trainer.save_checkpoint(tmp_path / "checkpoints" / "mnist", other, recipe, {"steps": 2})
    assert command.main(flags) == 1 and "mnist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["ema", "--quick", "--device", "nonsense"], "nonsense"),
        (["ema", "--bits", "1"], "--bits 2"),
        (["fly"], "ddpm-table2, iddpm-schedules, ddim-table1, ema, guidance"),
    ],
)
def test_bad_requests_end_in_one_line(flags, named, tmp_path, capsys):
    assert command.main([*flags, "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert named in said and said.count("\n") == 1


def test_a_network_of_other_settings_is_not_taken_for_this_one(place, tmp_path):
    made = place("ema")
    trained = made.network("net", 0)
    assert trained.recipe == made.recipe(0)
    assert not (tmp_path / "runs-quick").exists(), "trained when it is needed"
    assert trained.network() is trained.network()
    assert (tmp_path / "runs-quick" / "net-0" / "model.safetensors").is_file()
    made.network("net", 0).network()
    with pytest.raises(ValueError, match="net-0"):
        made.network("net", 0, prediction="v").network()
