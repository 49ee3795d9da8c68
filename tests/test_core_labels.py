"""Labels and guidance in the notebook: what is told, hidden, drawn, read and saved."""

from dataclasses import replace

import pytest
import torch
from conftest import ROOT
from helpers import notebook, with_random_weights
from PIL import Image
from training_helpers import NOTEBOOK, same, squares

from mnist_ddpm import ddpm
from mnist_ddpm.data.mnist import mnist_labels
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.recipe import Recipe

LABELLED = replace(NOTEBOOK, classes=3, label_dropout=0.25)
SCHEDULE = ddpm.beta_schedule(ddpm.linear_beta(NOTEBOOK.T))


def labelled_network():
    return with_random_weights(ddpm.make_network(LABELLED))


@pytest.mark.parametrize("scale", [0, 1, 2.5])
def test_guidance_exaggerates_what_the_label_changes(scale):
    network, t, labels = labelled_network(), torch.tensor([5, 40]), torch.tensor([0, 2])
    x = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    told, untold = network(x, t, labels), network(x, t)
    assert (told - untold).abs().max() > 1e-3
    expected = (1 - scale) * untold + scale * told
    torch.testing.assert_close(ddpm.guided_network(network, labels, scale)(x, t), expected)


def test_labels_for_a_network_without_any_are_refused():
    network = ddpm.make_network(NOTEBOOK)
    with pytest.raises(ValueError, match="labels"):
        network(torch.zeros(2, 1, 16, 16), torch.tensor([1, 2]), torch.tensor([0, 1]))


def test_a_share_of_the_labels_is_hidden_and_the_others_stay_with_their_images():
    run, told = ddpm.start_run(replace(LABELLED, epochs=100, batch_size=32)), []
    run.network.register_forward_pre_hook(lambda _, inputs: told.append(inputs[2]))
    seen = []

    def objective(network, schedule, x0, t, eps):
        seen.append(x0[:, 0, 0, 0])
        network(x0, t)
        return run.network.conv_out.bias.sum() * torch.ones(len(x0))

    images = torch.arange(96, dtype=torch.uint8).view(96, 1, 1, 1).expand(96, 1, 16, 16)
    labels = torch.arange(96) % 3
    for _ in ddpm.training_loop(run, images, SCHEDULE, objective, labels=labels):
        if run.step == 60:
            break
    told, truth = torch.cat(told), labels[ddpm.to_uint8(torch.cat(seen)).long()]
    hidden = told == LABELLED.classes
    assert 0.2 < hidden.float().mean() < 0.3
    assert torch.equal(told[~hidden], truth[~hidden])


def test_a_drawing_is_guided_to_its_labels():
    network, labels = labelled_network(), torch.tensor([2, 0])
    xt, t = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)), 40
    with torch.no_grad():
        x0_hat, _ = notebook.drawing_denoiser(network, SCHEDULE, labels, 2.5)(xt, t)
        eps_hat = ddpm.guided_network(network, labels, 2.5)(xt, torch.tensor([t, t]))
    expected = ddpm.predict_x0(SCHEDULE, xt, t, eps_hat).clamp(-1, 1)
    torch.testing.assert_close(x0_hat, expected)


def test_labels_are_drawn_in_turn_and_unknown_ones_are_refused():
    assert notebook.labels_in_turn("314", 10, 5).tolist() == [3, 1, 4, 3, 1]
    assert notebook.labels_in_turn("10 2", 11, 3).tolist() == [10, 2, 10]
    assert notebook.labels_in_turn("", 3, 4).tolist() == [0, 1, 2, 0]
    assert notebook.labels_in_turn("", 0, 4) is None
    for text, classes in (("3", 3), ("1", 0)):
        with pytest.raises(ValueError, match="labels"):
            notebook.labels_in_turn(text, classes, 4)


def test_the_labels_of_a_folder_are_its_subfolders(tmp_path):
    for path in ("dog/b.png", "cat/a.png", "dog/deep/c.png"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), len(path)).save(tmp_path / path)
    labels, names = notebook.load_labels(str(tmp_path))
    images, _ = notebook.load_images(str(tmp_path), 4)
    assert labels.tolist() == [0, 1, 1] and names == ["cat", "dog"] and len(images) == 3
    Image.new("L", (4, 4)).save(tmp_path / "loose.png")
    assert notebook.load_labels(str(tmp_path)) == (None, [])


def test_mnists_labels_are_those_of_the_package(monkeypatch):
    monkeypatch.chdir(ROOT)
    labels, names = notebook.load_labels("mnist")
    assert torch.equal(labels, mnist_labels(Recipe(classes=10), ROOT / "data"))
    assert names == [*"0123456789"]


def test_a_network_with_labels_is_saved_for_the_notebook_and_the_package(tmp_path):
    run = ddpm.start_run(LABELLED)
    list(ddpm.training_loop(run, squares(16), SCHEDULE, labels=torch.arange(16) % 3))
    notebook.save_run(tmp_path, run, SCHEDULE)
    network, _, settings = ddpm.load_checkpoint(tmp_path)
    other = checkpoints.load(tmp_path)
    assert settings == LABELLED and other.recipe.classes == 3
    assert same(network, run.ema) and same(network, other.network)
    again = notebook.resume_run(tmp_path, LABELLED, SCHEDULE)
    assert same(again.network, run.network)
    with pytest.raises(ValueError, match="classes"):
        notebook.resume_run(tmp_path, NOTEBOOK, SCHEDULE)


def test_a_run_saved_before_there_were_labels_goes_on(tmp_path):
    notebook.save_run(tmp_path, ddpm.start_run(NOTEBOOK), SCHEDULE)
    path = tmp_path / "training_state.pt"
    state = torch.load(path, weights_only=True)
    state["settings"] = {
        name: each for name, each in state["settings"].items() if "label" not in name
    }
    del state["settings"]["classes"]
    torch.save(state, path)
    assert notebook.resume_run(tmp_path, NOTEBOOK, SCHEDULE).step == 0
