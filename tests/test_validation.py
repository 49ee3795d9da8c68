"""`train --validate` and `status`: the rule behind the verdict, and what a watched run leaves."""

import json
import signal
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from command_helpers import SMALL, error_of, run, save_pictures
from helpers import untrained_judge
from training_helpers import PATH, TINY, fit, same, squares, stopped_clock

from mnist_ddpm import ddpm
from mnist_ddpm.commands.training_flags import TrainFlags, place_flags
from mnist_ddpm.evaluation import distances, losses
from mnist_ddpm.evaluation.copies import Audit
from mnist_ddpm.evaluation.distances import Estimate
from mnist_ddpm.evaluation.losses import LINEAR, NOTHING, LossMeter, shipped_alike
from mnist_ddpm.machine.process import Stopped
from mnist_ddpm.recipe import Recipe
from mnist_ddpm.training import loop, saving
from mnist_ddpm.training.tracking import TrackerLog
from mnist_ddpm.watch import progress, validation
from mnist_ddpm.watch.progress import Progress, Record, read_progress, write_progress
from mnist_ddpm.watch.validation import RealSet, Validator
from mnist_ddpm.watch.verdict import (
    ALIKE,
    COPYING,
    DIVERGED,
    DONE,
    IGNORANT,
    IMPROVING,
    UNCLEAR,
    find_verdict,
    fit_trend,
)

M = 100  # unseen images, and images drawn
ERROR = 0.2  # standard error of a made-up distance
STEPS = np.arange(100, 2001, 100)
SPREAD = np.exp(0.3 * np.random.default_rng(0).standard_normal(M))  # of the images' losses


def made_up(values=None, losses=None, steps=STEPS, seed=0, **last) -> Progress:
    """A run whose mean loss and distance are these but for noise.

    Of an image's influence on the distance, 60 % of the variance is the same in all records. last:
    other fields of the last record.
    """
    noise = np.random.default_rng(seed)
    references = {"knows nothing": SPREAD.tolist(), "best linear": (0.1 * SPREAD**0.5).tolist()}
    progress = Progress(1000, {"drawn": 256}, references)
    progress.linear_distance = Estimate(40.0, 38.0, 42.0)
    always = noise.standard_normal(M)
    for k, step in enumerate(steps):
        fields = {}
        if losses is not None:
            wobble = np.exp(0.05 * noise.standard_normal(M))
            fields["losses"] = (losses[k] * SPREAD * wobble).tolist()
        if values is not None:
            own = np.sqrt(0.6) * always + np.sqrt(0.4) * noise.standard_normal(M)
            influences = ERROR * np.sqrt(M) * own
            fields["distance"] = Estimate.of(values[k] + influences.mean(), ERROR)
            fields["influences"] = (influences - influences.mean()).tolist()
        progress.records.append(Record(int(step), 2000, float(step), 1.0, **fields))
    progress.records[-1] = replace(progress.records[-1], **last)
    return progress


FLAT, LEARNED = np.full(20, 3.0), np.full(20, 0.03)
FALLING = 30 * 0.5 ** np.log2(STEPS / 100)
FAR = np.full(20, 50.0)  # further than images of the best linear prediction
BLOWN_UP = np.where(STEPS < 1800, 0.03, 5.0)
JUST_BLOWN_UP = np.where(STEPS < 2000, 0.03, 5.0)


@pytest.mark.parametrize(
    ("progress", "kind"),
    [
        (made_up(FALLING, LEARNED), IMPROVING),
        (made_up(FLAT, LEARNED), DONE),
        (made_up(FLAT, 0.03 * FALLING), DONE),  # a loss alone is too fine a measure
        (made_up(FLAT, seed=1), DONE),
        (made_up(FLAT[:5], LEARNED[:5], STEPS[:5]), UNCLEAR),  # 3 in the last doubling
        (made_up(None, 0.03 * FALLING), IMPROVING),
        (made_up(None, LEARNED), DONE),
        (made_up(FAR, LEARNED), DIVERGED),  # stuck
        (made_up(FAR, 0.01 * FALLING), IMPROVING),  # behind, but on the way
        (made_up(FAR + FALLING, LEARNED), IMPROVING),
        (made_up(FLAT, BLOWN_UP), DIVERGED),
        (made_up(FLAT, JUST_BLOWN_UP), UNCLEAR),  # it may recover
        (made_up(FLAT, np.full(20, 1.3)), DIVERGED),  # from the start
        (made_up(FLAT, np.full(20, 1.04)), IGNORANT),
        (made_up(FLAT, LEARNED, variety=0.02), ALIKE),
        (made_up(FLAT, LEARNED, variety=0.5), DONE),
        (made_up(None, LEARNED[:1], STEPS[:1], variety=0.0), UNCLEAR),  # it has hardly begun
        (made_up(FLAT, LEARNED, is_finite=False), DIVERGED),
        (made_up(None, np.full(20, 1.0)), IGNORANT),
        (made_up(FLAT, np.full(20, 0.97)), IGNORANT),
        (made_up(None, np.full(2, 1.0), STEPS[:2]), IGNORANT),
        (made_up(None, np.full(1, 1.0), STEPS[:1]), UNCLEAR),  # it has hardly begun
        (made_up(None, np.full(20, 0.5)), DIVERGED),  # stuck above the best linear prediction
        (made_up(None, FALLING / 40), IMPROVING),
        (made_up(FLAT, LEARNED, copies=True), COPYING),
        (made_up(FALLING, LEARNED, copies=True), COPYING),
        (made_up(FLAT, BLOWN_UP, copies=True), DIVERGED),
    ],
)
def test_verdict_on_series_of_which_the_truth_is_known(progress, kind):
    assert find_verdict(progress).kind == kind


def test_how_often_the_verdict_is_wrong_about_noise():
    """Of healthy runs never "diverged" or "copying"; of 300 each, the rest as often as stated."""

    def count(values):
        runs = (made_up(values, LEARNED, seed=seed) for seed in range(300))
        kinds = [find_verdict(progress).kind for progress in runs]
        return {kind: kinds.count(kind) / 300 for kind in {*kinds}}

    flat = count(FLAT)
    assert flat.keys() <= {DONE, IMPROVING, UNCLEAR} and flat.get(IMPROVING, 0) <= 0.03
    assert flat[DONE] >= 0.8
    slow = count(3 - 2 * 1.96 * ERROR * np.log2(STEPS / 2000))  # two resolutions a doubling
    assert slow.keys() <= {DONE, IMPROVING, UNCLEAR} and slow.get(DONE, 0) <= 0.03
    assert slow[IMPROVING] >= 0.9


def test_an_audit_of_as_many_images_as_a_validation_has_never_flags_real_ones():
    generator = torch.Generator().manual_seed(0)

    def random_distances(n):
        return torch.rand(n, generator=generator) + 1

    index = torch.zeros(256, dtype=torch.long)
    audits = (Audit(random_distances(256), random_distances(500), index) for _ in range(1000))
    assert not any(audit.figures()["copies"] for audit in audits)


def test_labels_no_better_than_chance_and_a_risen_loss_are_noted():
    by_chance = {"label_accuracy": Estimate(0.12, 0.08, 0.17), "label_chance": 0.1}
    shuffled = find_verdict(made_up(FLAT, LEARNED, **by_chance))
    right = find_verdict(made_up(FLAT, LEARNED, **by_chance | {"label_chance": 0.05}))
    assert "12%" in " ".join(shuffled.notes) and "wrong" in " ".join(shuffled.notes)
    assert "12%" in " ".join(right.notes) and "wrong" not in " ".join(right.notes)
    rising = find_verdict(made_up(FLAT, np.where(STEPS < 500, 0.02, 0.04)))
    assert rising.kind == DONE and any("heart" in note for note in rising.notes)


def test_label_accuracy_is_compared_with_that_of_shuffled_labels():
    classes, labels = torch.tensor([0] * 30 + [1] * 10), torch.tensor([0] * 24 + [1] * 16)
    network = SimpleNamespace(dataset="two kinds", outputs=2)
    judge = SimpleNamespace(network=network, logits=lambda features: features)
    validator = SimpleNamespace(real=SimpleNamespace(judge=judge), labels=labels)
    validator.recipe = SimpleNamespace(dataset="two kinds", classes=2, attributes=())
    features = torch.nn.functional.one_hot(classes, 2).double()
    figures = Validator.label_figures(validator, features)
    assert figures["label_accuracy"].value == 0.85
    assert figures["label_chance"] == pytest.approx(0.75 * 0.6 + 0.25 * 0.4)
    validator.recipe.dataset = "others"
    assert Validator.label_figures(validator, features) == {}


# --- what is reachable


@pytest.mark.parametrize("largest", [10**4, 1])
def test_the_best_linear_prediction_is_the_solution_of_the_normal_equations(largest, monkeypatch):
    """With the covariance, shrunk, or for large images with the variances alone."""
    monkeypatch.setattr(losses, "LARGEST_COVARIANCE", largest)
    images, schedule = squares(), ddpm.beta_schedule(ddpm.linear_beta(50))
    x = ddpm.to_float(images).flatten(1).double()
    if largest == 1:
        covariance = x.var(dim=0).diag()
    else:  # OAS
        covariance = x.T.cov()
        n, D = x.shape
        trace, square = covariance.trace(), (covariance @ covariance).trace()
        numerator = (1 - 2 / D) * square + trace**2
        shrinkage = numerator / ((n + 1 - 2 / D) * (square - trace**2 / D))
        assert 0.01 < shrinkage < 1
        covariance = (1 - shrinkage) * covariance + shrinkage * trace / D * torch.eye(D)
    xt = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([1, 20, 50])
    x0_hat, eps_hat = losses.gaussian_denoiser(schedule, images)(xt, t)
    for k in range(3):
        a, b = (value.item() for value in schedule.at(t[k]))
        seen = a**2 * covariance + b**2 * torch.eye(256)
        difference = xt[k].flatten().double() - a * x.mean(dim=0)
        expected = x.mean(dim=0) + a * covariance @ torch.linalg.solve(seen, difference)
        torch.testing.assert_close(x0_hat[k].flatten().double(), expected, atol=1e-3, rtol=1e-3)
    again = ddpm.q_sample(schedule, x0_hat, t, eps_hat)
    torch.testing.assert_close(again, xt, atol=1e-4, rtol=1e-4)


def test_losses_are_set_beside_an_output_of_0_and_a_shipped_network_of_the_same_kind():
    """An output of 0 errs by the variance of the noise, also where a variance is learned."""
    meter = LossMeter(replace(TINY, objective="hybrid"), squares()[:40])
    references = meter.references(losses.gaussian_denoiser(PATH, squares()))
    assert np.mean(references[NOTHING]) == pytest.approx(1, abs=0.03)
    assert np.mean(references[LINEAR]) < 0.6 and len(references[LINEAR]) == 40
    assert shipped_alike(Recipe()) == "mnist"
    assert shipped_alike(Recipe(prediction="x0")) is shipped_alike(Recipe(image_size=64)) is None


# --- a run that is watched

RECIPE = replace(TINY, dropout=0.2, epochs=1.5)  # 9 steps


@pytest.fixture
def quick(monkeypatch):
    """Time stands still, so that each step is validated; few images."""
    now = stopped_clock(monkeypatch)
    monkeypatch.setattr(validation, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(distances, "RESAMPLES", 5)
    monkeypatch.setattr(validation, "UNSEEN", 20)
    monkeypatch.setattr(validation, "DRAWN", 12)
    monkeypatch.setattr(validation, "DRAWING", validation.DRAWING | {"steps": 3})
    monkeypatch.setattr(validation, "write_progress_picture", lambda folder, progress: None)
    return now


def watch(folder, log=None, log_values=None) -> Validator:
    """A validator of a run on squares."""
    real = RealSet(squares()[:80], squares()[80:], judge=untrained_judge())
    return Validator(folder, RECIPE, real, log=log, log_values=log_values)


def train(folder, log=None, begun=None):
    """Trains RECIPE on squares."""
    return fit(begun or loop.start_run(RECIPE), folder, log=log)


def test_a_watched_run_has_the_same_weights_and_resumes_its_records(tmp_path, quick):
    """Also where it is stopped, and where steps were validated that a kill has lost."""
    alone = train(tmp_path / "alone")
    logged = {}
    add = lambda name, value, step: logged.setdefault(step, {}).update({name: value})  # noqa: E731
    tracker = TrackerLog(SimpleNamespace(add_scalar=add, flush=int))
    watched = train(
        tmp_path / "watched", watch(tmp_path / "watched", log_values=tracker.log_values)
    )
    assert [*logged] == [*range(1, 10)]
    assert logged[1].keys() >= {"validation loss", "validation distance"}
    assert same(alone.ema, watched.ema) and same(alone.network, watched.network)
    validator = watch(tmp_path / "watched")
    average = SimpleNamespace(ema=watched.ema)  # validation knows the average alone
    figures = validator.figures(average, validator.draw(average))
    last = read_progress(tmp_path / "watched").records[-1]
    assert (figures["losses"], figures["influences"]) == (last.losses, last.influences)

    def stop(run, picture):
        if run.step == 4:
            signal.raise_signal(signal.SIGINT)

    stopped = tmp_path / "stopped"
    with pytest.raises(Stopped):
        train(stopped, watch(stopped, stop))
    lost = read_progress(stopped)
    lost.records.append(
        replace(lost.records[-1], step=7, losses=[9.0] * len(lost.records[0].losses))
    )
    write_progress(stopped, lost)
    begun = saving.resume_run(stopped, loop.start_run, RECIPE)
    resumed = train(stopped, watch(stopped), begun)
    assert same(resumed.ema, alone.ema)
    progress, other = (read_progress(tmp_path / name) for name in ("watched", "stopped"))
    assert [record.step for record in progress.records] == [*range(1, 10)]
    assert progress == other
    assert len({tuple(record.losses) for record in progress.records}) > 5, "it is trained"


def test_validation_keeps_to_its_share_of_the_time(tmp_path, quick):
    """A step takes 1 s and a validation 10 s: at 5 % there is one every 200 s."""
    validator = watch(tmp_path)
    validator.figures = lambda run, images: quick.__setitem__(0, quick[0] + 10) or {}
    tiny = loop.start_run(RECIPE)
    for step in range(1, 1001):
        tiny.step, tiny.training_seconds = step, float(step)
        validator(tiny)
    steps = [record.step for record in validator.progress.records]
    assert len(steps) == 5 and steps[1:] == [400, 600, 800, 1000]
    assert steps[0] < 100, "the first one's cost is guessed from the steps"


# --- the commands


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return save_pictures(tmp_path_factory.mktemp("pictures") / "mine", 24)


def test_the_command_trains_watches_judges_and_resumes(pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(validation, "DRAWN", 8)
    out = tmp_path / "run"
    options = ["--data", tmp_path / "data", "--out", out, "--validate", "--validate-share", 1]
    assert run("train", "--dataset", pictures, *SMALL, "--epochs", 2, *options) == 0
    printed = capsys.readouterr().out
    assert "step 2 of 2" in printed and "best linear" in printed and UNCLEAR in printed
    assert (out / "progress.png").stat().st_size > 10_000
    assert [*(out / "previews").glob("validation_*2.png")]
    assert run("train", "--resume", "--epochs", 3, *options) == 0
    capsys.readouterr()
    assert run("status", out) == 0
    assert "step 3 of 3" in capsys.readouterr().out
    assert error_of(capsys, "train", "--resume", *options[:-1], 2).count("validate_share") == 1


def test_status_says_in_a_sentence_what_is_missing_or_damaged(pictures, tmp_path, capsys):
    assert "no run" in error_of(capsys, "status", tmp_path / "nowhere")
    out = tmp_path / "run"
    data = ["--data", tmp_path / "data", "--out", out]
    assert run("train", "--dataset", pictures, *SMALL, "--epochs", 1, *data) == 0
    assert "--validate" in error_of(capsys, "status", out)
    whole = made_up(FLAT[:2], LEARNED[:2], STEPS[:2])
    write_progress(out, whole)
    assert read_progress(out) == whole and run("status", out) == 0
    content = json.loads((out / progress.PROGRESS).read_text())
    records = content["records"]
    for damaged in (
        "{",
        "[]",
        json.dumps(content)[:-9],
        json.dumps(content | {"records": records[::-1]}),
        json.dumps(content | {"records": [records[0], records[1] | {"losses": [1.0]}]}),
        json.dumps(content | {"records": [records[0] | {"losses": [-1.0] * M}]}),
        json.dumps(content | {"records": [records[0] | {"losses": ["1"] * M}]}),
        json.dumps(content | {"records": [records[0] | {"distance": [1, 2]}]}),
        json.dumps(content | {"records": [records[0] | {"step": None}]}),
        json.dumps(content | {"records": [records[0] | {"near": "1"}]}),
        json.dumps(content | {"records": [records[0] | {"losses": [1e300] * M}]}),
        json.dumps(content | {"records": [records[0], records[1] | {"distance": None}]}),
        json.dumps(content | {"records": [records[0] | {"label_accuracy": [0.5, 0.4, 0.6]}]}),
        json.dumps(content | {"references": {}}),
        json.dumps(content | {"about": None}),
        json.dumps(content | {"T": 0}),
    ):
        (out / progress.PROGRESS).write_text(damaged)
        for command in (["status", out], ["train", "--resume", "--validate", *data]):
            assert progress.PROGRESS in error_of(capsys, *command), damaged[:60]


def test_the_command_that_resumes_a_stopped_run_validates_on():
    flags = TrainFlags(validate=True, validate_share=0.1)
    assert place_flags(flags, flags.out) == ["--validate", "--validate-share", "0.1"]
    assert place_flags(TrainFlags(), flags.out) == []


def test_a_trend_is_as_unsure_as_its_images_or_its_scatter_whichever_is_larger():
    steps, line = [100, 200, 400, 800], -np.arange(4.0)
    rng = np.random.default_rng(0)
    alike, apart = np.zeros((4, M)), 100 * rng.standard_normal((4, M))
    surest = fit_trend(steps, line, alike, 0.1).fall
    assert surest.low == pytest.approx(surest.high)
    bent = line + np.array([0, 0.5, -0.5, 0])
    for values, images in ((bent, alike), (line, apart)):
        found = fit_trend(steps, values, images, 0.1).fall
        assert found.high - found.low > 0.3


def test_the_next_validation_waits_for_a_share_of_the_time_so_far():
    def is_due(seconds_since):
        records = [SimpleNamespace(cost=0.0, seconds=600.0 - seconds_since)]
        validator = SimpleNamespace(progress=Progress(1000, "", {}), pending=0.0, share=1.0)
        validator.progress.records = records
        return Validator.is_due(validator, SimpleNamespace(training_seconds=600.0, step=10))

    assert is_due(11) and not is_due(9)


def test_a_resumed_run_measures_the_step_of_its_last_record_anew():
    records = [SimpleNamespace(step=step) for step in (5, 10)]
    known = SimpleNamespace(records=records)
    validator = SimpleNamespace(log=None, run=None, progress=known, is_due=lambda run: False)
    Validator.__call__(validator, SimpleNamespace(step=10))
    assert [record.step for record in known.records] == [5]


def test_variety_is_that_of_real_images_or_none_at_all():
    real = torch.randint(0, 256, (500, 1, 8, 8), dtype=torch.uint8)
    assert validation.variety(real[:200], real) == pytest.approx(1, abs=0.1)
    assert validation.variety(real[:1].expand(200, -1, -1, -1), real) == 0
    assert validation.variety(real, torch.zeros_like(real)) is None
