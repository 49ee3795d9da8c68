"""The machine: its devices, compiler and shell."""

import os
import shlex
import sys
from contextlib import contextmanager, nullcontext

import pytest
import torch
from conftest import ROOT
from helpers import raising

from mnist_ddpm import ddpm
from mnist_ddpm.machine import devices, process
from mnist_ddpm.machine.processes import ProcessGroup


@pytest.mark.parametrize("computes", [False, True])
def test_bfloat16_is_for_gpus_that_compute_in_it(monkeypatch, computes):
    """As from capability 8.0 on; a T4 only emulates it."""
    supported = lambda including_emulation=True: including_emulation or computes  # noqa: E731
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    devices.check_precision("float16", "cuda")
    devices.check_precision("bfloat16", "cpu")
    with nullcontext() if computes else pytest.raises(ValueError, match="bfloat16"):
        devices.check_precision("bfloat16", "cuda")
    fast = "bfloat16" if computes else "float16"
    assert devices.candidate_precisions("cuda") == ["float32", fast]
    assert devices.candidate_precisions("cpu") == ["float32", "bfloat16"]
    assert devices.default_precision("cuda") == ("bfloat16" if computes else "float32")
    assert devices.default_precision("cpu") == devices.default_precision("mps") == "float32"


def test_the_named_gpu_is_the_one_that_is_asked_about_bfloat16(monkeypatch):
    current = [0]

    @contextmanager
    def entered(device):
        current.append(device.index)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", entered)
    supported = lambda including_emulation: current[-1] == 1  # noqa: E731
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert devices.emulates("bfloat16", "cuda:0") and not devices.emulates("bfloat16", "cuda:1")
    assert current == [0]


@pytest.fixture
def compiled(monkeypatch):
    """What a compiler that changes nothing was given."""
    modules = []
    monkeypatch.setattr(torch, "compile", lambda module: modules.append(module) or module)
    devices.try_compiler.cache_clear()
    yield modules
    devices.try_compiler.cache_clear()


def test_a_compiler_is_tried_once_if_it_works(monkeypatch, capsys, compiled):
    for error, reason in (
        (RuntimeError("NoCompiler: no C++\nand more"), "NoCompiler: no C++\n"),
        (AssertionError(), "AssertionError()\n"),
    ):
        capsys.readouterr()
        with monkeypatch.context() as patched:
            patched.setattr(torch, "compile", raising(error))
            assert not devices.compiles("cpu") and capsys.readouterr().out.endswith(f": {reason}")
    assert devices.compiles("cpu") and devices.compiles("cpu") and len(compiled) == 1


def test_a_gpu_compiles_a_block_of_the_network(monkeypatch, compiled):
    """On a GPU that is too old a compiler may add, and fail at all else."""
    before = torch.get_rng_state()
    for precision in ("float32", "bfloat16"):
        devices.compile_block("cpu", precision)
        block = compiled.pop()
        assert isinstance(block, ddpm.Block) and isinstance(block.attention, ddpm.SelfAttention)
        assert all(weight.grad is not None for weight in block.parameters())
    assert torch.equal(torch.get_rng_state(), before), "later random numbers are unchanged"

    def too_old(device, precision):
        raise RuntimeError(f"Triton has no {precision} for {device}")

    monkeypatch.setattr(devices, "compile_block", too_old)
    assert not devices.compiles("cuda") and devices.compiles("cpu")


@pytest.mark.parametrize("gpus", [1, 2])
def test_several_gpus_are_looked_for_without_opening_one(monkeypatch, gpus):
    """Else a process forked from a notebook could not use them."""
    name = "PYTORCH_NVML_BASED_CUDA_CHECK"
    monkeypatch.setenv(name, "")  # restored in the end
    monkeypatch.delenv(name)
    values = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: values.append(os.environ.get(name)))
    devices.pick_device("auto")
    assert values == ["1" if gpus > 1 else None]


def test_an_unavailable_device_is_refused():
    assert devices.pick_device("cpu") == torch.device("cpu")
    for name in ("meta", "cuda:99", "toaster"):
        with pytest.raises(ValueError, match=name):
            devices.pick_device(name)
    world = type("Fake", (ProcessGroup,), {"size": 2, "device": torch.device("cuda:1")})()
    assert {str(devices.pick_device(name, world)) for name in ("auto", "cuda")} == {"cuda:1"}
    with pytest.raises(ValueError, match="cuda:0"):
        devices.pick_device("cuda:0", world)


def test_a_command_is_quoted_for_the_shell_at_hand(monkeypatch):
    command = ["train", "--out", r"images&samples\mine", "--data", "my data"]
    assert shlex.split(process.quote(command)) == command
    monkeypatch.setattr(process.os, "name", "nt")
    assert process.quote(command) == r'train --out "images&samples\mine" --data "my data"'


def test_own_command_names_the_interpreter_that_has_the_package(tmp_path, monkeypatch):
    own = tmp_path / "bin" / "python"
    monkeypatch.setattr(sys, "executable", str(own))
    for on_path, folder, typed in (
        (str(own), ROOT, "python"),
        (None, ROOT, str(own)),
        (str(tmp_path / "python"), tmp_path, "bin/python"),
    ):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(process.shutil, "which", lambda name, on_path=on_path: on_path)
        assert process.own_command(["train", "--resume"]) == f"{typed} -m mnist_ddpm train --resume"
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "mnist-ddpm"), "train"])
    assert process.own_command(["train", "--resume"]) == "mnist-ddpm train --resume"


def test_a_tilde_is_expanded_also_where_the_shell_leaves_it(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("USERPROFILE", "/home/me")
    typed = "--out=~/faces ~/faces --n=3 -h a~b"
    expanded = "--out=/home/me/faces /home/me/faces --n=3 -h a~b"
    assert [process.expand_home(word) for word in typed.split()] == expanded.split()
