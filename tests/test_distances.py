"""Distances between sets of features: against closed forms, brute force and fresh draws."""

import math

import numpy as np
import pytest
import torch
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_mmd

from mnist_ddpm.evaluation import distances
from mnist_ddpm.evaluation.distances import (
    Estimate,
    frechet_bias,
    frechet_distance,
    frechet_estimate,
    frechet_slopes,
    kernel_distance,
    kernel_distances,
    kernel_mean,
    limits,
    precision_recall,
    share,
)


def gaussian(n, width=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, width, generator=generator, dtype=torch.float64)


def exactly(mean, deviations, n=200, seed=0):
    """Features with just this sample mean and covariance: N(mean, diag(deviations²))."""
    x = gaussian(n, len(mean), seed)
    x = x - x.mean(dim=0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(x.T.cov())).T
    numbers = torch.tensor([deviations, mean], dtype=torch.float64)
    return x * numbers[0] + numbers[1]


def test_frechet_distance_of_two_gaussians_is_the_closed_form():
    """|m - m'|² + sum (s_i - s'_i)² where the covariances are diagonal."""
    a, b = exactly([0, 1, 2], [1, 2, 3]), exactly([1, 1, 0], [2, 2, 1], n=300, seed=1)
    assert frechet_distance(a, b) == pytest.approx(1 + 4 + 1 + 0 + 4, rel=1e-6)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-6)


def test_identical_features_are_at_distance_zero_and_a_shift_at_its_square():
    a = gaussian(500)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + 0.5) == pytest.approx(4 * 0.25, rel=1e-9)
    for too_few in (frechet_distance, kernel_distance, precision_recall):
        with pytest.raises(ValueError):
            too_few(a, a[:1])


def test_frechet_distance_is_that_of_torchmetrics():
    real, drawn = gaussian(300).relu(), 1.2 * gaussian(200, seed=1)
    features = torch.nn.Identity()
    features.num_features = 4
    metric = FrechetInceptionDistance(features, normalize=True)
    metric.update(real, real=True)
    metric.update(drawn, real=False)
    assert frechet_distance(real, drawn) == pytest.approx(metric.compute().item(), rel=1e-5)


def test_kernel_distance_is_the_unbiased_estimate():
    """Means over pairs of different images of k(x, y) = (x·y / D + 1)³."""
    a, b = gaussian(40), 1.3 * gaussian(40, seed=1) + 0.2

    def k(x, y):
        return (x @ y.T / 4 + 1) ** 3

    def pairs(x):
        return (k(x, x).sum() - k(x, x).diag().sum()) / (40 * 39)

    expected = pairs(a) + pairs(b) - 2 * k(a, b).mean()
    assert expected.item() == pytest.approx(poly_mmd(a, b).item(), rel=1e-9)
    assert kernel_distance(a, b).value == pytest.approx(expected.item(), rel=1e-9)
    for x in (a, gaussian(40, 7)):  # by their powers, by their pairs
        among = ((x @ x.T / x.shape[1] + 1) ** 3).mean().item()
        assert kernel_mean(x).item() == pytest.approx(among, rel=1e-12)
    more = torch.cat([b, b[:300] + 1]), gaussian(300, seed=2)
    alone = [kernel_distance(a, each) for each in more]
    assert [*kernel_distances(a, more)] == alone, "whatever else is compared"


def test_of_many_real_features_the_kernel_distance_takes_the_same_whatever_it_compares(monkeypatch):
    monkeypatch.setattr(distances, "KNOWN", 100)
    real = gaussian(300)
    for seed in (1, 2):
        some = kernel_distance(distances.shuffled(real, 0, 100), gaussian(50, seed=seed))
        assert kernel_distance(real, gaussian(50, seed=seed)) == pytest.approx(some, rel=1e-9)


def estimates(distance, factor, n, draws):
    """Of Gaussians that are `factor` times as wide as the real one."""
    sets, real = [factor * gaussian(n, 6, seed) for seed in range(1, draws + 1)], gaussian(2000, 6)
    if distance == "kernel":
        return [*kernel_distances(real, sets)]
    return [frechet_estimate(real, each, seed) for seed, each in enumerate(sets)]


@pytest.mark.parametrize("factor", [1, 1.15, 2], ids=["near", "less near", "far"])
@pytest.mark.parametrize("distance", ["kernel", "frechet"])
def test_intervals_hold_the_mean_of_fresh_draws_as_often_as_they_say(distance, factor, monkeypatch):
    """A bootstrap's are √3 times too wide near 0, and would hold it always."""
    monkeypatch.setattr(distances, "RESAMPLES", 20)
    value, low, high = np.array(estimates(distance, factor, 200, 100)).T
    mean, deviation = value.mean(), value.std()
    assert 0.9 <= np.mean((low <= mean) & (mean <= high)) <= 0.98
    assert (low <= value).all() and (value <= high).all()
    assert 0.8 < np.mean(high - low) / (2 * 1.96 * deviation) < 1.6


@pytest.mark.parametrize("apart", [0, 3, 30, 1000])
@pytest.mark.parametrize("freedom", [2, 10])
def test_limits_are_those_of_a_chi_squared_variable(apart, freedom):
    """Squared and summed, normal variables are what a distance is of what is drawn."""
    drawn = gaussian(1000, freedom)
    drawn[:, 0] += math.sqrt(apart)
    found = drawn.square().sum(dim=1).tolist()
    low, high = np.array([limits(x, freedom, 4 * x, 2 * freedom) for x in found]).T
    for beyond in (low > apart, high < apart):
        assert 0.008 < np.mean(beyond) < 0.042


def test_slopes_are_what_one_more_copy_of_a_feature_changes():
    real, generated = gaussian(500), gaussian(2000, seed=1) * torch.tensor([1, 2, 0.5, 1]) + 0.3
    (slopes, _), before = frechet_slopes(real, generated), frechet_distance(real, generated)
    for i in range(5):
        more = torch.cat([generated, generated[i : i + 1]])
        change = (frechet_distance(real, more) - before) * len(more)
        assert change == pytest.approx(slopes[i].item(), abs=0.02)


@pytest.mark.parametrize("n", [4, 5, 9])
def test_intervals_of_few_or_equal_features_are_finite(n):
    """Also where they are fewer than their numbers, and their covariance has no inverse."""
    real = gaussian(50, 12)
    for generated in (gaussian(n, 12, seed=1), real[:1].expand(n, 12), real):
        for each in (kernel_distance(real, generated), frechet_estimate(real, generated)):
            assert -math.inf < each.low <= each.value <= each.high < math.inf


def test_the_bias_to_be_expected_is_that_of_fresh_draws_and_falls_as_one_over_n():
    real, mean = gaussian(40_000), {}
    for n in (100, 400):
        draws = (gaussian(n, seed=seed) for seed in range(1, 21))
        mean[n] = np.mean([*distances.frechet_distances(real, draws)])
    assert mean[100] / mean[400] == pytest.approx(4, rel=0.35)
    assert frechet_bias(real, gaussian(400, seed=1)) == pytest.approx(mean[400], rel=0.3)
    far = frechet_bias(real, gaussian(400, seed=1) + 10)
    near = frechet_bias(real, gaussian(400, seed=1))
    assert far == pytest.approx(near, rel=1e-3), "the distance is no part of it"


def test_neighbours_are_found_across_the_parts_that_are_looked_at_in_turn():
    points = gaussian(1500)
    apart = torch.cdist(points, points)
    radii = apart.sort(dim=1).values[:, 3]
    torch.testing.assert_close(distances.neighbour_radii(points), radii, rtol=0, atol=1e-6)
    found = distances.within(points, points[1400:], radii[1400:] / 2)
    assert torch.equal(found, (apart[:, 1400:] <= radii[1400:] / 2).any(dim=1))
    assert 100 < found.sum() < 1500


def test_precision_and_recall_of_sets_that_overlap_in_part(monkeypatch):
    monkeypatch.setattr(distances, "RESAMPLES", 10)  # intervals take time, and are not looked at
    real = gaussian(1000)
    assert [e.value for e in precision_recall(real, real)] == [1, 1]
    assert [e.value for e in precision_recall(real, gaussian(1000, seed=1) + 100)] == [0, 0]
    half = torch.cat([real[:500], gaussian(500, seed=1) + 100])
    precision, recall = precision_recall(real, half)
    assert precision.value == 0.5 and 0.5 < recall.value < 1
    assert precision.low < 0.5 < precision.high < 0.54
    narrow = distances.distances(real, 0.2 * gaussian(1000, seed=1))
    assert narrow["precision"].value > 0.95 and narrow["recall"].value < 0.5


def test_estimates_do_not_depend_on_the_order_of_the_images():
    real, generated = gaussian(300), gaussian(400, seed=1)
    generated += torch.linspace(0, 1, 400).unsqueeze(1)
    turned = distances.distances(real, generated.flip(0))
    for name, estimate in distances.distances(real, generated).items():
        assert turned[name] == pytest.approx(estimate, rel=1e-9), name
    bias = frechet_bias(real, generated.flip(0))
    assert bias == pytest.approx(frechet_bias(real, generated), rel=1e-9)


def test_floors_say_what_real_images_would_get():
    training, held_out = gaussian(2400), gaussian(500, seed=1)
    found = distances.floors(training, held_out, 400)
    assert [floor["n"] for floor in found.values()] == [400, 400]
    shifted = distances.distances(training, gaussian(400, seed=2) + 0.5)
    for floor in found.values():
        assert floor["frechet_distance"].value < 0.1 * shifted["frechet_distance"].value
        assert floor["kernel_distance"].low < 0 < floor["kernel_distance"].high
    (alone,) = distances.floors(training, None, 10**6).values()
    assert alone["n"] == 1200, "a half has no more"


def test_class_balance_counts_digits_and_certainty():
    logits = torch.full((4, 10), -100.0)
    logits[0, 3] = logits[1, 3] = logits[2, 7] = 100.0
    logits[3, :2] = 100.0
    found = distances.class_balance(logits)
    shares = [each.value for each in found["shares"]]
    assert shares[3] == 0.5 and shares[7] == 0.25 and sum(shares) == 1
    assert found["shares"][3] == share(torch.tensor([True, True, False, False])), "an interval"
    sure = found["mean_confidence"]
    assert sure.value == pytest.approx(3.5 / 4)
    assert sure.half == pytest.approx(1.96 * 0.25 / 2), "of 1, 1, 1, 0.5"
    assert found["share_above_0.9"].value == 0.75


def test_estimates_are_told_with_their_interval():
    assert str(Estimate.of(1.5, 0.1)) == "1.50 ± 0.20"
    assert str(Estimate(0.006882, -0.023, 0.037)) == "0.007 ± 0.030", "digits as the interval has"
    half, none = share(torch.arange(100) < 50), share(torch.zeros(100, dtype=torch.bool))
    assert half == pytest.approx((0.5, 0.404, 0.596), abs=1e-3), "Wilson's interval"
    assert none == pytest.approx((0, 0, 0.037), abs=1e-3)
