"""The machine: its devices, compiler and shell."""

import os
import shlex
import sys
from pathlib import Path

import pytest
import torch

from mnist_ddpm import ddpm
from mnist_ddpm.machine import devices, shell
from mnist_ddpm.machine.processes import World

ROOT = Path(__file__).resolve().parent.parent


def test_bfloat16_is_refused_where_a_gpu_only_emulates_it(monkeypatch):
    """And not worth a measurement."""
    real = [False]

    def supported(including_emulation=True):
        return real[0] or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    for precision in ("float32", "float16"):
        devices.check_precision(precision, "cuda")
    devices.check_precision("bfloat16", "cpu")
    with pytest.raises(ValueError, match="bfloat16"):
        devices.check_precision("bfloat16", "cuda")
    assert devices.candidate_precisions("cuda") == ["float32", "float16"]
    real[0] = True
    assert (
        devices.candidate_precisions("cuda")
        == devices.candidate_precisions("cpu")
        == ["float32", "bfloat16"]
    )


def test_the_gpu_that_is_asked_for_bfloat16_is_the_one_that_computes(monkeypatch):
    current = [0]

    class Visited:
        def __init__(self, device):
            self.index = device.index

        def __enter__(self):
            current.append(self.index)

        def __exit__(self, *_):
            current.pop()

    monkeypatch.setattr(torch.cuda, "device", Visited)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: current[-1] == 1
    )
    devices.check_precision("bfloat16", "cuda:1")
    with pytest.raises(ValueError, match="bfloat16"):
        devices.check_precision("bfloat16", "cuda:0")
    assert current == [0]


def test_a_gpu_trains_in_bfloat16_where_it_computes_in_it(monkeypatch):
    """As from capability 8.0 on; a T4 and a processor train in float32."""
    real = [True]
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: real[0])
    assert devices.default_precision("cuda") == "bfloat16"
    real[0] = False
    assert {devices.default_precision(name) for name in ("cuda", "cpu", "mps")} == {"float32"}


@pytest.fixture
def compiler(monkeypatch):
    """A compiler that leaves all as it is; tells what it was given."""
    given = []
    monkeypatch.setattr(torch, "compile", lambda function: given.append(function) or function)
    devices.try_compiler.cache_clear()
    yield given
    devices.try_compiler.cache_clear()


def test_a_compiler_is_tried_once_where_it_works(monkeypatch, capsys, compiler):
    for error, told in (
        (RuntimeError("NoCompiler: no C++\nand more"), "NoCompiler: no C++\n"),
        (AssertionError(), "AssertionError()\n"),
    ):
        capsys.readouterr()

        def missing(function, error=error):
            raise error

        with monkeypatch.context() as patched:
            patched.setattr(torch, "compile", missing)
            assert not devices.compiles("cpu") and capsys.readouterr().out.endswith(f": {told}")
    assert devices.compiles("cpu") and devices.compiles("cpu") and len(compiler) == 1


def test_a_gpu_is_tried_with_what_the_network_is_made_of(monkeypatch, compiler):
    """A compiler may add on a GPU that is too old for it, and fail at all else."""
    before = torch.get_rng_state()
    for precision in ("float32", "bfloat16"):
        devices.compile_block("cpu", precision)
        block = compiler.pop()
        assert isinstance(block, ddpm.Block) and isinstance(block.attention, ddpm.SelfAttention)
        assert all(weight.grad is not None for weight in block.parameters())
    assert torch.equal(torch.get_rng_state(), before), "what comes later is drawn as without"

    def too_old(device, precision):
        raise RuntimeError(f"Triton has no {precision} for {device}")

    monkeypatch.setattr(devices, "compile_block", too_old)
    assert not devices.compiles("cuda") and devices.compiles("cpu")


@pytest.mark.parametrize("gpus", [0, 1, 2])
def test_several_gpus_are_asked_for_without_touching_them(monkeypatch, gpus):
    """Else a process forked from a notebook could not use them."""
    name = "PYTORCH_NVML_BASED_CUDA_CHECK"
    monkeypatch.setenv(name, "")  # restored in the end
    monkeypatch.delenv(name)
    asked = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: asked.append(os.environ.get(name)))
    devices.pick_device("auto")
    assert asked == (["1"] if gpus > 1 else [None])


def test_a_device_that_is_not_to_be_had_is_refused():
    assert devices.pick_device("cpu") == torch.device("cpu")
    for name in ("meta", "cuda:99", "toaster"):
        with pytest.raises(ValueError, match=name):
            devices.pick_device(name)
    world = type("Fake", (World,), {"size": 2, "device": torch.device("cuda:1")})()
    assert {str(devices.pick_device(name, world)) for name in ("auto", "cuda")} == {"cuda:1"}
    with pytest.raises(ValueError, match="cuda:0"):
        devices.pick_device("cuda:0", world)


def test_a_command_to_type_is_quoted_for_the_shell_at_hand(monkeypatch):
    command = ["train", "--out", r"images&samples\mine", "--data", "my data"]
    assert shlex.split(shell.quote(command)) == command
    monkeypatch.setattr(shell.os, "name", "nt")
    assert shell.quote(command) == r'train --out "images&samples\mine" --data "my data"'


def test_a_command_of_ours_names_the_interpreter_that_has_the_package(tmp_path, monkeypatch):
    own = tmp_path / "bin" / "python"
    monkeypatch.setattr(sys, "executable", str(own))
    for found, folder, named in (
        (own, ROOT, "python"), (None, ROOT, str(own)),
        (tmp_path / "python", tmp_path, "bin/python"),
    ):  # fmt: skip
        monkeypatch.chdir(folder)
        monkeypatch.setattr(shell.shutil, "which", lambda name, found=found: found and str(found))
        command = shell.own_command(["train", "--resume"])
        assert command == f"{named} -m mnist_ddpm train --resume"
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "mnist-ddpm"), "train"])
    assert shell.own_command(["train", "--resume"]) == "mnist-ddpm train --resume"


def test_a_folder_at_home_is_found_also_where_the_shell_leaves_it(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("USERPROFILE", "/home/me")
    given = ["--out=~/faces", "~/faces", "--n=3", "-h", "a~b"]
    found = ["--out=/home/me/faces", "/home/me/faces", "--n=3", "-h", "a~b"]
    assert [shell.expand_home(argument) for argument in given] == found
