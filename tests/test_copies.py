"""The search for copies, in sets of which it is known whether they hold any."""

import math

import pytest
import torch
from conftest import ROOT
from helpers import PAPER, untrained_judge

from mnist_ddpm import ddpm, generation
from mnist_ddpm.data import loading
from mnist_ddpm.evaluation import copies as audits
from mnist_ddpm.evaluation.cards import card_figures
from mnist_ddpm.evaluation.copies import Audit, audit, audit_points, audited_indices, describe_audit
from mnist_ddpm.recipe import Recipe

DATA = ROOT / "data"


def in_features(generated, training, held_out=None):
    """As audit, by every fourth pixel."""

    def points(images):
        return images[:, :, ::2, ::2].flatten(1).double()

    own = audited_indices(training) if held_out is None else None
    real = points(training[own] if held_out is None else held_out)
    seen = [points(training)]
    return audit_points([points(generated)], lambda: seen, len(training), real, own)


@pytest.fixture(params=[audit, in_features], ids=["pixels", "features"])
def audited(request):
    return request.param


def test_a_model_that_knows_fifty_images_by_heart_is_flagged(digits, audited):
    """The limit of overfitting on them: the exact posterior mean of these fifty."""
    denoise = ddpm.ideal_denoiser(PAPER, ddpm.to_float(digits[:50]))
    options = {"times": ddpm.timesteps(1000, 20), "progress": False}
    drawn, _ = generation.generate(lambda batch: denoise, PAPER, 40, (1, 32, 32), **options)
    found = audited(drawn, digits[:50], digits[50:550])
    assert found.figures()["copies"] and found.figures()["closer"].value > 0.9
    assert torch.equal(drawn, digits[found.index]), "and says which images"


def test_real_images_that_training_has_not_seen_are_not_flagged(digits):
    found = audit(digits[1000:1500], digits[:1000], digits[1500:2500])
    assert not found.figures()["copies"] and found.figures()["closer"].value < 0.03
    assert found.generated.median() == pytest.approx(found.real.median().item(), rel=0.05)


def test_folders_in_order_are_no_sign_of_copying(digits, monkeypatch):
    """Zeros come first, which are further from each other than ones are."""
    labels = loading.load_labels(Recipe(classes=10), DATA, "train")[:3000]
    monkeypatch.setattr(audits, "AUDITED", 300)
    fresh = digits[3000:3300]
    in_order = digits[:3000][(labels != 0).int().argsort(stable=True)]
    found = audit(fresh, in_order)
    assert not found.figures()["copies"] and found.figures()["closer"].value < 0.03
    own, features = audited_indices(in_order), untrained_judge().features(in_order)
    apart = torch.cdist(features[own], features).scatter(1, own[:, None], math.inf)
    usual = apart.min(dim=1).values.float().median().item()
    card = card_figures(fresh, in_order, None, untrained_judge(), Recipe())
    real = card["nearest_training_image_in_features"]["real"]
    assert real == pytest.approx(usual, rel=1e-4)


def test_few_real_images_do_not_make_copies_of_honest_ones():
    """The nearest of twenty is no measure of how near one in a hundred is."""
    generator, flagged = torch.Generator().manual_seed(0), 0
    for _ in range(50):
        generated, real = (torch.rand(n, generator=generator).sqrt() + 1 for n in (5000, 20))
        flagged += Audit(generated, real, torch.zeros(5000)).figures()["copies"]
    assert flagged <= 3
    real = 1 + torch.rand(17, generator=generator)
    assert Audit(torch.full((60,), 0.1), real, torch.zeros(60)).figures()["copies"]


def test_a_copy_among_large_bright_images_is_exact():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(200, 256, (80, 3, 128, 128), generator=generator, dtype=torch.uint8)
    found = audit(images[:30], images[:40], images[40:])  # more rows than are computed one by one
    assert found.generated.max() == 0 and found.figures()["copies"]


@pytest.mark.parametrize(("near", "copies"), [(30, False), (60, False), (70, True), (200, True)])
def test_beyond_the_interval_of_a_twentieth_near_images_are_copies(near, copies):
    """By chance 1 % are nearer than 1 % of real ones. Wilson's interval of 6 % begins at 4.7 %."""
    generated = torch.where(torch.arange(1000) < near, 50.0, 500.0)
    found = Audit(generated, torch.arange(101.0, 1101), torch.zeros(1000))
    assert found.figures()["closer"].value == near / 1000 and found.figures()["copies"] is copies


@pytest.mark.parametrize(("twice", "copies"), [(0, True), (1, False)])
def test_one_exact_copy_is_too_many_unless_real_images_are_there_twice_as_often(twice, copies):
    generated = torch.where(torch.arange(1000) < 1, 0.0, 500.0)
    real = torch.where(torch.arange(1000) < twice, 0, torch.arange(101.0, 1101))
    found = Audit(generated, real, torch.zeros(1000))
    assert found.figures()["exact"] == 0.001 and found.figures()["copies"] is copies
    assert ("it copies" in describe_audit(found.figures())) is copies


def test_images_that_are_twice_in_the_training_set_do_not_hide_copies(digits, audited):
    training = torch.cat([digits[:400], digits[:10]])
    assert audited(digits[100:200], training).figures()["copies"]
    assert not audited(digits[400:500], training).figures()["copies"]
    assert not audited(digits[400:500], digits[:1].expand(50, -1, -1, -1)).figures()["copies"]


def test_the_nearest_of_images_and_their_mirror_images_are_those_of_brute_force(digits):
    n = 1200  # more than are looked at in one part
    found = audit(digits[:n].flip(-1), digits[:n], mirrored=True)
    assert found.index.tolist() == list(range(n))
    seen = torch.cat([digits[:n], digits[:n].flip(-1)]).flatten(1).double() / 255
    own = audited_indices(digits[:n])
    brute = torch.cdist(seen[own], seen)
    for offset in (0, n):
        brute[torch.arange(1000), own + offset] = 1e9
    nearest = brute.min(dim=1).values
    torch.testing.assert_close(found.real.double(), nearest, rtol=1e-6, atol=0)
