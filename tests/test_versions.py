"""Each version stands in one place, or in places that agree; and what does make's work, does it."""

import runpy
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.version import Version

import mnist_ddpm
from mnist_ddpm.formats.onnx import PACKAGES

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def listed(name):
    """The lines of a file of requirements, without comments and other files."""
    lines = (line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return [line for line in lines if line and not line.startswith("-")]


def versions(lines, sign="=="):
    """The version that a requirement with this sign names, by package."""
    specifiers = {each.name: each.specifier for each in map(Requirement, lines)}
    return {
        name: Version(part.version)
        for name, parts in specifiers.items()
        for part in parts
        if part.operator == sign
    }


OPTIONAL = EXTRAS["run"] + EXTRAS["accelerate"] + EXTRAS["inception"]
FLOORS = versions(listed("requirements.txt") + OPTIONAL, ">=")
FLOORS.pop("torch-fidelity")  # tests have a stand-in for it


def test_the_lowest_versions_are_those_that_requirements_and_extras_allow():
    lowest = versions(listed("requirements/lowest.txt"))
    assert len(FLOORS) == 15 and FLOORS.items() <= lowest.items()


def test_lists_of_requirements_agree_with_the_extras():
    run = listed("requirements/run.txt")
    assert run == EXTRAS["run"]
    assert {*EXTRAS["accelerate"], EXTRAS["inception"][0]} <= {*listed("requirements-dev.txt")}
    pinned = versions(listed("requirements-dev.txt"))
    export = [Requirement(text) for text in EXTRAS["export"]]
    assert [each.name for each in export] == [*PACKAGES]
    assert all(each.specifier.contains(pinned[each.name]) for each in export)


def test_colab_has_versions_that_requirements_allow():
    colab = versions(listed("requirements/colab.txt"))
    # The notebook runs as well in Colab's older ipykernel
    older = {name for name in FLOORS.keys() & colab.keys() if colab[name] < FLOORS[name]}
    assert older == {"ipykernel"}


def test_a_citation_names_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == mnist_ddpm.__version__


@pytest.mark.parametrize(
    ("command", "last"),
    [("test", "pytest"), ("run", "papermill MNIST_DDPM.ipynb"), ("lint", "ruff format --check")],
)
def test_a_script_does_what_make_does(command, last, tmp_path, monkeypatch):
    def call(arguments, cwd):
        calls.append(" ".join(arguments[1:]))
        return SimpleNamespace(returncode=fails)

    calls, fails = [], 0
    script = runpy.run_path(str(ROOT / "tools" / "make.py"))["main"]
    monkeypatch.setitem(script.__globals__, "ROOT", tmp_path)
    monkeypatch.setattr(subprocess, "run", call)
    script([command])
    assert calls[0] == "-m venv .venv" and calls[-1].startswith(f"-m {last}")
    (installed,) = (part for part in calls[1].split() if Path(part).suffix == ".txt")
    assert (ROOT / installed).is_file()
    fails = 2
    with pytest.raises(SystemExit) as caught:
        script([command])
    assert caught.value.code == 2


@pytest.mark.parametrize("path", [".ci/run", ".github/workflows/test.yml"])
def test_every_check_of_a_change_has_style_and_tests(path):
    commands = [words for words in (ROOT / path).read_text().split("\n") if "make " in words]
    assert {"lint", "test"} <= {word for line in commands for word in line.split()}


def test_the_notebook_alone_is_run_by_the_python_that_is_promised():
    command = [sys.executable, ROOT / "tools" / "alone.py", "--python", "2.7"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 1 and "not 2.7" in done.stderr and sys.executable in done.stdout
