"""The doctor's checks of training: what a loss shows its network names each bug in it."""

import pytest
import torch
from diffusion_doctor import training_checks as checks
from diffusion_doctor.training_record import known_images, record
from torch.nn.functional import mse_loss

from mnist_ddpm import ddpm
from mnist_ddpm.catalogue import TIMES
from mnist_ddpm.methods import flow

T = 200
SHAPE = 1, 8, 16
PAPER = ddpm.beta_schedule(ddpm.linear_beta(T, 5e-4, 0.1))


def make_loss(schedule=PAPER, draw=None, noise=torch.randn_like, prepare=lambda x: x):
    """A training loss, right unless an argument is wrong."""

    def loss(network, x0):
        x0 = prepare(x0)
        t = torch.randint(1, T + 1, (len(x0),)) if draw is None else draw(len(x0))
        eps = noise(x0)
        return mse_loss(network(ddpm.q_sample(schedule, x0, t, eps), t), eps)

    return loss


def verdicts(loss, schedule=PAPER, low=-1.0, high=1.0, entries=lambda t: t, seed=0):
    """The verdict of each check, and the bugs named by those that are wrong."""
    recording = record(loss, known_images(SHAPE, 32, low, high), T, seed)
    halves = checks.Halves(recording, entries, schedule)
    found = [
        checks.check_times_of_batch(recording),
        checks.check_ends(recording, entries, T),
        checks.check_noise(recording),
        checks.check_shared_noise(recording),
        checks.check_noising(halves, schedule),
        checks.check_data_range(*halves.range()),
    ]
    named = {bug for check in found if check.verdict == "wrong" for bug in check.evidence}
    return {check.name: check.verdict for check in found}, named


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("schedule", [PAPER, flow.flow(T)], ids=["paper", "flow"])
def test_a_right_loss_is_ok(schedule, seed):
    found, _ = verdicts(make_loss(schedule), schedule, seed=seed)
    assert set(found.values()) == {"ok"}


@pytest.mark.parametrize(
    "bug, options",
    [
        ("one-time", {"draw": lambda n: torch.randint(1, T + 1, (1,)).expand(n)}),
        ("unseen-end", {"draw": lambda n: torch.randint(1, T, (n,))}),
        ("unseen-end", {"draw": lambda n: torch.randint(2, T + 1, (n,))}),
        ("unseen-end", {"draw": lambda n: torch.randint(1, 9 * T // 10, (n,))}),
        ("uniform-noise", {"noise": torch.rand_like}),
        ("shared-noise", {"noise": lambda x: torch.randn_like(x[:1]).expand_as(x)}),
        ("data-range", {"prepare": lambda x: (x + 1) / 2}),
        ("data-range", {"prepare": lambda x: (x + 1) * 127.5}),
        ("missing-sqrt", {"schedule": ddpm.Schedule(PAPER.a**2, PAPER.b**2)}),
        ("missing-sqrt", {"schedule": ddpm.Schedule(PAPER.a, PAPER.b**2)}),
    ],
)
def test_a_bug_in_the_loss_is_named(bug, options):
    _, named = verdicts(make_loss(**options))
    assert named == {bug}


def test_alpha_in_the_place_of_alpha_bar():
    alpha = torch.cat([PAPER.a[:1], PAPER.a[1:] / PAPER.a[:-1]])
    wrong = ddpm.Schedule(alpha, (1 - alpha**2).clamp(min=0).sqrt())
    assert "alpha-for-alpha-bar" in verdicts(make_loss(wrong))[1]


def test_images_that_the_loss_itself_scales_are_ok():
    found, _ = verdicts(make_loss(prepare=lambda x: 2 * x - 1), low=0)
    assert found["training: range of the data"] == "ok"


def test_inputs_that_are_scaled_as_edm_s_are_ok():
    def loss(network, x0):
        def scaled(x, t):
            c_in = 1 / torch.hypot(PAPER.b[t], 0.5 * PAPER.a[t])
            return network(ddpm.per_image(c_in, x) * x, t)

        return make_loss()(scaled, x0)

    assert set(verdicts(loss)[0].values()) == {"ok"}


def test_a_continuous_time_and_its_end():
    def loss_to(end):
        def loss(network, x0):
            share = end * torch.rand(len(x0))
            eps = torch.randn_like(x0)
            x = torch.lerp(x0, eps, share.view(-1, 1, 1, 1))
            return mse_loss(network(x, share), eps - x0)

        return loss

    schedule = flow.flow(T)
    ends = {end: verdicts(loss_to(end), schedule, entries=lambda t: t * T) for end in (1.0, 0.95)}
    assert set(ends[1.0][0].values()) == {"ok"}
    assert ends[0.95][1] == {"unseen-end"}


@pytest.mark.parametrize("name", ["logit-normal", "log-normal", "noisy"])
def test_times_that_are_not_uniform_are_not_called_wrong(name):
    generator = torch.Generator().manual_seed(0)
    times = TIMES[name](PAPER)
    assert not verdicts(make_loss(draw=lambda n: times.draw(n, generator)[0]))[1]


def test_a_loss_with_fixed_times_and_noise_is_undecided():
    eps = torch.randn(32, *SHAPE)
    loss = make_loss(draw=lambda n: torch.full((n,), T // 2), noise=lambda x: eps)
    found, named = verdicts(loss)
    assert not named
    assert found["training: times of a batch"] == "undecided"


@pytest.mark.parametrize("is_frozen, verdict", [(False, "ok"), (True, "wrong")])
def test_times_of_the_likelihood(is_frozen, verdict):
    calls = [torch.full((8,), 3 if is_frozen else t) for t in range(1, T + 1)]
    assert checks.check_likelihood_times(calls).verdict == verdict
