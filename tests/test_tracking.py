"""`train --log`: what is written can be read, and a resumed run goes on in it."""

import io
import struct
import sys
from types import SimpleNamespace

import imageio.v3 as imageio
import numpy as np
import pytest
from command_helpers import SMALL, error_of, run, save_pictures
from tensorboardX import event_file_writer
from tensorboardX.proto.event_pb2 import Event
from training_helpers import TINY, fit, start_simple

from mnist_ddpm.commands.training_flags import TrainFlags, place_flags
from mnist_ddpm.ddpm import learning_rate_at
from mnist_ddpm.training import saving, tracking


def events(folder):
    """What TensorBoard reads: records of a length (8 bytes), a checksum (4), an event, another."""
    for path in sorted((folder / "log").glob("events.*")):
        content = io.BytesIO(path.read_bytes())
        while head := content.read(12):
            (length,) = struct.unpack("<Q", head[:8])
            yield Event.FromString(content.read(length))
            content.read(4)


def test_a_resumed_run_continues_the_log_that_tensorboard_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking.TrackerLog, "every", 2)
    monkeypatch.setattr(event_file_writer.time, "time", lambda: 1.8e9)  # both within a second
    pictures, out = save_pictures(tmp_path / "pictures"), tmp_path / "out"
    options = ["--data", tmp_path / "data", "--out", out, "--log", "tensorboard"]
    assert run("train", "--dataset", pictures, *SMALL, "--epochs", 1, *options) == 0
    assert run("train", "--resume", "--epochs", 2, *options) == 0
    starts = [event.step for event in events(out) if event.HasField("session_log")]
    assert starts == [1, 4], "what a killed run has logged of later steps is dropped"
    logged = {}
    for event in events(out):
        for value in event.summary.value:
            logged.setdefault(value.tag, {})[event.step] = value
    simple = lambda values: {step: value.simple_value for step, value in values.items()}  # noqa: E731
    numbers = {tag: simple(values) for tag, values in logged.items()}
    state, recipe, _ = saving.load_state(out)
    losses = state["losses"]
    means = {1: losses[0], 2: losses[1], 4: losses[3], 6: np.mean(losses[4:6])}
    assert numbers["loss"] == pytest.approx(means, rel=1e-5)
    rates = {step: learning_rate_at(step, 6, recipe) for step in (4, 6)}
    assert {step: numbers["learning_rate"][step] for step in rates} == pytest.approx(rates)
    speeds = numbers["images_per_second"]
    assert [*speeds] == [2, 6] and min(speeds.values()) > 0
    assert [*logged["previews"]] == [3, 6]
    preview = imageio.imread(logged["previews"][6].image.encoded_image_string)
    assert np.array_equal(preview, imageio.imread(max((out / "previews").iterdir())))


def test_a_kill_loses_no_point_that_was_logged():
    calls = []
    writer = SimpleNamespace(
        flush=lambda: calls.append("flush"), add_scalar=lambda *point: calls.append(point[2])
    )
    training_run = start_simple(TINY)
    training_run.step, training_run.losses = 1, [1.0]
    tracking.TrackerLog(writer)(training_run)
    assert calls == [1, 1, "flush"], "the loss and the rate"


def test_a_log_that_fails_ends_and_training_does_not(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tracking.TrackerLog, "every", 2)
    logged = []

    def add_scalar(name, value, step):
        logged.append(step)
        if step == 4:
            raise OSError("No space left on device")

    writer = SimpleNamespace(flush=int, add_scalar=add_scalar)
    run = fit(start_simple(TINY), tmp_path, log=tracking.TrackerLog(writer))
    assert run.step == 12 and [*dict.fromkeys(logged)] == [1, 2, 4]
    assert "No space left" in capsys.readouterr().err


def test_a_missing_package_is_reported_at_once(tmp_path, monkeypatch, capsys):
    for name in tracking.WRITERS:
        monkeypatch.setitem(sys.modules, name, None)
    command = ["train", "--dataset", "none", "--out", tmp_path, "--log", "tensorboard"]
    assert "pip install tensorboard" in error_of(capsys, *command)


def test_the_command_to_go_on_after_a_stop_names_the_log():
    out = TrainFlags.out
    assert place_flags(TrainFlags(log="tensorboard"), out) == ["--log", "tensorboard"]
    assert place_flags(TrainFlags(), out) == []
