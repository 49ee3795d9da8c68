"""The checks of networks and training inside an examination: what they need, what they find."""

import pytest
import torch
from torch.nn.functional import mse_loss

from mnist_ddpm import ddpm
from mnist_ddpm.doctor import learning_entries
from mnist_ddpm.doctor.examination import run_checks
from mnist_ddpm.doctor.subject import Conventions, Subject

T = 50
PAPER = ddpm.beta_schedule(ddpm.linear_beta(T, 2e-3, 0.4))
SHAPE = 1, 8, 16
ENTRIES = {entry.name: entry for entry in learning_entries.LEARNING_ENTRIES}


def verdicts(name, **fields):
    """The verdict of each check of an entry, and the bugs that the wrong ones name."""
    subject = Subject(schedule=PAPER, shape=SHAPE, **fields)
    checks = run_checks(ENTRIES[name], subject, seed=0)
    named = {bug for check in checks if check.verdict == "wrong" for bug in check.evidence}
    return {check.name.split(": ")[-1]: check.verdict for check in checks}, named


def make_loss(first_time=0, target=lambda x0, eps, t: eps, unit=1):
    """A training loss whose code counts from first_time; unit: what it divides t by."""

    def loss(model, x0):
        t = torch.randint(0, T, (len(x0),))
        eps = torch.randn_like(x0)
        x = ddpm.q_sample(PAPER, x0, t + 1, eps)
        return mse_loss(model(x, (t + first_time) / unit), target(x0, eps, t + 1))

    return loss


def velocity(x0, eps, t):
    a_t, b_t = (ddpm.per_image(each, x0) for each in PAPER.at(t))
    return a_t * eps - b_t * x0


@pytest.mark.parametrize(
    "loss",
    [
        make_loss(),
        make_loss(first_time=1),
        make_loss(first_time=1, unit=T),
        make_loss(target=velocity),
        make_loss(target=lambda x0, eps, t: x0),
    ],
    ids=["from 0", "from 1", "fraction", "v", "x0"],
)
def test_a_right_loss_in_any_convention_is_ok(loss):
    data = torch.rand(16, *SHAPE) * 2 - 1
    found, _ = verdicts("training", loss=loss, data=data)
    assert len(found) == 7 and set(found.values()) == {"ok"}


def test_a_loss_whose_target_is_other_noise():
    loss = make_loss(target=lambda x0, eps, t: torch.randn_like(x0))
    assert verdicts("training", loss=loss)[1] == {"other-target"}


def test_data_from_zero_to_one():
    data = torch.rand(64, *SHAPE)
    data[0] = 0
    data[1] = 1
    assert verdicts("training", loss=make_loss(), data=data)[1] == {"data-range"}


class OneLayer(torch.nn.Module):
    """A network of one convolution, which t does not reach."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(1, 1, 1)

    def forward(self, x, t):
        return self.layer(x)


def test_a_step_of_training_after_which_the_weights_are_back():
    network = OneLayer()
    optimizer = torch.optim.SGD(network.parameters(), 0.1)

    def step(x0):
        optimizer.zero_grad()
        make_loss()(network, x0).backward()
        optimizer.step()

    before = network.layer.weight.clone()
    found, named = verdicts("training step", training_step=step, network=network)
    assert not named and found["times of a batch"] == found["distribution of the noise"] == "ok"
    assert torch.equal(network.layer.weight, before)


def test_a_network_behind_a_function():
    network = OneLayer()
    assert verdicts("network", network=lambda x, t: network(x, t))[1] == {"time-ignored"}


def test_samples_that_take_too_long_are_not_judged(monkeypatch):
    monkeypatch.setattr(learning_entries, "SAMPLING_SECONDS", 0.0)
    options = {"network": lambda x, t: x, "data": torch.zeros(16, *SHAPE)}
    options["sampler"] = lambda network, shape: network(torch.zeros(shape), torch.tensor([1]))
    assert verdicts("samples", **options)[0] == {"means of the channels": "not checked"}


def test_samples_of_the_network_that_are_grey():
    data = 1 - 2 * torch.rand(32, *SHAPE).round()
    for level, verdict in ((0.0, "ok"), (0.7, "wrong")):
        options = {"data": data, "network": lambda x, t, level=level: level + 0 * x}
        options["sampler"] = lambda network, shape: network(torch.zeros(shape), torch.tensor([1]))
        assert verdicts("samples", **options)[0] == {"means of the channels": verdict}


@pytest.mark.parametrize("is_frozen, bugs", [(False, set()), (True, {"frozen-likelihood"})])
def test_a_likelihood_whose_t_is_set_before_the_loop(is_frozen, bugs):
    def bits(network, x0):
        t = torch.full((len(x0),), 1)
        for each in range(T):
            network(x0, t if is_frozen else torch.full_like(t, each))
        return 1.0

    assert verdicts("likelihood", likelihood=bits)[1] == bugs


def test_vectors_instead_of_images():
    conventions = Conventions(is_flat=True)

    def loss(network, x0):
        assert x0.ndim == 2
        return make_loss()(lambda x, t: network(x[:, 0, 0], t)[:, None, None], x0[:, None, None])

    found, named = verdicts("training", loss=loss, conventions=conventions)
    assert not named and found["first and last t"] == "ok"
