"""Training in a folder: saving, stopping, going on, and what must not be overwritten."""

import math
import shutil
from dataclasses import replace

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from helpers import in_processes, raising
from training_helpers import PATH, TINY, fit, same, squares, stopped_clock, without_locks
from training_helpers import start_simple as start

from mnist_ddpm import ddpm
from mnist_ddpm.ddpm import l_simple
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.formats.checkpoints import save_checkpoint, saved_step
from mnist_ddpm.machine import folder_lock
from mnist_ddpm.machine.processes import ProcessGroup
from mnist_ddpm.training import loop, saving, session
from mnist_ddpm.training.saving import save_run
from mnist_ddpm.training.session import draw_preview

BLACK = np.zeros((1, 1), np.uint8)
LONGER = replace(TINY, epochs=3)


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    return stopped_clock(monkeypatch)


@pytest.fixture
def each_epoch(monkeypatch):
    """Saves after each epoch, of six steps."""
    monkeypatch.setattr(session, "PREVIEW_EVERY", 6)


def resume_run(folder, recipe=None):
    return saving.resume_run(folder, start, recipe)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def at_step(run, step, happens, objective=l_simple):
    """An objective with which something happens in a step: 0 is the first."""

    def watched(*given):
        if run.step == step:
            happens()
        return objective(*given)

    return watched


def test_fit_leaves_a_checkpoint_and_a_preview_of_every_epoch(tmp_path, each_epoch):
    run = fit(start(TINY), tmp_path, preview=draw_preview)
    assert names(tmp_path / "previews") == ["epoch_001.png", "epoch_002.png"]
    files = ["config.json", "model.safetensors", "previews", "training_state.pt"]
    assert names(tmp_path) == files
    assert same(resume_run(tmp_path).ema, run.ema) and saved_step(tmp_path) == 12
    picture = imageio.imread(tmp_path / "previews" / "epoch_002.png")
    assert picture.shape == (2 * (6 * 18 + 2), 2 * (6 * 18 + 2), 3)


def test_a_preview_replaces_a_link_and_leaves_its_target(tmp_path, each_epoch):
    (tmp_path / "mine.png").write_bytes(b"mine")
    (tmp_path / "run" / "previews").mkdir(parents=True)
    (tmp_path / "run" / "previews" / "epoch_001.png").symlink_to(tmp_path / "mine.png")
    fit(start(replace(TINY, epochs=1)), tmp_path / "run", preview=draw_preview)
    assert (tmp_path / "mine.png").read_bytes() == b"mine"
    assert imageio.imread(tmp_path / "run" / "previews" / "epoch_001.png").ndim == 3


def test_short_epochs_have_no_preview_each(tmp_path):
    """Six steps an epoch, so eight epochs are about fifty; the last epoch has one in any case."""
    fit(start(replace(TINY, epochs=9)), tmp_path, preview=lambda *_: BLACK)
    assert names(tmp_path / "previews") == ["epoch_008.png", "epoch_009.png"]


def test_a_preview_that_fails_does_not_end_the_training(tmp_path):
    for error in (FloatingPointError("the images are NaN"), OSError("No space left on device")):
        folder = tmp_path / type(error).__name__
        assert fit(start(TINY), folder, preview=raising(error)).step == 12


def test_previews_are_of_averaged_weights_of_all_labels_in_turn_and_of_the_same_noise():
    """In batches no larger than training's parts."""
    run, seen = start(replace(TINY, classes=3, seed=4, accumulation=2)), []
    run.ema.register_forward_pre_hook(lambda network, given: seen.append(given))
    pictures = [draw_preview(run, PATH, squares(36)) for _ in range(2)]
    assert np.array_equal(*pictures)
    first = [(x, labels) for x, t, labels in seen if t[0] == 50]
    assert torch.cat([labels for _, labels in first]).tolist() == 2 * (12 * [0, 1, 2])
    assert {len(x) for x, _ in first} == {8, 4}
    alone = torch.cat([x for x, _ in first[: len(first) // 2]])
    assert torch.equal(alone, ddpm.noise_source(4, range(36), TINY.shape)())
    seen.clear()
    run.world = type("Two", (ProcessGroup,), {"size": 2})()
    draw_preview(run, PATH, squares(36))
    assert max(len(x) for x, *_ in seen) == 4
    for weight in run.ema.parameters():
        weight.fill_(math.nan)
    with pytest.raises(FloatingPointError):
        draw_preview(run, PATH, squares(36))


def test_short_epochs_are_saved_once_and_then_by_time(tmp_path, clock, each_epoch, monkeypatch):
    """Of six steps, each a second; 4 s to save, 1 s to draw, which come to little of the time."""
    saved, drawn = [], []

    def save(folder, network, recipe, record, draw):
        saved.append(record["steps"])
        clock[0] += 4

    def draw(run, schedule, images):
        drawn.append(run.step)
        clock[0] += 1
        return BLACK

    def step(run, *_):
        run.step += 1
        run.losses.append(1.0)
        clock[0] += 1

    monkeypatch.setattr(loop, "training_step", step)
    began = clock[0]
    monkeypatch.setattr(checkpoints, "save_checkpoint", save)
    fit(start(replace(TINY, epochs=150)), tmp_path, preview=draw)
    assert saved == [6, 289, 575, 861, 900], "the first epoch, then past 300 s each, and the end"
    assert drawn[0] == 6 and drawn[-1] == 900 and len(drawn) > 20
    assert 4 * len(saved) + len(drawn) <= 3 + 4 + 5 + (clock[0] - began) / 20


def test_a_loss_that_is_not_finite_stops_with_step_and_time(tmp_path, each_epoch):
    run, times = start(TINY), []

    def objective(network, schedule, x0, t, eps):
        losses = l_simple(network, schedule, x0, t, eps)
        if run.step == 8:  # the ninth step, in the second epoch of six
            losses = torch.where(t == t[5], math.nan, losses)
            times.append(t[5].item())
        return losses

    with pytest.raises(FloatingPointError) as caught:
        fit(run, tmp_path, objective)
    told = str(caught.value)
    assert "step 9," in told and f"t = {times[0]}" in told and "step 6 " in told
    assert all(p.isfinite().all() for p in run.network.parameters())
    assert resume_run(tmp_path).step == saved_step(tmp_path) == 6
    with pytest.raises(FloatingPointError, match="step 9, .* can be resumed"):
        fit(run, tmp_path, objective)  # which is at step 8, and on disk at 6


def test_a_first_step_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(FloatingPointError, match="nothing was saved"):
        fit(start(TINY), tmp_path, lambda *given: l_simple(*given) * math.nan)
    assert names(tmp_path) == []


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, RuntimeError, MemoryError])
def test_memory_that_ends_in_training_leaves_a_checkpoint_that_is_told(tmp_path, each_epoch, kind):
    run = start(TINY)
    with pytest.raises(kind, match="out of memory.; .*step 6 "):
        fit(run, tmp_path, at_step(run, 6, raising(kind("out of memory."))))


def test_an_error_in_the_code_is_told_as_it_is(tmp_path):
    error = RuntimeError("shapes do not match")
    with pytest.raises(RuntimeError) as caught:
        fit(start(TINY), tmp_path, raising(error))
    assert caught.value is error


def test_a_disk_that_is_full_is_told_with_what_is_saved(tmp_path, each_epoch, monkeypatch):
    def save(folder, *rest):
        if saved_step(folder):
            raise OSError("No space left on device")
        save_checkpoint(folder, *rest)

    monkeypatch.setattr(checkpoints, "save_checkpoint", save)
    with pytest.raises(OSError, match="No space left on device; .*step 6 "):
        fit(start(TINY), tmp_path)


def test_a_finished_run_keeps_its_record_when_nothing_is_left_to_train(tmp_path, capsys):
    fit(start(TINY), tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    fit(resume_run(tmp_path, replace(TINY, epochs=1, learning_rate=0.5)), tmp_path)
    assert str(tmp_path) in capsys.readouterr().out
    assert (tmp_path / "config.json").read_bytes() == before
    assert resume_run(tmp_path).settings == TINY


def test_images_and_labels_that_do_not_fit_are_refused(tmp_path):
    """The network itself would take images of any size."""
    images = squares()
    for wrong in (images.repeat(1, 1, 2, 2), images.repeat(1, 3, 1, 1), images[:8]):
        with pytest.raises(ValueError):
            fit(start(TINY), tmp_path, images=wrong)
    labels, told = torch.arange(96) % 3, start(replace(TINY, classes=3))
    for wrong in (None, labels[:5], labels.float(), labels + 1, labels - 1):
        with pytest.raises(ValueError, match="label"):
            fit(told, tmp_path, labels=wrong)
    with pytest.raises(ValueError, match="label"):
        fit(start(TINY), tmp_path, labels=labels)
    assert fit(told, tmp_path, labels=labels).n_images == 96
    with pytest.raises(ValueError, match="96.*48"):
        fit(resume_run(tmp_path), tmp_path, images=images[:48], labels=labels[:48])


def test_fit_does_not_overwrite_another_run(tmp_path):
    fit(start(TINY), tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="resume"):
        fit(start(replace(TINY, seed=1)), tmp_path)
    (tmp_path / "training_state.pt").unlink()  # as in a checkpoint that is shipped
    with pytest.raises(FileExistsError, match="init_from"):
        fit(start(replace(TINY, seed=1)), tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_a_run_does_not_move_into_the_folder_of_another(tmp_path):
    for seed in (0, 1):
        fit(start(replace(TINY, seed=seed)), tmp_path / f"{seed}")
    longer = resume_run(tmp_path / "0", replace(TINY, epochs=3))
    with pytest.raises(FileExistsError):
        fit(longer, tmp_path / "1")
    assert fit(longer, tmp_path / "0").step == 18
    assert resume_run(tmp_path / "1").settings.seed == 1
    assert fit(longer, tmp_path / "new").step == 18, "an empty one is as good as its own"
    saved = start(TINY)
    save_run(tmp_path / "saved", saved)
    assert fit(saved, tmp_path / "saved").step == 12


def test_of_two_trainings_at_once_in_a_folder_the_second_is_refused(tmp_path):
    """A new one, and one resumed. The first goes on, and leaves no lock behind."""
    fit(start(TINY), tmp_path / "begun")
    for folder, first in (("new", start(TINY)), ("begun", resume_run(tmp_path / "begun", LONGER))):
        folder = tmp_path / folder
        second = resume_run(folder, LONGER) if first.step else start(replace(TINY, seed=1))

        def begun(second=second, folder=folder):
            with pytest.raises(BlockingIOError, match=str(folder)):
                fit(second, folder)

        whole = fit(first, folder, at_step(first, first.step + 2, begun)).step
        assert whole == saved_step(folder) and ".lock" not in names(folder)


def test_of_several_processes_all_hear_that_another_training_is_there(tmp_path):
    """The first tries the lock, and the others do not wait for it in vain."""

    def refused(world):
        with pytest.raises(BlockingIOError), folder_lock.locked_folder(tmp_path, world):
            pass
        return True

    with folder_lock.locked_folder(tmp_path, ProcessGroup()):
        told = in_processes(3, refused)
    assert told == [True] * 3


def test_a_disk_that_knows_no_locks_is_told_and_trained_on(tmp_path, monkeypatch, capsys):
    without_locks(monkeypatch)
    assert fit(start(TINY), tmp_path).step == saved_step(tmp_path) == 12
    assert f"{tmp_path} cannot be locked" in capsys.readouterr().out


def test_a_removed_folder_is_made_again(tmp_path, each_epoch, capsys):
    run, folder = start(TINY), tmp_path / "run"
    fit(run, folder, at_step(run, 8, lambda: shutil.rmtree(folder)), preview=lambda *_: BLACK)
    assert saved_step(folder) == resume_run(folder).step == 12
    assert "again" in capsys.readouterr().out


def test_a_run_that_began_in_the_same_folder_meanwhile_is_not_overwritten(tmp_path):
    run, other = start(TINY), start(replace(TINY, seed=1))
    began = at_step(run, 0, lambda: save_run(tmp_path, other))
    with pytest.raises(FileExistsError):
        fit(run, tmp_path, began)
    assert resume_run(tmp_path).settings.seed == 1


def test_of_two_trainings_of_one_run_the_later_overwrites_nothing(tmp_path, monkeypatch):
    without_locks(monkeypatch)
    first = fit(start(TINY), tmp_path)
    second, third = resume_run(tmp_path, LONGER), resume_run(tmp_path, LONGER)
    with pytest.raises(FileExistsError, match="step 18 .*can be resumed"):
        fit(second, tmp_path, at_step(second, 14, lambda: fit(third, tmp_path)))
    before = (tmp_path / "training_state.pt").read_bytes()
    with pytest.raises(FileExistsError, match="step 18 "):
        fit(first, tmp_path)
    assert (tmp_path / "training_state.pt").read_bytes() == before
    assert fit(third, tmp_path).step == resume_run(tmp_path).step == 18
