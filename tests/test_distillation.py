"""Learning from a teacher: what it predicts, guided, is what the student is to say."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_helpers import NETWORK, blobs, error_of, run, save_network
from helpers import equal

from mnist_ddpm import ddpm
from mnist_ddpm.catalogue import PREDICTIONS, make_schedule
from mnist_ddpm.data import loading
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.formats.checkpoints import save_checkpoint
from mnist_ddpm.method import Batch, PlainMethod
from mnist_ddpm.methods.distillation import Distilled
from mnist_ddpm.methods.predictions import weighted
from mnist_ddpm.recipe import Recipe
from mnist_ddpm.training.first_weights import load_teacher

SMALL = Recipe(**NETWORK)
SCHEDULE = make_schedule(SMALL)
T = torch.tensor([1, 7, 13, 20])


def example():
    source = torch.Generator().manual_seed(0)
    x0 = 2 * torch.rand(4, *SMALL.shape, generator=source) - 1
    return x0, torch.randn(x0.shape, generator=source)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A checkpoint, and the same that advises a guide in its folder, at t from 6 to 13."""
    top = tmp_path_factory.mktemp("teachers")
    plain, guided = (save_network(top / name, SMALL) for name in ("plain", "guided"))
    save_network(guided / "guide", SMALL, seed=1, base_channels=4)
    config = json.loads((guided / "config.json").read_text())
    config["draw"] = {"guide": "guide", "guidance": 3.0, "guidance_interval": [5, 13]}
    (guided / "config.json").write_text(json.dumps(config))
    return plain, guided


@pytest.mark.parametrize("name", ["eps", "x0", "v", "velocity", "edm"])
def test_who_says_what_the_teacher_says_has_nothing_to_learn(name, places):
    """Not what would have been right."""
    conversion, (x0, eps) = PREDICTIONS[name], example()
    teacher = load_teacher(replace(SMALL, teacher=str(places[0])))
    says = teacher(None)

    def student(xt, t):
        if conversion.scale is not None:
            xt = xt / ddpm.per_image(conversion.scale(SCHEDULE, t), xt)
        return conversion.from_x0(SCHEDULE, xt, t, says(xt, t)[0])

    objective = weighted(conversion)
    assert (objective(student, SCHEDULE, x0, T, eps) > 1e-5).all()
    method = Distilled(PlainMethod(objective), teacher)
    assert (method.loss(student, SCHEDULE, Batch(x0, T, eps)) < 1e-9).all()


def test_a_teacher_is_guided_as_its_checkpoint_advises(places):
    plain, guided = (load_teacher(replace(SMALL, teacher=str(place)))(None) for place in places)
    strong, weak = (checkpoints.load(path).network for path in (places[1], places[1] / "guide"))
    x = example()[1]
    expected = strong(x, T)
    inside = torch.tensor([False, True, True, False])
    expected[inside] = torch.lerp(weak(x, T), strong(x, T), 3.0)[inside]
    torch.testing.assert_close(guided(x, T)[1], expected)
    torch.testing.assert_close(plain(x, T)[1], strong(x, T))


def test_a_teacher_of_another_schedule_is_asked_along_the_student_s(places):
    """Where it is asked for its times, a right teacher is right there too: signal and noise add."""
    recipe = Recipe(**NETWORK, schedule="flow", prediction="velocity")
    path, (x0, eps) = make_schedule(recipe), example()
    xt = ddpm.q_sample(path, x0, T, eps)
    x0_hat, eps_hat, *_ = load_teacher(replace(recipe, teacher=str(places[0])))(None)(xt, T)
    torch.testing.assert_close(ddpm.q_sample(path, x0_hat, T, eps_hat), xt)
    own = load_teacher(replace(SMALL, teacher=str(places[0])))(None)
    assert not torch.allclose(eps_hat, own(xt, T)[1])


def test_images_whose_label_is_hidden_may_have_a_teacher_of_their_own(places, tmp_path):
    recipe = replace(SMALL, classes=3)
    save_network(tmp_path / "known", recipe)
    asked = replace(recipe, teacher=str(tmp_path / "known"), teacher_unlabelled=str(places[1]))
    both, xt, labels = load_teacher(asked), example()[1], torch.tensor([3, 0, 3, 2])
    known = load_teacher(replace(asked, teacher_unlabelled=""))(labels)(xt, T)
    plain = load_teacher(replace(SMALL, teacher=str(places[1])))(None)(xt, T)
    for found, one, other in zip(both(labels)(xt, T), known, plain):
        torch.testing.assert_close(found[1::2], one[1::2])
        torch.testing.assert_close(found[::2], other[::2])
    torch.testing.assert_close(both(None)(xt, T), plain)


def test_train_learns_from_a_teacher_and_goes_on_with_it(places, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(loading, "load_images", lambda *_: blobs(64))
    monkeypatch.chdir(tmp_path)
    flags = "--base-channels 8 --channel-mults 1 2 --T 20 --batch-size 32".split()

    def trained(out, *flags):
        assert run("train", *flags, "--out", out) == 0
        return checkpoints.load(out)

    taught = trained("a", *flags, "--teacher", places[1], "--epochs", 2)
    assert taught.recipe.teacher == str(places[1])
    alone = trained("b", *flags, "--epochs", 2)
    assert not equal(alone.network.state_dict(), taught.network.state_dict())
    trained("c", *flags, "--teacher", places[1], "--epochs", 1)
    trained("c", "--resume", "--epochs", 2)  # with the rate of a longer run: not bit for bit
    line = error_of(capsys, "train", "--resume", "--teacher", places[0], "--out", "c")
    assert "teacher" in line


def test_each_source_is_read_once(places, tmp_path, monkeypatch):
    """Whether a network starts from it, learns from it, or both."""
    monkeypatch.setattr(loading, "load_images", lambda *_: blobs(64))
    monkeypatch.chdir(tmp_path)
    read, read_weights = [], checkpoints.read_weights

    def counted(folder):
        read.append(Path(folder).name)
        return read_weights(folder)

    monkeypatch.setattr(checkpoints, "read_weights", counted)
    flags = "--base-channels 8 --channel-mults 1 2 --T 20 --batch-size 32 --epochs 1".split()
    both = ["--teacher", places[1], "--init-from", places[1]]
    assert run("train", *flags, *both, "--out", "few") == 0
    assert read and len(read) == len({*read})


def test_a_teacher_with_labels_is_told_those_that_are_hidden_from_the_network(tmp_path):
    """And guided away from what it says without them, as far as the recipe asks."""
    recipe = replace(SMALL, classes=3, label_dropout=0.5)
    strong = checkpoints.load(save_network(tmp_path / "known", recipe)).network
    torch.nn.init.normal_(strong.label.weight, generator=torch.Generator().manual_seed(0))
    save_checkpoint(tmp_path / "known", strong, recipe, {})
    asked = replace(recipe, teacher=str(tmp_path / "known"))
    (x0, eps), true = example(), torch.tensor([0, 1, 2, 1])
    xt = ddpm.q_sample(SCHEDULE, x0, T, eps)
    told, untold = strong(xt, T, true), strong(xt, T)

    def student(xt, t, labels):
        return torch.zeros_like(xt)

    batch = Batch(x0, T, eps, torch.tensor([3, 1, 3, 3]), true)
    for scale, wanted in ((0.0, told), (3.0, torch.lerp(untold, told, 3.0))):
        teacher = load_teacher(replace(asked, teacher_guidance=scale))
        losses = Distilled(PlainMethod(ddpm.l_simple), teacher).loss(student, SCHEDULE, batch)
        torch.testing.assert_close(losses, wanted.square().mean(dim=(1, 2, 3)))


def test_in_an_interval_a_teacher_is_told_each_image_s_own_label(tmp_path):
    recipe = replace(SMALL, classes=3)
    strong = checkpoints.load(save_network(tmp_path / "known", recipe)).network
    torch.nn.init.normal_(strong.label.weight, generator=torch.Generator().manual_seed(0))
    draw = {"guidance": 3.0, "guidance_interval": [5, 13]}
    save_checkpoint(tmp_path / "known", strong, recipe, {}, draw)
    teacher = load_teacher(replace(recipe, teacher=str(tmp_path / "known")))
    x, labels = example()[1], torch.tensor([0, 1, 2, 1])
    expected = strong(x, T, labels)
    expected[1:3] = torch.lerp(strong(x, T), expected, 3.0)[1:3]
    torch.testing.assert_close(teacher(labels)(x, T)[1], expected)


@pytest.mark.parametrize(
    ("student", "named"),
    [
        ({"classes": 10}, "classes"),
        ({"image_size": 40}, "(1, 32, 32)"),
        ({}, "nowhere"),
        ({"teacher_guidance": 2.0}, "teacher_guidance"),
        ({"condition": "small"}, "condition"),
    ],
    ids=["labels", "shape", "none", "unguided", "condition"],
)
def test_who_cannot_teach_is_refused(student, named, places):
    place = places[0] if student else places[0] / "nowhere"
    with pytest.raises((ValueError, FileNotFoundError)) as raised:
        load_teacher(Recipe(**NETWORK | student, teacher=str(place)))
    assert named in str(raised.value)
