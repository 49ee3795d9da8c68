"""Flags: help and errors without PyTorch, and names and settings that stay the package's own."""

import inspect
import subprocess
import sys
from dataclasses import fields
from importlib import import_module
from typing import get_args

import pytest
from conftest import ROOT

from mnist_ddpm import catalogue, ddpm, sampling
from mnist_ddpm.commands import command_line, flags
from mnist_ddpm.machine import process
from mnist_ddpm.recipe import Recipe

QUICK = """
import sys
from {room}.__main__ import main
sys.argv = {argv}
try:
    status = main()
except SystemExit as stopped:
    status = stopped.code
slow = {{"torch", "numpy", "matplotlib", "mnist_ddpm.ddpm"}} & {{*sys.modules}}
print("status", status, "slow", sorted(slow))
"""


def answer(argv: list[str], status: int, room: str = "mnist_ddpm") -> str:
    """What a command says that ends with this status, without PyTorch."""
    code = QUICK.format(argv=argv, room=room)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == f"status {status} slow []", done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("typed", "status"),
    [
        ("", 2),
        ("--help", 0),
        ("sample --help", 0),
        ("status --help", 0),
        ("train --preset faces-64 --help", 0),
        ("trian --epochs 3", 2),
        ("sample --setps 3", 2),
        ("sample --out=", 1),
        ("evaluate --sampler magic", 2),
        ("train --image-size 5x", 2),
        ("train --image-size 64x97", 1),
    ],
)
def test_help_and_errors_of_flags_need_no_pytorch(typed, status):
    printed = answer(["mnist-ddpm", *typed.split()], status)
    assert "python" not in printed and ("mnist-ddpm" in printed or status == 1), "the program typed"


@pytest.mark.parametrize(("typed", "status"), [("--help", 0), ("ema --bist 9", 2), ("eam", 1)])
def test_help_and_errors_of_an_experiment_need_no_pytorch(typed, status):
    printed = answer(["experiments", *typed.split()], status, "experiments")
    assert "ddim-table1" in printed or "python -m experiments" in printed


def test_suggestions_name_the_program_and_the_command(capsys, monkeypatch):
    for typed, named in (("pytest", "python -m mnist_ddpm"), ("/bin/mnist-ddpm", "mnist-ddpm")):
        monkeypatch.setattr(sys, "argv", [typed])
        with pytest.raises(SystemExit):
            command_line.run_command_line(["sample", "--setps", "3"])
        printed = capsys.readouterr().err
        assert "--steps" in printed and f"run {named} sample --help" in printed
        assert process.program() == named.split()
        for wrong, meant in (("sampel", f"{named} sample?"), ("fly", "train, plan")):
            with pytest.raises(SystemExit) as stopped:
                command_line.run_command_line([wrong, "--n", "3"])
            printed = capsys.readouterr().err
            assert stopped.value.code == 2 and wrong in printed and meant in printed


def test_the_names_are_those_of_the_catalogue():
    for names, known in (
        (flags.SamplerName, catalogue.SAMPLERS), (flags.Spacing, catalogue.SPACINGS),
        (flags.Variance, ["auto", *catalogue.VARIANCES]), (flags.ClipName, sampling.CLIPS),
    ):  # fmt: skip
        assert {*get_args(names)} == {*known}


def test_a_recipe_has_the_notebook_s_settings_and_defaults():
    """But for labels hidden, and for what None stands for."""
    recipe = Recipe()
    for each in fields(ddpm.Settings):
        assert each.name == "label_dropout" or getattr(recipe, each.name) == each.default


def test_each_setting_is_a_flag_with_its_help(capsys):
    with pytest.raises(SystemExit):
        command_line.run_command_line(["train", "--help"])
    printed = "".join(capsys.readouterr().out.replace("│", "").split())
    for each in fields(Recipe):
        is_shown = f"--{each.name.replace('_', '-')}" in printed
        assert is_shown is not each.metadata["hidden"], each.name
        assert each.metadata["hidden"] or "".join(each.metadata["about"].split()) in printed


@pytest.mark.parametrize(("kind", "path"), command_line.COMMANDS.values())
def test_every_command_has_its_function(kind, path):
    module, name = path.split(":")
    function = getattr(import_module(f"mnist_ddpm.commands.{module}"), name)
    assert [*inspect.get_annotations(function).values()] == [kind, None]
