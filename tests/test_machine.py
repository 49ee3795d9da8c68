"""The machine: its devices, compiler and shell."""

import shlex
import sys
from dataclasses import replace

import pytest
import torch
from conftest import ROOT

from mnist_ddpm import machine, processes, runs
from mnist_ddpm.ddpm import start_run


def test_bfloat16_is_refused_where_a_gpu_only_emulates_it(tiny, blobs, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    for precision in ("float32", "float16"):
        machine.check_precision(precision, "cuda")
    machine.check_precision("bfloat16", "cpu")
    with pytest.raises(ValueError, match="no bfloat16 arithmetic: take precision float16"):
        processes.train(replace(tiny, precision="bfloat16"), blobs, tmp_path, device="cuda")


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
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: current[-1] == 1)
    machine.check_precision("bfloat16", "cuda:1")
    with pytest.raises(ValueError, match="no bfloat16 arithmetic"):
        machine.check_precision("bfloat16", "cuda:0")
    assert current == [0]


def test_the_network_is_compiled_where_a_compiler_is_found(tiny, blobs, tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda function: function)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: asked.append(module))
    run = processes.train(replace(tiny, compile=True), blobs, tmp_path)
    assert asked == [run.model] and "compiling the network" in capsys.readouterr().out
    start_run(tiny)
    assert len(asked) == 1


@pytest.mark.parametrize(
    "error, told",
    [(RuntimeError("NoCompiler: no C++\nand more"), "NoCompiler: no C++\n"), (AssertionError(), "AssertionError()\n")],
)
def test_without_a_compiler_the_network_runs_as_it_is(tiny, blobs, tmp_path, monkeypatch, capsys, error, told):
    def missing(function):
        raise error

    monkeypatch.setattr(torch, "compile", missing)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: pytest.fail("there is no compiler"))
    processes.train(replace(tiny, compile=True), blobs, tmp_path)
    assert f"does not work here, so the network runs as it is: {told}" in capsys.readouterr().out


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
