import errno
import json
import os
import pickle
import re
from dataclasses import replace

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mnist_ddpm import ddpm, resumable
from mnist_ddpm.ddpm import (
    generate,
    load_checkpoint,
    load_config,
    make_model,
    make_schedule,
    save_checkpoint,
    start_run,
    training_loop,
)
from mnist_ddpm.resumable import replacing, writable_folder
from mnist_ddpm.runs import fit, resume_run, save_run


@pytest.fixture
def saved(tiny, blobs, tmp_path):
    run = start_run(tiny)
    for step in training_loop(run, blobs, make_schedule(tiny)):
        if step.step == 3:
            break
    folder = tmp_path / "checkpoint"
    save_run(folder, run)
    return folder


def edit_config(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["settings"].update(changes)
    path.write_text(json.dumps(config))


def test_round_trip_draws_the_same_images(tiny, tmp_path):
    model = make_model(tiny)
    torch.nn.init.normal_(model.conv_out.weight, std=0.1)
    save_checkpoint(tmp_path / "a" / "b", model, tiny, {"steps": 7})
    loaded, schedule, settings = load_checkpoint(tmp_path / "a" / "b")
    assert settings == tiny and isinstance(settings.channel_mults, tuple)
    assert torch.equal(schedule.alpha_bar, make_schedule(tiny).alpha_bar)
    draw = lambda m: generate(m, schedule, 3, (1, 32, 32), steps=5)[0]  # noqa: E731
    assert torch.equal(draw(model), draw(loaded))
    assert load_config(tmp_path / "a" / "b")[1] == {"steps": 7}


def test_checkpoint_holds_the_averaged_weights(saved):
    weights, state = load_file(saved / "model.safetensors"), torch.load(saved / "training_state.pt", weights_only=True)
    assert all(torch.equal(weights[k], v) for k, v in state["ema"].items())
    assert not torch.equal(weights["conv_in.weight"], state["model"]["conv_in.weight"])


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
def test_whoever_may_read_one_file_may_read_all(saved):
    assert len({path.stat().st_mode for path in saved.iterdir() if path.is_file()}) == 1


def test_config_tells_a_person_what_it_is(saved, tiny):
    config = json.loads((saved / "config.json").read_text())
    assert config["data_range"] == [-1, 1] and config["settings"]["T"] == tiny.T
    assert config["training"]["steps"] == 3 and config["training"]["images"] == 48
    assert config["versions"]["torch"] == torch.__version__


def test_missing_checkpoint_and_missing_files_are_named(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a checkpoint: there is no config.json"):
        load_checkpoint(tmp_path / "nowhere")
    (saved / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors"):
        load_checkpoint(saved)
    (saved / "training_state.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"nothing to resume: there is no .*training_state\.pt"):
        resume_run(saved)


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b[:100], lambda b: b"", lambda b: b"hello" * 50]
)
def test_truncated_and_foreign_weights_are_refused(saved, damage):
    path = saved / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        load_checkpoint(saved)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"hello" * 50])
def test_truncated_and_foreign_training_states_are_refused(saved, damage):
    path = saved / "training_state.pt"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"training_state\.pt is damaged"):
        resume_run(saved)


@pytest.mark.parametrize("state", [{"step": 3}, {"settings": re.compile("x")}], ids=str)
def test_what_is_no_training_state_is_told_in_words_of_ours(saved, state):
    """PyTorch would advise to run whatever code is in the file."""
    path = saved / "training_state.pt"
    torch.save(state, path)
    message = f"{path} is damaged or no training state of this version: init_from can start a new run"
    with pytest.raises(ValueError, match=re.escape(message)):
        resume_run(saved)


def test_code_in_a_training_state_is_not_run(saved, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    for write in (
        lambda path: torch.save({"settings": Evil()}, path),
        lambda path: path.write_bytes(pickle.dumps(Evil(), protocol=2)),
    ):
        write(saved / "training_state.pt")
        with pytest.raises(ValueError, match="damaged or no training state"):
            resume_run(saved)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", '{"format": 99}', '{"format": 1}', '{"format": 1, "settings": 3}']
)
def test_damaged_configs_are_refused(saved, text):
    (saved / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json is damaged or not a checkpoint's"):
        load_checkpoint(saved)


def test_a_run_whose_settings_were_given_as_lists_goes_on(tiny, tmp_path):
    settings = replace(tiny, channel_mults=[*tiny.channel_mults], attention_resolutions=[8])
    save_run(tmp_path, start_run(settings))
    assert resume_run(tmp_path, settings).settings == settings == replace(tiny, attention_resolutions=(8,))


def test_settings_of_another_version_are_named(saved):
    edit_config(saved, guidance=3.0)
    with pytest.raises(ValueError, match="not a checkpoint's of this version: .*guidance"):
        load_checkpoint(saved)
    state = torch.load(saved / "training_state.pt", weights_only=True)
    torch.save(state | {"settings": state["settings"] | {"guidance": 3.0}}, saved / "training_state.pt")
    with pytest.raises(ValueError, match="no training state of this version .*guidance"):
        resume_run(saved)


def test_weights_of_another_architecture_are_named_with_both_shapes(saved):
    edit_config(saved, base_channels=16)
    with pytest.raises(ValueError, match=r"time\.0\.weight is \(32, 8\), should be \(64, 16\); .*; and \d+ more"):
        load_checkpoint(saved)


def test_an_objective_that_is_not_at_hand_is_named_where_weights_do_not_fit(saved):
    """It may have been one that learns the variance."""
    edit_config(saved, objective="mine")
    load_checkpoint(saved)
    edit_config(saved, objective="mine", base_channels=16)
    with pytest.raises(ValueError, match=r'safetensors \(of objective "mine", unknown here\) do not fit the network'):
        load_checkpoint(saved)


def test_missing_and_surplus_tensors_are_named(saved):
    path = saved / "model.safetensors"
    weights = load_file(path)
    weights["intruder"] = weights.pop("conv_in.bias")
    save_file(weights, path)
    with pytest.raises(ValueError, match=r"conv_in\.bias is missing, should be \(8,\); intruder is unknown"):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    "change",
    [
        {"base_channels": 16},
        {"T": 60},
        {"beta_T": 0.03},
        {"batch_size": 8},
        {"seed": 1},
        {"dataset": "x"},
        {"attributes": ("Male",)},
        {"optimizer": "muon"},
        {"init_from": "elsewhere"},
    ],
    ids=str,
)
def test_resuming_with_what_may_not_change_is_refused(saved, tiny, change):
    (name,) = change
    with pytest.raises(ValueError, match=re.escape(f"{name} was {getattr(tiny, name)!r} in")):
        resume_run(saved, replace(tiny, **change))


def test_resuming_with_more_epochs_goes_on(saved, tiny, blobs):
    run = resume_run(saved, replace(tiny, epochs=3))
    assert [step.step for step in training_loop(run, blobs, make_schedule(tiny))] == list(range(4, 19))


def test_a_kill_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("ne")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_a_kill_between_the_files_of_a_first_save_leaves_a_run_to_resume(tiny, blobs, tmp_path, monkeypatch):
    def killed(*arguments):
        raise KeyboardInterrupt

    schedule = make_schedule(tiny)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(ddpm, "save_checkpoint", killed)
        fit(start_run(tiny), blobs, schedule, tmp_path)  # of twelve steps, saved once: at its end
    with pytest.raises(FileExistsError, match="holds a checkpoint already: resume it"):
        fit(start_run(tiny), blobs, schedule, tmp_path)
    assert fit(resume_run(tmp_path), blobs, schedule, tmp_path).step == 12
    load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("library", "error"),
    [
        ("torch.save", RuntimeError("PytorchStreamWriter failed")),
        ("mnist_ddpm.ddpm.save", SafetensorError("No space left")),
        ("mnist_ddpm.ddpm.save", OSError(errno.ENOSPC, "No space left on device")),
    ],
)
def test_a_full_disk_is_said_and_leaves_the_old_files(saved, tiny, blobs, monkeypatch, library, error):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}

    def full(*arguments, **options):
        raise error

    monkeypatch.setattr(library, full)
    with pytest.raises(OSError, match=rf"could not be written \({re.escape(str(error))}\): is there room\?"):
        save_run(saved, resume_run(saved))
    names = before if library == "torch.save" else ("model.safetensors", "config.json")
    assert all((saved / name).read_bytes() == before[name] for name in names)
    assert {path.name for path in saved.iterdir()} == set(before), "no part of a file is left"


def test_a_finished_run_keeps_its_record_when_nothing_is_left_to_train(tiny, blobs, tmp_path, capsys):
    schedule = make_schedule(tiny)
    fit(start_run(tiny), blobs, schedule, tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    fit(resume_run(tmp_path, replace(tiny, epochs=1, learning_rate=0.5)), blobs, schedule, tmp_path)
    assert "was trained to its end before" in capsys.readouterr().out
    assert (tmp_path / "config.json").read_bytes() == before and resume_run(tmp_path).settings == tiny
    (tmp_path / "model.safetensors").unlink()
    fit(resume_run(tmp_path), blobs, schedule, tmp_path)
    load_checkpoint(tmp_path)  # whole again


def test_on_windows_a_file_that_somebody_reads_is_replaced_a_little_later(tmp_path, monkeypatch):
    path, real, tries, waits = tmp_path / "file", os.replace, [], []

    def replace_unless_read(source, target):
        tries.append(target)
        if len(tries) < 4:
            raise PermissionError(13, "in use")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace_unless_read)
    monkeypatch.setattr(resumable.time, "sleep", waits.append)
    with pytest.raises(PermissionError), replacing(path) as new:
        new.write_text("new")
    assert len(tries) == 1 and waits == [], "elsewhere it is told at once"
    with monkeypatch.context() as windows, replacing(path) as new:
        new.write_text("new")
        windows.setattr(os, "name", "nt")
    assert path.read_text() == "new" and len(waits) == 2


@pytest.mark.parametrize("name", ["OutOfMemoryError", "AcceleratorError"])
def test_a_device_that_fails_is_no_full_disk(tmp_path, name):
    error = getattr(torch, name, torch.OutOfMemoryError)
    with pytest.raises(error, match="CUDA error"), replacing(tmp_path / "file"):
        raise error("CUDA error")


def test_a_run_goes_on_with_as_many_images_only(tiny, blobs, tmp_path):
    fit(start_run(tiny), blobs, make_schedule(tiny), tmp_path)
    with pytest.raises(ValueError, match="the run is one of 96 images, and here are 95: init_from goes on"):
        fit(resume_run(tmp_path, replace(tiny, epochs=3)), blobs[:95], make_schedule(tiny), tmp_path)


def test_a_folder_of_images_may_move_between_parts_of_a_run(tiny, tmp_path):
    settings = replace(tiny, dataset="there", channels=1)
    save_run(tmp_path, start_run(settings))
    assert resume_run(tmp_path, replace(settings, dataset="here")).settings.dataset == "here"
    with pytest.raises(ValueError, match="dataset was 'there' .* cannot become 'mnist'"):
        resume_run(tmp_path, replace(settings, dataset="mnist"))


def test_a_run_from_another_device_takes_the_kind_of_step_that_suits_this_one(saved):
    state = torch.load(saved / "training_state.pt", weights_only=True)
    state["optimizer"]["param_groups"][0]["fused"] = False
    state["device"], state["generator"] = "cuda", torch.zeros(16, dtype=torch.uint8)  # of that one's size
    torch.save(state, saved / "training_state.pt")
    assert resume_run(saved).optimizer.param_groups[0]["fused"]


def test_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot write to the folder .*: choose another"):
        writable_folder(tmp_path / "file" / "folder")
    assert list(writable_folder(tmp_path / "new" / "deep").iterdir()) == []
