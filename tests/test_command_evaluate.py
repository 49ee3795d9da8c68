"""`evaluate`, `likelihood`, `compare` and `extractor` as a user meets them."""

import errno
import json
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from command_helpers import DIGITS, blobs, error_of, run, save_network, skip_films
from helpers import raising

from mnist_ddpm import catalogue, ddpm
from mnist_ddpm.commands.evaluate import labels_as_in_training
from mnist_ddpm.commands.flags import EvaluateFlags
from mnist_ddpm.data import loading
from mnist_ddpm.evaluation import cards, distances
from mnist_ddpm.evaluation.extractors import Extractor, digest, save_extractor
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.methods import likelihood
from mnist_ddpm.methods.schedules import respaced_network, respaced_schedule

PARTS = {"train": blobs(60), "test": blobs(24, 60)}


def network(dataset="mnist") -> Extractor:
    """An untrained extractor."""
    torch.manual_seed(0)
    outputs = 10 if dataset == "mnist" else 40
    return Extractor(dataset, outputs, (8, 8)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Untrained checkpoints, by the paper's method (plain) and with labels, and an extractor."""
    folder = tmp_path_factory.mktemp("evaluate")
    save_network(folder / "plain", DIGITS, objective="simple", classes=0)
    save_network(folder / "labelled", DIGITS)
    save_extractor(folder / "judge.safetensors", network(), {})
    return folder


@pytest.fixture(autouse=True)
def few_digits(monkeypatch):
    """Few images for MNIST, and few draws behind an interval."""
    labels = torch.arange(60) % 10
    monkeypatch.setattr(loading, "load_images", lambda recipe, root, split="train": PARTS[split])
    monkeypatch.setattr(loading, "load_labels", lambda *_: labels)
    monkeypatch.setattr(distances, "RESAMPLES", 4)
    skip_films(monkeypatch)


def flags_of(places, name="plain", n=12):
    base = ["--checkpoint", places / name, "--extractor", places / "judge.safetensors", "--n", n]
    return [*base, "--data", places / "data"]


def card_of(places, out, *flags, name="plain", n=12) -> dict:
    assert run("evaluate", *flags_of(places, name, n), "--out", out, *flags) == 0
    return json.loads(out.read_text())


def bound_of(places, out, *flags, status=0) -> dict:
    base = ["--checkpoint", places / "labelled", "--n", 6, "--out", out]
    assert run("likelihood", *base, *flags) == status
    return {} if status else json.loads(out.read_text()) | {"seconds": 0}


@pytest.mark.parametrize("command, figure", [("evaluate", "n = 12"), ("likelihood", "bits/dim")])
def test_a_full_disk_costs_no_figures(places, tmp_path, monkeypatch, capsys, command, figure):
    flags = flags_of(places)
    flags = [*flags, "--steps", 4] if command == "evaluate" else [*flags[:2], *flags[4:]]
    with monkeypatch.context() as once:
        once.setattr(Path, "write_text", raising(OSError(errno.ENOSPC, "No space left on device")))
        assert run(command, *flags, "--out", tmp_path / "a.json") == 1
    told = capsys.readouterr()
    assert figure in told.out and "a.json" in told.err and "disk" in told.err
    (kept,) = tmp_path.iterdir()
    assert kept.suffix == ".kept" and [*kept.iterdir()]
    assert run(command, *flags, "--out", tmp_path / "a.json") == 0 and not kept.exists()


def test_a_card_says_how_it_came_about(places, tmp_path):
    flags = "--sampler heun --steps 4 --bits 5 --device cpu".split()
    card = card_of(places, tmp_path / "a.json", *flags)
    assert (card["n"], card["seed"], card["device"]) == (12, 0, "cpu")
    assert card["evaluations_per_image"] == 7 and card["seconds_per_image"] > 0
    assert card["command"].startswith("python -m mnist_ddpm evaluate --checkpoint")
    assert "--bits 5" in card["command"]
    assert card["sampler"] == {
        "name": "heun", "steps": 4, "spacing": "trailing", "clip": "static", "precision": "float32",
    }  # fmt: skip
    assert card["extractor"].startswith("judge.safetensors, SHA-256 ")
    assert card["reference"] == "mnist, 60 training images of 32 pixels"
    assert card["reference_sha256"] == digest(PARTS["train"])
    weights = (places / "plain" / "model.safetensors").read_bytes()
    assert card["checkpoint_sha256"] == digest(weights)
    assert card["L_simple"]["n"] == 24
    checkpoint = checkpoints.load(places / "plain")
    denoise = ddpm.clipped(catalogue.make_denoiser(*checkpoint), checkpoint.schedule)
    options = {"margin": 2, "times_per_image": 20}
    images = PARTS["test"][:5]
    bound = likelihood.bits_per_dim(denoise, checkpoint.schedule, images, **options)
    assert card["bits_per_dim"]["n"] == 5
    assert card["bits_per_dim"]["value"] == pytest.approx(bound.mean, rel=1e-4), "28 x 28 pixels"


def test_a_card_knows_labels_guidance_and_the_learned_variance(places, tmp_path):
    """Its bound is of the variance that was learned unless another is told."""
    out, flags = tmp_path / "card.json", ["--steps", 2, "--bits", 3]
    card = card_of(places, out, *flags, name="labelled")
    how = card["sampler"]
    assert (how["labels"], how["guidance"]) == ("as in training", 1)
    posterior = ["--sampler", "ddpm", "--variance", "posterior", "--label", 3, "--guidance", 0]
    other = card_of(places, out, *flags, *posterior, name="labelled")
    how = other["sampler"]
    assert (how["labels"], how["guidance"], how["variance"]) == ([3], 0, "posterior")
    found = [each["bits_per_dim"] for each in (card, other)]
    assert [each["variance"] for each in found] == ["learned", "posterior"]
    assert found[0]["value"] != pytest.approx(found[1]["value"], rel=1e-2)
    guide = ["--guide", places / "labelled", "--guidance-interval", 5, 15]
    how = card_of(places, out, "--steps", 2, *guide, name="labelled")["sampler"]
    assert (how["guide"], how["guidance"]) == (str(places / "labelled"), 2)
    assert how["guidance_interval"] == [5, 15]
    how = card_of(places, out, "--steps", 2, "--path", "flow", name="labelled")["sampler"]
    assert how["path"] == "flow"
    config = tmp_path / "advising" / "config.json"
    save_network(config.parent, DIGITS)
    draw = {"draw": {"sampler": "dpmpp", "steps": 3, "eta": 1.0}}
    config.write_text(json.dumps(json.loads(config.read_text()) | draw))
    how = card_of(places, out, "--checkpoint", config.parent, "--steps", 2)["sampler"]
    assert (how["name"], how["steps"], how["eta"]) == ("dpmpp", 2, 1)
    assert how["advised"] == ["sampler", "eta"]


def test_labels_are_drawn_as_in_training_unless_they_are_named(monkeypatch):
    known = torch.tensor([2] * 90 + [5] * 10)
    monkeypatch.setattr(loading, "load_labels", lambda *_: known)
    assert 870 < (labels_as_in_training(EvaluateFlags(n=1000), DIGITS) == 2).sum() < 930
    in_turn = labels_as_in_training(EvaluateFlags(n=4, label=(3, 1)), DIGITS)
    assert in_turn.tolist() == [3, 1]


def test_saved_images_are_judged_as_those_in_memory(places, tmp_path, capsys):
    drawn = card_of(places, tmp_path / "a.json", "--steps", 4, "--seed", 3)
    base = ["--checkpoint", places / "plain", "--n", 12, "--steps", 4, "--seed", 3]
    assert run("sample", *base, "--out", tmp_path / "out") == 0
    (tmp_path / "png").mkdir()
    for k, image in enumerate(np.load(tmp_path / "out" / "samples.npz")["images"]):
        imageio.imwrite(tmp_path / "png" / f"{k:02d}.png", image[..., 0])
    for source in (tmp_path / "out" / "samples.npz", tmp_path / "png"):
        given = ["--images", source, "--seed", 3, "--data", tmp_path / "data"]
        card = card_of(places, tmp_path / "b.json", *given)
        assert card["metrics"] == drawn["metrics"] and card["images"] == str(source)
        assert "sampler" not in card
    assert run("compare", tmp_path / "a.json", tmp_path / "b.json") == 0
    assert "frechet_distance" in capsys.readouterr().out


def test_of_too_many_saved_images_a_part_is_judged(places, tmp_path, capsys):
    """The pairs are numbered as in the file; beside pictures of them all the array counts."""
    images = PARTS["test"][:20].clone()
    images[7] = PARTS["train"][33]
    (tmp_path / "out").mkdir()
    np.savez(tmp_path / "out" / "samples.npz", images=images.permute(0, 2, 3, 1).numpy())
    imageio.imwrite(tmp_path / "out" / "samples.png", images[0, 0].numpy())
    card = card_of(places, tmp_path / "a.json", "--images", tmp_path / "out", n=19)
    assert "judging 19 of 20 images" in capsys.readouterr().out
    pairs = card["nearest_training_image_in_pixels"]["closest"]
    assert [7, 33] in pairs and len(pairs) == 8
    picture = imageio.imread(tmp_path / "a-closest.png")[::2, ::2, 0]
    assert picture.shape == (2 + 2 * 34, 2 + 8 * 34)
    first, second = card["nearest_training_image_in_features"]["closest"][7]
    assert np.array_equal(picture[2:34, 240:272], images[first, 0]), "above the one it is near"
    assert np.array_equal(picture[36:68, 240:272], PARTS["train"][second, 0])


def test_images_that_are_drawn_are_not_drawn_again(places, tmp_path, monkeypatch, capsys):
    """Whatever went wrong later; and a bound that is asked for later is not of another drawing."""
    flags = ["--steps", 4, "--batch-size", 5]
    whole = card_of(places, tmp_path / "whole.json", *flags)
    ddim, sizes = catalogue.SAMPLERS["ddim"], []

    def counted(denoise, schedule, times, xT, draw_noise, eta=0.0):
        sizes.append(len(xT))
        return ddim(denoise, schedule, times, xT, draw_noise, eta=eta)

    monkeypatch.setitem(catalogue.SAMPLERS, "ddim", counted)
    out, build = tmp_path / "card.json", cards.build_card
    monkeypatch.setattr(cards, "build_card", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        card_of(places, out, *flags)
    assert "kept in" in capsys.readouterr().err
    monkeypatch.setattr(cards, "build_card", build)
    card = card_of(places, out, *flags, "--bits", 5)
    assert sizes == [5, 5, 2] and card["metrics"] == whole["metrics"]
    assert card["evaluations_per_image"] == 4
    assert {path.name for path in tmp_path.glob("card*")} == {"card.json", "card-closest.png"}


def test_what_was_kept_is_not_of_other_held_out_images(places, tmp_path, monkeypatch):
    out, flags = tmp_path / "card.json", ("--steps", 4, "--bits", 4, "--batch-size", 2)
    with monkeypatch.context() as stopped:
        stopped.setattr(cards, "write_card", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            card_of(places, out, *flags)
    assert [*tmp_path.glob("*.kept/bound-0-2-of-4.npz")]
    monkeypatch.setitem(PARTS, "test", 255 - PARTS["test"])
    bits = [card_of(places, path, *flags)["bits_per_dim"] for path in (out, tmp_path / "anew.json")]
    assert bits[0] == bits[1]


def test_features_of_real_images_are_computed_once(places, tmp_path, monkeypatch, capsys):
    """It is the same card to the last bit as without what the first has left."""
    asked, forward = [], Extractor.forward

    def counted(extractor, images):
        asked.append(len(images))
        return forward(extractor, images)

    monkeypatch.setattr(Extractor, "forward", counted)
    found, counts, told = [], [], []
    for data, seed in (("a", 0), ("a", 1), ("b", 1)):
        asked.clear()
        flags = ["--data", tmp_path / data, "--steps", 4, "--seed", seed]
        differs = {"command": "", "seconds_per_image": 0.0}
        found.append(card_of(places, tmp_path / "card.json", *flags) | differs)
        counts.append(sum(asked) - 1)  # one says at once whether the extractor is for such images
        told.append("60 training images and 24 held-out" in capsys.readouterr().out)
    assert counts == [60 + 24 + 12, 12, 60 + 24 + 12] and told == [True, False, True]
    assert found[1] == found[2] != found[0]


def test_a_folder_of_training_images_may_have_moved(places, tmp_path, monkeypatch, capsys):
    monkeypatch.undo()  # real folders
    sizes = {"image_size": 28, "dataset": "gone", "channels": 1, "objective": "simple"}
    save_network(tmp_path / "checkpoint", DIGITS, classes=0, **sizes)
    (tmp_path / "moved").mkdir()
    for k, image in enumerate(PARTS["train"][:20, 0, 2:30, 2:30]):
        imageio.imwrite(tmp_path / "moved" / f"{k:02d}.png", image.numpy())
    base = ["--checkpoint", tmp_path / "checkpoint", "--data", tmp_path, "--out", tmp_path / "card"]
    evaluate = ["evaluate", *base, "--n", 8, "--steps", 2]
    judge, moved = ["--extractor", places / "judge.safetensors"], ["--dataset", tmp_path / "moved"]
    assert "gone" in error_of(capsys, *evaluate)
    assert "no extractor knows" in error_of(capsys, *evaluate, *moved)
    assert run(*evaluate, *judge, *moved) == 0
    card = json.loads((tmp_path / "card").read_text())
    assert card["reference"] == f"{tmp_path / 'moved'}, 20 training images of 28 pixels"
    measure = ["likelihood", *base, "--split", "train", "--n", 2]
    assert "gone" in error_of(capsys, *measure)
    assert run(*measure, *moved) == 0
    assert json.loads((tmp_path / "card").read_text())["dataset"] == str(tmp_path / "moved")
    mnist = ["--checkpoint", places / "plain", *judge]
    assert "cannot turn mnist into" in error_of(capsys, "evaluate", *mnist, *moved)


def test_a_network_always_told_its_label_is_not_asked_without(places, tmp_path, capsys):
    save_network(tmp_path / "told", DIGITS, label_dropout=0.0)
    base = ["--checkpoint", tmp_path / "told"]
    assert "L_simple" not in card_of(places, tmp_path / "card.json", "--steps", 2, *base)
    for flags in (["evaluate", "--bits", 5, "--steps", 2], ["likelihood"]):
        assert "its label" in error_of(capsys, *flags, *base, "--out", tmp_path / "x")


def test_a_card_does_not_lie_among_the_training_images(tmp_path, capsys):
    """Not even where these are beside an array of the sample command."""
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "samples.npz").touch()
    save_network(tmp_path / "checkpoint", DIGITS, classes=0, dataset=str(folder))
    base = ["evaluate", "--checkpoint", tmp_path / "checkpoint"]
    line = error_of(capsys, *base, "--out", folder / "card.json")
    assert f"{folder / 'card.json'} is in the folder of images {folder}" in line


@pytest.mark.parametrize("change", [{"n": 99}, {"extractor": "z"}, {"reference": "z"}], ids=str)
def test_cards_that_differ_in_what_they_measure_are_refused(tmp_path, change, capsys):
    card = {"n": 100, "extractor": "x", "reference": "y", "metrics": {}}
    cards.write_card(tmp_path / "a", card)
    cards.write_card(tmp_path / "b", card | change)
    (name,) = change
    assert f"{name} is" in error_of(capsys, "compare", tmp_path / "a", tmp_path / "b")
    (tmp_path / "a").write_text("[]")
    assert "there is no card nowhere" in error_of(capsys, "compare", "nowhere", tmp_path / "a")
    assert f"{tmp_path / 'a'} is no card" in error_of(capsys, "compare", *[tmp_path / "a"] * 2)


def test_likelihood_prints_and_writes_the_bound(places, tmp_path, capsys):
    out = tmp_path / "cards" / "bound.json"
    card = bound_of(places, out)
    told = f"{card['bits_per_dim']:.4f} ± {card['standard_error']:.4f} bits/dim"
    assert told in capsys.readouterr().out
    assert (card["n"], card["pixels"], card["variance"]) == (6, [1, 28, 28], "learned")
    assert card["evaluations_per_image"] == 20 == len(card["L_0_to_T_minus_1"])
    assert card["bits_per_dim"] == pytest.approx(sum(card["L_0_to_T_minus_1"]) + card["L_T"])
    card = bound_of(places, out, "--steps", 4, "--variance", "beta", "--split", "train")
    assert (card["steps"], card["T"], card["variance"], card["split"]) == (4, 20, "beta", "train")
    assert card["evaluations_per_image"] == len(card["L_0_to_T_minus_1"]) == 4
    network, schedule, recipe = checkpoints.load(places / "labelled")
    times = ddpm.timesteps(20, 4)
    fewer = respaced_schedule(schedule, times)
    denoise = catalogue.make_denoiser(respaced_network(network, times), fewer, recipe)
    options = {"exponent": 1.0, "margin": 2}
    images = PARTS["train"][:6]
    bound = likelihood.bits_per_dim(ddpm.clipped(denoise, fewer), fewer, images, **options)
    assert card["bits_per_dim"] == pytest.approx(bound.mean, rel=1e-6)
    assert bound_of(places, out, "--times-per-image", 3)["evaluations_per_image"] == 3
    changes = ([], ["--seed", 1], ["--spacing", "quadratic"], ["--variance", "posterior"])
    found = {bound_of(places, out, "--steps", 4, *more)["bits_per_dim"] for more in changes}
    assert len(found) == 4


def test_a_bound_that_was_stopped_goes_on(places, tmp_path, monkeypatch):
    flags = ["--batch-size", 2, "--times-per-image", 3]
    whole = bound_of(places, tmp_path / "whole.json", *flags)
    prior_term, batches = likelihood.prior_term, []

    def stopped(*arguments):
        batches.append(1)
        if len(batches) == 3:
            raise KeyboardInterrupt
        return prior_term(*arguments)

    monkeypatch.setattr(likelihood, "prior_term", stopped)
    bound_of(places, tmp_path / "bound.json", *flags, status=130)
    assert bound_of(places, tmp_path / "bound.json", *flags) == whole and len(batches) == 4
    assert {path.name for path in tmp_path.iterdir()} == {"whole.json", "bound.json"}
