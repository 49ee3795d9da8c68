"""Checkpoints for another library: what it can express is written, all else is named."""

import sys
from dataclasses import replace

import pytest
from command_helpers import NETWORK, error_of, run, save_network
from helpers import equal

from mnist_ddpm.formats import checkpoints
from mnist_ddpm.formats.diffusers import load_diffusers
from mnist_ddpm.recipe import Recipe

ONE_GROUP = Recipe(**NETWORK | {"base_channels": 7}, patch_size=1)  # in every normalisation


@pytest.mark.parametrize("recipe", [ONE_GROUP, "mnist-pixels"], ids=["one group", "shipped"])
def test_an_exported_checkpoint_is_read_as_diffusers(tmp_path, capsys, recipe):
    shipped = isinstance(recipe, str)
    source = recipe if shipped else save_network(tmp_path / "ours", recipe)
    out = tmp_path / "theirs"
    assert run("export", "--checkpoint", source, "--format", "diffusers", "--out", out) == 0
    assert str(out) in capsys.readouterr().out
    network, schedule, recipe = load_diffusers(out)
    ours = checkpoints.load(source)
    assert equal(network.state_dict(), ours.network.state_dict())
    assert equal(schedule.a, ours.schedule.a)
    assert recipe.prediction == ours.recipe.prediction
    assert str(out) in error_of(capsys, "export", "--checkpoint", source, "--out", out)
    labelled = save_network(tmp_path / "labelled", replace(ONE_GROUP, classes=10))
    line = error_of(capsys, "export", "--checkpoint", labelled, "--out", tmp_path / "new")
    assert "classes is 10" in line and str(labelled) in line and not (tmp_path / "new").exists()


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_its_extra(package, tmp_path, capsys, monkeypatch):
    before = ["onnx", "onnxscript", "onnxruntime"]
    for name in before[: before.index(package)]:  # as if it were there
        monkeypatch.setitem(sys.modules, name, sys)
    monkeypatch.setitem(sys.modules, package, None)
    out = tmp_path / "new" / "model.onnx"
    line = error_of(capsys, "export", "--checkpoint", "mnist", "--format", "onnx", "--out", out)
    assert f"of {package} " in line and '".[export]"' in line
    assert not out.parent.exists()


def test_flags_of_onnx_that_cannot_be_meant_are_refused(tmp_path, capsys):
    there = tmp_path / "model.onnx"
    there.write_bytes(b"mine")
    onnx = "export", "--checkpoint", "mnist", "--format", "onnx", "--out"
    assert "is there already" in error_of(capsys, *onnx, there)
    assert "ends in .onnx" in error_of(capsys, *onnx, tmp_path / "out")
    half = "--checkpoint", "mnist-pixels", "--precision", "float16", "--out", tmp_path / "out"
    assert "--format onnx" in error_of(capsys, "export", *half)
    assert [*tmp_path.iterdir()] == [there] and there.read_bytes() == b"mine"
