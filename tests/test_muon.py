"""Muon, against PyTorch's own and Adam."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from mnist_ddpm.methods.muon import Muon, orthogonalised


class Net(nn.Module):
    """Named as a U-Net's layers are."""

    end_layers = "conv_in", "conv_out", "label"

    def __init__(self):
        super().__init__()
        self.conv_in, self.conv, self.conv_out = (nn.Conv2d(4, 4, 3) for _ in range(3))
        self.linear = nn.Linear(48, 16)
        self.label = nn.Embedding(11, 8)


def with_gradients(network: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for p in network.parameters():
        p.grad = torch.randn(p.shape, generator=generator)
    return network


@pytest.mark.parametrize("shape", [(16, 16), (24, 100), (100, 24), (1, 50)])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e6])
def test_singular_values_come_near_one_and_singular_vectors_stay(shape, scale):
    matrix = scale * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    core = u.mT @ orthogonalised(matrix) @ vh.mT  # diagonal where the vectors are kept
    reached = core.diagonal()[s > 0.05 * s.max()]
    assert 0.65 < reached.min() and reached.max() < 1.25
    assert (core - core.diagonal().diag()).abs().max() < 1e-3


def test_nothing_comes_of_no_gradient():
    assert torch.equal(orthogonalised(torch.zeros(3, 5)), torch.zeros(3, 5))
    network = Net()
    before = network.linear.weight.detach().clone()
    with_gradients(network, 0).linear.weight.grad = None
    Muon(network, 0.01).step()
    assert torch.equal(network.linear.weight, before)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch has its own from 2.9 on")
def test_matrices_move_as_with_pytorchs_own():
    network = Net()
    ours = Muon(network, 0.01)
    matrix = nn.Parameter(network.linear.weight.detach().clone())
    kernel = nn.Parameter(network.conv.weight.detach().clone().flatten(1))
    options = {"weight_decay": 0, "nesterov": True, "adjust_lr_fn": "match_rms_adamw"}
    theirs = torch.optim.Muon([matrix, kernel], lr=0.01, momentum=0.95, **options)
    for seed in range(4):
        with_gradients(network, seed)
        matrix.grad = network.linear.weight.grad.clone()
        kernel.grad = network.conv.weight.grad.flatten(1).clone()
        before = matrix.detach().clone()
        ours.step()
        theirs.step()
        rounding = 0.1 * (matrix - before).norm()  # theirs is in bfloat16
        assert (network.linear.weight - matrix).norm() < rounding
        assert (network.conv.weight.flatten(1) - kernel).norm() < rounding


def test_vectors_and_the_layers_at_the_borders_move_as_with_adam():
    ours, theirs = Net(), Net()
    theirs.load_state_dict(ours.state_dict())
    muon, adam = Muon(ours, 0.01), torch.optim.Adam(theirs.parameters(), lr=0.01)
    for seed in range(3):
        for group in muon.param_groups + adam.param_groups:
            group["lr"] = 0.01 / (1 + seed)
        with_gradients(ours, seed), with_gradients(theirs, seed)
        muon.step()
        adam.step()
    names = {name for name, _ in ours.named_parameters()}
    same = {name for name in names if torch.equal(*(n.get_parameter(name) for n in (ours, theirs)))}
    assert names - same == {"conv.weight", "linear.weight"}


def test_a_state_that_was_saved_goes_on_as_before():
    ours, again = Net(), Net()
    first = Muon(ours, 0.01)
    with_gradients(ours, 0)
    first.step()
    again.load_state_dict(ours.state_dict())
    second = Muon(again, 0.5)
    second.load_state_dict(deepcopy(first.state_dict()))
    for network, optimizer in ((ours, first), (again, second)):
        with_gradients(network, 1)
        optimizer.step()
    assert all(map(torch.equal, ours.parameters(), again.parameters()))


def test_a_network_whose_first_and_last_layers_are_unknown_is_refused():
    with pytest.raises(ValueError, match="end_layers"):
        Muon(nn.Sequential(nn.Linear(4, 4)), 0.01)
