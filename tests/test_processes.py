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

from mnist_ddpm import ddpm, evaluation, processes, runs
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


def test_weights_that_settings_name_must_be_given(tiny, blobs, fits, tmp_path):
    """Else the run would start from random ones, and its record would say otherwise."""
    named = replace(tiny, init_from="mine")
    with pytest.raises(ValueError, match="init_from is mine, and there are no weights: pass those that pretrained"):
        processes.train(named, blobs, tmp_path)
    run = processes.train(named, blobs, tmp_path, weights=ddpm.start_run(tiny).model.state_dict())
    runs.save_run(tmp_path, run)
    processes.train(named, blobs, tmp_path, resume=True)
    assert len(fits) == 2


def test_of_several_processes_a_failure_claims_no_checkpoint_that_is_not_there(tiny, blobs, tmp_path):
    def failing(*arguments):
        if len(run.losses) == fails_at:
            raise RuntimeError("out of memory")
        return ddpm.l_simple(*arguments)

    for rank, fails_at, message in ((0, 0, "nothing was saved"), (0, 2, "step 2 is saved in"),
                                    (1, 2, "what the first of them has saved is in")):  # fmt: skip
        world = type("Fake", (runs.World,), {"rank": rank, "size": 2, "gather": lambda self, x: x.repeat(2)})()
        run, folder = processes.join(ddpm.start_run(tiny), world), tmp_path / f"{rank}-{fails_at}"
        with pytest.raises(ConnectionError, match=rf"one of 2 processes failed, .* \(out of memory\); {message}"):
            processes.fit(run, blobs, ddpm.make_schedule(tiny), folder, world, objective=failing)
        assert (folder / "config.json").exists() == ("is saved" in message)
        if "is saved" in message:  # and what the step that failed had drawn is drawn again
            undisturbed = processes.join(ddpm.start_run(tiny), world)
            list(islice(ddpm.training_loop(undisturbed, blobs, ddpm.make_schedule(tiny)), fails_at))
            resumed = runs.resume_run(folder)
            assert torch.equal(resumed.generator.get_state(), undisturbed.generator.get_state())


def test_each_process_reads_its_own_images_only(tiny, blobs, tmp_path, monkeypatch):
    class Watched:
        device, dtype, shape, read = blobs.device, blobs.dtype, blobs.shape, 0

        def __len__(self):
            return len(blobs)

        def __getitem__(self, which):
            self.read += len(which)
            return blobs[which]

    world = type("Second", (runs.World,), {"rank": 1, "size": 2, "gather": lambda self, x: x.repeat(2)})()
    images, seen = Watched(), []

    def objective(model, schedule, x0, t, eps):
        seen.append(x0)
        return ddpm.l_simple(model, schedule, x0, t, eps)

    def fitted(run, images, schedule, folder, loop, **options):
        next(loop(run, images, schedule, options["objective"]))

    monkeypatch.setattr(runs, "fit", fitted)
    run = ddpm.start_run(tiny)
    processes.fit(run, images, ddpm.make_schedule(tiny), tmp_path, world, objective)  # which joins the world
    next(ddpm.training_loop(ddpm.start_run(tiny), blobs, ddpm.make_schedule(tiny), objective))
    assert images.read == 8 and torch.equal(seen[0], seen[1][8:])


def test_a_run_of_several_processes_is_not_fitted_as_if_it_were_alone(tiny, blobs, tmp_path):
    world = type("Second", (runs.World,), {"rank": 1, "size": 2})()
    with pytest.raises(ValueError, match="joined several processes: fit it with processes.fit"):
        runs.fit(processes.join(ddpm.start_run(tiny), world), blobs, ddpm.make_schedule(tiny), tmp_path)


def test_each_step_and_each_process_draws_its_own_dropout(dropout, blobs):
    class Second(runs.World):
        rank, size = 1, 2

        def gather(self, x):
            return torch.cat([x, x])

    seen = {}
    for world in (runs.World(), Second()):
        run = processes.join(ddpm.start_run(dropout), world)
        steps = islice(ddpm.training_loop(run, blobs, ddpm.make_schedule(dropout)), 4)
        seen[world.rank] = [torch.initial_seed() for _ in steps]
    assert len({*seen[0], *seen[1]}) == 8


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
