"""Networks as ONNX: they say what ours say, and their metadata is enough to draw."""

import json
import re

import numpy as np
import pytest
import torch
from command_helpers import NETWORK, run, save_network
from conftest import ROOT
from helpers import with_random_weights

from mnist_ddpm import catalogue, ddpm
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.formats import onnx as ours
from mnist_ddpm.methods import guidance, predictions, shortcuts
from mnist_ddpm.recipe import Recipe

onnx, _, onnxruntime = (pytest.importorskip(name) for name in ours.PACKAGES)

SHORT = NETWORK | {"T": 100}
# With labels, the next time and variances; an export takes seconds, so there is one of all three
LABELLED = Recipe(**SHORT, network="shortcut", objective="hybrid", classes=10, prediction="v")
COLOURS = Recipe(
    **SHORT | {"channel_mults": (1,)}, network="dit", dataset="ours", image_size=(8, 16),
    channels=3, condition="grey", prediction="edm",
)  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A file of the command's, and the checkpoint it is of."""
    folder = tmp_path_factory.mktemp("exported")
    source, out = save_network(folder / "ours", LABELLED), folder / "new" / "model.onnx"
    assert run("export", "--checkpoint", source, "--format", "onnx", "--out", out) == 0
    assert [*out.parent.iterdir()] == [out]
    return out, checkpoints.load(source)


def about(path):
    """The metadata of a file."""
    session = onnxruntime.InferenceSession(path)
    return json.loads(session.get_modelmeta().custom_metadata_map["mnist_ddpm"])


def answers(path, **inputs):
    """All outputs of a file."""
    given = {name: value.numpy() for name, value in inputs.items()}
    found = onnxruntime.InferenceSession(path).run(None, given)
    return [*map(torch.from_numpy, found)]


def test_a_file_says_what_the_network_says_of_any_number_of_images(exported):
    path, (network, _, _) = exported
    generator = torch.Generator().manual_seed(0)
    for n in (1, 3):
        xt, t = torch.randn(n, 1, 32, 32, generator=generator), torch.tensor([100, 1, 42])[:n]
        label, s = torch.tensor([10, 3, 0])[:n], torch.tensor([40, 0, 42])[:n]  # 10: unknown
        value, exponent = answers(path, xt=xt, t=t, label=label, s=s)
        wanted, v = network(xt, t, label, s=s).split(1, dim=1)
        torch.testing.assert_close(value, wanted, rtol=0, atol=1e-4)
        torch.testing.assert_close(2 * exponent - 1, v, rtol=0, atol=1e-4)


def test_the_example_in_the_docs_draws_our_images(exported, tmp_path, monkeypatch):
    path, (network, schedule, recipe) = exported
    page = (ROOT / "docs" / "onnx.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.onnx").write_bytes(path.read_bytes())
    drawn = {}
    exec(example, drawn)
    network = shortcuts.with_next_times(network, ddpm.timesteps(100, 50), 100)
    told = guidance.with_labels(network, torch.arange(4))
    denoise = ddpm.clipped(catalogue.make_denoiser(told, schedule, recipe), schedule)
    images, _ = ddpm.generate(denoise, schedule, 4, recipe.shape, ddpm.ddim_sampler)
    apart = np.abs(drawn["images"].astype(int) - images.numpy())
    assert apart.max() <= 1 and apart.mean() < 0.01
    assert images.float().std() > 10  # not all alike
    assert (tmp_path / "digits.pgm").read_bytes().startswith(b"P5 128 32 255\n")


def test_what_a_file_tells(exported):
    path, (_, schedule, _) = exported
    found, labels = about(path), [str(digit) for digit in range(10)]
    assert found["signal"] == schedule.a.tolist()
    assert found["noise"] == schedule.b.tolist()
    expected = {
        "T": 100, "prediction": "v", "shape": [1, 32, 32], "margin": [2, 2],
        "labels": labels, "unknown_label": 10, "dataset": "mnist", "draw": {},
        "tells_steps": True,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected
    content = path.read_bytes()
    assert str(ROOT).encode() not in content and b"ddpm.py" not in content


def test_a_transformer_a_condition_an_input_s_scale_and_half_precision(tmp_path):
    network = with_random_weights(catalogue.make_network(COLOURS))
    schedule = catalogue.make_schedule(COLOURS)
    path = tmp_path / "half.onnx"
    ours.save_onnx(path, network, schedule, COLOURS, "float16", {"steps": 7})
    halves = [w for w in onnx.load(path).graph.initializer if w.data_type == w.FLOAT16]
    size = sum(len(weight.raw_data) for weight in halves)
    assert size > 1.9 * sum(each.numel() for each in network.parameters())
    xt, c, t = torch.randn(2, 3, 8, 16), torch.rand(2, 1, 8, 16) * 2 - 1, torch.tensor([100, 30])
    (output,) = answers(path, xt=xt, condition=c, t=t)
    found = about(path)
    factors = (torch.tensor(found[name])[t].view(-1, 1, 1, 1) for name in ours.FACTORS)
    x0_hat = sum(factor * value for factor, value in zip(factors, (xt, output)))
    wanted, _ = catalogue.make_denoiser(network, schedule, COLOURS, c)(xt, t)
    torch.testing.assert_close(x0_hat, wanted, rtol=0, atol=0.02 * wanted.abs().max().item())
    facts = found["condition"], found["dataset"], found["precision"], found["draw"]
    assert facts == ("grey", None, "float16", {"steps": 7})
    assert (found["labels"], found["unknown_label"], found["tells_steps"]) == ([], None, False)


@pytest.mark.parametrize("prediction", catalogue.PREDICTIONS)
def test_factors_give_the_image_of_any_prediction(prediction):
    schedule = catalogue.make_schedule(Recipe(T=50))
    conversion = catalogue.PREDICTIONS[prediction]
    found = ours.sampling_tables(schedule, conversion)
    t = torch.arange(1, 51)
    xt, value = torch.randn(2, 50, 1, 2, 2, dtype=torch.float64)
    of_xt, of_value = (torch.tensor(found[name], dtype=torch.float64) for name in ours.FACTORS)
    x0_hat = ddpm.per_image(of_xt[t], xt) * xt + ddpm.per_image(of_value[t], xt) * value
    wanted, _ = predictions.denoiser(lambda xt, t: value, schedule, conversion)(xt, t)
    torch.testing.assert_close(x0_hat, wanted)
    assert {len(table) for table in found.values()} == {51}
    assert (of_xt[0], of_value[0]) == (1, 0)


def test_a_file_that_says_something_else_is_not_left(exported, tmp_path, monkeypatch):
    path, (network, schedule, recipe) = exported
    model = onnx.load(path)
    weight = max(model.graph.initializer, key=lambda each: len(each.raw_data))
    changed = onnx.numpy_helper.to_array(weight) + np.float32(0.01)
    weight.CopyFrom(onnx.numpy_helper.from_array(changed, weight.name))
    monkeypatch.setattr(ours, "export_graph", lambda *arguments: model)
    with pytest.raises(ValueError, match="differ by"):
        ours.save_onnx(tmp_path / "model.onnx", network, schedule, recipe)
    broken = with_random_weights(catalogue.make_network(recipe), float("nan"))
    with pytest.raises(ValueError, match="differ by nan"):
        ours.save_onnx(tmp_path / "model.onnx", broken, schedule, recipe)
    assert [*tmp_path.iterdir()] == []
