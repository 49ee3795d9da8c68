"""The speedrun's judge: what it measures, what it refuses, and that it goes on where it stopped."""

import ast
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT
from helpers import untrained_judge

import mnist_ddpm

sys.path.insert(1, str(ROOT / "speedrun"))

import entry_process
import judge
import reference_clock
import run as speedrun
import session as sessions

SHAPE = 1, 32, 32
TRACK = sessions.Track("mnist", seconds=60, n=50, epochs=1, runs=3)


@pytest.fixture
def data(digits):
    """A small data set: 1,000 training digits and 500 others."""
    labels = torch.arange(1000) % 10
    return judge.RealData("mnist", (digits[:1000], labels), (digits[1000:1500], labels[:500]))


@pytest.fixture
def entry(tmp_path):
    """A function that writes an entry."""

    def write(code, name="mine"):
        path = tmp_path / f"{name}.py"
        path.write_text(code, encoding="utf-8")
        return path

    return write


def test_p_is_the_share_of_all_ways_to_deal_the_scores_out():
    assert judge.permutation_p([1, 2, 3, 4, 5], [6, 7, 8, 9, 10]) == 1 / 252
    assert judge.permutation_p([1, 2, 3, 4, 6], [5, 7, 8, 9, 10]) == 2 / 252
    assert judge.permutation_p([6, 7, 8, 9, 10], [1, 2, 3, 4, 5]) == 1
    assert judge.permutation_p([0.1 + 0.2] * 5, [0.3] * 5) == 1  # equal but for rounding
    assert judge.permutation_p([1], [2, 3, 4]) == 1 / 4


def test_a_slow_machine_gets_more_seconds_and_its_random_numbers_stay(monkeypatch):
    ticks = iter([0.0, 10.0, 10.0, 19.0, 20.0, 90.0])  # 10, 9 and, while something ran, 70 s
    before = torch.random.get_rng_state()
    loop = reference_clock.seconds_of_loop(4, 3, clock=lambda: next(ticks))
    assert loop == 10 and torch.equal(before, torch.random.get_rng_state())
    monkeypatch.setattr(reference_clock, "REFERENCE_SECONDS", 5)
    assert reference_clock.slowness(loop) == 2
    assert reference_clock.is_steady(10, 9.5) and not reference_clock.is_steady(10, 12)


@pytest.mark.parametrize(
    ("drawn", "reason"),
    [
        (lambda data: data.training[0][500:700], "copies training"),
        (lambda data: data.held_out[0][:200], "copies held-out"),
        (lambda data: noisy(data.held_out[0][:2].repeat(100, 1, 1, 1)), "recall"),
        (lambda data: torch.randint(0, 256, (200, *SHAPE)).byte(), "precision"),
    ],
    ids=["training images", "held-out images", "mode collapse", "noise"],
)
def test_images_that_must_not_make_a_record(data, drawn, reason):
    extractor = untrained_judge()
    card = data.card(drawn(data), extractor, data.features(extractor))
    assert any(reason in line for line in card["failures"]), card["failures"]


def noisy(images):
    generator = torch.Generator().manual_seed(0)
    noise = 4 * torch.randn(images.shape, generator=generator)
    return (images + noise).clamp(0, 255).byte()


def test_a_shipped_network_passes_in_one_evaluation(data):
    drawn = mnist_ddpm.sample("mnist-few", 200, steps=1, seed=0, device="cpu")
    extractor = untrained_judge()
    assert data.card(drawn, extractor, data.features(extractor))["failures"] == []


BAD = {
    "no train": ("x = 1", "train"),
    "train returns nothing": ("def train(*_): pass", "NoneType"),
    "draw fails": ("def train(*_): return lambda n, seed: 1 / 0", "ZeroDivisionError"),
}


@pytest.mark.parametrize("name", BAD)
def test_an_entry_without_a_function_is_refused(entry, tmp_path, name):
    code, reason = BAD[name]
    for file, values in zip((entry_process.IMAGES, entry_process.LABELS), np.zeros((2, 3))):
        np.save(tmp_path / file, values)
    request = {"entry": str(entry(code, name.replace(" ", "_"))), "folder": str(tmp_path), "n": 1}
    request |= {"seconds": 1, "began": 0, "seeds": {"train": 0, "draw": 0}}
    with pytest.raises((entry_process.RuleError, ZeroDivisionError)) as caught:
        entry_process.draw_images(request)
    assert reason in repr(caught.value)


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (np.zeros((4, *SHAPE), np.uint8), "(4, 1, 32, 32)"),
        (np.zeros((5, 1, 28, 28), np.uint8), "28"),
        (np.full((5, *SHAPE), np.nan, np.float32), "NaN"),
        (np.full((5, *SHAPE), 0.5), "float64"),
    ],
    ids=["too few", "another size", "NaN", "floats"],
)
def test_what_draw_returns_is_checked(tmp_path, images, reason):
    np.save(tmp_path / "drawn.npy", images)
    with pytest.raises(entry_process.RuleError) as caught:
        entry_process.read_drawn(tmp_path / "drawn.npy", 5, SHAPE)
    assert reason in str(caught.value)


CRASHING = """
import socket


def train(images, labels, seconds, seed):
    assert seconds < 900 and images.shape == (3, 1, 32, 32) and labels.tolist() == [0, 1, 2]
    socket.create_connection(("192.0.2.1", 80))
"""


def test_an_entry_s_error_comes_with_its_own_lines_and_it_has_no_network(entry, tmp_path):
    np.save(tmp_path / entry_process.IMAGES, np.zeros((3, *SHAPE), np.uint8))
    np.save(tmp_path / entry_process.LABELS, np.arange(3))
    seeds = {"train": 0, "draw": 0}
    with pytest.raises(entry_process.RuleError, match="192.0.2.1") as caught:
        entry_process.run_entry(entry(CRASHING), tmp_path, 2, 900.0, seeds)
    assert "mine.py:7" in caught.value.__notes__[0]
    assert not any("entry_process" in line for line in caught.value.__notes__)
    with pytest.raises(entry_process.RuleError, match=r"0\.1 s"):
        entry_process.run_entry(entry("while True: pass"), tmp_path, 2, 0.1, seeds)


@pytest.fixture
def session(tmp_path, entry, monkeypatch):
    """Two entries on a machine that is half as fast as the reference machine."""
    loop = 2 * reference_clock.REFERENCE_SECONDS
    monkeypatch.setattr(reference_clock, "seconds_of_loop", lambda: loop)
    entries = {role: entry("def train(): pass", role) for role in ("challenger", "record")}
    seconds = {"challenger": 60, "record": 40}
    return sessions.Session(TRACK, entries, seconds, tmp_path / "out", "a command")


def test_an_interrupted_session_goes_on_and_is_judged_once(session, data, digits, monkeypatch):
    calls = []
    seeds = []

    def run_entry(path, folder, n, seconds, run_seeds):
        calls.append(path.stem)
        seeds.extend(run_seeds.values())
        assert (
            seconds == 2 * session.seconds[path.stem]
            and len(np.load(folder / "images.npy")) == 1000
        )
        if len(calls) == 4:
            raise KeyboardInterrupt
        return digits[2000 : 2000 + n].numpy(), 30.0

    monkeypatch.setattr(sessions, "run_entry", run_entry)
    with pytest.raises(KeyboardInterrupt):
        session.run_all(data)
    before = {path: path.read_bytes() for path in session.folder.glob("*.json")}
    assert len(before) == 3 and not (session.folder / "extractor.safetensors").exists()
    session.run_all(data)
    session.run_all(data)
    order = ["challenger", "record", "record", "challenger", "challenger", "record"]
    assert calls == [*order[:4], *order[3:]] and len({*seeds}) == len(seeds)
    assert before == {path: path.read_bytes() for path in before}

    trained = []

    def train_judge(data, seed, epochs):
        trained.append(seed)
        return untrained_judge()

    monkeypatch.setattr(judge.RealData, "train_judge", train_judge)
    logs = session.judge_all(data)
    assert session.judge_all(data) == logs and len(trained) == 1
    assert {log["seeds"]["extractor"] for runs in logs.values() for log in runs} == {*trained}
    log = json.loads(session.log_path(0, "record").read_text())
    assert log["seconds"] == 15 and log["is_steady"] and len(log["sha256"]) == 64
    session.entries["record"].write_text("other code", encoding="utf-8")
    assert replace(session).folder != session.folder


def test_a_run_on_an_unsteady_machine_is_repeated_with_other_seeds(
    session, digits, monkeypatch, tmp_path
):
    loops = iter([3.2, 4.0, 4.0, 4.1, *[3.2, 4.0] * TRACK.tries])
    monkeypatch.setattr(reference_clock, "seconds_of_loop", lambda: next(loops))
    drawn = digits[: TRACK.n].numpy()
    seen = []

    def run_entry(path, folder, n, seconds, seeds):
        seen.append((seconds, *seeds.values()))
        return drawn - len(seen), 30.0

    monkeypatch.setattr(sessions, "run_entry", run_entry)
    session.folder.mkdir(parents=True)
    session.run_one(0, "challenger", tmp_path)
    path = session.log_path(0, "challenger")
    log = json.loads(path.read_text())
    assert (
        log["is_steady"] and log["tries"] == 2 and [seconds for seconds, *_ in seen] == [120, 150]
    )
    assert [*log["seeds"].values()] == [*seen[1][1:]] != [*seen[0][1:]]
    assert (np.load(path.with_suffix(".npz"))["images"] == drawn - 2).all()
    session.run_one(1, "challenger", tmp_path)
    log = json.loads(session.log_path(1, "challenger").read_text())
    assert not log["is_steady"] and log["tries"] == TRACK.tries == len(seen) - 2


def test_a_session_with_a_failed_run_is_lost(session, data, digits, monkeypatch):
    def fail(*_):
        raise entry_process.RuleError("out of memory")

    monkeypatch.setattr(sessions, "run_entry", fail)
    with pytest.raises(entry_process.RuleError, match="memory"):
        session.run_all(data)
    monkeypatch.setattr(sessions, "run_entry", lambda *_: (digits[:50].numpy(), 30.0))
    with pytest.raises(entry_process.RuleError, match="memory"):
        session.run_all(data)


def test_an_entry_of_which_a_run_fails_is_out_and_others_go_on(
    session, entry, data, digits, monkeypatch, capsys
):
    def run_entry(path, *_):
        ran.append(path.stem)
        if path.stem == fails and len(ran) > 3:
            error = entry_process.RuleError("out of memory")
            error.add_note("in line 3\nin line 7\x1b")
            raise error
        return digits[:50].numpy(), 30.0

    monkeypatch.setattr(sessions, "run_entry", run_entry)
    monkeypatch.setattr(judge.RealData, "train_judge", lambda *_: untrained_judge())
    session.entries["other"] = entry("def train(): pass", "other")
    session.seconds["other"] = 60
    ran, fails = [], "other"
    session.run_all(data)
    session.run_all(data)
    printed = capsys.readouterr().err.splitlines()
    assert printed[:2] == ["in line 3", r"in line 7\x1b"] and "memory" in printed[2]
    assert [ran.count(name) for name in session.entries] == [3, 3, 2]
    assert {*session.judge_all(data)} == {"challenger", "record"}
    without_record = replace(session, out=session.out / "again")
    ran, fails = [], "record"
    with pytest.raises(entry_process.RuleError, match="memory"):
        without_record.run_all(data)
    assert ran.count("challenger") < 3


def logs_of(scores, seconds=10.0, failures=(), steady=True):
    """Logs of runs with these distances."""
    return [
        {
            "entry": "mine",
            "seconds": seconds,
            "is_steady": steady,
            "card": {"metrics": {"frechet_distance": {"value": score}}, "failures": [*failures]},
        }
        for score in scores
    ]


RECORD, NO_RECORD = "challenger: a record", "challenger: no record:"
LOW, HIGH = [0.1, 0.2, 0.3, 0.4, 0.5], [0.6, 0.7, 0.8, 0.9, 1.0]


@pytest.mark.parametrize(
    ("challenger", "record", "reason"),
    [
        (logs_of(LOW), logs_of(HIGH), None),
        (logs_of(LOW), None, None),
        (logs_of([*LOW[:4], 0.85]), logs_of([0.5, *HIGH[1:]]), "0.01"),
        (logs_of(LOW, failures=["its recall is low"]), logs_of(HIGH), "recall"),
        (logs_of(LOW, steady=False), logs_of(HIGH), "speed"),
    ],
    ids=["better", "first", "by chance", "a gate", "a busy machine"],
)
def test_what_makes_a_record(challenger, record, reason):
    logs = {"challenger": challenger} | ({} if record is None else {"record": record})
    lines = sessions.verdict(logs, TRACK, [])
    assert (lines[-1] == RECORD) == (reason is None)
    assert reason is None or any(reason in line for line in lines[lines.index(NO_RECORD) :])
    assert NO_RECORD in sessions.verdict(logs, TRACK, ["a trial"])


def test_of_several_entries_the_best_makes_the_record():
    logs = {"challenger": logs_of(LOW), "worse": logs_of([0.6, *LOW[1:]])}
    logs["unclear"] = logs_of([0.0] * 5, failures=["its recall is low"])
    for others in ({}, {"record": logs_of(HIGH)}):
        lines = sessions.verdict(logs | others, TRACK, [])
        assert RECORD in lines and "worse: a record" not in lines
        assert any("challenger" in line for line in lines[lines.index("worse: no record:") :])
        assert "unclear: no record:" in lines


def test_least_time_counts_seconds_below_a_distance():
    track = replace(TRACK, score="seconds", most_distance=0.5)
    logs = {"challenger": logs_of(HIGH, 5.0), "record": logs_of(HIGH, 6.0)}
    assert any("above 0.5" in line for line in sessions.verdict(logs, track, []))
    logs["challenger"] = logs_of(LOW, 5.0)
    assert RECORD in sessions.verdict(logs, track, [])
    logs["challenger"] = logs_of(LOW, 7.0)
    assert NO_RECORD in sessions.verdict(logs, track, [])


def make(*words):
    return speedrun.make_session(speedrun.parse_flags([*words]))


def test_flags_name_entries_and_rules(entry, tmp_path, monkeypatch):
    records = tmp_path / "records.json"
    records.write_text("{}", encoding="utf-8")
    monkeypatch.setattr(speedrun, "RECORDS", records)
    session, reasons = make("mnist")
    assert session.track == speedrun.TRACKS["five-minutes"] and reasons == []
    assert session.entries == {"mnist": speedrun.ENTRIES / "mnist.py"}
    record = {"entry": "mnist-fast", "seconds": 500}
    records.write_text(json.dumps({"least-time": record}), encoding="utf-8")
    session, reasons = make("mnist", "--track", "least-time", "--seconds", "200")
    assert session.seconds == {"mnist": 200, "record": 500} and reasons == []
    assert session.entries["record"].stem == "mnist-fast"
    log = tmp_path / "log.json"
    log.write_text('{"seeds": {"train": 1, "draw": 2, "extractor": 3}}', encoding="utf-8")
    repeated, reasons = make("mnist", "--track", "least-time", "--repeat", str(log))
    assert repeated.seeds["extractor"] == 3 and [*repeated.turns()] == [(0, "mnist")]
    assert reasons != []
    for words in (["--trial"], ["--cores", "1"]):
        assert make("mnist", *words)[1] != []
    large = entry("#" * 70_000)
    refused = ["nobody"], [str(large)], ["mnist", "mnist"], ["mnist", "--seconds", "301"]
    for words in (*refused, [str(entry("", "record"))]):
        with pytest.raises(entry_process.RuleError):
            make(*words)


@pytest.mark.parametrize("path", sorted(speedrun.ENTRIES.glob("*.py")), ids=lambda path: path.stem)
def test_entries_have_the_function_and_are_short(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    (train,) = [node for node in tree.body if getattr(node, "name", "") == "train"]
    assert [each.arg for each in train.args.args] == ["images", "labels", "seconds", "seed"]
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 60
