"""The page's network that learns: its gradients and losses against PyTorch's, and what is seen."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from page_helpers import (
    building,
    few_steps,
    find_kernels,
    launch_chromium,
    node_runner,
    page_opener,
)
from safetensors.numpy import save
from torch import nn

wasm = pytest.fixture(scope="module")(find_kernels)
browser = pytest.fixture(scope="module")(launch_chromium)
in_node = pytest.fixture(node_runner)
open_page = pytest.fixture(page_opener)

SETTINGS = {
    "rate": 1.3e-3, "T": 1000, "betaT": 0.02, "prediction": "image", "batch": 32,
    "isLabelled": True,
}  # fmt: skip


def convolutions(c_in: int, c_out: int) -> nn.Sequential:
    first = nn.Conv2d(c_in, c_out, 3, padding=1), nn.GroupNorm(8, c_out), nn.SiLU()
    second = nn.Conv2d(c_out, c_out, 3, padding=1), nn.GroupNorm(8, c_out), nn.SiLU()
    return nn.Sequential(*first, *second)


class TinyUNet(nn.Module):
    """The network of the notebook's first training."""

    def __init__(self):
        super().__init__()
        self.down = nn.ModuleList([convolutions(12, 16), convolutions(16, 32)])
        self.middle = convolutions(32, 64)
        self.up = nn.ModuleList([convolutions(96, 32), convolutions(48, 16)])
        self.out = nn.Conv2d(16, 1, 3, padding=1)

    def forward(self, x, t, label):
        condition = torch.cat([t[:, None] / 1000, F.one_hot(label, 10)], dim=1)
        planes = condition[:, :, None, None].expand(-1, -1, 16, 16)
        fine = self.down[0](torch.cat([x, planes], dim=1))
        coarse = self.down[1](F.avg_pool2d(fine, 2))
        h = F.interpolate(self.middle(F.avg_pool2d(coarse, 2)), scale_factor=2)
        h = F.interpolate(self.up[0](torch.cat([h, coarse], dim=1)), scale_factor=2)
        return self.out(self.up[1](torch.cat([h, fine], dim=1)))


def learned_digits() -> tuple[torch.Tensor, torch.Tensor]:
    """The digits (2000, 1, 16, 16) of the page's file, and their labels."""
    content = np.frombuffer(building.learned_digits_file(), np.uint8)
    pixels = content[: 2000 * 128]
    levels = np.stack([pixels >> 4, pixels & 15], axis=1).reshape(-1, 1, 16, 16)
    return torch.tensor(levels / 7.5 - 1), torch.tensor(content[2000 * 128 :].astype(int))


def train_both(in_node, prediction: str, steps: int, batch: int = 32):
    """From the same weights and random numbers: the page's answer, PyTorch's losses and network.

    PyTorch computes in float64. The network holds the first step's gradients if steps is 1.
    """
    torch.manual_seed(0)
    network = TinyUNet().double()
    weights = {name: value.float().numpy() for name, value in network.state_dict().items()}
    network.load_state_dict({name: torch.tensor(value) for name, value in weights.items()})
    digits, labels = learned_digits()
    alpha_bar = F.pad(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.double), (1, 0), value=1)
    alpha_bar = alpha_bar.cumprod(0)
    optimizer = torch.optim.Adam(network.parameters(), lr=1.3e-3)
    chosen = torch.randint(2000, (steps, batch))
    times = torch.randint(1, 1001, (steps, batch))
    noise = torch.randn(steps, batch, 1, 16, 16)
    losses = []
    for k in range(steps):
        power = alpha_bar[times[k]].view(-1, 1, 1, 1)
        x0 = digits[chosen[k]]
        xt = power.sqrt() * x0 + (1 - power).sqrt() * noise[k]
        output = network(xt, times[k], labels[chosen[k]])
        loss = (output - (noise[k] if prediction == "noise" else x0)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    requests = {
        "settings": SETTINGS | {"prediction": prediction, "batch": batch},
        "steps": [{"chosen": c, "times": t} for c, t in zip(chosen.tolist(), times.tolist())],
    }
    files = {"noise": noise.numpy().tobytes(), "learned": building.learned_digits_file()}
    about = {"shape": "[1, 16, 16]"}
    return in_node("training", requests, weights=save(weights, about), **files), losses, network


@pytest.mark.parametrize("prediction", ["image", "noise"])
def test_gradients_are_pytorch_s(in_node, prediction):
    found, losses, network = train_both(in_node, prediction, 1)
    assert found["losses"] == pytest.approx(losses, rel=1e-5)
    assert found["gradients"].keys() == dict(network.named_parameters()).keys()
    for name, parameter in network.named_parameters():
        wanted = parameter.grad.flatten().numpy()
        error = np.abs(np.float64(found["gradients"][name]) - wanted).max() / np.abs(wanted).max()
        print(f"{name}: {error:.1e}")
        assert error < 1e-5, f"{name} differs by {error}"


def test_two_hundred_steps_end_at_pytorch_s_loss(in_node):
    found, losses, _ = train_both(in_node, "image", 200, 8)
    assert losses[-1] < 0.5 * losses[0]
    assert np.abs(np.array(found["losses"]) - losses).max() < 1e-3
