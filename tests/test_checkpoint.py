"""Checkpoints: what they hold, who reads them, and what is told where they are damaged."""

import hashlib
import json
import math
import os
import re
from dataclasses import asdict, replace
from itertools import cycle
from pathlib import Path

import pytest
import torch
from helpers import notebook, raising, with_flipped_bit, with_random_weights
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from training_helpers import NOTEBOOK, TINY, same, squares, train

from mnist_ddpm import catalogue, ddpm
from mnist_ddpm.catalogue import make_network
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.methods.guidance import with_labels
from mnist_ddpm.recipe import Recipe
from mnist_ddpm.training.saving import load_state

SHIPPED = Path(__file__).parent.parent / "checkpoints"
SHORT = replace(TINY, T=4)
NAMES = (
    "mnist", "mnist-unlabelled", "mnist-few", "mnist-guide", "mnist-conditional",
    "mnist-pixels", "mnist-bits", "celeba", "celeba-few", "celeba-guide", "cifar10",
)  # fmt: skip
# recipes that the notebook knows nothing of, and what it names
FOREIGN = {
    "v": {"prediction": "v"},
    "cosine": {"schedule": "cosine"},
    "hybrid": {"objective": "hybrid"},
    "attributes": {"classes": 0, "attributes": ("Male",)},
    "blocks_per_level": {"blocks_per_level": 2},
    "norm_groups": {"norm_groups": 4},
    "attention_resolutions": {"attention_resolutions": (8, 4)},
    "image_size": {"image_size": (16, 24)},
    "small": {"condition": "small", "prediction": "x0"},
}


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """The checkpoint of an untrained network with weights everywhere."""
    monkeypatch.setattr(checkpoints, "BETWEEN_FILES", 0)
    network = with_random_weights(make_network(TINY))
    checkpoints.save_checkpoint(tmp_path / "a" / "checkpoint", network, TINY, {"steps": 7})
    return tmp_path / "a" / "checkpoint"


def edit_config(folder, part="recipe", **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config[part].update(changes)
    path.write_text(json.dumps(config))


def put_weights(folder, weights):
    """Writes weights with their digest."""
    path = folder / "model.safetensors"
    path.unlink()  # what older safetensors has loaded from it stays mapped
    save_file(weights, path)
    edit_config(folder, "sha256", **{path.name: hashlib.sha256(path.read_bytes()).hexdigest()})


def drawn(network, schedule, n=3, steps=5):
    """uint8 images of a network that predicts the noise."""
    denoise = ddpm.clipped(ddpm.eps_denoiser(network, schedule), schedule)
    return ddpm.generate(denoise, schedule, n, TINY.shape, ddpm.ddim_sampler, steps)[0]


def test_what_is_loaded_draws_the_images_of_what_was_saved(saved):
    network, schedule, recipe = checkpoints.load(saved)
    record = checkpoints.load_config(saved)[1]
    assert (recipe, record) == (TINY, {"steps": 7}) == checkpoints.load_config(saved)
    assert not network.training and not any(w.requires_grad for w in network.parameters())
    given = with_random_weights(make_network(TINY))
    assert torch.equal(drawn(given, catalogue.make_schedule(TINY)), drawn(network, schedule))


def test_a_checkpoint_holds_the_averaged_weights(tmp_path):
    train(SHORT, squares(), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    state = torch.load(tmp_path / "training_state.pt", weights_only=True)
    assert all(torch.equal(weights[name], weight) for name, weight in state["ema"].items())
    assert not torch.equal(weights["conv_in.weight"], state["model"]["conv_in.weight"])
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["data_range"] == [-1, 1] and config["settings"]["T"] == SHORT.T
    assert config["training"]["steps"] == 12 and config["training"]["images"] == 192
    assert config["parameters"] == sum(weight.numel() for weight in weights.values())
    assert config["versions"]["torch"] == torch.__version__


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
def test_whoever_may_read_one_file_may_read_all(saved):
    assert len({path.stat().st_mode for path in saved.iterdir()}) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_resolutions": (8,), "classes": 5, "label_dropout": 0.0, "dropout": 0.2},
        {"dataset": "celeba", "channels": 3, "attributes": ("Smiling", "Male")},
        {"schedule": "sigmoid-zero-snr", "prediction": "mu", "objective": "vlb"},
        {"objective": "p2", "optimizer": "muon", "precision": "bfloat16", "init_from": "x"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_every_setting_comes_back_from_one_place(tmp_path, changes):
    recipe = replace(TINY, **changes)
    network = with_random_weights(make_network(recipe))
    checkpoints.save_checkpoint(tmp_path, network, recipe, {})
    found = checkpoints.load(tmp_path)
    assert found.recipe == recipe and same(found.network, network)
    config = json.loads((tmp_path / "config.json").read_text())
    names = [name for part in ("settings", "method", "recipe") for name in config[part]]
    assert sorted(names) == sorted(asdict(recipe))


def test_the_notebooks_checkpoint_is_one_of_ours(tmp_path):
    run = ddpm.start_run(NOTEBOOK)
    path = ddpm.beta_schedule(ddpm.linear_beta(50))
    list(ddpm.training_loop(run, squares(), path))
    notebook.save_run(tmp_path, run, path)
    network, schedule, recipe = checkpoints.load(tmp_path)
    record = checkpoints.load_config(tmp_path)[1]
    assert recipe == Recipe(**asdict(NOTEBOOK)) and record["steps"] == 6
    assert torch.equal(drawn(network, schedule), drawn(run.ema, path))


def test_a_schedule_that_has_no_name_is_the_notebooks_alone(tmp_path):
    path = catalogue.SCHEDULES["cosine"](NOTEBOOK.T, 0, 0)
    notebook.save_run(tmp_path, ddpm.start_run(NOTEBOOK), path)
    assert torch.equal(ddpm.load_checkpoint(tmp_path)[1].b, path.b)
    for load in (checkpoints.load, load_state):
        with pytest.raises(ValueError, match="a schedule without a name.* draw in the notebook"):
            load(tmp_path)


def test_the_notebook_loads_a_checkpoint_by_the_papers_method(tmp_path, capsys):
    """However it was trained."""
    how = {"objective": "p2", "dropout": 0.1, "optimizer": "muon", "attention_resolutions": (4,)}
    recipe = replace(SHORT, **how)
    run = train(recipe, squares(), tmp_path)
    capsys.readouterr()
    network, schedule, settings = ddpm.load_checkpoint(tmp_path)
    assert capsys.readouterr().out == "", "both compute the digest of settings and method alike"
    assert same(network, run.ema) and settings.batch_size == recipe.batch_size
    assert torch.equal(schedule.a, catalogue.make_schedule(recipe).a)


@pytest.mark.parametrize("name", FOREIGN)
def test_the_notebook_refuses_another_method_and_names_it(tmp_path, name):
    recipe = replace(TINY, **FOREIGN[name])
    checkpoints.save_checkpoint(tmp_path, make_network(recipe), recipe, {})
    with pytest.raises(ValueError, match=name):
        ddpm.load_checkpoint(tmp_path)
    assert checkpoints.load(tmp_path).recipe == recipe


def plain_ddim(network, alpha_bar, prediction, times, x):
    """DDIM (Eq. 12) with clipping, once more: from noise x (N, C, H, W) to images."""
    for t, s in zip(times, [*times[1:], 0]):
        value = network(x, torch.full((len(x),), t))[:, : x.shape[1]]
        a, b = alpha_bar[t], alpha_bar[s]
        x0 = {
            "x0": value,
            "eps": (x - (1 - a) ** 0.5 * value) / a**0.5,
            "v": a**0.5 * x - (1 - a) ** 0.5 * value,
        }[prediction]
        x0 = x0.clamp(-1, 1)
        x = b**0.5 * x0 + (1 - b) ** 0.5 * (x - a**0.5 * x0) / (1 - a) ** 0.5
    return x


@pytest.mark.parametrize("name", NAMES)
def test_shipped_checkpoints_draw_what_a_plain_ddim_draws(name):
    network, schedule, recipe = checkpoints.load(SHIPPED / name)
    asked = with_labels(network, torch.arange(4)) if recipe.classes else network
    denoise = catalogue.make_denoiser(asked, schedule, recipe)
    denoise, times = ddpm.clipped(denoise, schedule), ddpm.timesteps(schedule.T, 4)
    images, _ = ddpm.generate(denoise, schedule, 4, recipe.shape, ddpm.ddim_sampler, steps=4)
    noise = ddpm.noise_source(0, range(4), recipe.shape)()
    alpha_bar = (schedule.a**2).tolist()
    expected = ddpm.to_uint8(plain_ddim(asked, alpha_bar, recipe.prediction, times, noise))
    assert (images.int() - expected.int()).abs().max() <= 2
    assert images.float().std() > 30, "and that is a picture"


@pytest.mark.parametrize("name", NAMES)
def test_shipped_settings_are_all_read(name):
    config = json.loads((SHIPPED / name / "config.json").read_text())
    recipe, record = checkpoints.load_config(SHIPPED / name)
    digests = checkpoints.description_digests(config)
    assert config["sha256"].items() >= digests.items(), "edits are noticed"
    assert checkpoints.recorded_digest(SHIPPED / name), "damage is noticed"
    written = config["settings"] | config.get("method", {}) | config.get("recipe", {})
    written.pop("columns", None)  # of vectors, which earlier versions drew
    read = json.loads(json.dumps(asdict(recipe)))
    assert {key: read[key] for key in written} == written and record == config["training"]


def test_the_notebook_loads_the_shipped_digits():
    network, schedule, settings = ddpm.load_checkpoint(SHIPPED / "mnist")
    ours = checkpoints.load(SHIPPED / "mnist")
    assert same(network, ours.network) and torch.equal(schedule.b, ours.schedule.b)
    assert (settings.epochs, settings.classes) == (20, 10)


def test_missing_files_are_named(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        checkpoints.load(tmp_path / "nowhere")
    (saved / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        checkpoints.load(saved)


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", "{}", '{"format": 99}', '{"format": 1}', '{"format": 2}',
        '{"format": 1, "settings": 3}', '{"format": 2, "settings": {}, "training": {}}',
        '{"format": 2, "settings": 3, "method": 4, "training": {}}',
    ],
)  # fmt: skip
def test_damaged_configs_are_refused(saved, text):
    (saved / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json is damaged"):
        checkpoints.load(saved)


@pytest.mark.parametrize("part", ["settings", "method", "recipe"])
def test_settings_of_another_version_are_named(saved, part):
    edit_config(saved, part, momentum=3.0)
    with pytest.raises(ValueError, match="momentum"):
        checkpoints.load(saved)


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("settings", {"beta_T": 0.12}),
        ("settings", {"T": 9000}),
        ("recipe", {"norm_groups": 1}),
        ("draw", {"steps": 7}),
    ],
)
def test_an_edit_of_config_json_is_reported_when_it_is_loaded(saved, capsys, part, changes):
    checkpoints.load(saved)
    assert capsys.readouterr().err == ""
    path = saved / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {part: config.get(part, {}) | changes}))
    checkpoints.load(saved)
    assert capsys.readouterr().err.count(str(path)) == 1


def test_a_value_of_another_kind_anywhere_in_a_config_is_refused_by_its_file_or_harmless(saved):
    path = saved / "config.json"
    good = json.loads(path.read_text())
    odd = cycle(["x", None, [], {}, -1, math.nan, 10**400, [[1]], "\ud800", 1e308, True, "1"])
    refused = set()
    for part, values in good.items():
        keys = values if isinstance(values, dict) else ()
        for changed in [{part: next(odd)}, *({part: values | {key: next(odd)}} for key in keys)]:
            path.write_text(json.dumps(good | changed))
            try:
                checkpoints.load(saved)
                checkpoints.sampling_defaults(saved)
            except ValueError as error:
                assert str(saved) in str(error), changed
                refused.add(part)
    assert refused >= {"settings", "method", "recipe"}


def test_a_huge_network_is_refused_by_the_header_of_its_weights(saved, monkeypatch):
    """It would take gigabytes, if it were made before."""
    edit_config(saved, "settings", base_channels=2048)
    monkeypatch.setattr(checkpoints, "read_weights", None)
    with pytest.raises(ValueError, match="2048"):
        checkpoints.load(saved)


def test_a_huge_config_is_refused_by_its_size(saved, monkeypatch):
    os.truncate(saved / "config.json", 2**33)
    monkeypatch.setattr(Path, "read_text", None)
    with pytest.raises(ValueError, match="config.json"):
        checkpoints.load(saved)


def test_a_huge_file_of_weights_is_refused_by_its_header(saved, monkeypatch):
    path = saved / "model.safetensors"
    shape = [2**20, 2**12]
    header = json.dumps({"huge": {"dtype": "F32", "shape": shape, "data_offsets": [0, 2**34]}})
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode())
    os.truncate(path, 8 + len(header) + 2**34)  # 16 GB that take no place on the disk
    monkeypatch.setattr(Path, "read_bytes", None)
    with pytest.raises(ValueError, match="huge"):
        checkpoints.load(saved)


def test_an_objective_that_is_not_at_hand_is_named_where_weights_do_not_fit(saved):
    """It may have been one that learns the variance."""
    edit_config(saved, objective="mine")
    checkpoints.load(saved)
    edit_config(saved, "settings", base_channels=16)
    with pytest.raises(ValueError, match='safetensors .*"mine"'):
        checkpoints.load(saved)


def test_missing_and_surplus_tensors_are_named(saved):
    weights = load_file(saved / "model.safetensors")
    weights["intruder"] = weights.pop("conv_in.bias")
    put_weights(saved, weights)
    with pytest.raises(ValueError, match=r"conv_in\.bias is missing.*intruder"):
        checkpoints.load(saved)


def test_weights_are_floating_point_of_any_precision(saved):
    weights = load_file(saved / "model.safetensors")
    put_weights(saved, {name: weight.bfloat16() for name, weight in weights.items()})
    assert checkpoints.load(saved).network.conv_in.weight.dtype == torch.float32
    for dtype in (torch.int64, torch.int8, torch.bool):
        put_weights(saved, weights | {"conv_in.bias": weights["conv_in.bias"].to(dtype)})
        with pytest.raises(ValueError, match=rf"conv_in\.bias is {dtype}"):
            checkpoints.load(saved)


@pytest.mark.parametrize("value", [math.nan, -math.inf], ids=str)
def test_weights_that_are_no_numbers_are_named(saved, value):
    weights = load_file(saved / "model.safetensors")
    weights["conv_in.bias"][1] = value
    put_weights(saved, weights)
    with pytest.raises(ValueError, match=r"conv_in\.bias is not finite"):
        checkpoints.load(saved)


def test_a_flipped_byte_of_the_weights_is_noticed_wherever_it_is(saved):
    path = saved / "model.safetensors"
    good = path.read_bytes()
    for place in range(0, len(good), len(good) // 40):
        path.write_bytes(with_flipped_bit(good, place))
        with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
            checkpoints.load(saved)
    path.write_bytes(good)
    checkpoints.load(saved)


def test_a_checkpoint_without_a_digest_loads_and_that_is_said_once(saved, capsys):
    """As earlier versions wrote it."""
    path = saved / "config.json"
    config = json.loads(path.read_text())
    assert "model.safetensors" in config.pop("sha256")
    path.write_text(json.dumps(config))
    network = checkpoints.load(saved).network
    assert same(checkpoints.load(saved).network, network)
    (line,) = capsys.readouterr().err.splitlines()
    assert str(saved / "model.safetensors") in line


@pytest.mark.parametrize("error", [SafetensorError("No space left"), OSError(28, "No space left")])
def test_a_full_disk_is_said_and_leaves_the_old_files(saved, monkeypatch, error):
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    monkeypatch.setattr(checkpoints.safetensors.torch, "save", raising(error))
    with pytest.raises(OSError, match=re.escape(str(error))):
        checkpoints.save_checkpoint(saved, make_network(TINY), TINY, {})
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def test_a_kill_between_the_files_of_a_first_save_leaves_a_run_to_resume(tmp_path, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(checkpoints.safetensors.torch, "save", raising(KeyboardInterrupt))
        train(SHORT, squares(), tmp_path)
    with pytest.raises(FileExistsError):
        train(SHORT, squares(), tmp_path)
    assert train(SHORT, squares(), tmp_path, resume=True).step == 12
    checkpoints.load(tmp_path)


def test_a_kill_between_the_files_of_a_later_save_is_told_and_healed(tmp_path, monkeypatch):
    """The weights are new, and config.json is of the save before."""
    train(replace(SHORT, epochs=1), squares(), tmp_path)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(checkpoints.json, "dumps", raising(KeyboardInterrupt))
        train(SHORT, squares(), tmp_path, resume=True)
    with pytest.raises(ValueError, match="resume"):
        checkpoints.load(tmp_path)
    run = train(SHORT, squares(), tmp_path, resume=True)
    assert run.step == 12 == checkpoints.load_config(tmp_path)[1]["steps"]
    assert same(checkpoints.load(tmp_path).network, run.ema)


def test_a_reader_in_the_middle_of_a_save_looks_once_more(saved, monkeypatch):
    config = (saved / "config.json").read_text()
    checkpoints.save_checkpoint(
        saved, with_random_weights(make_network(TINY), std=0.2), TINY, {"steps": 8}
    )
    later = (saved / "config.json").read_text()
    (saved / "config.json").write_text(config)
    monkeypatch.setattr(
        checkpoints.time, "sleep", lambda seconds: (saved / "config.json").write_text(later)
    )
    assert checkpoints.load(saved).network.conv_in.weight.std() > 0.15
