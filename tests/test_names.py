"""A checkpoint is found by its name from any folder, and the package has all that it needs."""

import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
import torch
from command_helpers import DIGITS, error_of, run, save_network, skip_films
from conftest import ROOT

import mnist_ddpm
from mnist_ddpm.commands.flags import SampleFlags
from mnist_ddpm.commands.outputs import open_partial_results
from mnist_ddpm.evaluation import extractors
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.formats.checkpoints import SHIPPED, find
from mnist_ddpm.sampling import Sampling
from mnist_ddpm.training.first_weights import initial_weights

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_name_is_found_from_any_folder(elsewhere, name):
    for source in (name, f"checkpoints/{name}"):
        found = find(source)
        assert found.samefile(ROOT / "checkpoints" / name)
        recipe, _ = checkpoints.load_config(found)
        assert name.split("-")[0] in recipe.dataset.lower()


def test_a_folder_goes_before_a_shipped_name(elsewhere):
    own = save_network(elsewhere / "mnist", DIGITS)
    assert find("mnist").samefile(own)
    assert find(own) == own
    (elsewhere / "celeba").mkdir()  # of pictures
    assert (find("celeba") / "config.json").is_file()
    with pytest.raises(FileNotFoundError, match="config.json"):
        checkpoints.load(elsewhere / "celeba")


@pytest.mark.parametrize("name", ["nowhere", "checkpoints/mine", "some/thing/deep", "here/mine"])
def test_a_missing_checkpoint_is_reported_with_its_place_and_the_shipped_names(elsewhere, name):
    (elsewhere / "here").mkdir()  # so that here/mine is no name on the hub
    with pytest.raises(FileNotFoundError) as caught:
        find(name)
    assert all(part in str(caught.value) for part in (str(elsewhere / name), *SHIPPED))


def test_a_name_that_was_replaced_says_by_what(elsewhere):
    with pytest.raises(FileNotFoundError, match=": mnist has"):
        find("mnist-taught")
    own = save_network(elsewhere / "mnist-taught", DIGITS)
    assert find("mnist-taught").samefile(own)


def test_commands_take_names_from_any_folder(elsewhere, monkeypatch, capsys):
    skip_films(monkeypatch)
    drawing = ["--n", 1, "--steps", 1, "--out", "out"]
    assert (
        run("sample", "--checkpoint", "mnist-unlabelled", "--guide", "mnist-guide", *drawing) == 0
    )
    assert "celeba" in error_of(capsys, "sample", "--checkpoint", "faces", *drawing)
    named = "--checkpoint", "mnist-guide"  # and read, before the error
    assert "no extractor nowhere" in error_of(capsys, "evaluate", *named, "--extractor", "nowhere")
    assert "learned" in error_of(capsys, "likelihood", *named, "--variance", "learned")
    decided, weights = initial_weights("mnist-guide")
    assert decided["base_channels"] == 16 and weights


def test_extractors_are_found_from_any_folder(elsewhere):
    for dataset in ("mnist", "celeba"):
        named = extractors.FOLDER / f"{dataset}.safetensors"
        names = {extractors.pick_judge(name, dataset).name for name in ("auto", str(named))}
        assert len(names) == 1
    with pytest.raises(FileNotFoundError) as caught:
        extractors.load_extractor("nowhere")
    assert str(elsewhere / "nowhere") in str(caught.value)


def test_an_installed_package_has_the_checkpoints_inside(elsewhere, monkeypatch):
    monkeypatch.setattr(checkpoints.catalogue, "__file__", str(elsewhere / "catalogue.py"))
    save_network(elsewhere / "shipped" / "mnist", DIGITS)
    assert find("mnist") == elsewhere / "shipped" / "mnist"
    with pytest.raises(FileNotFoundError, match="checkpoints/celeba of a clone"):
        find("celeba")


@pytest.mark.parametrize("flag", ["checkpoint", "guide"])
def test_partial_results_belong_to_the_weights_of_a_name(elsewhere, monkeypatch, flag):
    own = elsewhere / "shipped"
    folders = []
    monkeypatch.setattr(checkpoints, "shipped_path", lambda name: own)
    for std in (0.1, 0.2):
        save_network(own, DIGITS, std=std)
        names = {"checkpoint": elsewhere / "other", "guide": None} | {flag: Path("mnist")}
        flags = SampleFlags(checkpoint=names["checkpoint"])
        sampling = Sampling(guide=names["guide"])  # typed, or as the checkpoint advises
        options = elsewhere / "out", [], torch.device("cpu")
        partial = open_partial_results(flags, sampling, *options)
        folders.append(partial.folder)
    assert len({*folders}) == 2


def test_the_wheel_has_every_module_and_what_sample_and_evaluate_need():
    packages = {path.parent for path in (ROOT / "mnist_ddpm").rglob("__init__.py")}
    modules = {".".join(path.relative_to(ROOT).parts) for path in packages}
    setuptools = PROJECT["tool"]["setuptools"]
    assert {*setuptools["packages"]} == modules | {"mnist_ddpm.shipped"}
    folder = setuptools["package-dir"]["mnist_ddpm.shipped"]
    data = setuptools["package-data"]
    assert (ROOT / folder).samefile(checkpoints.shipped_path(""))
    default = SampleFlags().checkpoint
    assert "guide" not in checkpoints.sampling_defaults(default)
    patterns = {"README.md", "extractors/mnist.*", f"{default.name}/*"}
    assert {*data["mnist_ddpm.shipped"]} == patterns
    files = [path for pattern in patterns for path in checkpoints.shipped_path("").glob(pattern)]
    assert sum(path.stat().st_size for path in files) < 20e6
    assert [(ROOT / "mnist_ddpm" / name).exists() for name in data["mnist_ddpm"]] == [True]
    module, function = PROJECT["project"]["scripts"]["mnist-ddpm"].split(":")
    assert callable(getattr(import_module(module), function))


def test_the_package_offers_names_without_importing_pytorch():
    assert mnist_ddpm.load_checkpoint is checkpoints.load
    assert callable(mnist_ddpm.push_to_hub)
    with pytest.raises(AttributeError):
        mnist_ddpm.nothing  # noqa: B018
    code = "import mnist_ddpm, mnist_ddpm.__main__, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
