"""A network that is told labels, and guidance on denoisers whose answers are known."""

from itertools import combinations

import pytest
import torch
from helpers import PAPER, with_random_weights

from mnist_ddpm.ddpm import UNet
from mnist_ddpm.methods.guidance import guided, is_in_interval, with_labels, within_interval
from mnist_ddpm.methods.learned_variance import learned_denoiser
from mnist_ddpm.methods.predictions import EPS, V, denoiser


def tiny(classes=3):
    options = {"base_channels": 8, "channel_mults": (1, 2), "attention": (1,)}
    return with_random_weights(UNet(classes=classes, **options))


def test_labels_matter_and_none_is_the_label_unknown():
    network, t = tiny(), torch.tensor([5, 700])
    x = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    outputs = [with_labels(network, torch.full((2,), label))(x, t) for label in range(4)]
    assert torch.equal(network(x, t), outputs[3])
    for i, j in combinations(range(4), 2):
        assert (outputs[i] - outputs[j]).abs().max() > 1e-3
    mixed = with_labels(network, torch.tensor([1, 2]))(x, t)
    torch.testing.assert_close(mixed, torch.stack([outputs[1][0], outputs[2][1]]))


def test_a_labelled_network_is_the_plain_one_with_one_table_more():
    """In its weights' names and order, and in the random weights of the rest."""
    nets = []
    for make in (UNet, lambda: UNet(classes=3)):
        torch.manual_seed(0)
        nets.append(make().state_dict())
    plain, labelled = nets
    assert list(labelled) == [*plain, "label.weight"]
    assert labelled["label.weight"].shape == (4, 128)
    assert all(torch.equal(plain[name], labelled[name]) for name in plain)


def test_a_wrong_number_of_labels_is_refused():
    network = with_labels(tiny(), torch.zeros(4, dtype=torch.long))
    with pytest.raises(ValueError, match="4 .* 2 "):
        network(torch.zeros(2, 1, 8, 8), torch.tensor([1, 2]))


def linear_network(xt, t, labels=None):
    """eps_hat and v of a network with labels, by a formula."""
    shift = 0.1 if labels is None else labels.view(-1, 1, 1, 1).to(xt.dtype)
    return torch.cat([0.5 * xt + shift, 0.2 * xt - shift], dim=1)


class Counted:
    """A network that counts the images which it sees."""

    def __init__(self, network):
        self.network, self.images = network, 0

    def __call__(self, xt, *more):
        self.images += len(xt)
        return self.network(xt, *more)


@pytest.mark.parametrize("scale", [0, 0.5, 1, 1.5, 4])
@pytest.mark.parametrize("conversion", [EPS, V], ids=["eps", "v"])
def test_guidance_goes_from_the_unconditional_prediction_to_the_other_and_beyond(conversion, scale):
    x = torch.linspace(-1, 1, 3).double().view(3, 1, 1, 1)
    t, labels = torch.tensor([1, 30, 900]), torch.tensor([0, 1, 2])
    network = Counted(linear_network)
    both = network, with_labels(network, labels)
    weak, strong = (learned_denoiser(each, PAPER, conversion) for each in both)
    untold, known = weak(x, t), strong(x, t)
    network.images = 0
    got = guided(weak, strong, scale)(x, t)
    assert network.images == (3 if scale in (0, 1) else 6)
    for k in range(2):
        torch.testing.assert_close(got[k], untold[k] + scale * (known[k] - untold[k]))
    torch.testing.assert_close(got[2], (known if scale else untold)[2])


def test_guide_and_guided_may_predict_different_things_with_and_without_a_variance():
    x, t = torch.linspace(-1, 1, 2).double().view(2, 1, 1, 1), torch.tensor([30, 900])
    weak = denoiser(lambda xt, t: 0.3 * linear_network(xt, t)[:, :1], PAPER, EPS)
    strong = learned_denoiser(linear_network, PAPER, V)
    bad, good, got = weak(x, t), strong(x, t), guided(weak, strong, 2.5)(x, t)
    for k in range(2):
        torch.testing.assert_close(got[k], bad[k] + 2.5 * (good[k] - bad[k]))
    assert len(got) == 3 and torch.equal(got[2], good[2])
    assert len(guided(strong, weak, 2.5)(x, t)) == 2


def test_an_interval_asks_each_image_of_a_batch_about_its_own_time():
    x, t = torch.arange(4.0).view(4, 1, 1, 1), torch.tensor([51, 21, 20, 50])
    guided_there, plain = (
        lambda xt, t, sign=sign: (sign * xt, sign * t.view(-1, 1, 1, 1)) for sign in (-1, 1)
    )
    found = within_interval((20, 50), guided_there, plain)(x, t)
    signs = torch.tensor([1, -1, 1, -1]).view(4, 1, 1, 1)
    assert torch.equal(found[0], signs * x)
    assert torch.equal(found[1], signs * t.view(4, 1, 1, 1))


def test_an_interval_along_another_path_is_open_below_too():
    own_times = torch.tensor([0, 20, 35, 50, 60])
    found = is_in_interval((20, 50), own_times)(torch.tensor([1, 2, 3, 4]))
    assert found.tolist() == [False, True, True, False]
