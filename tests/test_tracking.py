"""`train --log`: what is written can be read, and a resumed run goes on in it."""

import io
import struct
import sys

import imageio.v3 as imageio
import numpy as np
import pytest
from commanded import SMALL, error_of, run, save_pictures
from tensorboardX import event_file_writer
from tensorboardX.proto.event_pb2 import Event
from trained import TINY, fit, start_simple

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


def test_a_resumed_run_goes_on_in_the_log_that_tensorboard_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking.TrackerLog, "every", 2)
    monkeypatch.setattr(event_file_writer.time, "time", lambda: 1.8e9)  # both within a second
    pictures, out = save_pictures(tmp_path / "pictures"), tmp_path / "out"
    places = ["--data", tmp_path / "data", "--out", out, "--log", "tensorboard"]
    assert run("train", "--dataset", pictures, *SMALL, "--epochs", 1, *places) == 0
    assert run("train", "--resume", "--epochs", 2, *places) == 0
    logged, started = {}, []
    for event in events(out):
        if event.HasField("session_log"):
            started.append(event.step)
        for value in event.summary.value:
            logged.setdefault(value.tag, []).append((event.step, value))
    assert started == [1, 4], "what a killed run has logged of later steps is dropped"
    numbers = {tag: {step: v.simple_value for step, v in each} for tag, each in logged.items()}
    state, recipe = saving.load_state(out)
    losses = state["losses"]
    told = {1: losses[0], 2: losses[1], 4: losses[3], 6: np.mean(losses[4:6])}
    assert numbers["loss"] == pytest.approx(told, rel=1e-5)
    rates = {step: learning_rate_at(step, 6, recipe) for step in (4, 6)}
    assert {step: numbers["learning_rate"][step] for step in rates} == pytest.approx(rates)
    assert [*numbers["images_per_second"]] == [2, 6] and min(
        numbers["images_per_second"].values()
    ) > 0
    assert [step for step, _ in logged["previews"]] == [3, 6]
    shown = imageio.imread(logged["previews"][-1][1].image.encoded_image_string)
    assert np.array_equal(shown, imageio.imread(max((out / "previews").iterdir())))


def test_a_log_that_fails_ends_and_training_does_not(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tracking.TrackerLog, "every", 2)

    class Full:
        name, told = "wandb", []

        def log(self, values, step):
            self.told.append(step)
            if step == 4:
                raise OSError("No space left on device")

    done = fit(start_simple(TINY), tmp_path, log=tracking.TrackerLog(Full()))
    assert done.step == 12 and Full.told == [1, 2, 4]
    assert "No space left" in capsys.readouterr().err


def test_a_tracker_whose_package_is_missing_is_told_before_images_are_read(
    tmp_path, monkeypatch, capsys
):
    for name, packages in tracking.PACKAGES.items():
        for package in packages:
            monkeypatch.setitem(sys.modules, package, None)
        line = error_of(capsys, "train", "--dataset", "none", "--out", tmp_path, "--log", name)
        assert f"pip install {packages[0]}" in line
    monkeypatch.setitem(sys.modules, "tensorboard", sys)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    line = error_of(capsys, "train", "--dataset", "none", "--out", tmp_path, "--log", "tensorboard")
    assert '".[accelerate]"' in line


def test_the_command_to_go_on_after_a_stop_names_the_log():
    out = TrainFlags.out
    assert place_flags(TrainFlags(log="wandb"), out) == ["--log", "wandb"]
    assert place_flags(TrainFlags(), out) == []


def test_a_new_run_has_another_name_and_a_resumed_one_the_same(tmp_path):
    first = tracking.log_name(tmp_path, is_new_run=True)
    assert (
        tracking.log_name(tmp_path, is_new_run=False)
        == first
        != tracking.log_name(tmp_path, is_new_run=True)
    )
