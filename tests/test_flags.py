"""Flags: help and errors without PyTorch, and names and settings that stay the package's own."""

import ast
import inspect
import subprocess
import sys
from dataclasses import fields
from importlib import import_module
from typing import get_args

import pytest
from conftest import ROOT

from mnist_ddpm import catalogue, ddpm
from mnist_ddpm.commands import command_line, flags, sampler_setup, training_flags
from mnist_ddpm.experiments import experiment_flags, registry
from mnist_ddpm.machine import process
from mnist_ddpm.training import tracking
from mnist_ddpm.training.options import Options
from mnist_ddpm.training.recipe import Recipe

QUICK = """
import sys
from mnist_ddpm{room}.__main__ import main
sys.argv = {argv}
try:
    status = main()
except SystemExit as stopped:
    status = stopped.code
slow = {{"torch", "numpy", "matplotlib", "mnist_ddpm.ddpm"}} & {{*sys.modules}}
print("status", status, "slow", sorted(slow))
"""


def answer(argv: list[str], status: int, room: str = "") -> str:
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
    printed = answer(["experiments", *typed.split()], status, ".experiments")
    assert "ddim-table1" in printed or "python -m mnist_ddpm.experiments" in printed


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
        (flags.Variance, ["auto", *catalogue.VARIANCES]), (flags.ClipName, sampler_setup.CLIPS),
        (training_flags.Log, ["none", *tracking.PACKAGES]),
    ):  # fmt: skip
        assert {*get_args(names)} == {*known}
    assert [*experiment_flags.NAMES] == [*registry.EXPERIMENTS]


def lines_of(kind) -> dict[str, str]:
    """By name, the line of each field's definition, with its comment."""
    lines = inspect.getsource(kind).splitlines()
    nodes = ast.parse("\n".join(lines)).body[0].body
    assignments = [each for each in nodes if isinstance(each, ast.AnnAssign)]
    return {each.target.id: lines[each.lineno - 1].strip() for each in assignments}


def test_the_flags_of_training_are_a_recipe_s():
    """Those of the notebook word for word, the options by inheritance; help adds meanings alone."""
    names = [{each.name for each in fields(kind)} for kind in (training_flags.RecipeFlags, Recipe)]
    assert names[0] == names[1]
    default = {each.name: each.default for each in fields(Recipe)}
    for each in fields(training_flags.RecipeFlags):
        assert each.default == default[each.name], each.name
    own = lines_of(training_flags.RecipeFlags)
    options = {each.name for each in fields(Options)}
    notebook = lines_of(ddpm.Settings)
    for name in own.keys() - options - {"dataset"}:  # whose help has more names
        assert own[name] == notebook[name]


@pytest.mark.parametrize(("kind", "path"), command_line.COMMANDS.values())
def test_every_command_has_its_function(kind, path):
    module, name = path.split(":")
    function = getattr(import_module(f"mnist_ddpm.commands.{module}"), name)
    assert [*inspect.get_annotations(function).values()] == [kind, None]
