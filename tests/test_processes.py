"""Several processes do what one does. Run as a script, by torchrun, this file is one of them."""

import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import accelerate
import pytest
import torch
from conftest import ROOT
from torch.distributed.run import get_args_parser

from mnist_ddpm import ddpm, evaluation, machine, processes, runs
from mnist_ddpm.__main__ import main
from mnist_ddpm.extractors import Extractor, Judge

SETTINGS = ddpm.Settings(
    image_size=16, base_channels=8, channel_mults=(1, 2), T=50, batch_size=12, epochs=2, warmup_steps=3, classes=3,
    objective="vlb", optimizer="muon", learning_rate=2e-3, accumulation=2,
)  # fmt: skip


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randint(0, 256, (60, 1, 16, 16), generator=generator, dtype=torch.uint8),
        torch.randint(0, 3, (60,), generator=generator),
    )


def whole(folder: Path, world: runs.World) -> None:
    """Ten steps, at once or from where they were stopped."""
    images, labels = data()
    started = (folder / "training_state.pt").is_file()
    run = processes.join(runs.resume_run(folder) if started else ddpm.start_run(SETTINGS), world)
    processes.fit(run, images, ddpm.make_schedule(SETTINGS), folder, world, labels=labels)


def half(folder: Path, world: runs.World) -> None:
    """Five steps, and a checkpoint of them. Of a batch in two parts, gradients are shared with the second."""
    images, labels = data()
    run, objective, shared = processes.join(ddpm.start_run(SETTINGS), world), ddpm.make_objective(SETTINGS), []

    def watched(*arguments):
        shared.append(run.network.require_backward_grad_sync)
        return objective(*arguments)

    loop = ddpm.training_loop(run, images, ddpm.make_schedule(SETTINGS), watched, labels)
    assert len([*islice(loop, 5)]) == 5
    assert shared == [False, True] * 5
    if world.rank == 0:
        runs.save_run(folder, run)


def drawn(folder: Path, world: runs.World) -> None:
    """Seven images of a checkpoint, their features, and distances of some that each process has all of."""
    model, schedule, _ = ddpm.load_checkpoint(folder)
    options = {"labels": torch.arange(7) % 3, "sampler": ddpm.ddpm_sampler, "steps": 5, "seed": 3, "film": 2}
    images, film = processes.generate(world, model, schedule, 7, (1, 16, 16), **options)
    torch.manual_seed(0)
    judge = Judge(Extractor("mnist", 10, (8, 8)).eval(), "untrained")
    padded = torch.nn.functional.pad(images, [8] * 4)
    shared = replace(judge, share=partial(processes.shared, world))
    features = torch.cat([shared.features(padded), shared.features(padded[:1])])  # of one, fewer than processes
    blobs = torch.randn(2, 40, 3, generator=torch.Generator().manual_seed(0))
    distances = torch.tensor([estimate.value for estimate in evaluation.distances(*blobs).values()])
    if world.rank == 0:
        torch.save((images, film[-1][1], features, distances), folder / f"drawn-{world.size}.pt")


def stopped(folder: Path, world: runs.World) -> None:
    """Only the last process is told to stop."""
    objective, seen = ddpm.make_objective(SETTINGS), []

    def pressed(*arguments):
        seen.append(1)
        if len(seen) == 9 and world.rank == world.size - 1:  # two parts a step: in the fifth
            os.kill(os.getpid(), signal.SIGTERM)
        return objective(*arguments)

    save_slowly()
    images, labels = data()
    run = processes.join(ddpm.start_run(SETTINGS), world)
    try:
        processes.fit(run, images, ddpm.make_schedule(SETTINGS), folder, world, objective=pressed, labels=labels)
    except KeyboardInterrupt as interrupt:
        there = "" if (folder / "config.json").exists() else ", but it left before that"
        (folder / f"stopped-{world.rank}").write_text(f"{interrupt}{there}")


def save_slowly() -> None:
    """Leaves a launcher the time to break into it."""

    def slowly(*arguments):
        time.sleep(1)
        save(*arguments)

    save, runs.save_run = runs.save_run, slowly


def killed(folder: Path, world: runs.World) -> None:
    """The second process dies in the fourth step."""
    objective, seen = ddpm.make_objective(SETTINGS), []

    def deadly(*arguments):
        seen.append(1)
        if len(seen) == 7 and world.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return objective(*arguments)

    save_slowly()
    images, labels = data()
    run = processes.join(ddpm.start_run(SETTINGS), world)
    processes.fit(run, images, ddpm.make_schedule(SETTINGS), folder, world, objective=deadly, labels=labels)


def from_notebook(folder: Path, world: runs.World) -> None:
    """What one process does that launches two, and goes on by itself."""
    images, labels = data()
    torch.set_num_threads(2)
    torch.rand(2, 10**6).mul(2).sum()  # by OpenMP's threads, which the two will not have
    processes.train_in_notebook(2, SETTINGS, images, folder, labels)
    assert runs.resume_run(folder).step == 10


TORCHRUN = "torch.distributed.run", "--standalone", "--nproc-per-node"
ACCELERATE = "accelerate.commands.launch", "--multi_gpu", "--main_process_port", "0", "--num_processes"


def launch(size: int, folder: Path, *jobs: str, launcher: tuple[str, ...] = TORCHRUN) -> subprocess.CompletedProcess:
    """The launcher's result of that many processes that do the jobs one after the other."""
    command = [sys.executable, "-m", *launcher, str(size), __file__, str(folder), *jobs]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HOME": str(folder)}
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=200)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The folder of what one process does."""
    folder = tmp_path_factory.mktemp("alone")
    whole(folder, runs.World())
    return folder


def test_two_processes_and_then_three_train_and_draw_like_one(alone, tmp_path):
    """The bound's loss, whose times are chosen by all losses so far; labels; batches in parts."""
    for launcher, size, *jobs in ((ACCELERATE, 2, "half"), (TORCHRUN, 3, "whole", "drawn")):
        result = launch(size, tmp_path, *jobs, launcher=launcher)
        assert result.returncode == 0, result.stderr
    one, several = (torch.load(folder / "training_state.pt", weights_only=True) for folder in (alone, tmp_path))
    assert len(one["losses"]) == len(several["losses"]) == 10
    torch.testing.assert_close(several["losses"], one["losses"], rtol=0, atol=1e-5)
    assert torch.equal(one["generator"], several["generator"])
    for name, value in one["ema"].items():
        torch.testing.assert_close(several["ema"][name], value, rtol=0, atol=1e-5)
    drawn(tmp_path, runs.World())
    for theirs, own in zip(*(torch.load(tmp_path / f"drawn-{size}.pt") for size in (3, 1)), strict=True):
        torch.testing.assert_close(theirs.double(), own.double(), rtol=0, atol=1 if own.dtype == torch.uint8 else 1e-4)
    torch.testing.assert_close(theirs, own, msg="the distances, which come last")


def test_a_notebook_trains_on_two(alone, tmp_path):
    result = launch(1, tmp_path, "from_notebook")
    assert result.returncode == 0 and "on 2 processes" in result.stdout, result.stderr
    one, two = (torch.load(folder / "training_state.pt", weights_only=True)["losses"] for folder in (alone, tmp_path))
    torch.testing.assert_close(two, one, rtol=0, atol=1e-5)


def test_a_notebook_that_has_used_a_gpu_is_told_to_restart(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(ValueError, match="restart the notebook"):
        processes.train_in_notebook(2, SETTINGS, *data(), tmp_path)


def test_a_stop_told_to_one_process_stops_all_after_the_same_step(tmp_path):
    assert launch(2, tmp_path, "stopped").returncode == 0
    assert {(tmp_path / f"stopped-{rank}").read_text() for rank in (0, 1)} == {
        f"stopped after step 5 and saved in {tmp_path}: resume to go on"
    }
    assert ddpm.load_config(tmp_path)[1]["steps"] == 5


def test_a_process_that_dies_ends_the_run_with_an_error_and_a_checkpoint(tmp_path):
    result = launch(2, tmp_path, "killed")
    assert result.returncode != 0 and "one of 2 processes failed" in result.stderr
    assert ddpm.load_config(tmp_path)[1]["steps"] == 3
    assert runs.resume_run(tmp_path).step == 3 and ddpm.load_checkpoint(tmp_path)


def test_as_many_processes_must_be_there_as_were_asked_for(tmp_path, monkeypatch, capsys):
    assert main(["train", "--processes", "2", "--out", str(tmp_path / "new")]) == 1
    assert "2 processes were asked for, and 1 started" in capsys.readouterr().err and not (tmp_path / "new").exists()
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="2 processes were asked for, and 3 started: launch them with torchrun"):
        processes.connect(2)


def test_readme_launches_what_it_says():
    lines = [line for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if "bin/torchrun " in line]
    parsed = [get_args_parser().parse_args(shlex.split(line)[1:]) for line in lines]
    assert [(p.module, p.training_script, p.training_script_args[0]) for p in parsed] == [
        (True, "mnist_ddpm", "train"), (True, "mnist_ddpm", "train"), (True, "mnist_ddpm", "evaluate"),
    ]  # fmt: skip


@pytest.mark.parametrize("gpu", [False, True])
def test_accelerate_must_connect_all_and_leave_the_precision_to_the_settings(gpu, monkeypatch):
    asked = []

    class Lone:  # as Accelerate says where it knows no way to connect
        process_index, num_processes, device = 0, 1, torch.device("cpu")

        def __init__(self, **options):
            asked.append(options)

    monkeypatch.setattr(accelerate, "Accelerator", Lone)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="speaks of 2 processes, and Accelerate has connected 1"):
        processes.connect()
    assert asked[0]["cpu"] is not gpu and asked[0]["mixed_precision"] == "no"
    assert asked[0]["kwargs_handlers"][0].timeout.total_seconds() > 3600, "one may decode a data set for all"


def test_accelerate_launch_that_starts_one_of_two_in_silence_is_refused(tmp_path):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    command += ["-m", "mnist_ddpm", "train", "--processes", "2", "--out", str(tmp_path / "run")]
    unconfigured = {**os.environ, "HF_HOME": str(tmp_path)}
    result = subprocess.run(command, env=unconfigured, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert result.returncode != 0 and not (tmp_path / "run").exists()
    assert "error: 2 processes were asked for, and 1 started" in result.stderr


@pytest.mark.parametrize("command", [["plan", "--dry-run"], ["likelihood"]], ids=" ".join)
def test_what_one_process_does_is_not_done_by_several(monkeypatch, capsys, command):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("mnist_ddpm.planning.make_plan", lambda *_: pytest.fail("nothing is measured for that"))
    assert main(command) == 1
    assert "this command is for one process" in capsys.readouterr().err


def test_one_process_of_accelerate_launch_is_told_that_it_is_alone(monkeypatch, capsys):
    for name in ("WORLD_SIZE", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    for launcher in ({}, {"ACCELERATE_MIXED_PRECISION": "no"}):
        for name, value in launcher.items():
            monkeypatch.setenv(name, value)
        assert processes.connect().size == 1
        assert ("has started one process" in capsys.readouterr().out) == bool(launcher)


@pytest.mark.parametrize("n", [3, 7, 9])
def test_shares_are_disjoint_and_nearly_equal(n):
    worlds = [type("Fake", (runs.World,), {"rank": rank, "size": 3})() for rank in range(3)]
    shares = [world.share(n) for world in worlds]
    assert [k for share in shares for k in share] == [*range(n)]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    padded = torch.cat([torch.tensor([*share] + [-1] * (-(-n // 3) - len(share))) for share in shares])
    monkey = type("Gathered", (runs.World,), {"rank": 0, "size": 3, "gather": lambda self, x: padded})()
    assert processes.collect(monkey, torch.tensor([*shares[0]]), n).tolist() == [*range(n)]


def test_a_device_for_several_processes_is_refused():
    world = type("Fake", (runs.World,), {"size": 2, "device": torch.device("cuda:1")})()
    assert {str(machine.pick_device(name, world)) for name in ("auto", "cuda")} == {"cuda:1"}
    with pytest.raises(ValueError, match="each has its own device, here cuda:1: leave --device cuda:0 out"):
        machine.pick_device("cuda:0", world)


def test_a_command_to_type_is_quoted_for_the_shell_at_hand(monkeypatch):
    command = ["train", "--out", r"images&samples\mine", "--data", "my data"]
    assert shlex.split(machine.shell(command)) == command
    monkeypatch.setattr(machine.os, "name", "nt")
    assert machine.shell(command) == r'train --out "images&samples\mine" --data "my data"'


def test_a_command_of_ours_names_the_interpreter_that_has_the_package(tmp_path, monkeypatch):
    own = tmp_path / "bin" / "python"
    monkeypatch.setattr(sys, "executable", str(own))
    for found, folder, named in (
        (own, ROOT, "python"), (None, ROOT, str(own)), (tmp_path / "python", tmp_path, "bin/python"),
    ):  # fmt: skip
        monkeypatch.chdir(folder)
        monkeypatch.setattr(machine.shutil, "which", lambda name, found=found: found and str(found))
        assert machine.own_command(["train", "--resume"]) == f"{named} -m mnist_ddpm train --resume"


def test_what_cannot_be_shared_is_refused():
    world = type("Fake", (runs.World,), {"size": 5})()
    schedule = ddpm.make_schedule(SETTINGS)
    with pytest.raises(ValueError, match="batch_size 12 cannot be shared by 5 processes"):
        processes.join(ddpm.start_run(SETTINGS), world)
    with pytest.raises(ValueError, match="4 images cannot be shared by 5 processes"):
        processes.generate(world, None, schedule, 4, (1, 16, 16))
    with pytest.raises(ValueError, match="there are 6 labels: there must be one for each of 5 images"):
        processes.generate(runs.World(), None, schedule, 5, (1, 16, 16), labels=torch.zeros(6))
    world.size = 2
    with pytest.raises(ValueError, match="there are 4 labels: there must be one for each of 8 images"):
        processes.generate(world, None, schedule, 8, (1, 16, 16), labels=torch.zeros(4))


if __name__ == "__main__":
    world = processes.connect(cpu=True)
    for job in sys.argv[2:]:
        globals()[job](Path(sys.argv[1]), world)
    processes.leave()
    threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]  # none where not Linux
    assert not [name for name in threads if "gloo" in name], threads
