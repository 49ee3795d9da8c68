from dataclasses import replace

import pytest
import torch
from torch import nn

from mnist_ddpm.ddpm import Settings, make_model, make_schedule, start_run, training_loop
from mnist_ddpm.muon import Muon, orthogonalised


class Net(nn.Module):
    """Named as a UNet's layers are."""

    def __init__(self):
        super().__init__()
        self.conv_in, self.conv, self.conv_out = (nn.Conv2d(4, 4, 3) for _ in range(3))
        self.linear = nn.Linear(48, 16)
        self.label = nn.Embedding(11, 8)


def with_gradients(model: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator)
    return model


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


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="PyTorch has a Muon of its own from 2.9 on")
def test_matrices_move_as_with_pytorchs_own():
    model = Net()
    ours, matrix = Muon(model, rate=0.01), nn.Parameter(model.linear.weight.detach().clone())
    kernel = nn.Parameter(model.conv.weight.detach().clone().flatten(1))
    options = {"momentum": 0.95, "weight_decay": 0, "nesterov": True, "adjust_lr_fn": "match_rms_adamw"}
    theirs = torch.optim.Muon([matrix, kernel], lr=0.01, **options)
    for seed in range(4):
        with_gradients(model, seed)
        matrix.grad, kernel.grad = model.linear.weight.grad.clone(), model.conv.weight.grad.flatten(1).clone()
        before = matrix.detach().clone()
        ours.step()
        theirs.step()
        step = (matrix - before).norm()
        assert (model.linear.weight - matrix).norm() < 0.1 * step, "but for the rounding of bfloat16"
        assert (model.conv.weight.flatten(1) - kernel).norm() < 0.1 * step


def test_vectors_and_the_layers_at_the_borders_move_as_with_adam():
    ours, theirs = Net(), Net()
    theirs.load_state_dict(ours.state_dict())
    muon, adam = Muon(ours, rate=0.01), torch.optim.Adam(theirs.parameters(), lr=0.01)
    for seed in range(3):
        for group in muon.param_groups + adam.param_groups:
            group["lr"] = 0.01 / (1 + seed)
        with_gradients(ours, seed), with_gradients(theirs, seed)
        muon.step()
        adam.step()
    same = {name for name, p in ours.named_parameters() if torch.equal(p, theirs.get_parameter(name))}
    assert same == {name for name, _ in ours.named_parameters()} - {"conv.weight", "linear.weight"}


def test_frozen_parameters_stay():
    model = Net()
    before = model.linear.weight.detach().clone()
    with_gradients(model, 0).linear.weight.grad = None
    Muon(model, rate=0.01).step()
    assert torch.equal(model.linear.weight, before)


def test_settings_choose_it_and_it_learns(tiny, blobs):
    settings, loss = replace(tiny, epochs=4, learning_rate=0.01), {}
    for name in ("adam", "muon"):
        run = start_run(replace(settings, optimizer=name))
        assert type(run.optimizer) is {"adam": torch.optim.Adam, "muon": Muon}[name]
        losses = [step.loss for step in training_loop(run, blobs, make_schedule(settings))]
        loss[name] = sum(losses[-6:]) / sum(losses[:6])
    assert loss["muon"] < loss["adam"] < 0.8, loss
    assert tiny.optimizer == "adam", "unless told"
    with pytest.raises(ValueError, match='optimizer "sgd" is unknown: take one of adam, muon'):
        start_run(replace(tiny, optimizer="sgd"))


def test_each_has_a_rate_of_its_own_unless_told():
    assert Settings().learning_rate == 2e-3 and Settings(optimizer="muon").learning_rate == 5e-3
    assert Settings(optimizer="muon", learning_rate=1e-3).learning_rate == 1e-3


def test_every_parameter_of_the_network_has_one_optimizer(tiny):
    model = make_model(replace(tiny, classes=3))
    groups = Muon(model, rate=0.01).param_groups
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(id(p) for p in model.parameters())
    assert not {id(p) for p in groups[0]["params"]} & {id(p) for p in model.label.parameters()}
