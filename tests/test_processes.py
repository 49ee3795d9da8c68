"""Several processes do what one does. Run as a script, by torchrun, this file is one of them."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from itertools import count, islice
from pathlib import Path

import accelerate
import pytest
import torch
from helpers import in_processes
from training_helpers import TINY, fit, squares, start_simple, steps, without_locks

from mnist_ddpm.ddpm import l_simple
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.machine import process, processes
from mnist_ddpm.machine.processes import ProcessGroup
from mnist_ddpm.methods.learned_variance import l_vlb
from mnist_ddpm.training import saving
from mnist_ddpm.training.loop import start_run as start
from mnist_ddpm.training.run import attach_processes

ROOT = Path(__file__).resolve().parent.parent
# Times that are chosen by all losses so far; labels; batches in parts
RECIPE = replace(TINY, batch_size=12, classes=3, objective="vlb", optimizer="muon", accumulation=2)
IMAGES, LABELS = squares(60), torch.arange(60) % 3


def train(folder: Path, world: ProcessGroup, objective=None):
    """Ten steps, at once or from where they were stopped."""
    has_state = (folder / "training_state.pt").is_file()
    run = saving.resume_run(folder, start) if has_state else start(RECIPE)
    options = {"images": IMAGES, "labels": LABELS, "world": world}
    return fit(run, folder, objective or l_vlb(), **options)


def calling(action):
    """The objective, which first calls action(k) at its k-th call."""
    calls = count(1)

    def objective(*arguments):
        action(next(calls))
        return l_vlb()(*arguments)

    return objective


def half(folder: Path, world: ProcessGroup) -> None:
    """Five steps, and a checkpoint of them. Of two parts, gradients are shared with the second."""
    run, shared = start(RECIPE), []
    attach_processes(run, world)
    objective = calling(lambda k: shared.append(run.callable_network.require_backward_grad_sync))
    losses = steps(run, objective, IMAGES, labels=LABELS, world=world)
    assert len([*islice(losses, 5)]) == 5
    assert shared == [False, True] * 5
    if world.rank == 0:
        saving.save_run(folder, run)


def stopped(folder: Path, world: ProcessGroup) -> None:
    """Only the last process gets a signal, in the second of two parts of the fifth step."""
    folder = folder / "stopped"

    def stop(k):
        if k == 9 and world.rank == world.size - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        train(folder, world, calling(stop))
    except KeyboardInterrupt as interrupt:
        is_saved = (folder / "config.json").exists()
        (folder / f"{world.rank}.txt").write_text(f"{is_saved} {interrupt}")


def killed(folder: Path, world: ProcessGroup) -> None:
    """The second process dies in the fourth step, and the launcher has time to break in."""
    save = saving.save_run

    def die(k):
        if k == 7 and world.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    def save_slowly(*arguments):
        time.sleep(1)
        save(*arguments)

    saving.save_run = save_slowly
    train(folder / "killed", world, calling(die))


ACCELERATE = "-m accelerate.commands.launch --multi_gpu --main_process_port 0 --num_processes 2"
TORCHRUN = "-m torch.distributed.run --standalone --nproc-per-node"


def launch(folder: Path, *jobs: str, launcher: str = "") -> subprocess.CompletedProcess:
    """The result of a launcher, or of one process alone, that does the jobs one after another."""
    command = [sys.executable, *launcher.split(), __file__, str(folder), *jobs]
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HOME": str(folder)}
    options = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": 600}
    return subprocess.run(command, env=os.environ | own, **options)


def state(folder: Path) -> dict:
    return torch.load(folder / "training_state.pt", weights_only=True)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict:
    """The state of what one process does."""
    folder = tmp_path_factory.mktemp("alone")
    train(folder, ProcessGroup())
    return state(folder)


@pytest.fixture(scope="module")
def launched(tmp_path_factory) -> tuple:
    """The folder of what three processes do, then two, and then two of which one dies."""
    folder = tmp_path_factory.mktemp("launched")
    for jobs, launcher in ((("half", "stopped"), f"{TORCHRUN} 3"), (("train",), ACCELERATE)):
        done = launch(folder, *jobs, launcher=launcher)
        assert done.returncode == 0, done.stderr
    return folder, launch(folder, "killed", launcher=f"{TORCHRUN} 2")


def test_three_processes_and_then_two_train_like_one(alone, launched):
    several = state(launched[0])
    assert len(alone["losses"]) == len(several["losses"]) == 10
    torch.testing.assert_close(several["losses"], alone["losses"], rtol=0, atol=1e-5)
    torch.testing.assert_close(several["ema"], alone["ema"], rtol=0, atol=1e-5)


def test_a_signal_to_one_process_stops_all_after_the_same_step_when_all_is_saved(launched):
    folder = launched[0] / "stopped"
    message, *others = ((folder / f"{rank}.txt").read_text() for rank in (0, 1, 2))
    assert others == 2 * [message] and "True" in message and "step 5 " in message
    assert checkpoints.saved_step(folder) == 5


def test_a_process_that_dies_ends_the_run_with_an_error_and_a_checkpoint(launched):
    folder, result = launched
    assert result.returncode != 0 and "one of 2 processes failed" in result.stderr
    killed = folder / "killed"
    assert checkpoints.saved_step(killed) == saving.resume_run(killed, start).step == 3


def test_a_missing_accelerate_is_named_with_its_extra(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ValueError, match=r"\[accelerate\]"):
        processes.connect_world()


@pytest.mark.parametrize("gpu", [False, True])
def test_accelerate_must_connect_all_and_leave_the_precision_to_the_recipe(gpu, monkeypatch):
    options = {}

    class Lone:  # Accelerate, if it knows no way to connect
        process_index, num_processes, device = 0, 1, torch.device("cpu")

        def __init__(self, **given):
            options.update(given)

    monkeypatch.setattr(accelerate, "Accelerator", Lone)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes, .* connected 1"):
        processes.connect_world()
    assert options["cpu"] is not gpu and options["mixed_precision"] == "no"
    patience = options["kwargs_handlers"][0].timeout.total_seconds()
    assert patience > 3600, "one may decode a data set for all"


@pytest.mark.parametrize("rank, size, is_shown", [("0", "2", 1), ("1", "2", 0), ("3", "1", 1)])
def test_of_several_processes_the_first_shows_its_progress(monkeypatch, rank, size, is_shown):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", size)
    assert process.progress_bar([]).disable is not bool(is_shown)


@pytest.mark.parametrize("n", [3, 7, 9])
def test_shares_are_disjoint_and_nearly_equal(n):
    shares = in_processes(3, lambda world: world.share(n))
    assert [k for share in shares for k in share] == [*range(n)]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def member(size: int, rank: int = 0, **methods) -> ProcessGroup:
    """One of several processes, without the others: it gathers its own share again and again."""
    methods = {"gather": lambda self, x: x.repeat(size)} | methods
    return type("Member", (ProcessGroup,), {"rank": rank, "size": size, **methods})()


def test_a_batch_that_cannot_be_shared_is_refused():
    with pytest.raises(ValueError, match="12 .* 5 processes"):
        attach_processes(start_simple(replace(TINY, batch_size=12)), member(5))


def test_a_run_of_several_processes_is_not_fitted_as_if_it_were_alone(tmp_path):
    world = member(2, prepare=lambda self, network: torch.nn.Sequential(network))
    run = start_simple(TINY)
    attach_processes(run, world)
    called = run.callable_network
    attach_processes(run, world)
    assert run.callable_network is called, "wrapped once"
    with pytest.raises(ValueError, match="attached"):
        fit(run, tmp_path)


def test_each_process_reads_its_own_images_only_and_sees_of_each_batch_its_share():
    class Watched:
        device, dtype, shape, read = squares().device, torch.uint8, squares().shape, 0

        def __len__(self):
            return 96

        def __getitem__(self, which):
            self.read += len(which)
            return squares()[which]

    images, batches = Watched(), []

    def objective(network, schedule, x0, t, eps):
        batches.append((x0, t, eps))
        return l_simple(network, schedule, x0, t, eps)

    next(steps(start_simple(TINY), objective, images, world=member(2, rank=1)))
    assert images.read == 8
    next(steps(start_simple(TINY), objective))
    assert all(torch.equal(share, batch[8:]) for share, batch in zip(*batches))


@pytest.mark.parametrize(
    "rank, fails_at, message", [(0, 0, "nothing"), (0, 2, "step 2 is saved"), (1, 2, "the first")]
)
def test_a_failure_claims_no_checkpoint_that_is_not_there(tmp_path, rank, fails_at, message):
    def failing(*arguments):
        if len(run.losses) == fails_at:
            raise RuntimeError("out of memory")
        return l_simple(*arguments)

    run = start_simple(TINY)
    with pytest.raises(ConnectionError, match=f"out of memory.*{message}"):
        fit(run, tmp_path, failing, world=member(2, rank))
    assert (tmp_path / "config.json").exists() == ("is saved" in message)


def test_a_failing_run_overwrites_no_other(tmp_path, monkeypatch):
    without_locks(monkeypatch)
    fit(start_simple(replace(TINY, epochs=1)), tmp_path)
    resume = partial(saving.resume_run, tmp_path, start_simple, TINY)
    run, other = resume(), resume()

    def failing(*arguments):
        if run.step == 8:
            fit(other, tmp_path)
            raise RuntimeError("gone")
        return l_simple(*arguments)

    with pytest.raises(ConnectionError, match="step 12 is saved"):
        fit(run, tmp_path, failing, world=member(2))
    assert resume().step == 12


if __name__ == "__main__":
    world = processes.connect_world(cpu=True)
    for job in sys.argv[2:]:
        globals()[job](Path(sys.argv[1]), world)
    processes.disconnect()
    tasks = Path("/proc/self/task").glob("*/comm")  # on Linux alone
    threads = [path.read_text().strip() for path in tasks]
    assert not [name for name in threads if "gloo" in name], threads
