"""The page's network that learns: its gradients and losses against PyTorch's, and what is seen."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
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
    found, losses, _ = train_both(in_node, "image", 200, 2)
    assert losses[-1] < 0.9 * losses[0]
    largest = np.abs(np.array(found["losses"]) - losses).max()
    print(f"loss: {losses[-1]:.4f}, largest difference: {largest:.1e}")
    assert largest < 1e-3


CHANGES = {  # of the presets in presets.js that go wrong
    "Rate too high": {"rate": 0.3},
    "Rate too low": {"rate": 1e-5},
    "One digit a step": {"batch": 1},
    "Too little noise": {"betaT": 0.001},
    "Too much noise": {"betaT": 0.5},
    "No labels": {"isLabelled": False},
}
STEPS = 80


@pytest.fixture(scope="module")
def learned(wasm, tmp_path_factory):
    """What is learned in a short training with the notebook's settings and each preset.

    Each is (losses of each step's digits, times of these, images (16, 256)).
    """
    requests = [
        {"settings": SETTINGS | {"batch": 8} | change, "seed": 0, "count": STEPS}
        for change in ({}, *CHANGES.values())
    ]
    run = node_runner(wasm, tmp_path_factory.mktemp("learned"))
    answers = run("learning", requests, learned=building.learned_digits_file())
    found = {}
    for name, answer in zip(("healthy", *CHANGES), answers):
        points = np.array(answer["losses"])
        images = np.array(answer["images"]).reshape(16, 256)
        found[name] = points[..., 1], points[..., 0], images
    return found


def test_a_training_learns_and_repeats(learned, in_node):
    losses, _, images = learned["healthy"]
    assert losses[-20:].mean() < 0.7 * losses[:10].mean()
    assert np.ptp(images.mean(axis=1)) > 0
    request = {"settings": SETTINGS | {"batch": 8}, "seed": 0, "count": 5}
    (again,) = in_node("learning", [request], learned=building.learned_digits_file())
    assert np.array_equal(np.array(again["losses"])[..., 1], losses[:5])


def test_each_preset_has_its_symptom(learned):
    healthy = learned["healthy"][0][-20:].mean()
    assert learned["Rate too high"][0][:20].mean() > 20 * healthy  # overshoots
    assert learned["Rate too high"][0][-20:].mean() > 1.3 * healthy
    falling = learned["Rate too low"][0]
    assert falling[-20:].mean() < falling[:10].mean()
    assert falling[-20:].mean() > 2 * healthy  # too slowly

    def jump(name):
        each = learned[name][0][-40:].mean(axis=1)
        return each.std() / each.mean()

    assert jump("One digit a step") > 1.5 * jump("healthy")
    assert learned["Too little noise"][0][-20:].mean() < 0.5 * healthy  # easy, but what is drawn
    late = learned["Too much noise"]
    early = late[0][late[1] < 100]  # where something of the digit is left
    assert late[0][-20:].mean() > 1.05 * healthy
    assert early.mean() < late[0].mean()


def test_without_labels_none_counts(in_node):
    answers = []
    for is_labelled in (True, False):
        settings = SETTINGS | {"batch": 8, "isLabelled": is_labelled}
        request = {"settings": settings, "seed": 0, "count": 3, "labels": [[0] * 16, [7] * 16]}
        (answer,) = in_node("learning", [request], learned=building.learned_digits_file())
        answers.append(answer["withLabels"])
    told, untold = answers
    assert told[0] != told[1]
    assert untold[0] == untold[1]


def test_a_network_learns_in_the_browser(open_page):
    page = open_page("#bench=train", few_steps(), width=390)
    names = page.eval_on_selector_all("#presets button", "(all) => all.map(({ value }) => value)")
    changes = page.evaluate("Object.values(PRESETS).map(({ change }) => change)")
    assert dict(zip(names[1:], changes[1:])) == CHANGES and changes[0] == {}
    assert page.evaluate("NOTEBOOK") == SETTINGS
    page.click("#train-go")
    page.wait_for_selector("#learned[data-step]")
    page.wait_for_function("learning.step > 1 && curve.length > 1")
    assert page.locator("#loss-bars span").count() == 20
    page.click("#train-go")
    page.wait_for_function("!learning.isGoing")
    page.wait_for_timeout(500)
    step = page.evaluate("learning.step")
    page.wait_for_timeout(500)
    assert page.evaluate("learning.step") == step  # it pauses
    page.click("#train-go")
    page.wait_for_function("(step) => learning.step > step", arg=step)
    page.click("#presets button[value='No labels']")
    assert page.evaluate("settings.isLabelled") is False
    page.wait_for_function("(step) => 0 < learning.step && learning.step < step + 1", arg=step)
    page.select_option("#train-batch", "8")
    assert page.evaluate("settings.batch") == 8
    assert page.locator("#presets [aria-pressed='true']").count() == 0
    page.click("#train-go")
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_a_scribble_outlives_a_reload(open_page):
    page = open_page("", few_steps())
    page.locator("#pad").tap()
    drawn = page.evaluate("$('pad').toDataURL()")
    page.reload()
    page.wait_for_function("(drawn) => $('pad').toDataURL() === drawn", arg=drawn)
    assert not page.evaluate("isExample")
