"""Shortcut models: a right network has nothing to learn, and lands in one step where many do."""

from dataclasses import replace

import pytest
import torch
from command_helpers import NETWORK, blobs, error_of, run, save_network
from helpers import PAPER, equal, with_random_weights

from experiments.methods import add_methods
from experiments.methods.shortcuts import FINEST, SHARES, Shortcuts, steps_of
from mnist_ddpm import catalogue, ddpm
from mnist_ddpm.catalogue import make_network
from mnist_ddpm.data import loading
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.method import Batch, PlainMethod
from mnist_ddpm.methods import adversarial
from mnist_ddpm.methods.guidance import with_labels
from mnist_ddpm.methods.predictions import V, unweighted
from mnist_ddpm.methods.shortcuts import ShortcutUNet, shortcut_sampler, with_next_times
from mnist_ddpm.recipe import Recipe
from mnist_ddpm.training.first_weights import initial_weights

VARIANCE = 0.01  # of Gaussian data, for which all is known
SMALL = Recipe(**NETWORK | {"T": 64}, network="shortcut", prediction="v", classes=3)


@pytest.fixture(autouse=True)
def added(monkeypatch):
    monkeypatch.setattr(catalogue, "OBJECTIVES", dict(catalogue.OBJECTIVES))
    add_methods()


def spread(t):
    """The deviation of x_t."""
    a_t, b_t = PAPER.at(t)
    return (a_t**2 * VARIANCE + b_t**2).sqrt()


def carried(xt, t, s):
    """Where the ODE takes x_t: as far from the mean, in deviations."""
    return xt * ddpm.per_image(spread(s) / spread(t), xt)


def right(xt, t, s=None):
    """v that leads there: at once where s is t, the posterior's mean."""
    s = t if s is None else s
    (a_t, b_t), (a_s, b_s) = PAPER.at(t), PAPER.at(s)
    moves = s < t
    between = torch.where(moves, a_s * b_t - a_t * b_s, 1)
    jump = (b_t * spread(s) / spread(t) - b_s) / between
    x0 = torch.where(moves, jump, a_t * VARIANCE / spread(t) ** 2)
    return V.from_x0(PAPER, xt, t, ddpm.per_image(x0, xt) * xt)


def example(n=64):
    source = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(n, 1, 4, 4, generator=source, dtype=torch.float64) for _ in range(2))
    t = torch.randint(1, 1001, (n,), generator=source)
    return VARIANCE**0.5 * x0, t, eps


def teacher(labels):
    return lambda xt, t: (
        x0 := V.to_x0(PAPER, xt, t, right(xt, t)),
        ddpm.predict_eps(PAPER, xt, t, x0),
    )


def test_a_right_network_has_nothing_to_learn():
    x0, t, eps = example()
    count = steps_of(len(x0))
    method, batch = Shortcuts(PlainMethod(unweighted(V)), V, teacher), Batch(x0, t, eps)
    losses = method.loss(right, PAPER, batch)
    assert losses[count != FINEST].max() < 1e-12
    assert losses[count == FINEST].max() < 1e-4  # second order: not exact
    for wrong, where in (
        (lambda xt, t, s: right(xt, t), 1),
        (lambda xt, t, s: right(xt, t, 0 * t), 0),
    ):
        assert method.loss(wrong, PAPER, batch)[count == where].min() > 1e-7


def test_without_a_teacher_steps_of_no_length_learn_from_the_images():
    x0, t, eps = example()
    none = steps_of(len(x0)) == 0
    found = Shortcuts(PlainMethod(unweighted(V)), V).loss(right, PAPER, Batch(x0, t, eps))
    torch.testing.assert_close(found[none], unweighted(V)(right, PAPER, x0, t, eps)[none])
    assert found[none].min() > 1e-3


@pytest.mark.parametrize("steps", [1, 2, 4, 5])
def test_a_right_network_lands_where_the_ode_does(steps):
    _, _, noise = example(8)
    times = ddpm.timesteps(1000, steps)
    network = with_next_times(right, times, 1000)
    denoise = catalogue.predictions.denoiser(network, PAPER, V)
    *_, (_, found, _) = shortcut_sampler(denoise, PAPER, times, noise, None)
    T = torch.full((8,), 1000)
    torch.testing.assert_close(found, carried(noise, T, 0 * T))


def test_it_begins_without_heeding_where_steps_go():
    sizes = {"base_channels": 8, "channel_mults": (1, 2)}
    for classes, other in ((3, ddpm.UNet(**sizes, classes=3)), (0, ddpm.UNet(**sizes))):
        network = ShortcutUNet(**sizes, classes=classes)
        network.load_state_dict(network.state_dict() | with_random_weights(other).state_dict())
        x, t, labels = torch.randn(4, 1, 16, 16), torch.tensor([9, 5, 3, 20]), torch.arange(4)
        asked = (labels,) if classes else ()
        for s in (None, t, 0 * t):
            torch.testing.assert_close(network(x, t, *asked, s=s), other(x, t, *asked))
        torch.nn.init.ones_(network.span[2].weight)
        assert not torch.allclose(network(x, t, *asked, s=0 * t), other(x, t, *asked))


def test_labels_and_the_next_time_are_told_together():
    asked = []

    def network(xt, t, labels, s):
        asked.append((t.tolist(), labels.tolist(), s.tolist()))
        return xt

    headed = with_labels(with_next_times(network, [50, 20, 7], 64), torch.tensor([2, 1]))
    for t in (50, 20, 7):
        headed(torch.zeros(2, 1, 4, 4), torch.full((2,), t))
    assert asked == [([t] * 2, [2, 1], [s] * 2) for t, s in ((50, 20), (20, 7), (7, 0))]


def test_each_part_of_a_batch_is_told_its_own_labels_and_times():
    """Of those that ask on the way, too, and of the teacher the true labels."""
    x0, t, eps = example(32)
    labels, true = torch.arange(32), torch.arange(32) + 100
    asked, times = [], []

    def network(xt, t, labels, s=None):
        asked.append((xt.flatten(1)[:, 0], labels))
        times.append((t, s))
        return right(xt, t, s)

    def asks(labels):
        asked.append((None, labels))
        return teacher(labels)

    batch = Batch(x0, t, eps, labels, true)
    Shortcuts(PlainMethod(unweighted(V)), V, asks).loss(network, PAPER, batch)
    jumps = steps_of(32) > 0
    (_, of_teacher), (first, one), (_, two), (all_of_it, three) = asked
    assert of_teacher.tolist() == true[~jumps].tolist()
    assert one.tolist() == two.tolist() == labels[jumps].tolist() and three.tolist() == [*range(32)]
    assert equal({"x": all_of_it[jumps]}, {"x": first})
    (t, to_middle), (middle, to_end), (_, end) = times
    is_finest = steps_of(32)[jumps] == FINEST
    assert equal(to_middle, torch.where(is_finest, t, middle)), "the finest steps have length 0"
    assert equal(to_end, torch.where(is_finest, middle, end[jumps]))


def test_a_critic_judges_steps_that_end_at_an_image_alone():
    x0, t, eps = example(32)
    critic, seen = adversarial.Critic(1, 8, 8).double(), []
    network = torch.nn.Parameter(torch.zeros(()))
    critic.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    x0, eps = (each.repeat(1, 1, 2, 2) for each in (x0, eps))

    def asked(xt, t, s=None):
        return network + right(xt, t, s)

    method, batch = Shortcuts(PlainMethod(unweighted(V)), V, teacher), Batch(x0, t, eps)
    bare = method.loss(asked, PAPER, batch).detach()
    found = adversarial.Adversarial(method, V, critic, 0.5).loss(asked, PAPER, batch).detach()
    judged = (found - bare).abs() > 1e-9
    ends = torch.zeros(32, dtype=torch.bool)
    for k, (count, time) in enumerate(zip(steps_of(32).tolist(), t.tolist())):
        ends[k] = count > 0 and time <= 1000 / count
    assert 8 < ends.sum() < 32 and equal({"x": judged}, {"x": ends})
    assert {*seen} == {int(ends.sum())}


def test_train_and_sample_by_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "load_images", lambda *_: blobs(64))
    monkeypatch.setattr(loading, "load_labels", lambda *_: torch.arange(64) % 3)
    monkeypatch.setattr(loading, "check_labelled", lambda *_: None)
    save_network(tmp_path / "known", replace(SMALL, network="unet"))
    flags = "--objective shortcuts --init-from known --teacher known --network shortcut"
    flags += " --batch-size 32 --epochs 2"
    assert run("train", *flags.split(), "--critic", 0.1, "--out", "few") == 0
    found = checkpoints.load("few")
    assert found.recipe.network == "shortcut" and hasattr(found.network, "span")
    assert found.network.span[2].weight.abs().max() > 0  # it was told, and has learned
    before = make_network(replace(SMALL, network="unet")).state_dict()
    assert (
        {*initial_weights("known", shortcut=True)[1]} == {*found.network.state_dict()} > {*before}
    )
    for flags in ("--label 1 --steps 1", "--steps 4 --guidance 2", "--sampler ddim --steps 5"):
        assert run("sample", "--checkpoint", "few", *flags.split(), "--n", 2, "--out", "out") == 0
    assert run("train", "--resume", "--epochs", 3, "--out", "few") == 0


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("sample --checkpoint known --sampler shortcut", "shortcut"),
        ("sample --checkpoint few --sampler shortcut --path flow", "--path"),
        ("train --network shortcut --objective consistency --prediction v", "consistency"),
        ("train --network shortcut --objective hybrid", "hybrid"),
        ("train --objective shortcuts --network shortcut --condition small", "condition"),
    ],
)
def test_what_cannot_be_told_is_refused(flags, named, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, network in (("known", "unet"), ("few", "shortcut")):
        save_network(tmp_path / name, replace(SMALL, network=network))
    assert named in error_of(capsys, *flags.split(), "--out", "out")


def test_times_that_cannot_be_halved_so_often_are_refused():
    x0, t, eps = example(32)
    short = ddpm.Schedule(PAPER.a[:21], PAPER.b[:21])
    with pytest.raises(ValueError, match="20"):
        Shortcuts(PlainMethod(unweighted(V)), V).loss(right, short, Batch(x0, t.clamp(max=20), eps))


def test_parts_of_one_image_learn_steps_of_all_lengths():
    torch.manual_seed(0)
    drawn = [steps_of(1).item() for _ in range(400)]
    for count, share in SHARES.items():
        assert abs(drawn.count(count) / 400 - share / 32) < 0.1
    x0, t, eps = example(1)

    def asked(xt, t, s=None):
        assert len(xt), "a U-Net takes no batch without images"
        return right(xt, t, s)

    def teach(labels):
        return lambda xt, t: (V.to_x0(PAPER, xt, t, asked(xt, t)), xt)

    method = Shortcuts(PlainMethod(unweighted(V)), V, teach)
    for _ in range(20):
        assert method.loss(asked, PAPER, Batch(x0, t, eps)).isfinite().all()
