"""Figures that judge images: against closed forms, and on images of which it is known what they are."""

import hashlib
import json
import math
import os
import struct
from dataclasses import replace
from itertools import pairwise

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from conftest import ROOT

from mnist_ddpm import ddpm, evaluation, extractors, guidance, image_folder, resumable
from mnist_ddpm.__main__ import Evaluate, known_margin, main, read_images, real_images
from mnist_ddpm.ddpm import (
    Prediction,
    Settings,
    generate,
    ideal_denoiser,
    load_checkpoint,
    load_images,
    make_model,
    make_schedule,
    predict_eps,
    q_sample,
    save_checkpoint,
    time_embedding,
    to_float,
)
from mnist_ddpm.evaluation import (
    Estimate,
    audit,
    audit_line,
    card_lines,
    class_balance,
    comparison,
    distances,
    floors,
    frechet_bias,
    frechet_distance,
    frechet_estimate,
    judged,
    kernel_distance,
    precision_recall,
    read_card,
    write_card,
)
from mnist_ddpm.extractors import Extractor, Judge
from mnist_ddpm.likelihood import bits_per_dim


def gaussian(n, width=4, seed=0, **options):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, **options)


def exactly(mean, deviations, n=200, seed=0):
    """Features whose sample mean and covariance are these to rounding: N(mean, diag(deviations²))."""
    x = gaussian(n, len(mean), seed)
    x = x - x.mean(dim=0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).T
    return x * torch.tensor(deviations, dtype=torch.float64) + torch.tensor(mean, dtype=torch.float64)


def test_frechet_distance_of_two_gaussians_is_the_closed_form():
    """|m - m'|² + sum (s_i - s'_i)² where the covariances are diagonal."""
    a, b = exactly([0, 1, 2], [1, 2, 3]), exactly([1, 1, 0], [2, 2, 1], n=300, seed=1)
    assert frechet_distance(a, b) == pytest.approx(1 + 4 + 1 + 0 + 4, rel=1e-6)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-6)


def test_frechet_distance_of_gaussians_turned_against_each_other_is_the_closed_form():
    """In two dimensions tr (A B)^½ = (tr A B + 2 (det A B)^½)^½, also where A and B do not commute."""
    a, b = exactly([0, 0], [1, 3]), exactly([0, 0], [1, 3], seed=1)
    turn = torch.tensor([[0.6, 0.8], [-0.8, 0.6]], dtype=torch.float64)
    A, B = torch.diag(torch.tensor([1.0, 9.0], dtype=torch.float64)), turn.T @ torch.diag(a.T.cov().diag()) @ turn
    root = ((A @ B).trace() + 2 * (A.det() * B.det()).sqrt()).sqrt()
    expected = (A.trace() + B.trace() - 2 * root).item()
    assert frechet_distance(a, b @ turn) == pytest.approx(expected, rel=1e-6) and expected > 1


def test_identical_features_are_at_distance_zero_and_a_shift_at_its_square():
    a = gaussian(500)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + 0.5) == pytest.approx(4 * 0.25, rel=1e-9)
    with pytest.raises(ValueError, match="at least 2 images"):
        frechet_distance(a, a[:1])


def test_kernel_distance_is_the_unbiased_estimate():
    """Means over pairs of different images of k(x, y) = (x·y / D + 1)³."""
    a, b = gaussian(40), 1.3 * gaussian(40, seed=1) + 0.2
    k = lambda x, y: (x @ y.T / 4 + 1) ** 3  # noqa: E731
    pairs = lambda x: (k(x, x).sum() - k(x, x).diag().sum()) / (40 * 39)  # noqa: E731
    expected = pairs(a) + pairs(b) - 2 * k(a, b).mean()
    assert kernel_distance(a, b).value == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize(("n", "m"), [(300, 300), (300, 330), (300, 900)])
def test_the_kernel_distances_interval_is_not_smaller_in_small_sets(n, m):
    """Where both are hardly larger than a subset, all subsets are alike: their spread says nothing."""
    found = [kernel_distance(gaussian(n, seed=2 * k), gaussian(m, seed=2 * k + 1)) for k in range(12)]
    assert 0.5 < np.mean([e.half for e in found]) / 1.96 / np.std([e.value for e in found], ddof=1) < 4


def test_the_kernel_distances_interval_holds_the_spread_of_few_images_beside_many_real_ones():
    real = gaussian(3000)
    found = [kernel_distance(real, 1.6 * gaussian(200, seed=seed) + 0.3) for seed in range(1, 13)]
    assert 0.7 < np.mean([e.half for e in found]) / 1.96 / np.std([e.value for e in found], ddof=1) < 4


def test_the_kernel_distances_interval_holds_the_spread_of_fresh_draws(monkeypatch):
    """It is that of subsets, less as there are more images than in one; wider than need be, as real ones vary too."""
    monkeypatch.setattr(evaluation, "SUBSET", 100)
    real = gaussian(5000)
    found = [kernel_distance(real, 1.2 * gaussian(900, seed=seed)) for seed in range(1, 13)]
    assert 0.8 < np.mean([e.half for e in found]) / 1.96 / np.std([e.value for e in found], ddof=1) < 4


def test_radii_are_the_distances_to_the_kth_neighbour():
    line = torch.tensor([[0.0], [1], [3], [7]])
    assert evaluation.neighbour_radii(line, k=1).tolist() == [1, 1, 2, 4]
    assert evaluation.neighbour_radii(line, k=2).tolist() == [3, 2, 3, 6]


def test_neighbours_are_found_across_the_parts_that_are_looked_at_in_turn():
    points = gaussian(1500)
    apart = torch.cdist(points, points)
    radii = apart.sort(dim=1).values[:, 3]
    torch.testing.assert_close(evaluation.neighbour_radii(points), radii, rtol=0, atol=1e-6)
    found = evaluation.within(points, points[1400:], radii[1400:] / 2)
    assert torch.equal(found, (apart[:, 1400:] <= radii[1400:] / 2).any(dim=1)) and 100 < found.sum() < 1500


def test_estimates_depend_on_the_seed_alone():
    a, b = gaussian(600), gaussian(300, seed=1)
    torch.manual_seed(1)
    first = distances(a, b, seed=3)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert distances(a, b, seed=3) == first and torch.equal(torch.get_rng_state(), before)
    assert distances(a, b, seed=4)["kernel_distance"] != first["kernel_distance"]


def test_estimates_do_not_depend_on_the_order_of_the_images(monkeypatch):
    monkeypatch.setattr(evaluation, "SUBSET", 100)
    real, generated = gaussian(300), gaussian(400, seed=1) + torch.linspace(0, 1, 400).unsqueeze(1)
    turned = distances(real, generated.flip(0))
    for name, estimate in distances(real, generated).items():
        assert turned[name] == pytest.approx(estimate, rel=1e-9), name
    assert frechet_bias(real, generated.flip(0)) == pytest.approx(frechet_bias(real, generated), rel=1e-9)


def test_the_interval_holds_the_spread_of_fresh_draws():
    """95 % of them should fall into one as wide around their mean; of 40, at least 30."""
    real = gaussian(20_000)
    estimate = frechet_estimate(real, 1.2 * gaussian(1000, seed=1))
    values = torch.tensor([frechet_distance(real, 1.2 * gaussian(1000, seed=seed)) for seed in range(2, 42)])
    assert ((values - values.mean()).abs() < estimate.half).sum() >= 30
    assert estimate.half < 4 * values.std()


def test_the_bias_of_real_images_falls_as_one_over_n():
    real = gaussian(40_000)
    mean = {n: np.mean([frechet_distance(real, gaussian(n, seed=s)) for s in range(1, 13)]) for n in (250, 1000)}
    assert mean[250] / mean[1000] == pytest.approx(4, rel=0.35)


def test_the_bias_to_be_expected_is_that_of_fresh_draws():
    real = gaussian(40_000)
    values = [frechet_distance(real, gaussian(400, seed=s)) for s in range(1, 21)]
    assert frechet_bias(real, gaussian(400, seed=1)) == pytest.approx(np.mean(values), rel=0.3)
    far = frechet_bias(real, gaussian(400, seed=1) + 10)
    assert far == pytest.approx(frechet_bias(real, gaussian(400, seed=1)), rel=1e-3), "the distance is no part of it"


def test_floors_say_what_real_images_would_get(monkeypatch):
    training, held_out = gaussian(4000), gaussian(500, seed=1)
    monkeypatch.setattr(evaluation, "SUBSETS", 20)
    found = floors(training, held_out, 400)
    assert found["training half against half"]["n"] == found["held out against training"]["n"] == 400
    shifted = distances(training, gaussian(400, seed=2) + 0.5)
    for floor in found.values():
        assert floor["frechet_distance"].value < 0.1 * shifted["frechet_distance"].value
        assert floor["kernel_distance"].low < 0 < floor["kernel_distance"].high
    assert floors(training, None, 10**6)["training half against half"]["n"] == 2000
    assert list(floors(training, None, 400)) == ["training half against half"]


def test_precision_and_recall_of_sets_that_overlap_in_part():
    real = gaussian(1000)
    assert [e.value for e in precision_recall(real, real)] == [1, 1]
    assert [e.value for e in precision_recall(real, gaussian(1000, seed=1) + 100)] == [0, 0]
    half = torch.cat([real[:500], gaussian(500, seed=1) + 100])
    precision, recall = precision_recall(real, half)
    assert precision.value == 0.5 and 0.5 < recall.value < 1
    assert precision.low < 0.5 < precision.high < 0.54
    narrow = precision_recall(real, 0.2 * gaussian(1000, seed=1))
    assert narrow[0].value > 0.95 and narrow[1].value < 0.5, "good images, little variety"
    named = distances(real, 0.2 * gaussian(1000, seed=1))
    assert named["precision"].value > 0.95 and named["recall"].value < 0.5
    with pytest.raises(ValueError, match="more than 3 images of each kind, not 3"):
        precision_recall(real, real[:3])


def test_class_balance_counts_digits_and_certainty():
    logits = torch.full((4, 10), -100.0)
    logits[0, 3] = logits[1, 3] = logits[2, 7] = 100.0
    logits[3, :2] = 100.0
    found = class_balance(logits)
    shares = [each.value for each in found["shares"]]
    assert shares[3] == 0.5 and shares[7] == 0.25 and sum(shares) == 1
    assert found["shares"][3] == evaluation.share(torch.tensor([True, True, False, False])), "with its interval"
    sure = found["mean_confidence"]
    assert sure.value == pytest.approx(3.5 / 4) and sure.half == pytest.approx(1.96 * 0.25 / 2), "of 1, 1, 1, 0.5"
    assert found["share_above_0.9"].value == 0.75


# --- copies


@pytest.fixture(scope="module")
def digits():
    return load_images(Settings(), ROOT / "data")


def in_features(
    generated: torch.Tensor, training: torch.Tensor, held_out: torch.Tensor | None = None
) -> evaluation.Audit:
    """As audit, by every fourth pixel."""

    def points(images: torch.Tensor) -> torch.Tensor:
        return images[:, :, ::2, ::2].flatten(1).double()

    own = evaluation.some_of(training) if held_out is None else None
    real = points(training[own] if held_out is None else held_out)
    return evaluation.audit_points([points(generated)], lambda: [points(training)], len(training), real, own)


@pytest.fixture(params=[audit, in_features], ids=["pixels", "features"])
def audited(request):
    return request.param


def test_a_model_that_knows_fifty_images_by_heart_is_flagged(digits, audited):
    """The limit of overfitting on them: the exact posterior mean of these fifty, sampled as any model is."""
    schedule = make_schedule(Settings())
    model = ideal_denoiser(schedule, digits[:50].float() / 127.5 - 1)
    drawn, _ = generate(model, schedule, 40, (1, 32, 32), steps=20, progress=False)
    found = audited(drawn, digits[:50], digits[50:550])
    assert found.copies and found.closer.value > 0.9 and "it copies" in audit_line(found.figures())
    assert torch.equal(drawn, digits[found.index]), "and says which images"


class Learner(torch.nn.Module):
    """A small perceptron that predicts x_0 of 14 x 14 pixels."""

    def __init__(self, schedule):
        super().__init__()
        sizes, self.schedule = (14 * 14 + 32, 512, 512, 14 * 14), schedule
        first, *others = (torch.nn.Linear(a, b) for a, b in pairwise(sizes))
        self.layers = torch.nn.Sequential(first, *(part for layer in others for part in (torch.nn.SiLU(), layer)))

    def forward(self, xt, t):
        x0_hat = self.layers(torch.cat([xt.flatten(1), time_embedding(t, 32)], dim=1)).view(xt.shape)
        return Prediction(x0_hat, predict_eps(self.schedule, xt, t, x0_hat))


@pytest.mark.parametrize(("n", "copies"), [(50, True), (5000, False)])
def test_a_network_overfitted_on_fifty_images_is_flagged_and_on_five_thousand_is_not(digits, n, copies):
    torch.manual_seed(0)
    small, schedule = digits[:, :, 2:30:2, 2:30:2], make_schedule(Settings(T=100, beta_1=1e-3, beta_T=0.1))
    model = Learner(schedule)
    optimizer, x0 = torch.optim.Adam(model.parameters(), 3e-3), to_float(small[:n])
    for _ in range(800):
        x, t = x0[torch.randint(n, (100,))], torch.randint(1, 101, (100,))
        loss = (model(q_sample(schedule, x, t, torch.randn(x.shape)), t).x0_hat - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    drawn, _ = generate(model, schedule, 100, (1, 14, 14), steps=20, progress=False)
    assert audit(drawn, small[:n], small[5000:6000]).copies is copies


def test_real_images_that_training_has_not_seen_are_not_flagged(digits):
    found = audit(digits[1000:1500], digits[:1000], digits[1500:2500])
    assert not found.copies and found.closer.value < 0.03
    assert found.generated.median() == pytest.approx(found.real.median().item(), rel=0.05)
    assert "no sign of copying" in audit_line(found.figures())


def test_folders_in_order_are_no_sign_of_copying(digits, monkeypatch):
    """Zeros come first, which are further from each other than ones are."""
    labels = guidance.load_labels(Settings(classes=10), ROOT / "data")[:3000]
    monkeypatch.setattr(evaluation, "AUDITED", 300)
    fresh, in_order = digits[3000:3300], digits[:3000][(labels != 0).int().argsort(stable=True)]
    assert not audit(fresh, in_order).copies and audit(fresh, in_order).closer.value < 0.03
    own, features = evaluation.some_of(in_order), fresh_judge().features(in_order)
    apart = torch.cdist(features[own], features).scatter(1, own[:, None], math.inf)
    card = judged(fresh, in_order, None, fresh_judge())
    usual = apart.min(dim=1).values.float().median().item()
    assert card["nearest_training_image_in_features"]["real"] == pytest.approx(usual, rel=1e-4)


def test_few_real_images_do_not_make_copies_of_honest_ones():
    """The nearest of twenty is no measure of how near one in a hundred is."""
    generator, flagged = torch.Generator().manual_seed(0), 0
    for _ in range(50):
        generated, real = (torch.rand(n, generator=generator).sqrt() + 1 for n in (5000, 20))
        flagged += evaluation.Audit(generated, real, torch.zeros(5000)).copies
    assert flagged <= 3
    assert evaluation.Audit(torch.full((60,), 0.1), 1 + torch.rand(17), torch.zeros(60)).copies


def test_a_copy_among_large_bright_images_is_exact():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(200, 256, (80, 3, 128, 128), generator=generator, dtype=torch.uint8)
    found = audit(images[:30], images[:40], images[40:])  # more rows than PyTorch computes one by one
    assert found.generated.max() == 0 and found.copies


def test_a_few_near_images_are_not_yet_copies():
    """By chance 1 % are nearer than the nearest 1 % of real ones; 3 % may be, 20 % may not."""
    real = torch.arange(101, 1101).double()
    for share, copies in ((30, False), (200, True)):
        generated = torch.where(torch.arange(1000) < share, 50.0, 500.0)
        found = evaluation.Audit(generated.double(), real, torch.zeros(1000))
        assert found.closer.value == share / 1000 and found.copies is copies


def test_one_exact_copy_is_one_too_many_unless_real_images_are_there_twice_as_often():
    usual = torch.arange(101, 1101).double()
    generated = torch.cat([torch.zeros(1), torch.full((999,), 500.0)]).double()
    for twice, copies in ((0, True), (1, False)):
        found = evaluation.Audit(generated, torch.where(torch.arange(1000) < twice, 0, usual), torch.zeros(1000))
        assert found.exact == 0.001 and found.copies is copies
        verdict = "it copies" if copies else "no sign of copying"
        told = "1 are training images: " if copies else "1 are training images, as many as of real ones: "
        assert audit_line(found.figures()).endswith(told + verdict)


def test_images_that_are_twice_in_the_training_set_do_not_hide_copies(digits, audited):
    training = torch.cat([digits[:400], digits[:10]])
    assert audited(digits[100:200], training).copies
    assert not audited(digits[400:500], training).copies
    assert not audited(digits[400:500], digits[:1].expand(50, -1, -1, -1)).copies


def test_what_is_nearer_than_the_nearest_hundredth_is_counted_and_more_than_a_twentieth_are_copies():
    real, far = torch.arange(101.0, 1101), torch.full((1000,), 500.0)
    index = torch.zeros(1000, dtype=torch.long)
    for near, copies in ((60, False), (70, True)):  # Wilson's interval of 6 % begins at 4.7 %, of 7 % at 5.6 %
        found = evaluation.Audit(torch.cat([torch.full((near,), 50.0), far[near:]]), real, index)
        assert found.near == pytest.approx(110.99) and found.closer.value == near / 1000 and found.copies is copies


def test_mirrored_copies_are_copies_where_training_saw_them(digits):
    fresh = digits[:30].flip(-1)
    assert not audit(fresh, digits[:500], digits[500:1000]).copies
    found = audit(fresh, digits[:500], digits[500:1000], mirrored=True)
    assert found.copies and found.index.tolist() == list(range(30))
    n = 1200  # more than are looked at in one part
    alone = audit(digits[:n].flip(-1), digits[:n], mirrored=True)
    assert alone.index.tolist() == list(range(n))
    seen = torch.cat([digits[:n], digits[:n].flip(-1)]).flatten(1).double() / 255
    own = evaluation.some_of(digits[:n])
    brute = torch.cdist(seen[own], seen)
    for offset in (0, n):
        brute[torch.arange(1000), own + offset] = 1e9
    torch.testing.assert_close(alone.real.double(), brute.min(dim=1).values, rtol=1e-6, atol=0)


def test_a_card_looks_for_mirrored_copies_where_training_saw_them(digits):
    for mirrored in (False, True):
        card = judged(digits[:30].flip(-1), digits[:400], digits[400:600], fresh_judge(), mirrored=mirrored)
        assert card["nearest_training_image_in_pixels"]["copies"] is mirrored
        assert card["nearest_training_image_in_features"]["copies"] is mirrored


def test_a_card_takes_no_more_held_out_images_into_memory_than_it_compares(digits, monkeypatch):
    copied, real = [], evaluation.shuffled
    monkeypatch.setattr(evaluation, "shuffled", lambda rows, *how: copied.append(rows.ndim) or real(rows, *how))
    judged(digits[:30], digits[:400], digits[400:600], fresh_judge())
    assert max(copied) <= 2, "features and indices, not images"
    monkeypatch.setattr(evaluation, "AUDITED", 20)
    audited = []
    real_audit = evaluation.audit
    monkeypatch.setattr(
        evaluation,
        "audit",
        lambda x, y, held_out, **how: audited.append(len(held_out)) or real_audit(x, y, held_out, **how),
    )
    judged(digits[:30], digits[:400], digits[400:600], fresh_judge())
    assert audited == [30], "of 200, as many as are judged"


def test_tenths_without_a_time_are_none():
    settings = Settings(base_channels=8, channel_mults=(1, 2), attention_resolutions=(8,), T=4)
    images = torch.zeros(12, 1, 32, 32, dtype=torch.uint8)
    found = evaluation.loss_by_tenth(make_model(settings), make_schedule(settings), images)["by_tenth_of_T"]
    assert [k for k, part in enumerate(found) if part is not None] == [0, 2, 5, 7]
    json.dumps(found, allow_nan=False)


# --- cards


def fresh_judge(dataset="mnist"):
    torch.manual_seed(0)
    return Judge(Extractor(dataset, 10 if dataset == "mnist" else 40, (8, 8)).eval().requires_grad_(False), "untrained")


def card_of(images, digits):
    figures = judged(images, digits[:400], digits[400:600], fresh_judge())
    return {"n": len(images), "seed": 0, "extractor": "x", "reference": "y", **figures}


def test_a_card_is_written_read_and_compared(digits, tmp_path):
    good, bad = card_of(digits[600:700], digits), card_of(255 - digits[600:700], digits)
    for name, card in (("good", good), ("bad", bad)):
        write_card(tmp_path / name, card)
        (tmp_path / name).read_text().index('"low"')
    good_read, bad_read = read_card(tmp_path / "good"), read_card(tmp_path / "bad")
    lines = comparison(good_read, bad_read)
    assert lines[0].startswith("frechet_distance: ") and lines[0].endswith("different") and len(lines) == 4
    assert all(line.endswith("no difference to be seen") for line in comparison(good_read, good_read))
    text = "\n".join(card_lines(good))
    assert "n = 100 is small" in text and "held out against training (n = 100)" in text and "digits 0 to 9" in text
    assert "in pixels: nearest training image" in text and "in features: nearest training image" in text


@pytest.mark.parametrize("change", [{"n": 99}, {"extractor": "z"}, {"reference": "z"}], ids=str)
def test_cards_that_differ_in_what_they_measure_are_refused(tmp_path, change, capsys):
    card = {"n": 100, "extractor": "x", "reference": "y", "metrics": {}}
    for name, written in (("a", card), ("b", card | change)):
        write_card(tmp_path / name, written)
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 1
    (name,) = change
    assert f"cannot be compared: {name} is" in capsys.readouterr().err


def test_cards_are_of_one_reference_if_its_images_are_the_same(tmp_path):
    """Wherever they lie; cards without a digest have to say the same."""
    here = {"n": 100, "extractor": "x", "reference": "pics", "reference_sha256": "1", "metrics": {}}
    older = {name: value for name, value in here.items() if name != "reference_sha256"}
    cards = here, here | {"reference": "/home/pics"}, here | {"reference_sha256": "2"}, older
    for k, card in enumerate(cards):
        write_card(tmp_path / f"{k}", card)
    same, moved, changed, old = (read_card(tmp_path / f"{k}") for k in range(4))
    assert comparison(same, moved) == comparison(same, old) == []
    drawn = same | {"sampler": {"name": "ddim", "steps": 3, "eta": 0.0}, "checkpoint": "a", "seed": 0}
    other = same | {"sampler": {"name": "dpmpp", "steps": 3}, "checkpoint": "a", "seed": 5}
    found = ["sampler: name ddim, eta 0.0 against name dpmpp, eta not told", "seed: 0 against 5"]
    assert comparison(drawn, other) == found, "and what else differs is said"
    assert comparison(same, drawn)[:2] == [
        "checkpoint: not told against a", "sampler: not told against name ddim, steps 3, eta 0.0",
    ]  # fmt: skip
    for a, b in ((same, changed), (moved, old)):
        with pytest.raises(ValueError, match="cannot be compared: reference"):
            comparison(a, b)


def test_what_is_no_card_is_named(tmp_path, capsys):
    (tmp_path / "a").write_text("[]")
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "a")]) == 1
    assert "a is no card of the evaluate command" in capsys.readouterr().err


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint of a tiny network, an extractor file, and MNIST cut to its first images."""
    folder = tmp_path_factory.mktemp("evaluate")
    settings = Settings(base_channels=8, channel_mults=(1, 2), attention_resolutions=(8,), T=20)
    model = make_model(settings)
    torch.nn.init.normal_(model.conv_out.weight, std=0.1)
    save_checkpoint(folder / "checkpoint", model, settings)
    extractors.save_extractor(folder / "judge.safetensors", fresh_judge().network, {})
    return folder


@pytest.fixture
def few_digits(digits, monkeypatch):
    parts = {"train": digits[:300], "test": digits[300:400]}
    monkeypatch.setattr("mnist_ddpm.ddpm.load_images", lambda settings, root, split="train": parts[split])
    monkeypatch.setattr(evaluation, "SUBSETS", 10)  # intervals take time, and are not looked at
    monkeypatch.setattr(evaluation, "RESAMPLES", 10)


def evaluate(folder, out, *flags):
    common = ["--checkpoint", str(folder / "checkpoint"), "--extractor", str(folder / "judge.safetensors")]
    assert main(["evaluate", *common, "--n", "20", "--out", str(out), *flags]) == 0
    return json.loads(out.read_text())


def test_saved_images_are_judged_as_those_in_memory(trained, few_digits, without_films, tmp_path, capsys):
    drawn = evaluate(trained, tmp_path / "a.json", "--steps", "4", "--seed", "3")
    common = ["--checkpoint", str(trained / "checkpoint"), "--n", "20", "--steps", "4", "--seed", "3"]
    assert main(["sample", *common, "--out", str(tmp_path / "out")]) == 0
    (tmp_path / "png").mkdir()
    for k, image in enumerate(np.load(tmp_path / "out" / "samples.npz")["images"]):
        imageio.imwrite(tmp_path / "png" / f"{k:02d}.png", image[..., 0])
    for source in (tmp_path / "out" / "samples.npz", tmp_path / "png"):
        cached = ["--data", str(tmp_path / "data")]
        card = evaluate(trained, tmp_path / "b.json", "--images", str(source), "--seed", "3", *cached)
        assert card["metrics"] == drawn["metrics"] and card["images"] == str(source) and "sampler" not in card
    assert main(["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
    assert "frechet_distance" in capsys.readouterr().out


def test_images_that_are_drawn_are_not_drawn_again(trained, few_digits, tmp_path, monkeypatch, capsys):
    whole = evaluate(trained, tmp_path / "whole.json", "--steps", "4", "--batch-size", "8")
    ddim, sizes = ddpm.SAMPLERS["ddim"], []

    def counted(model, schedule, times, xT, noise, *, eta=0.0, clip=True):
        sizes.append(len(xT))
        monkeypatch.setattr(resumable, "KEEP_EVERY", -1.0 if len(sizes) == 1 else math.inf)
        return ddim(model, schedule, times, xT, noise, eta=eta, clip=clip)

    monkeypatch.setitem(ddpm.SAMPLERS, "ddim", counted)
    out, judged = tmp_path / "card.json", evaluation.judged
    monkeypatch.setattr(evaluation, "judged", lambda *arguments, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluate(trained, out, "--steps", "4", "--batch-size", "8")
    assert "what is done is kept in " in capsys.readouterr().err, "whatever went wrong"
    monkeypatch.setattr(evaluation, "judged", judged)
    card = evaluate(trained, out, "--steps", "4", "--batch-size", "8", "--bits", "5")
    assert sizes == [8, 8, 4]
    assert card["metrics"] == whole["metrics"] and card["evaluations_per_image"] == 4
    assert card["seconds_per_image"] > 0
    assert {path.name for path in tmp_path.glob("card*")} == {"card.json", "card-closest.png"}


def test_what_was_kept_is_not_of_other_training_images(trained, few_digits, digits, tmp_path, monkeypatch):
    out, flags = tmp_path / "card.json", ("--steps", "4", "--bits", "4", "--batch-size", "2")
    with monkeypatch.context() as stopped:
        stopped.setattr(evaluation, "write_card", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            evaluate(trained, out, *flags)
    assert [*tmp_path.glob("*.kept/bound-0-2-of-4.npz")]
    parts = {"train": digits[:300], "test": digits[400:500]}
    monkeypatch.setattr("mnist_ddpm.ddpm.load_images", lambda settings, root, split="train": parts[split])
    bits = [evaluate(trained, path, *flags)["bits_per_dim"] for path in (out, tmp_path / "anew.json")]
    assert bits[0] == bits[1]


def test_a_card_needs_a_file_of_its_own(trained, few_digits, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mnist_ddpm.ddpm.load_images", lambda *_: pytest.fail("told before images are read"))
    assert main(["evaluate", "--checkpoint", str(trained / "checkpoint"), "--out", "."]) == 1
    assert ". is a folder, and should be a file" in capsys.readouterr().err


def test_digits_without_their_margin_are_padded_like_those_of_training(digits, tmp_path):
    settings = Settings()
    for k, image in enumerate(digits[:5, 0]):
        imageio.imwrite(tmp_path / f"{k}.png", (image[2:-2, 2:-2] if k < 4 else image).numpy())
    assert torch.equal(read_images(tmp_path, settings, tmp_path), digits[:5])
    resized = read_images(tmp_path, replace(settings, dataset=str(tmp_path)), tmp_path)
    assert resized[:4].ne(digits[:4]).any() and torch.equal(resized[4], digits[4]), "not those of another data set"


def test_a_card_counts_the_images_that_there_are(trained, few_digits, tmp_path):
    card = evaluate(trained, tmp_path / "a.json", "--steps", "2", "--bits", "101")
    assert card["bits_per_dim"]["n"] == 100


def test_evaluate_shows_the_closest_pairs(trained, few_digits, digits, tmp_path):
    drawn = digits[350:370].clone()
    drawn[7] = digits[123]
    np.savez(tmp_path / "x.npz", images=drawn.permute(0, 2, 3, 1).numpy())
    card = evaluate(trained, tmp_path / "a.json", "--images", str(tmp_path / "x.npz"))
    for space in ("pixels", "features"):
        pairs = card[f"nearest_training_image_in_{space}"]["closest"]
        assert pairs[0] == [7, 123] and len({i for i, _ in pairs}) == len(pairs) == 8
    picture = imageio.imread(tmp_path / "a-closest.png")[::2, ::2, 0]
    assert picture.shape == (2 + 2 * 34, 2 + 8 * 34)
    for row in (2, 36):  # above the image, and below the one it copies
        assert np.array_equal(picture[row : row + 32, 2:34], digits[123, 0])
    few = evaluate(trained, tmp_path / "b.json", "--images", str(tmp_path / "x.npz"), "--n", "19", "--seed", "1")
    assert few["n"] == 19 and few["nearest_training_image_in_pixels"]["closest"][0] == [7, 123], "as in the file"


def test_a_card_says_what_the_classifier_makes_of_real_digits(digits):
    judge = fresh_judge()
    card = judged(digits[600:640], digits[:400], digits[400:500], judge)
    assert "digits" not in judged(digits[600:640], digits[:400], digits[400:500], judge, dataset="fashion")
    expected = evaluation.class_balance(judge.logits(evaluation.shuffled(digits[400:500], 0)[:40]))
    assert card["digits"]["held_out"] == expected != evaluation.class_balance(judge.logits(digits[600:640]))
    assert all(isinstance(each, Estimate) for each in expected["shares"])


def test_a_card_says_how_it_came_about(trained, few_digits, digits, tmp_path):
    card = evaluate(trained, tmp_path / "a.json", "--sampler", "heun", "--steps", "4", "--bits", "3", "--device", "cpu")
    assert card["n"] == 20 and card["seed"] == 0 and card["evaluations_per_image"] == 7 and card["device"] == "cpu"
    assert card["command"].startswith("python -m mnist_ddpm evaluate --checkpoint") and "--bits 3" in card["command"]
    assert card["sampler"] == {
        "name": "heun",
        "steps": 4,
        "spacing": "trailing",
        "clip": "static",
        "precision": "float32",
    }
    assert card["extractor"].startswith("judge.safetensors, SHA-256 ") and card["versions"]["torch"]
    assert card["reference"] == "mnist, 300 training images of 32 pixels"
    assert card["reference_sha256"] == hashlib.sha256(digits[:300].numpy().tobytes()).hexdigest()[:16]
    assert (
        card["hardware"]
        and card["versions"]["python"]
        and card["digits"]["shares"][0].keys() == {"value", "low", "high"}
    )
    assert card["L_simple"]["n"] == 100 and len(card["L_simple"]["by_tenth_of_T"]) == 10
    mean = np.mean(card["L_simple"]["by_tenth_of_T"])
    assert card["L_simple"]["mean"] == pytest.approx(mean, rel=1e-4), "the times are spread evenly"
    model, schedule, _ = load_checkpoint(trained / "checkpoint")
    bound = bits_per_dim(model, schedule, digits[300:303], margin=2, times_per_image=20, progress=False)
    assert card["bits_per_dim"]["n"] == 3
    assert card["bits_per_dim"]["value"] == pytest.approx(bound.mean, rel=1e-4), "of the 28 x 28 pixels"
    assert card["metrics"]["frechet_distance"].keys() == {"value", "low", "high"}


def test_a_card_has_the_bound_of_the_variance_that_was_learned(trained, few_digits, digits, tmp_path, capsys):
    settings = Settings(
        base_channels=8, channel_mults=(1, 2), attention_resolutions=(8,), T=20, schedule="cosine", objective="hybrid"
    )
    model = make_model(settings)
    torch.nn.init.normal_(model.conv_out.weight, std=0.1)
    save_checkpoint(tmp_path / "checkpoint", model, settings)
    flags = "--checkpoint", str(tmp_path / "checkpoint"), "--steps", "2", "--bits", "3"
    card = evaluate(trained, tmp_path / "a.json", *flags)
    assert "bits/dim of the first 3 held-out images (learned variance, 20 times an image)" in capsys.readouterr().out
    told = evaluate(trained, tmp_path / "b.json", *flags, "--sampler", "ddpm", "--variance", "posterior")
    assert [each["bits_per_dim"]["variance"] for each in (card, told)] == ["learned", "posterior"]
    model, schedule, _ = load_checkpoint(tmp_path / "checkpoint")
    options = {"margin": 2, "times_per_image": 20, "progress": False}
    own, other = (
        bits_per_dim(model, schedule, digits[300:303], variance=v, **options).mean for v in ("learned", "posterior")
    )
    assert card["bits_per_dim"]["value"] == pytest.approx(own, rel=1e-4) != pytest.approx(other, rel=1e-2)
    assert told["bits_per_dim"]["value"] == pytest.approx(other, rel=1e-4)


def test_only_the_black_margin_of_mnist_is_known():
    faces = Settings(dataset="celeba", image_size=64)
    assert known_margin(Settings()) == 2 and known_margin(Settings(image_size=64)) == 18 and known_margin(faces) == 0


def test_what_training_has_not_seen_is_the_part_kept_for_that(monkeypatch, tmp_path, capsys):
    asked = []

    def load(settings, root, split="train"):
        asked.append((settings.dataset, split))
        if settings.dataset == "ffhq" and split != "train":
            raise ValueError("it has no such part")
        return torch.zeros(1, 1, 2, 2)

    monkeypatch.setattr(ddpm, "load_images", load)
    monkeypatch.setitem(ddpm.DATASETS, "own", None)
    names = "mnist", "celeba", "ffhq", "own", "mine"
    found = {name: real_images(Settings(dataset=name), tmp_path)[1] for name in names}
    assert {name for name, held_out in found.items() if held_out is None} == {"ffhq", "mine"}
    assert {("mnist", "test"), ("celeba", "valid"), ("own", "test")} < {*asked} and ("mine", "test") not in asked
    assert "it has no such part" in capsys.readouterr().out


def test_labels_to_judge_are_as_frequent_as_in_training_and_vary_as_real_ones_do():
    labels = torch.tensor([2] * 70 + [0] * 25 + [1] * 5)
    drawn = [guidance.typical_labels(labels, 400, seed) for seed in range(30)]
    assert torch.equal(drawn[1], guidance.typical_labels(labels, 400, seed=1))
    counts = torch.stack([part.bincount(minlength=3) for part in drawn]).double()
    p = torch.tensor([0.25, 0.05, 0.7], dtype=torch.float64)
    torch.testing.assert_close(counts.mean(dim=0) / 400, p, rtol=0, atol=0.02)
    torch.testing.assert_close(counts.var(dim=0), 400 * p * (1 - p), rtol=0.7, atol=0)  # binomial


def test_a_card_draws_labels_as_often_as_in_training_unless_they_are_named(monkeypatch):
    known = torch.tensor([2] * 90 + [5] * 10)
    monkeypatch.setattr(guidance, "load_labels", lambda settings, root: known)
    settings = Settings(classes=10)
    assert 870 < (Evaluate(n=1000).labels(settings) == 2).sum() < 930
    assert Evaluate(n=4, label=(3, 1)).labels(settings).tolist() == [3, 1, 3, 1]


def test_evaluate_looks_for_mirrored_copies_where_training_mirrors(trained, few_digits, digits, tmp_path, monkeypatch):
    np.savez(tmp_path / "x.npz", images=digits[:20].flip(-1).permute(0, 2, 3, 1).numpy())
    drawn = "--images", str(tmp_path / "x.npz")
    monkeypatch.setitem(ddpm.AUGMENTATIONS, "mnist", lambda x0, generator: x0)
    assert not evaluate(trained, tmp_path / "a", *drawn)["nearest_training_image_in_pixels"]["copies"]
    monkeypatch.setitem(ddpm.AUGMENTATIONS, "mnist", image_folder.mirrored)
    assert evaluate(trained, tmp_path / "a", *drawn)["nearest_training_image_in_pixels"]["copies"]


def test_a_folder_of_training_images_may_have_moved(trained, digits, tmp_path, capsys):
    sizes = {"image_size": 28, "base_channels": 8, "channel_mults": (1, 2), "attention_resolutions": (14,)}
    settings = Settings(dataset="gone", channels=1, T=20, **sizes)
    save_checkpoint(tmp_path / "checkpoint", make_model(settings), settings)
    (tmp_path / "moved").mkdir()
    for k, image in enumerate(digits[:20, 0, 2:30, 2:30]):
        imageio.imwrite(tmp_path / "moved" / f"{k:02d}.png", image.numpy())
    common = ["--checkpoint", str(tmp_path / "checkpoint"), "--n", "8", "--steps", "2"]
    common += ["--out", str(tmp_path / "card"), "--data", str(tmp_path)]
    judge, moved = ["--extractor", str(trained / "judge.safetensors")], ["--dataset", str(tmp_path / "moved")]
    assert main(["evaluate", *common]) == 1
    told = "there is no folder gone: has it moved? --dataset names where it is now"
    assert told in capsys.readouterr().err
    assert main(["evaluate", *common, *moved]) == 1
    knows = f"no extractor knows the data set {tmp_path / 'moved'}: take --extractor {extractors.FOLDER}"
    assert knows in capsys.readouterr().err
    assert main(["evaluate", *common, *judge, *moved]) == 0
    card = json.loads((tmp_path / "card").read_text())
    assert card["reference"] == f"{tmp_path / 'moved'}, 20 training images of 28 pixels"
    bound = ["likelihood", "--checkpoint", str(tmp_path / "checkpoint"), "--split", "train", "--n", "2"]
    bound += ["--data", str(tmp_path), "--out", str(tmp_path / "bound")]
    assert main(bound) == 1 and told in capsys.readouterr().err
    assert main([*bound, *moved]) == 0
    assert json.loads((tmp_path / "bound").read_text())["dataset"] == str(tmp_path / "moved")
    assert main(["evaluate", "--checkpoint", str(trained / "checkpoint"), "--dataset", str(tmp_path / "moved")]) == 1
    assert "--dataset is for a folder that has moved" in capsys.readouterr().err


def test_images_of_another_kind_are_not_cropped_as_digits_are(trained, tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    settings = Settings(
        dataset=str(folder), channels=1, base_channels=8, channel_mults=(1, 2), attention_resolutions=(8,), T=20
    )
    save_checkpoint(tmp_path / "checkpoint", make_model(settings), settings)
    judge = str(trained / "judge.safetensors")
    arguments = ["--checkpoint", str(tmp_path / "checkpoint"), "--extractor", judge, "--out", str(tmp_path / "card")]
    assert main(["evaluate", *arguments, "--steps", "2"]) == 1
    told = f"{judge} is for digits, and sees only the middle 28 x 28 pixels: take --extractor inception for {folder}"
    assert told in capsys.readouterr().err
    assert extractors.pick_judge(judge, "mnist", side=64).network.dataset == "mnist"


def test_a_card_does_not_lie_among_the_training_images(tmp_path, capsys):
    """Not even where these are beside an array of the sample command."""
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "samples.npz").touch()
    settings = Settings(dataset=str(folder), base_channels=8, channel_mults=(1, 2), attention_resolutions=(8,), T=20)
    save_checkpoint(tmp_path / "checkpoint", make_model(settings), settings)
    flags = ["--checkpoint", str(tmp_path / "checkpoint"), "--out", str(folder / "card.json")]
    assert main(["evaluate", *flags]) == 1
    assert f"{folder / 'card.json'} is in the folder of images {folder}" in capsys.readouterr().err


def test_a_network_always_told_its_label_is_not_asked_without(few_digits, tmp_path, capsys):
    settings = Settings(
        base_channels=8, channel_mults=(1, 2), attention_resolutions=(8,), T=20, classes=10, label_dropout=0.0
    )
    save_checkpoint(tmp_path / "checkpoint", make_model(settings), settings)
    extractors.save_extractor(tmp_path / "judge.safetensors", fresh_judge().network, {})
    assert "L_simple" not in evaluate(tmp_path, tmp_path / "card.json", "--steps", "2")
    for flags in (["evaluate", "--bits", "5", "--steps", "2"], ["sample", "--guidance", "2"], ["likelihood"]):
        assert main([*flags, "--checkpoint", str(tmp_path / "checkpoint"), "--out", str(tmp_path / "x")]) == 1
        assert "its label" in capsys.readouterr().err


def test_of_too_many_saved_images_a_part_is_judged_at_random(trained, few_digits, tmp_path, monkeypatch, capsys):
    images, seen = torch.arange(30, dtype=torch.uint8).view(30, 1, 1, 1).expand(30, 32, 32, 1), []
    (tmp_path / "out").mkdir()
    np.savez(tmp_path / "out" / "samples.npz", images=images.numpy())
    imageio.imwrite(tmp_path / "out" / "samples.png", images[0, :, :, 0].numpy())
    real = evaluation.judged

    def judged(images, *rest, **more):
        seen.append(images)
        return real(images, *rest, **more)

    monkeypatch.setattr(evaluation, "judged", judged)
    evaluate(trained, tmp_path / "card.json", "--images", str(tmp_path / "out"))
    assert "judging 20 of 30 images, drawn at random" in capsys.readouterr().out
    values = seen[0][:, 0, 0, 0].tolist()
    assert len(set(values)) == 20 and values != list(range(20)), "those of samples.npz, not the pictures beside it"


def test_inception_resizes_as_in_papers_and_takes_few_images_at_once(monkeypatch):
    sizes = []

    class Network(torch.nn.Module):
        def __init__(self, name, features):
            super().__init__()
            self.use_antialias = True  # torchmetrics' default

        def forward(self, images):
            sizes.append(tuple(images.shape))
            return images.float().mean(dim=(2, 3)) + self.use_antialias

    monkeypatch.setattr("torchmetrics.image.fid.NoTrainInceptionV3", Network)
    judge = extractors.pick_judge("inception", "mnist")
    features = judge.features(torch.zeros(60, 1, 32, 32, dtype=torch.uint8))
    assert sizes == [(50, 3, 32, 32), (10, 3, 32, 32)] and not features.any()


def test_a_card_knows_labels_and_guidance(few_digits, tmp_path):
    settings = Settings(base_channels=8, channel_mults=(1, 2), attention_resolutions=(8,), T=20, classes=10)
    save_checkpoint(tmp_path / "checkpoint", make_model(settings), settings)
    extractors.save_extractor(tmp_path / "judge.safetensors", fresh_judge().network, {})
    for flags, expected in (([], ("as in training", 1)), (["--label", "3", "--guidance", "0"], ([3], 0))):
        card = evaluate(tmp_path, tmp_path / "card.json", "--steps", "2", *flags)
        assert (card["sampler"]["labels"], card["sampler"]["guidance"]) == expected
    flags = "--guide", str(tmp_path / "checkpoint"), "--guidance-interval", "5", "15"
    sampler = evaluate(tmp_path, tmp_path / "card.json", "--steps", "2", *flags)["sampler"]
    assert (sampler["guide"], sampler["guidance"], sampler["guidance_interval"]) == (flags[1], 2, [5, 15])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--extractor", "nowhere"], "there is no extractor nowhere: start from the project's folder"),
        (["--n", "3"], "a card needs 4 images and 8 of the training set at least, and there are 3 and 300"),
        (["--extractor", "README.md"], "README.md is damaged or no extractor"),
        (["--extractor", "inception"], "pip install torch-fidelity"),
        (["--images", "README.md"], "README.md is neither a folder nor a samples.npz"),
        (["--images", os.devnull], f"{os.devnull} is neither a folder nor a samples.npz"),
        (["--n", "-1"], "n is -1: it must be at least 1"),
        (["--out", "tests"], "tests is a folder, and should be a file: name one in it"),
        (["--checkpoint", "nowhere"], "nowhere is not a checkpoint"),
        (["--images", "x.npz", "--steps", "9", "--eta", "1"], "x.npz are drawn already: leave out --steps and --eta"),
        (["--images", "x.npz", "--guidance-interval", "1", "9"], "leave out --guidance-interval"),
        (["--images", "x.npz", "--bits", "9", "--variance", "posterior"], "x.npz is neither a folder nor"),
        (["--images", "tests", "--out", "tests/card.json"], "tests/card.json is in the folder of images tests"),
        (["--bits", "1"], "--bits is 1: a standard error needs at least 2 images"),
    ],
    ids=" ".join,
)
def test_bad_requests_end_in_one_line(trained, few_digits, tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(ROOT)
    common = ["--checkpoint", str(trained / "checkpoint"), "--extractor", str(trained / "judge.safetensors")]
    common += [] if "--images" in flags else ["--steps", "4"]
    assert main(["evaluate", *common, "--n", "4", "--out", str(tmp_path / "card"), *flags]) == 1
    errors = capsys.readouterr().err
    assert message in errors and errors.count("\n") == 1


def test_without_held_out_images_training_images_are_compared_with_each_other(digits):
    card = judged(digits[400:450], digits[:400], None, fresh_judge())
    assert card["nearest_training_image_in_pixels"]["copies"] is False and len(card["floor"]) == 1
    assert judged(digits[:50], digits[:400], None, fresh_judge())["nearest_training_image_in_pixels"]["copies"]


def test_estimates_are_told_with_their_interval():
    assert str(Estimate.of(1.5, 0.1)) == "1.50 ± 0.20"
    assert str(Estimate(0.006882, -0.023, 0.037)) == "0.007 ± 0.030", "as many digits as the interval has"
    half, none = evaluation.share(torch.arange(100) < 50), evaluation.share(torch.zeros(100, dtype=torch.bool))
    assert half == pytest.approx((0.5, 0.404, 0.596), abs=1e-3), "Wilson's interval"
    assert none == pytest.approx((0, 0, 0.037), abs=1e-3)


def test_cards_differ_where_the_interval_of_their_difference_leaves_out_zero():
    def card(value):
        metrics = {"frechet_distance": Estimate.of(value, 1)._asdict()}
        return {"n": 1, "extractor": "x", "reference": "y", "metrics": metrics}

    assert comparison(card(0), card(2.7))[0].endswith("no difference to be seen")
    assert comparison(card(0), card(2.8))[0].endswith("different")


def test_cards_are_compared_by_the_figures_that_both_have(tmp_path):
    figure = {"value": 1.0, "low": 0.5, "high": 1.5}
    card = {"n": 1, "extractor": "x", "reference": "y", "metrics": {"a": figure, "b": figure}}
    assert [line[:2] for line in comparison(card, card | {"metrics": {"b": figure}})] == ["b:"]
    for damaged in ({"value": 1.0}, {"value": 1.0, "low": "0.5", "high": 1.5}, 1.0):
        (tmp_path / "card.json").write_text(json.dumps(card | {"metrics": {"a": damaged}}))
        with pytest.raises(ValueError, match="is no card of the evaluate command"):
            read_card(tmp_path / "card.json")


def test_a_damaged_archive_is_told(tmp_path):
    path = tmp_path / "samples.npz"
    np.savez_compressed(path, images=np.zeros((50, 32, 32, 1), np.uint8))
    data = bytearray(path.read_bytes())
    begin = 30 + sum(struct.unpack("<HH", data[26:30]))  # behind the header, a name and an extra field
    data[begin] = 0b111  # no kind of block that there is
    path.write_bytes(data)
    with pytest.raises(ValueError, match="is neither a folder nor a samples.npz"):
        read_images(path, Settings(), tmp_path)


# --- extractors


def test_a_digest_is_that_of_all_bytes_in_a_tensors_order():
    images, count = torch.arange(6, dtype=torch.uint8).view(2, 3).mT, torch.tensor(7, dtype=torch.uint8)
    assert extractors.digest(images, count) == hashlib.sha256(bytes([0, 3, 1, 4, 2, 5, 7])).hexdigest()[:16]
    assert extractors.digest(b"ab") == extractors.digest(b"a", b"b") != extractors.digest(b"ba")


def test_features_do_not_depend_on_batches_or_order(digits):
    judge, images = fresh_judge(), digits[:30]
    whole = judge.features(images)
    parts = torch.cat([extractors.in_batches(judge.network, part, "cpu", 4) for part in images.split(7)])
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(judge.features(images[order]), whole[order], rtol=1e-5, atol=1e-6)
    assert whole.shape == (30, 8) and whole.dtype == torch.float64 and whole.std() > 0


def test_only_what_a_file_could_hold_is_judged(digits):
    for images in (digits[:2].float(), digits[:2].expand(-1, 3, -1, -1)):
        with pytest.raises(ValueError, match=r"takes uint8 images of 1 channel\(s\), not torch"):
            fresh_judge().features(images)
    with pytest.raises(ValueError, match=r"takes uint8 images of 3 channel\(s\), .*: --extractor inception takes grey"):
        fresh_judge("celeba").features(digits[:2])


def test_the_margin_of_digits_and_the_size_of_faces_do_not_matter(digits):
    judge, wide = fresh_judge(), torch.nn.functional.pad(digits[:3], [4] * 4)
    assert torch.equal(judge.features(wide), judge.features(digits[:3]))
    faces = torch.randint(0, 256, (2, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    judge, seen = fresh_judge("celeba"), []
    judge.network.body.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][..., 3::8, 3::8]))
    for times in (8, 16):
        judge.features(faces.repeat_interleave(times, dim=2).repeat_interleave(times, dim=3))
    torch.testing.assert_close(seen, [to_float(faces)] * 2, rtol=0, atol=1e-5)  # inside its squares, of 64 x 64 pixels


def test_shifts_move_an_image_and_repeat_its_edge():
    images = torch.zeros(64, 1, 5, 5, dtype=torch.uint8)
    images[:, 0, 2, 2] = 200
    moved = extractors.shifted(images, 2, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape and moved.dtype == torch.uint8 and (moved == 200).sum() == 64
    places = {tuple(image[0].nonzero()[0].tolist()) for image in moved}
    assert len(places) > 15 and min(min(p) for p in places) == 0 and max(max(p) for p in places) == 4
    flat = torch.full((8, 3, 4, 4), 7, dtype=torch.uint8)
    assert (extractors.shifted(flat, 2, torch.Generator()) == 7).all()


def test_an_extractor_learns_and_comes_back_from_its_file(digits, monkeypatch, tmp_path):
    labels = extractors.load_labels(Settings(classes=10), ROOT / "data")
    monkeypatch.setattr(extractors, "targets", lambda dataset, root, split: (digits[:512], labels[:512]))
    network, accuracy = extractors.train_extractor("mnist", epochs=6, batch_size=32)
    assert accuracy > 0.6 and not network.training
    extractors.save_extractor(tmp_path / "a.safetensors", network, {"accuracy": accuracy})
    again, record = extractors.load_extractor(tmp_path / "a.safetensors")
    assert record == {"accuracy": accuracy} and torch.equal(again(digits[:5]), network(digits[:5]))
    first, second = (extractors.train_extractor("mnist", epochs=1)[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters()))
    with pytest.raises(ValueError, match='no extractor for "ffhq"'):
        extractors.train_extractor("ffhq")
    with pytest.raises(ValueError, match="epochs is 0: it must be at least 1"):
        extractors.train_extractor("mnist", epochs=0)


def test_an_extractor_is_not_trained_in_vain(digits, monkeypatch):
    """What would fail after the training fails before it: too little to train on, or nothing to judge it by."""

    def targets(dataset, root, split):
        if split == "test" and len(given) > 100:
            raise ValueError("no test images")
        return given, torch.zeros(len(given), dtype=torch.long)

    monkeypatch.setattr(extractors, "targets", targets)
    monkeypatch.setattr(extractors, "Extractor", lambda *arguments: pytest.fail("it trains"))
    for n, message in ((200, "no test images"), (100, "batches of 128, and there are only 100 images")):
        given = digits[:n]
        with pytest.raises(ValueError, match=message):
            extractors.train_extractor("mnist")


def test_the_extractor_command_saves_what_it_trained_and_overwrites_nothing(tmp_path, monkeypatch, capsys):
    asked, out = [], tmp_path / "a.safetensors"

    def train(dataset, root, **options):
        asked.append((dataset, options))
        return fresh_judge().network, 0.75

    monkeypatch.setattr(extractors, "train_extractor", train)
    command = ["extractor", "--epochs", "3", "--seed", "5", "--device", "cpu", "--out", str(out)]
    assert main(command) == 0 and "75.00% right on the 10,000 test" in capsys.readouterr().out
    assert asked == [("mnist", {"epochs": 3, "seed": 5, "device": torch.device("cpu")})]
    network, record = extractors.load_extractor(out)
    assert record["accuracy"] == 0.75 and record["epochs"] == 3
    assert all(map(torch.equal, network.parameters(), fresh_judge().network.parameters()))
    assert main(command) == 1 and "exists already" in capsys.readouterr().err


def test_attributes_are_learnt_too(monkeypatch):
    images = torch.zeros(256, 3, 64, 64, dtype=torch.uint8)
    images[::2, 0] = 255
    wanted = torch.zeros(256, 40)
    wanted[::2] = 1
    monkeypatch.setattr(extractors, "targets", lambda dataset, root, split: (images, wanted))
    network, accuracy = extractors.train_extractor("celeba", epochs=2, batch_size=16)
    assert accuracy > 0.9 and network.channels == 3


@pytest.mark.parametrize("dataset", ["mnist", "celeba"])
def test_shipped_extractors_are_small_and_say_what_they_are(dataset):
    path = ROOT / extractors.FOLDER / f"{dataset}.safetensors"
    assert path.stat().st_size < 5e6
    network, record = extractors.load_extractor(path)
    assert network.dataset == dataset and not network.training
    assert record["accuracy"] > (0.994 if dataset == "mnist" else 0.85)


def test_the_shipped_digit_classifier_is_as_good_as_it_says():
    network, record = extractors.load_extractor(ROOT / extractors.FOLDER / "mnist.safetensors")
    found = extractors.accuracy(network, *extractors.targets("mnist", ROOT / "data", "test"))
    assert found == pytest.approx(record["accuracy"], abs=2e-4) and found >= 0.994
