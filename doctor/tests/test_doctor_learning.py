"""The checks of networks and training inside an examination: what they need, what they find."""

import pytest
import torch
from diffusion_doctor import learning_entries
from diffusion_doctor.examination import run_checks
from diffusion_doctor.subject import Conventions, Subject
from torch.nn.functional import l1_loss, mse_loss, smooth_l1_loss

from mnist_ddpm import ddpm

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


def make_loss(first_time=0, target=lambda x0, eps, t: eps, unit=1, error=mse_loss):
    """A training loss whose code counts from first_time; unit: what it divides t by."""

    def loss(model, x0):
        t = torch.randint(0, T, (len(x0),))
        eps = torch.randn_like(x0)
        x = ddpm.q_sample(PAPER, x0, t + 1, eps)
        return error(model(x, (t + first_time) / unit), target(x0, eps, t + 1))

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
    assert len(found) == 6 and set(found.values()) == {"ok"}


def mean_of_step(x0, eps, t):
    return ddpm.posterior_mean(PAPER, x0, ddpm.q_sample(PAPER, x0, t, eps), t, t - 1)


def with_variance(model, x0):
    """A loss of a network that also returns a variance."""
    loss = make_loss()
    return loss(lambda x, t: model(x, t).split([1, 1], dim=1)[0], x0)


@pytest.mark.parametrize(
    "loss, verdict",
    [
        (make_loss(), "ok"),
        (make_loss(target=velocity), "ok"),
        (make_loss(target=lambda x0, eps, t: x0), "ok"),
        (make_loss(target=mean_of_step), "ok"),
        (make_loss(error=l1_loss), "ok"),
        (make_loss(error=smooth_l1_loss), "ok"),
        (with_variance, "ok"),
        (make_loss(target=lambda x0, eps, t: torch.randn_like(x0)), "wrong"),
        (make_loss(target=lambda x0, eps, t: eps + torch.randn_like(x0)), "undecided"),
        (lambda model, x0: x0.mean(), "undecided"),
    ],
)
def test_what_a_loss_wants_of_the_network(loss, verdict):
    found, named = verdicts("training: target of the loss", loss=loss)
    assert found == {"target of the loss": verdict}
    assert named == ({"other-target"} if verdict == "wrong" else set())


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


LEVELS = torch.linspace(-1, 1, 32).view(-1, 1, 1, 1).expand(-1, *SHAPE)  # images of one level


def exact_for_levels(x, t):
    _, b_t = PAPER.at(t.long() + 1)
    return (x - x.mean(dim=(1, 2, 3), keepdim=True)) / ddpm.per_image(b_t, x)


def samples_of(level, network=exact_for_levels, known=("output_range",)):
    """The verdict on samples of one level."""

    def sampler(network, shape):
        network(torch.zeros(shape), torch.zeros(len(torch.zeros(shape)), dtype=torch.long))
        return torch.full(shape, level)

    options = {"sampler": sampler, "network": network, "data": LEVELS, "known": frozenset(known)}
    return verdicts("samples", **options)[0]["means of the channels"]


def test_samples_of_a_network_that_has_learned():
    assert samples_of(0.0) == samples_of(0.7) == "ok"  # the data's mean has a standard error of 0.1
    assert samples_of(1.3) == "wrong"


def test_samples_that_cannot_be_judged(monkeypatch):
    assert samples_of(1.3, network=lambda x, t: 0 * x) == "not checked"
    assert samples_of(1.3, known=()) == "not checked"
    monkeypatch.setattr(learning_entries, "SAMPLING_SECONDS", 0.0)
    assert samples_of(1.3) == "not checked"


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
