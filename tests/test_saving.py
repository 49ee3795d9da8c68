"""What is saved of a run, what goes on from it, and what is refused."""

import errno
import json
import math
import os
import pickle
import re
import stat
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from itertools import cycle, islice
from types import SimpleNamespace

import pytest
import torch
from helpers import equal, notebook, raising, with_flipped_bit
from training_helpers import NOTEBOOK, PATH, TINY, fit, same, squares, start_simple, steps

from mnist_ddpm import ddpm
from mnist_ddpm.ddpm import l_simple
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.machine import files
from mnist_ddpm.machine.files import check_writable, replacing, writable_folder
from mnist_ddpm.training import saving
from mnist_ddpm.training.loop import start_run as start
from mnist_ddpm.training.saving import load_state, save_run

STATE, WEIGHTS, CONFIG = "training_state.pt", "model.safetensors", "config.json"


def resume_run(folder, recipe=None, start=start_simple):
    return saving.resume_run(folder, start, recipe)


@pytest.fixture
def saved(tmp_path):
    """A folder of a run at step 3."""
    run = start_simple(TINY)
    list(islice(steps(run), 3))
    save_run(tmp_path / "run", run)
    return tmp_path / "run"


def edit_state(folder, edit):
    """Replaces a folder's training state by edit(state)."""
    torch.save(edit(torch.load(folder / STATE, weights_only=True)), folder / STATE)


def compress(path):
    """Packs the file, which PyTorch would unpack to any size; here it is small."""
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)


full = raising(OSError("No space left on device"))
killed = raising(KeyboardInterrupt)


@pytest.mark.parametrize(
    ("kill_at", "changes"),
    [
        (3, {"dropout": 0.2}), (6, {"dropout": 0.2}), (7, {"optimizer": "muon"}),
        (7, {"objective": "vlb", "classes": 3, "T": 4}),
        (2, {"objective": "hybrid", "precision": "bfloat16", "epochs": 0.5}),
        (2, {"classes": 3, "accumulation": 3, "optimizer": "muon", "epochs": 0.5}),
    ],
    ids=str,
)  # fmt: skip
def test_a_resumed_run_goes_on_bit_for_bit(tmp_path, kill_at, changes):
    """With images mirrored at random, and with times that all losses so far have chosen."""
    recipe = replace(TINY, **changes)
    options = {"augment": ddpm.mirrored, "schedule": ddpm.beta_schedule(ddpm.linear_beta(recipe.T))}
    options |= {"labels": torch.arange(96) % 3} if recipe.classes else {}
    whole, killed = start(recipe), start(recipe)
    list(steps(whole, **options))
    list(islice(steps(killed, **options), kill_at))
    save_run(tmp_path, killed)
    torch.manual_seed(99)
    resumed = resume_run(tmp_path, start=start)
    assert resumed.step == kill_at
    list(steps(resumed, **options))
    assert resumed.losses == whole.losses
    assert same(resumed.network, whole.network) and same(resumed.ema, whole.ema)


def test_the_notebooks_runs_go_on_here_and_ours_there_bit_for_bit(tmp_path):
    whole = ddpm.start_run(NOTEBOOK)
    list(ddpm.training_loop(whole, squares(), PATH))
    theirs = ddpm.start_run(NOTEBOOK)
    list(islice(ddpm.training_loop(theirs, squares(), PATH), 2))
    notebook.save_run(tmp_path / "theirs", theirs, PATH)
    ours = resume_run(tmp_path / "theirs", start=start)
    assert (ours.settings.schedule, ours.settings.optimizer, ours.step) == ("linear", "adam", 2)
    assert ours.last_saved_step == 2, "as its config.json says"
    list(islice(steps(ours), 2))
    save_run(tmp_path / "ours", ours)
    back = notebook.resume_run(tmp_path / "ours", NOTEBOOK, PATH)
    list(ddpm.training_loop(back, squares(), PATH))
    assert back.losses == whole.losses
    assert same(back.network, whole.network) and same(back.ema, whole.ema)


def test_the_scale_of_float16_is_resumed(tmp_path):
    run = start_simple(replace(TINY, precision="float16"))
    list(islice(steps(run, lambda *args: 100 * l_simple(*args)), 3))
    save_run(tmp_path, run)
    assert resume_run(tmp_path).scaler.get_scale() == run.scaler.get_scale() < 65536
    other = resume_run(tmp_path, replace(run.settings, precision="float32"))
    assert not other.scaler.is_enabled()
    save_run(tmp_path, other)
    assert resume_run(tmp_path, run.settings).scaler.get_scale() == 65536


def test_a_run_remembers_its_seconds_and_records_them(tmp_path):
    run = start_simple(TINY)
    run.training_seconds, run.losses, run.step = 123.4, [1.0] * 100 + [2.0], 101
    save_run(tmp_path, run)
    assert resume_run(tmp_path).training_seconds == 123.4
    record = json.loads((tmp_path / CONFIG).read_text())["training"]
    assert record["seconds"] == 123.4 and record["images"] == 101 * 16
    assert record["loss_every_100_steps"] == [1.0, 2.0]


def test_an_optimizer_s_settings_are_the_recipe_s_and_suit_this_device(saved):
    """Those in the file, of another device, an earlier version or nonsense, change nothing."""

    def edit(state):
        odd = {"fused": True, "betas": ("x", None), "amsgrad": True, "lr": math.nan}
        state["optimizer"]["param_groups"][0] |= odd
        state["optimizer"]["param_groups"] *= 2
        return state

    edit_state(saved, edit)
    resumed = resume_run(saved)
    groups = [start_simple(TINY).optimizer.param_groups, resumed.optimizer.param_groups]
    ours, theirs = ([group | {"params": 0} for group in each] for each in groups)
    assert ours == theirs
    list(steps(resumed))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"hello" * 50),
        lambda path: torch.save({"step": 3}, path),
        lambda path: torch.save(torch.ones(2), path),
        lambda path: torch.save({"settings": re.compile("x")}, path),
        compress,
    ],
    ids=["half", "empty", "text", "no settings", "a tensor", "a class", "gigabytes in a few bytes"],
)
def test_a_damaged_training_state_is_refused(saved, damage):
    """In words of ours: PyTorch would advise to run the code in the file."""
    damage(saved / STATE)
    with pytest.raises(ValueError, match=f"{re.escape(str(saved / STATE))}.*init_from") as refusal:
        resume_run(saved)
    assert "weights_only" not in str(refusal.value)


def mutants(state: dict, odd: Iterator):
    """The state with one value replaced by the next odd one. Recipes check settings."""
    for key, value in state.items():
        if key != "settings":
            yield state | {key: next(odd)}
            inner = mutants(value, odd) if isinstance(value, dict) else ()
            yield from (state | {key: each} for each in inner)


@pytest.mark.parametrize("changes", [{"precision": "float16"}, {"optimizer": "muon"}], ids=str)
def test_a_value_of_a_state_of_another_kind_is_refused_or_harmless(tmp_path, changes):
    """A run that is resumed takes a step like any other."""
    run = start_simple(replace(TINY, **changes))
    list(islice(steps(run), 2))
    save_run(tmp_path, run)
    path, outcomes = tmp_path / STATE, Counter()
    odd = "x", None, {}, torch.ones(2, 2), -1, [], torch.full((), math.nan), math.nan, 10**400
    odd += torch.ones(()).int(), torch.ones(1).expand(10**12)
    for mutant in mutants(torch.load(path), cycle(odd)):
        torch.save(mutant, path)
        try:
            resumed = resume_run(tmp_path)
        except ValueError as error:
            assert str(path) in str(error)
            outcomes["refused"] += 1
        else:
            assert math.isfinite(next(steps(resumed)))
            outcomes["resumed"] += 1
    assert outcomes["refused"] > 25


def test_a_flipped_byte_of_a_training_state_is_refused_or_changes_nothing(saved):
    path = saved / STATE
    good, expected, refused = path.read_bytes(), load_state(saved)[0], 0
    places = range(0, len(good), len(good) // 60)
    for place in places:
        path.write_bytes(with_flipped_bit(good, place))
        try:
            assert equal(load_state(saved)[0], expected)
        except ValueError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > len(places) / 2
    entry = good.rindex(b"PK\x01\x02", 0, good.rindex(b"/data/0"))
    path.write_bytes(
        with_flipped_bit(good, entry + 38)
    )  # PyTorch would take this tensor for a folder
    with pytest.raises(ValueError, match="data/0"):
        load_state(saved)


def test_a_missing_state_settings_of_another_version_and_other_weights_are_named(saved):
    with pytest.raises(ValueError, match=STATE):
        resume_run(saved, start=start)  # of another network
    edit_state(saved, lambda state: state | {"settings": state["settings"] | {"guidance": 3.0}})
    with pytest.raises(ValueError, match="guidance"):
        resume_run(saved)
    (saved / STATE).unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(str(saved / STATE))):
        resume_run(saved)


def test_code_in_a_training_state_is_not_run(saved, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    for write in (
        lambda path: torch.save({"settings": Evil()}, path),
        lambda path: path.write_bytes(pickle.dumps(Evil(), protocol=2)),
    ):
        write(saved / STATE)
        with pytest.raises(ValueError):
            resume_run(saved)
    assert not (tmp_path / "owned").exists()


CHANGES = {
    "base_channels": 16, "T": 60, "beta_T": 0.03, "batch_size": 8, "seed": 1, "dataset": "celeba",
    "attributes": ("Male",), "optimizer": "muon", "init_from": "x", "prediction": "v",
    "objective": "p2", "dropout": 0.1, "schedule": "cosine", "critic": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_resuming_with_another_value_of_a_fixed_setting_is_refused(saved, name):
    with pytest.raises(ValueError, match=f"{name} was {getattr(TINY, name)!r}"):
        resume_run(saved, replace(TINY, **{name: CHANGES[name]}))


def test_a_folder_of_images_may_move_between_parts_of_a_run(saved):
    assert resume_run(saved, replace(TINY, dataset="new")).settings.dataset == "new"
    with pytest.raises(ValueError, match="dataset"):
        resume_run(saved, replace(TINY, dataset="ffhq"))


def test_a_file_is_replaced_by_a_finished_one_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("ne")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and [*tmp_path.iterdir()] == [path]
    with replacing(path) as first, replacing(path) as second:
        first.write_text("first")
        second.write_text("second")
        assert path.read_text() == "old"
    assert path.read_text() == "first" and [*tmp_path.iterdir()] == [path]


def test_a_full_disk_is_reported_and_leaves_the_old_files(saved, monkeypatch):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    run = resume_run(saved)
    monkeypatch.setattr(torch, "save", raising(RuntimeError("PytorchStreamWriter failed")))
    with pytest.raises(OSError, match="PytorchStreamWriter failed"):
        save_run(saved, run)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def test_on_windows_a_file_that_somebody_reads_is_replaced_a_little_later(tmp_path, monkeypatch):
    """Elsewhere the error is raised at once. Waiting is made up."""
    path, waits, real = tmp_path / "file", [], os.replace

    def refused(*names):
        if len(waits) < 2:
            raise PermissionError(13, "in use")
        real(*names)

    fake = SimpleNamespace(**vars(os) | {"name": "posix", "replace": refused})
    monkeypatch.setattr(files, "os", fake)
    monkeypatch.setattr(files.time, "sleep", waits.append)
    with pytest.raises(PermissionError), replacing(path) as temporary:
        temporary.write_text("x")
    assert not waits and not [*tmp_path.iterdir()]
    fake.name = "nt"
    with replacing(path) as temporary:
        temporary.write_text("x")
    assert path.read_text() == "x" and waits == [0.1, 1]


def test_a_run_that_is_saved_twice_gives_the_same_bytes(saved):
    run = resume_run(saved)
    contents = []
    for _ in range(2):
        save_run(saved, run)
        contents.append([(saved / name).read_bytes() for name in (STATE, WEIGHTS, CONFIG)])
    assert contents[0] == contents[1]


def test_what_killed_saves_have_left_is_removed_after_a_while(tmp_path):
    path = tmp_path / "a[b].pt"  # a name that means much to glob
    old = [tmp_path / f"a[b].pt{end}" for end in (".partial", ".1f2e.partial")]
    young, others = tmp_path / "a[b].pt.77aa.partial", tmp_path / "a.pt.1f2e.partial"
    for file in (*old, young, others):
        file.write_text("half")
        os.utime(file, (1, 1))
    young.touch()  # another run is writing it
    with replacing(path) as temporary:
        temporary.write_text("whole")
    assert {*tmp_path.iterdir()} == {path, young, others}


def test_files_are_on_the_disk_before_they_replace_others_and_their_names_after(saved, monkeypatch):
    calls, sync, replace = [], os.fsync, os.replace

    def fsync(handle):
        calls.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        sync(handle)

    def replaced(*names):
        calls.append("name")
        replace(*names)

    run = resume_run(saved)
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replaced)
    save_run(saved, run)
    assert calls == ["file", "name"] * 3 + ["folder"] * (os.name != "nt")


@pytest.mark.parametrize("error", [errno.EINVAL, errno.EIO])
def test_a_disk_without_sync_will_do_and_one_that_fails_will_not(tmp_path, monkeypatch, error):
    monkeypatch.setattr(os, "fsync", raising(OSError(error, "of the disk")))
    (tmp_path / "file").write_text("old")
    with pytest.raises(OSError) if error == errno.EIO else nullcontext():
        with replacing(tmp_path / "file") as temporary:
            temporary.write_text("new")
    assert (tmp_path / "file").read_text() == ("old" if error == errno.EIO else "new")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, torch.AcceleratorError])
def test_a_device_that_fails_is_no_full_disk(tmp_path, error):
    with pytest.raises(error), replacing(tmp_path / "file"):
        raise error("CUDA error")


def test_folders_and_files_that_cannot_be_written_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="choose another"):
        writable_folder(tmp_path / "file" / "folder")
    assert [*writable_folder(tmp_path / "new" / "deep").iterdir()] == []
    with pytest.raises(IsADirectoryError):
        check_writable(tmp_path / "new")
    check_writable(tmp_path / "other" / "card.json")
    assert (tmp_path / "other").is_dir()


def test_a_run_whose_last_save_was_cut_short_goes_on_with_its_last_settings(saved, monkeypatch):
    monkeypatch.setattr(checkpoints, "save_checkpoint", full)
    with pytest.raises(OSError, match="No space"):
        save_run(saved, resume_run(saved, replace(TINY, epochs=40)))
    assert load_state(saved)[1].epochs == 40


@pytest.mark.parametrize("save_checkpoint, error", [(full, OSError), (killed, KeyboardInterrupt)])
@pytest.mark.parametrize("same_process", [True, False])
@pytest.mark.parametrize("saved_before", [False, True])
def test_after_a_cut_save_a_run_resumes(
    tmp_path, monkeypatch, save_checkpoint, error, same_process, saved_before
):
    """The state is saved, and the checkpoint is not."""
    run = start_simple(TINY)
    if saved_before:
        fit(start_simple(replace(TINY, epochs=1)), tmp_path)
        run = resume_run(tmp_path, TINY)
    with pytest.raises(error) as caught, monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_checkpoint", save_checkpoint)
        fit(run, tmp_path)
    assert error is KeyboardInterrupt or saved_before or "can be resumed" in str(caught.value)
    assert checkpoints.saved_step(tmp_path) == (6 if saved_before else None)
    with pytest.raises(FileExistsError, match="resume"):
        fit(start_simple(TINY), tmp_path)
    resumed = fit(run if same_process else resume_run(tmp_path), tmp_path)
    assert resumed.step == 12 == checkpoints.saved_step(tmp_path)


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_a_damaged_checkpoint_is_replaced_by_its_run_at_once(tmp_path, name, capsys):
    fit(start_simple(replace(TINY, epochs=1)), tmp_path)
    good = {path.name: path.read_bytes() for path in tmp_path.glob("*.*")}
    (tmp_path / name).write_bytes(with_flipped_bit(good[name], 0))  # so that config.json is no JSON
    with pytest.raises(KeyboardInterrupt):
        fit(resume_run(tmp_path, TINY), tmp_path, killed)
    assert str(tmp_path) in capsys.readouterr().out
    assert (tmp_path / WEIGHTS).read_bytes() == good[WEIGHTS]
    run = resume_run(tmp_path)
    assert saving.is_saved(tmp_path, run) and run.step == 6
