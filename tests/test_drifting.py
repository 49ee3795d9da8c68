"""The drift against its paper's algorithm, written out in loops, and where it has to vanish."""

import math
from dataclasses import replace
from math import exp, sqrt

import pytest
import torch
from helpers import PAPER
from torch import nn
from training_helpers import TINY, squares

from experiments.methods import add_methods
from experiments.methods.drifting import Drifting, drift, drifting_loss, pairs_apart, pixel_features
from mnist_ddpm import catalogue, ddpm
from mnist_ddpm.method import Batch
from mnist_ddpm.methods.predictions import X0
from mnist_ddpm.training.loop import start_run, training_loop


@pytest.fixture(autouse=True)
def added(monkeypatch):
    monkeypatch.setattr(catalogue, "OBJECTIVES", dict(catalogue.OBJECTIVES))
    add_methods()


def points(n, seed, D=3):
    generator = ddpm.random_generator(seed)
    return torch.randn(1, n, D, generator=generator, dtype=torch.float64)


def test_the_drift_is_that_of_the_paper_s_algorithm():
    drawn, real = points(4, 0)[0], points(4, 1)[0]
    temperature = 0.7
    columns = torch.cat([real, drawn])
    kernel = [
        [0.0 if j == 4 + i else exp(-(x - y).norm() / temperature) for j, y in enumerate(columns)]
        for i, x in enumerate(drawn)
    ]
    wanted = torch.zeros(4, 3, dtype=torch.float64)
    rows = [sum(row) for row in kernel]
    sums = [sum(row[j] for row in kernel) for j in range(8)]
    A = [[kernel[i][j] / sqrt(rows[i] * sums[j]) for j in range(8)] for i in range(4)]
    for i in range(4):
        for j in range(4):
            for k in range(4):
                wanted[i] += A[i][j] * A[i][4 + k] * (real[j] - drawn[k])
    itself = 1e6 * torch.eye(4, dtype=torch.float64)
    to_real = torch.cdist(drawn, real)[None] / temperature
    to_drawn = torch.cdist(drawn, drawn)[None] / temperature + itself
    torch.testing.assert_close(drift(to_real, to_drawn, real[None], drawn[None])[0], wanted)


def test_the_drift_turns_round_where_the_two_sets_change_places():
    x, a, b = points(5, 0), points(5, 1), points(5, 2)
    to_a, to_b = torch.cdist(x, a), torch.cdist(x, b)
    torch.testing.assert_close(drift(to_a, to_b, a, b), -drift(to_b, to_a, b, a))


def test_the_loss_takes_drawn_images_to_real_ones_whatever_their_scale():
    real = torch.tensor([[[4.0], [5.0], [6.0]]], dtype=torch.float64)
    drawn = torch.tensor([[[0.0], [1.0], [2.0]]], dtype=torch.float64, requires_grad=True)
    nothing = torch.zeros(3, 3)
    losses = drifting_loss(drawn, real, nothing, nothing)
    (gradient,) = torch.autograd.grad(losses.sum(), drawn)
    assert losses.shape == (3,) and (gradient < 0).all()
    torch.testing.assert_close(drifting_loss(100 * drawn, 100 * real, nothing, nothing), losses)


def test_the_loss_sums_the_paper_s_temperatures_in_units_of_the_mean_distance():
    drawn, real = points(4, 0).requires_grad_(), points(4, 1)
    losses = drifting_loss(drawn, real, torch.zeros(4, 4), torch.zeros(4, 4))
    (gradient,) = torch.autograd.grad(losses.sum(), drawn)
    drawn = drawn.detach()
    to_real, to_drawn = torch.cdist(drawn, real), torch.cdist(drawn, drawn)
    mean = (to_real.mean() + to_drawn.mean()) / 2
    total = torch.zeros_like(drawn)
    for temperature in (0.02, 0.05, 0.2):
        unit = mean * temperature
        itself = 1e6 * torch.eye(4, dtype=torch.float64)
        field = drift(to_real / unit, to_drawn / unit + itself, real, drawn)
        total += field / field.square().mean().sqrt()
    torch.testing.assert_close(losses.detach(), total.square().mean(dim=(0, 2)))
    torch.testing.assert_close(gradient, -2 * total / (sqrt(3) * mean))


def test_images_of_other_labels_change_nothing():
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    x0 = points(6, 0, 64).view(6, 1, 8, 8)
    eps = points(6, 1, 64).view(6, 1, 8, 8)
    factor = nn.Parameter(torch.ones((), dtype=torch.float64))

    def gradients_of(x0):
        def network(xt, t, labels):
            assert (t == PAPER.T).all()
            return factor * xt

        batch = Batch(x0, torch.ones(6, dtype=torch.long), eps, labels, labels)
        losses = Drifting(X0, lambda images: [images.flatten(1)[None]]).loss(network, PAPER, batch)
        return torch.autograd.grad(losses[:3].sum(), factor)[0]

    before = gradients_of(x0)
    changed = x0.clone()
    changed[3:] = changed[3:].flip(0)  # another order: all scales stay as they are
    torch.testing.assert_close(gradients_of(changed), before)
    changed[:3] = x0[3:]
    changed[3:] = x0[:3]
    assert not torch.allclose(gradients_of(changed), before)


def test_pixels_are_one_set_and_patches_another():
    images = torch.arange(2 * 256.0).view(2, 1, 16, 16)
    pixels, patches = pixel_features(images)
    assert torch.equal(pixels, images.view(1, 2, 256))
    assert patches.shape == (4, 2, 64)
    assert torch.equal(patches[3, 1].view(8, 8), images[1, 0, 8:, 8:])


@pytest.mark.parametrize("classes", [0, 2])
def test_a_small_network_is_trained_by_it(classes):
    recipe = replace(TINY, objective="drifting", prediction="x0", classes=classes)
    images = squares()
    labels = torch.arange(len(images)) % 2 if classes else None
    schedule = catalogue.make_schedule(recipe)
    losses = list(training_loop(start_run(recipe), images, schedule, labels))
    assert len(losses) == 12 and all(map(math.isfinite, losses))


def test_a_hidden_label_trains_its_vector_and_drifts_to_all_images():
    x0 = points(6, 0, 64).view(6, 1, 8, 8)
    eps = points(6, 1, 64).view(6, 1, 8, 8)
    true, given = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 0, 2, 1, 1, 2])
    table = nn.Parameter(torch.ones(3, dtype=torch.float64))

    def network(xt, t, labels):
        return table[labels].view(-1, 1, 1, 1) * xt

    batch = Batch(x0, torch.ones(6, dtype=torch.long), eps, given, true)
    method = Drifting(X0, lambda images: [images.flatten(1)[None]])
    (gradient,) = torch.autograd.grad(method.loss(network, PAPER, batch).sum(), table)
    assert (gradient != 0).all(), "also of label 2, which stands for unknown"
    other_real, other_drawn = pairs_apart(batch)
    assert other_real.tolist() == [[false == 1 for false in row] for row in (
        [0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1], [0] * 6,
        [1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0], [0] * 6,
    )]  # fmt: skip
    assert torch.equal(other_drawn, given[:, None] != given)


def test_parts_of_a_batch_are_refused_since_images_of_it_are_compared():
    with pytest.raises(ValueError, match="accumulation"):
        catalogue.make_method(replace(TINY, objective="drifting", accumulation=2))
    one = Batch(torch.zeros(1, 1, 8, 8), torch.ones(1, dtype=torch.long), torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match="1: take 2"):
        Drifting(X0).loss(lambda xt, t: xt, PAPER, one)


def test_several_processes_are_refused_since_each_has_a_part_of_a_batch(monkeypatch):
    two = Batch(torch.zeros(2, 1, 8, 8), torch.ones(2, dtype=torch.long), torch.zeros(2, 1, 8, 8))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="one process"):
        Drifting(X0).loss(lambda xt, t: xt, PAPER, two)


def test_a_teacher_is_refused():
    with pytest.raises(ValueError, match="teacher"):
        catalogue.make_method(replace(TINY, objective="drifting"), teacher=lambda labels: None)
