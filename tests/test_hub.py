"""The Hugging Face hub, by a stand-in: pushed checkpoints come back, missing ones are reported."""

import itertools
import json
import shutil
import sys
from dataclasses import asdict, replace

import hub_server
import huggingface_hub
import pytest
import safetensors.torch
import yaml
from command_helpers import NETWORK, error_of, run, save_network
from helpers import equal, with_flipped_bit

from mnist_ddpm.commands import push
from mnist_ddpm.commands.push import push_to_hub
from mnist_ddpm.evaluation.distances import Estimate
from mnist_ddpm.evaluation.extractors import digest
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.formats.diffusers import load_diffusers, save_diffusers
from mnist_ddpm.recipe import Recipe
from mnist_ddpm.training.first_weights import initial_weights

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content")  # that huggingface_hub uses data
SMALL = Recipe(**NETWORK | {"T": 4})
EXPORTED = Recipe(**NETWORK | {"base_channels": 7}, patch_size=1)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return save_network(tmp_path_factory.mktemp("small") / "digits", SMALL)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub for us alone, an empty cache, and a token that it takes."""
    with hub_server.served() as hub:
        template = f"{hub.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        changes = {
            "ENDPOINT": hub.address, "HUGGINGFACE_CO_URL_TEMPLATE": template,
            "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True,
            "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_TOKEN_PATH": str(tmp_path / "token"),
        }  # fmt: skip
        huggingface_hub.HfApi, huggingface_hub.snapshot_download  # noqa: B018, to import all
        for package, name in itertools.product(list(sys.modules), changes):
            module = vars(sys.modules[package])
            if package.startswith("huggingface_hub") and name in module:  # older ones copy them
                monkeypatch.setitem(module, name, changes[name])
        getattr(huggingface_hub.utils, "reset_sessions", int)()  # older ones stay offline
        monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
        monkeypatch.setattr(push, "SHOWN", 4)
        monkeypatch.chdir(tmp_path)
        yield hub


def weights(source) -> bytes:
    return (checkpoints.find(source) / "model.safetensors").read_bytes()


def card_of(folder, **changes) -> dict:
    """As `evaluate` writes it, with figures that are easy to find again."""
    figures = {"frechet_distance": Estimate(1.5, 1.25, 1.75)._asdict()}
    floor = {"frechet_distance": Estimate(0.5, 0.25, 0.75)._asdict()}
    nearest = {
        "n": 64, "median": 4.0, "real": 4.0, "exact": 0.0, "copies": False,
        "closer": Estimate(0.01, 0.0, 0.02)._asdict(),
    }  # fmt: skip
    return {
        "n": 64, "seed": 3, "extractor": "some judge", "reference": "mnist, 60000 images",
        "checkpoint_sha256": digest((folder / "model.safetensors").read_bytes()),
        "sampler": {"name": "ddim", "eta": 1.0, "steps": 2}, "metrics": figures,
        "floor": {"held out against training": {"n": 64, **floor}},
        "nearest_training_image_in_pixels": nearest, "nearest_training_image_in_features": nearest,
    } | changes  # fmt: skip


def test_what_is_pushed_comes_back_by_its_revision(hub, small, tmp_path):
    address = push_to_hub(small, "own/digits")
    assert address.startswith(f"{hub.address}/own/digits")
    loaded = checkpoints.load("own/digits")
    assert equal(loaded.network.state_dict(), checkpoints.load(small).network.state_dict())
    assert asdict(loaded.recipe) == asdict(SMALL)
    other = save_network(tmp_path / "other", SMALL, std=0.2)
    push_to_hub(other, "own/digits", revision="second")
    push_to_hub(small, "own/digits@third")
    for revision, folder in {"main": small, "second": other, "third": small}.items():
        assert weights(f"own/digits@{revision}") == weights(folder)
        page = hub.files("own/digits", revision)["README.md"].decode()
        assert (f'("own/digits@{revision}"' in page) == (revision != "main")
    commit = hub.branches["own/digits"]["second"]
    assert weights(f"own/digits@{commit}") == weights(other)
    assert equal(initial_weights("own/digits@second")[1], safetensors.torch.load(weights(other)))
    push_to_hub(other, "own/digits")
    assert weights("own/digits") == weights(other), "the new one, not that of the cache"


def test_a_page_has_images_figures_and_terms(hub, small, tmp_path):
    path = tmp_path / "card.json"
    path.write_text(json.dumps(card_of(small)), encoding="utf-8")
    assert run("push", "--checkpoint", small, "--to", "own/digits", "--card", path) == 0
    files = hub.files("own/digits", "main")
    assert files.keys() - hub_server.FIRST == {
        "README.md", "config.json", "model.safetensors", "samples.png", "card.json"
    }  # fmt: skip
    assert files["samples.png"].startswith(b"\x89PNG")
    _, head, page = files["README.md"].decode().split("---\n", 2)
    head = yaml.safe_load(head)
    assert (head["license"], head["library_name"]) == ("mit", "mnist-ddpm")
    parts = (
        "1.50 ± 0.25", "0.50 ± 0.25", "| 64 |", "Seed 3", "some judge", "samples.png",
        'mnist_ddpm.sample("own/digits"', "CC BY-SA 3.0",
    )  # fmt: skip
    assert [each for each in parts if each not in page] == []


@pytest.mark.parametrize("dataset", ["celeba", "/some/folder"], ids=["celeba", "folder"])
def test_weights_are_under_the_terms_of_their_data(hub, tmp_path, dataset):
    faces = replace(SMALL, dataset=dataset, channels=3, image_size=8)
    push_to_hub(save_network(tmp_path / "faces", faces), "own/faces")
    page = hub.files("own/faces", "main")["README.md"].decode()
    assert "license: mit" not in page
    assert ("non-commercial" in page) == (dataset == "celeba")
    assert "/some/folder" not in page


def test_no_path_of_this_machine_goes_public_and_no_name_is_markup(hub, tmp_path, capsys):
    home = tmp_path / "home of me" / "faces"
    faces = replace(SMALL, dataset=str(home), channels=3, image_size=8, attributes=("A<b>c",))
    folder = save_network(tmp_path / "faces", faces)
    for record in (1.5, {"steps": None}):  # as some other program may write it
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"training": record}))
        card = card_of(folder, command=f"mnist-ddpm evaluate --checkpoint {folder} --n 64")
        (tmp_path / "card.json").write_text(json.dumps(card))
        push_to_hub(folder, "own/faces", card=tmp_path / "card.json")
    printed = capsys.readouterr().out
    files = hub.files("own/faces", "main")
    sizes = {name: len(files[name]) for name in files.keys() - {".gitattributes"}}
    assert all(f"{name}, {size:,} bytes" in printed for name, size in sizes.items())
    texts = b"".join(content for name, content in files.items() if name.endswith((".md", ".json")))
    assert str(tmp_path).encode() not in texts
    assert b"--checkpoint faces --n 64" in texts and b"A&lt;b&gt;c" in texts
    assert checkpoints.load("own/faces").recipe.attributes == ("A<b>c",)


def test_a_card_of_others_is_refused_before_anything_is_sent(hub, small, tmp_path, capsys):
    path = tmp_path / "card.json"
    command = ["push", "--checkpoint", small, "--to", "own/digits", "--card", path]
    lacking = card_of(small)
    del lacking["floor"]
    odd = [card_of(small, sampler=5), card_of(small, sampler={"name": []}), card_of(small, seed=[])]
    for card in (card_of(small, checkpoint_sha256="0" * 16), lacking, {"n": 1}, *odd):
        path.write_text(json.dumps(card), encoding="utf-8")
        assert "card" in error_of(capsys, *command)
    assert "owner/name" in error_of(capsys, *command[:3], "--to", "digits")
    assert hub.requests == []


def test_a_private_repository_is_for_those_with_a_token(hub, small, tmp_path, monkeypatch):
    push_to_hub(small, "own/digits", private=True)
    assert hub.private == {"own/digits"}
    assert weights("own/digits") == weights(small)
    shutil.rmtree(tmp_path / "cache")  # as on a machine that has nothing yet
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(FileNotFoundError, match="own/digits"):
        checkpoints.load("own/digits")


@pytest.mark.parametrize("token", [None, "hf_wrong"], ids=["no token", "wrong token"])
def test_without_the_right_token_a_push_ends_in_one_line(hub, small, monkeypatch, capsys, token):
    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    assert "HF_TOKEN" in error_of(capsys, "push", "--checkpoint", small, "--to", "own/digits")
    assert hub.branches == {}


def test_what_is_not_on_the_hub_is_reported(hub, small):
    push_to_hub(small, "own/digits")
    for name in ("own/other", "own/digits@nowhere"):
        with pytest.raises(FileNotFoundError, match=name) as caught:
            checkpoints.load(name)
        assert "\n" not in str(caught.value)
    hub.create("own/empty", False)
    with pytest.raises(FileNotFoundError, match="config.json"):
        checkpoints.load("own/empty")


def test_a_flipped_byte_is_refused(hub, small):
    push_to_hub(small, "own/digits")
    files = hub.files("own/digits", "main")
    files["model.safetensors"] = with_flipped_bit(files["model.safetensors"], 5000)
    with pytest.raises(ValueError, match="model.safetensors"):
        checkpoints.load("own/digits")


def test_models_of_diffusers_come_by_their_revision_too(hub, small, tmp_path):
    network, _, recipe = checkpoints.load(save_network(tmp_path / "a", EXPORTED))
    save_diffusers(tmp_path / "theirs", network, recipe)
    huggingface_hub.HfApi().create_repo("own/theirs")
    huggingface_hub.HfApi().upload_folder(repo_id="own/theirs", folder_path=tmp_path / "theirs")
    loaded = load_diffusers("own/theirs@main")[0]
    assert equal(loaded.state_dict(), network.state_dict())
    assert equal(initial_weights("own/theirs")[1], network.state_dict())
