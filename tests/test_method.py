"""Methods with networks of their own: what one takes to write, and what is saved of it."""

from dataclasses import replace

import pytest
import torch
from command_helpers import blobs, run
from helpers import equal
from torch import nn
from training_helpers import TINY, squares, start_simple, train

from mnist_ddpm import catalogue
from mnist_ddpm.data import loading
from mnist_ddpm.ddpm import q_sample
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.method import Method
from mnist_ddpm.methods.guidance import with_labels
from mnist_ddpm.training import saving
from mnist_ddpm.training.loop import training_loop


class Doubtful(Method):
    """Errors over what a second network expects of them: how unsure each pixel is."""

    def __init__(self, recipe, teacher):
        doubt = nn.Conv2d(recipe.channels, recipe.channels, 3, padding=1)
        doubt.end_layers = ()
        super().__init__(doubt=doubt)
        self.sampling_defaults = {"sampler": "ddim", "steps": 3}

    def loss(self, network, schedule, batch):
        xt = q_sample(schedule, batch.x0, batch.t, batch.eps)
        errors = with_labels(network, batch.labels)(xt, batch.t) - batch.eps
        log = self.networks["doubt"](xt).clamp(-5, 5)
        return (errors.square() * (-log).exp() + log).mean(dim=(1, 2, 3))


def test_a_method_with_a_second_network_needs_one_class_and_one_name(tmp_path, monkeypatch, capsys):
    """By the command line: trained, drawn as it says, resumed bit for bit, saved without it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "load_images", lambda *_: blobs(64))
    entry = catalogue.MethodEntry(Doubtful)
    monkeypatch.setitem(catalogue.OBJECTIVES, "doubtful", entry)
    flags = "train --base-channels 8 --channel-mults 1 2 --T 20 --batch-size 16".split()
    flags += ["--objective", "doubtful", "--optimizer", "muon"]
    assert run(*flags, "--epochs", 2, "--out", "whole") == 0
    recipe = checkpoints.load("whole").recipe
    train(recipe, blobs(64), "half", deadline=0.0)  # one step
    assert run("train", "--resume", "--epochs", 2, "--out", "half") == 0
    states = [saving.load_state(name)[0] for name in ("whole", "half")]
    for name in ("model", "ema", "parts", "optimizer", "part_optimizers", "losses"):
        assert equal(states[0][name], states[1][name])
    fresh = catalogue.make_method(recipe).networks["doubt"].state_dict()
    assert not equal(states[0]["parts"]["doubt"], fresh)
    network = checkpoints.load("whole").network
    assert network.state_dict().keys() == states[0]["ema"].keys() == states[0]["model"].keys()
    assert run("sample", "--checkpoint", "whole", "--n", 2, "--out", "out") == 0
    assert "--steps 3" in capsys.readouterr().out


def test_each_network_s_gradients_are_clipped_by_themselves():
    class Steep(Doubtful):
        def loss(self, network, schedule, batch):
            part = self.networks["doubt"](batch.x0).mean(dim=(1, 2, 3))
            return 1e3 * part + 1e-4 * network(batch.x0, batch.t).mean(dim=(1, 2, 3))

    begun = start_simple(TINY, Steep(TINY, None))
    begun.settings = replace(TINY, gradient_clip=1.0)
    next(training_loop(begun, squares(), catalogue.make_schedule(TINY)))
    networks = [each for each, _ in begun.networks_and_optimizers]
    norms = [[p.grad.norm() for p in each.parameters()] for each in networks]
    network, doubt = (torch.stack(each).norm() for each in norms)
    assert doubt.item() == pytest.approx(1.0, rel=1e-3) and 0 < network < 1e-3
