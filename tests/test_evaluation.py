"""Cards of images, and what goes into them beside distances."""

import json
import math
from dataclasses import replace

import pytest
import torch
from helpers import PAPER, change_dataset, in_processes, untrained_judge, with_random_weights

from mnist_ddpm import ddpm
from mnist_ddpm.evaluation import cards, distances
from mnist_ddpm.evaluation import copies as audits
from mnist_ddpm.evaluation.cards import (
    build_card,
    card_figures,
    card_lines,
    comparison,
    read_card,
    write_card,
)
from mnist_ddpm.evaluation.distances import Estimate
from mnist_ddpm.evaluation.extractors import digest
from mnist_ddpm.evaluation.losses import loss_by_t, loss_by_tenth
from mnist_ddpm.methods.likelihood import bits_per_dim
from mnist_ddpm.recipe import Recipe


@pytest.fixture
def quick(monkeypatch):
    """Intervals take time: for tests that do not look at them."""
    monkeypatch.setattr(distances, "RESAMPLES", 10)


def test_a_card_is_built_written_read_and_compared(digits, tmp_path):
    real = digits[:400], digits[400:600], untrained_judge(), Recipe()
    good = build_card(digits[600:700], *real, sampler={"name": "ddim"}, command="as typed")
    bad = build_card(255 - digits[600:700], *real, sampler={"name": "ddpm"})
    for name, card in (("good", good), ("bad", bad)):
        write_card(tmp_path / name, card)
    written = json.loads((tmp_path / "good").read_text())
    assert written["metrics"]["recall"].keys() == {"value", "low", "high"}
    assert written["n"] == 100 and written["command"] == "as typed"
    assert written["digits"]["shares"][0].keys() == {"value", "low", "high"}
    assert written["reference_sha256"] == digest(digits[:400])
    assert written["hardware"] and written["versions"]["torch"]
    good_read, bad_read = read_card(tmp_path / "good"), read_card(tmp_path / "bad")
    sampler, frechet, *others = comparison(good_read, bad_read)
    assert "ddim" in sampler and "ddpm" in sampler
    assert frechet.startswith("frechet_distance") and frechet.endswith("different")
    assert len(others) == 3
    alike = comparison(good_read, good_read)
    assert len(alike) == 4 and not any(line.endswith("different") for line in alike)
    text = "\n".join(card_lines(good))
    for told in ("n = 100 is small", "held out against training (n = 100)", "held-out digits"):
        assert told in text
    for space in cards.SPACES:
        assert f"in {space}: nearest" in text


def test_too_few_images_make_no_card(digits):
    for n, training, few in ((3, 400, 3), (20, 7, 7)):
        with pytest.raises(ValueError, match=str(few)):
            build_card(digits[:n], digits[:training], None, untrained_judge(), Recipe())


def test_a_card_looks_for_mirrored_copies_where_training_mirrors(digits, quick, monkeypatch):
    for mirrors in (False, True):
        change_dataset(monkeypatch, "mnist", is_mirrored=mirrors)
        real = digits[:400], digits[400:600], untrained_judge(), Recipe()
        card = build_card(digits[:30].flip(-1), *real)
        for space in cards.SPACES:
            assert card[f"nearest_training_image_in_{space}"]["copies"] is mirrors


def test_a_card_compares_as_many_held_out_images_as_it_needs(digits, quick, monkeypatch):
    monkeypatch.setattr(audits, "AUDITED", 20)
    seen = []
    real_audit = audits.audit

    def watched(generated, training, held_out, *rest):
        seen.append(len(held_out))
        return real_audit(generated, training, held_out, *rest)

    monkeypatch.setattr(audits, "audit", watched)
    card_figures(digits[:30], digits[:400], digits[400:600], untrained_judge(), Recipe())
    assert seen == [20], "of 200"


def test_without_held_out_images_training_images_are_compared_with_each_other(digits, quick):
    card = card_figures(digits[400:450], digits[:400], None, untrained_judge(), Recipe())
    assert card["nearest_training_image_in_pixels"]["copies"] is False and len(card["floor"]) == 1
    copied = card_figures(digits[:50], digits[:400], None, untrained_judge(), Recipe())
    assert copied["nearest_training_image_in_pixels"]["copies"]


def test_a_card_says_what_the_classifier_makes_of_real_digits(digits, quick):
    judge, real = untrained_judge(), (digits[:400], digits[400:500])
    card = build_card(digits[600:640], *real, judge, Recipe())
    order = distances.shuffled(digits[400:500], 0)[:40]
    found = [judge.logits(judge.features(images)) for images in (order, digits[600:640])]
    held_out, drawn = map(distances.class_balance, found)
    assert card["digits"] == drawn | {"held_out": held_out} and drawn != held_out
    other = Recipe(dataset="fashion", channels=1)
    assert "digits" not in build_card(digits[600:640], *real, judge, other)


def test_several_processes_build_the_same_card(digits, quick):
    """Features are computed in parts, also of fewer images than processes."""

    untrained = untrained_judge()

    def built(world):
        judge = replace(untrained, world=world)
        alone = judge.features(digits[:1])
        card = build_card(digits[600:607], digits[:40], digits[40:50], judge, Recipe())
        return alone, judge.features(digits[:7]), card

    ((one, features, card),) = in_processes(1, built)
    for its_one, its_features, its_card in in_processes(3, built):
        torch.testing.assert_close(its_one, one)
        torch.testing.assert_close(its_features, features)
        assert its_card["processes"] == 3
        assert its_card["metrics"]["precision"] == card["metrics"]["precision"]
        for space in cards.SPACES:
            name = f"nearest_training_image_in_{space}"
            assert its_card[name]["closest"] == card[name]["closest"]


def test_a_card_tells_what_the_network_itself_was_found_to_do(digits, quick):
    network = with_random_weights(ddpm.UNet(base_channels=8))
    denoise = ddpm.eps_denoiser(network, PAPER)
    card = build_card(digits[:20], digits[:40], None, untrained_judge(), Recipe())
    card["L_simple"] = loss_by_tenth(denoise, PAPER, digits[:4])
    denoise = ddpm.clipped(denoise, PAPER)
    bound = bits_per_dim(denoise, PAPER, digits[:3], times_per_image=2)
    card["bits_per_dim"] = cards.bound_figures(bound, "posterior", 2)
    card |= {"evaluations_per_image": 20.0, "seconds_per_image": 0.25}
    loss, bits, took = card_lines(card)[-3:]
    assert f"{card['L_simple']['mean']:.4f}" in loss and " - " in loss, "some tenths have no time"
    assert f"{bound.mean:.4f} ± {bound.standard_error:.4f}" in bits and "posterior" in bits
    assert "20 " in took and "0.25 s" in took
    json.dumps(card["L_simple"], allow_nan=False)


def test_cards_are_of_one_reference_if_its_images_are_the_same(tmp_path):
    """Wherever they lie; cards without a digest have to say the same."""
    here = {"n": 100, "extractor": "x", "reference": "pics", "metrics": {}}
    signed = here | {"reference_sha256": "1"}
    moved, changed = signed | {"reference": "/pics"}, signed | {"reference_sha256": "2"}
    found = {}
    for name, card in (("here", here), ("signed", signed), ("moved", moved), ("other", changed)):
        write_card(tmp_path / name, card)
        found[name] = read_card(tmp_path / name)
    assert comparison(found["signed"], found["moved"]) == []
    assert comparison(found["signed"], found["here"]) == []
    for a, b in (("signed", "other"), ("moved", "here")):
        with pytest.raises(ValueError, match="reference"):
            comparison(found[a], found[b])


def test_what_else_differs_between_cards_is_told():
    card = {"n": 100, "extractor": "x", "reference": "pics", "metrics": {}, "checkpoint": "a"}
    drawn = card | {"sampler": {"name": "ddim", "steps": 3, "eta": 0.0}, "seed": 0}
    other = card | {"sampler": {"name": "dpmpp", "steps": 3}, "seed": 5}
    sampler, seed = comparison(drawn, other)
    assert "ddim" in sampler and "dpmpp" in sampler and "eta" in sampler and "3" not in sampler
    assert "0 against 5" in seed
    assert any("steps 3" in line for line in comparison(card, drawn)), "of one that says nothing"


@pytest.mark.parametrize(("value", "apart"), [(2.7, False), (2.8, True)])
def test_cards_differ_where_the_interval_of_their_difference_leaves_out_zero(value, apart):
    def card(value):
        metrics = {"frechet_distance": Estimate.of(value, 1)._asdict()}
        return {"n": 1, "extractor": "x", "reference": "y", "metrics": metrics}

    (line,) = comparison(card(0), card(value))
    assert line.endswith("different") is apart


def test_cards_are_compared_by_the_figures_that_both_have(tmp_path):
    figure = {"value": 1.0, "low": 0.5, "high": 1.5}
    card = {"n": 1, "extractor": "x", "reference": "y", "metrics": {"a": figure, "b": figure}}
    lines = comparison(card, card | {"metrics": {"b": figure}})
    assert [line[:2] for line in lines] == ["b:"]
    wrong = {"value": 1.0}, 1.0, figure | {"value": math.nan}, figure | {"high": 10**400}
    text = [json.dumps(card | {"metrics": {"a": it}}) for it in wrong]
    for damaged in (*text, text[0].replace("1.0", '"1"'), "[]", "{"):
        (tmp_path / "card.json").write_text(damaged)
        with pytest.raises(ValueError, match="card.json"):
            read_card(tmp_path / "card.json")


def test_loss_by_t_spreads_times_and_is_zero_for_a_seer():
    images = torch.zeros(100, 1, 2, 2, dtype=torch.uint8)
    black = -torch.ones(1, 1, 2, 2)
    t, losses = loss_by_t(ddpm.ideal_denoiser(PAPER, black), PAPER, images)
    assert t[0] == 1 and t[-1] == 991 and (t.diff() == 10).all()
    assert losses.max() < 1e-6
    constant = ddpm.eps_denoiser(lambda xt, t: torch.full_like(xt, 3.0), PAPER)
    _, losses = loss_by_t(constant, PAPER, images)
    assert losses.mean().item() == pytest.approx(10, abs=0.5), "E (3 - eps)², as it is predicted"
