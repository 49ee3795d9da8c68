"""The exercises: solutions are accepted, typical mistakes are named, empty stubs raise nothing."""

import json
import re
import sys
import types

import matplotlib.pyplot as plt
import pytest
import torch
from conftest import ROOT

from mnist_ddpm import ddpm

NOTEBOOK = ROOT / "further" / "your_turn.ipynb"
CONTENT = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
CELLS = {cell["id"]: "".join(cell["source"]) for cell in CONTENT["cells"]}
BLOCKS = re.findall(r"```python\n(.*?)```", "\n".join(CELLS.values()), re.S)
SOLUTIONS = {re.match(r"def (\w+)", block)[1]: block for block in BLOCKS}


@pytest.fixture
def reader(monkeypatch):
    """The names of a notebook whose cells before the first exercise have run."""
    monkeypatch.chdir(NOTEBOOK.parent)
    monkeypatch.setattr(sys, "path", [*sys.path])
    names = vars(types.ModuleType("__main__"))
    for cell in ("setup", "examples", "verdict", "compare"):
        exec(CELLS[cell], names)
    return names


def result_of(reader: dict, name: str, answer: str) -> str:
    """What the check of an exercise says of this source."""
    exec(answer, reader)
    exec(CELLS[f"{name.replace('_', '-')}-check"], reader)
    return reader["results"][name]


def test_each_exercise_comes_with_a_stub_a_check_a_hint_and_a_solution(reader):
    assert list(SOLUTIONS) == list(reader["results"])
    for name in SOLUTIONS:
        slug = name.replace("_", "-")
        assert f"def {name}(" in CELLS[f"{slug}-stub"]
        assert f"{slug}-check" in CELLS
        assert "<summary>Hint</summary>" in CELLS[slug]


@pytest.mark.parametrize("name", SOLUTIONS)
def test_a_solution_is_accepted_and_a_stub_is_not_written_yet(reader, name):
    assert result_of(reader, name, CELLS[f"{name.replace('_', '-')}-stub"]) == "not written yet"
    assert result_of(reader, name, SOLUTIONS[name]) == "done"


MISTAKES = [  # exercise, what its solution says, what a reader wrote instead, a key word
    ("to_float", "images.float() / 127.5 - 1", "images / 255", "[0, 1]"),
    ("to_float", "images.float() / 127.5", "images * 2 / 255", "overflow"),
    ("to_float", "127.5", "128", "128"),
    ("amplitudes", ".sqrt()", "", "root"),
    ("amplitudes", ".cumprod(dim=0)", "", "multiply"),
    ("amplitudes", "(1 - alpha_bar).sqrt()", "1 - alpha_bar.sqrt()", "squares"),
    ("amplitudes", ", (1 - alpha_bar).sqrt()", "", "shape (2, 1001)"),
    ("amplitudes", "return", "result =", "return"),
    ("q_sample", "a_t, b_t = schedule.at(t)", "a_t, b_t = (v**2 for v in schedule.at(t))", "root"),
    ("q_sample", "ddpm.per_image(b_t, x0)", "ddpm.per_image(beta[t].sqrt(), x0)", "β_t"),
    ("q_sample", "ddpm.per_image", "(lambda values, x: values)", "reshape"),
    ("q_sample", "a_t, b_t", "a_t, c_t", "raises NameError"),
    ("predict_x0", "/ ddpm.per_image(a_t, xt)", "", "divided"),
    ("predict_x0", "ddpm.per_image(a_t, xt)", "ddpm.per_image(a_t**2, xt)", "root"),
    ("predict_x0", "return (xt - ", "return xt.sub_(", "in place"),
    ("predict_x0", "ddpm.per_image", "(lambda values, x: values)", "reshape"),
    ("posterior_mean", "* x0 +", "* xt +", "x_0 has weight"),
    ("posterior_mean", "a_s * (1 - alpha)", "a_t * (1 - alpha)", "neighbour"),
    ("posterior_mean", "a_s * (1 - alpha)", "a_s**2 * (1 - alpha)", "root"),
    ("posterior_mean", "(schedule, x0, xt, t, s)", "(schedule, xt, x0, t, s)", "each other"),
    ("l_simple", ".mean(dim=(1, 2, 3))", ".mean()", "(N,)"),
    ("l_simple", ".mean(dim=(1, 2, 3))", ".mean(dim=(2, 3))", "shape (4,)"),
    ("l_simple", ".mean(", ".sum(", "factor of 16"),
    ("l_simple", "- eps)", "- x0)", "not with the noise"),
    ("l_simple", "network(xt, t)", "network(x0, t)", "saw x_0"),
    ("clip_x0", "ddpm.predict_eps(schedule, xt, t, x0_hat)", "eps_hat", "unchanged"),
    ("clip_x0", ".clamp(-1, 1)", "", "not clipped"),
    ("clip_x0", "ddpm.predict_eps(schedule, xt, t, x0_hat)", "eps_hat.clamp(-1, 1)", "alone"),
    ("ancestral_step", "s == 0", "s < 0", "last step"),
    ("ancestral_step", ".sqrt()", "", "σ²"),
    ("ddim_step", "(b_s**2 - sigma**2).sqrt()", "b_s", "b_s where"),
    ("ddim_step", "(b_s**2 - sigma**2).sqrt()", "(b_s - sigma)", "b_s - σ"),
    ("ddim_step", "+ sigma * z", "", "fresh noise"),
    ("predict_x0", "ddpm.per_image(a_t, xt)", "(ddpm.per_image(a_t, xt) + 1)", "x_t has weight"),
    ("q_sample", "* eps", "* torch.randn_like(eps)", "each time"),
    ("to_float", "- 1", "- 0.5", "constant has weight -0.5000 and needs -1.0000"),
    ("clip_x0", "clamp(-1, 1)", "tanh()", "mistake unknown"),
    ("q_sample", "* eps", "* torch.zeros_like(eps)", "your own noise"),
    ("q_sample", "x0 + ", "x0 - ", "subtracted"),
    ("q_sample", "schedule.at(t)", "schedule.at(t - 1)", "t - 1"),
    ("q_sample", "a_t, b_t =", "b_t, a_t =", "swapped"),
    (
        "amplitudes",
        "return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()",
        "return [alpha_bar.sqrt(), (1 - alpha_bar).sqrt()]",
        "list",
    ),
    (
        "amplitudes",
        "alpha_bar.sqrt(), (1 - alpha_bar).sqrt()",
        "(1 - alpha_bar).sqrt(), alpha_bar.sqrt()",
        "swapped",
    ),
    ("posterior_mean", "(schedule, x0, xt, t, s)", "(schedule, x0, xt, s, t)", "exchanged"),
    ("ancestral_step", " * z", " * 0 * z", "no noise"),
    ("ancestral_step", "s == 0", "s > 0", "wrong way round"),
    ("ideal_x0", "softmax(-", "softmax(", "minus"),
    ("ideal_x0", "dim=1)", "dim=0)", "over the images"),
    ("ideal_x0", "a_t.unsqueeze(1) * points", "points", "scaled"),
    ("ideal_x0", "** 2), dim=1)", "), dim=1)", "b_t where"),
    ("ideal_x0", "(2 * b_t", "(b_t", "2 b_t²"),
    ("ideal_x0", "-distances", "-1e9 * distances", "nearest"),
    ("sampling_loop", "[*times[1:], 0]", "times[1:]", "missing"),
    ("sampling_loop", "posterior_variance", "step_variance", "β̃"),
    ("sampling_loop", ".sqrt()", "", "σ²"),
    ("sampling_loop", " * draw_noise()", " * 0", "no noise"),
    ("training_loop", "optimizer.zero_grad()", "", "zero_grad"),
    ("training_loop", "optimizer.step()", "", "never change"),
    ("training_loop", ", torch.randn(x0.shape))", ", 0 * torch.randn(x0.shape))", "without noise"),
    ("sampling_loop", "denoise(x, t)", "denoise(x, s)", "told s"),
    ("mended_step", "x0_hat = x0_hat.clamp(-1, 1)", "x0_hat = x0_hat", "clipped"),
    ("training_loop", "loss.backward()", "", "never change"),
    ("training_loop", "schedule.T + 1, (8,)", "schedule.T, (8,)", "1 to 4"),
    ("training_loop", "randint(1, schedule", "randint(0, schedule", "1 to 4"),
    ("training_loop", "+ 1, (8,))", "+ 1, (1,)).expand(8)", "whole batch"),
    ("training_loop", "+ 1, (8,))", "+ 1, (1,))", "shape (8,)"),
    ("training_loop", "images[torch.randint(len(images), (8,))]", "images[:8]", "few"),
    ("training_loop", "loss.item()", "loss", "item"),
    ("training_loop", "return losses", "losses", "return"),
    ("training_loop", "for _ in range(steps)", "for _ in range(10)", "10 batches"),
    ("mended_step", "network(xt, t)", "network(xt, s)", "time"),
    ("mended_step", "/ a_t\n", "/ a_t**2\n", "divided"),
    ("mended_step", "clamp(-1, 1)", "clamp(0, 1)", "range"),
]


@pytest.mark.parametrize("name, right, wrong, key", MISTAKES, ids=lambda value: value[:24])
def test_a_mistake_is_named(reader, name, right, wrong, key):
    assert right in SOLUTIONS[name]
    result = result_of(reader, name, SOLUTIONS[name].replace(right, wrong))
    assert result != "done"
    assert key in result


@pytest.mark.parametrize(
    "name, answer",
    [
        ("to_float", "to_float = lambda images: 2 * (images / 255) - 1"),
        ("ancestral_step", SOLUTIONS["ancestral_step"].replace("step_var", "posterior_var")),
        ("q_sample", "def q_sample(schedule, x0, t, eps):\n"
                     "    a, b = schedule.a[t], schedule.b[t]\n"
                     "    return a[:, None, None, None] * x0 + b[:, None, None, None] * eps"),
        ("ddim_step", "def ddim_step(schedule, x0_hat, eps_hat, s, sigma, z):\n"
                      "    a_s, b_s = (value.item() for value in schedule.at(s))\n"
                      "    return a_s * x0_hat + (b_s**2 - sigma**2) ** 0.5 * eps_hat + sigma * z"),
    ],
)  # fmt: skip
def test_another_way_to_write_it_is_accepted(reader, name, answer):
    assert result_of(reader, name, answer) == "done"


def test_the_steps_of_the_solutions_are_those_of_the_samplers(reader):
    for name in ("ancestral_step", "ddim_step"):
        exec(SOLUTIONS[name], reader)
    schedule, x, x0, eps, z = (reader[name] for name in ("schedule", "xt", "x0", "eps_hat", "z"))
    options = ([300, 250], x, lambda: z)

    def denoise(xt, t):
        return x0, eps

    ancestral = list(ddpm.ddpm_sampler(denoise, schedule, *options, ddpm.step_variance))
    ddim = list(ddpm.ddim_sampler(denoise, schedule, *options, eta=0.5))
    sigma = 0.5 * ddpm.posterior_variance(schedule, 300, 250).sqrt().item()
    step = reader["ancestral_step"](schedule, x0, x, 300, 250, z)
    assert torch.allclose(step, ancestral[1][1], atol=1e-5)
    step = reader["ddim_step"](schedule, x0, eps, 250, sigma, z)
    assert torch.allclose(step, ddim[1][1], atol=1e-5)


@pytest.mark.parametrize("is_complete", [True, False])
def test_the_end_draws_with_yours_or_the_solutions(reader, is_complete, monkeypatch, capsys):
    for name, solution in SOLUTIONS.items():
        result_of(reader, name, solution)
    if not is_complete:
        result_of(reader, "l_simple", CELLS["l-simple-stub"])
        result_of(reader, "to_float", "def to_float(images): return images / 255")
    digits = torch.randint(256, (10, 1, 32, 32)).to(torch.uint8)
    times = ddpm.timesteps
    monkeypatch.setattr(ddpm, "load_mnist", lambda *args, **options: digits)
    monkeypatch.setattr(ddpm, "timesteps", lambda T, steps: times(T, 2))
    capsys.readouterr()
    for cell in ("table", "samplers", "picture"):
        exec(CELLS[cell], reader)
    plt.close("all")
    printed = capsys.readouterr().out
    assert printed.count(" done") == (13 if is_complete else 11)
    assert (" wrong" in printed, " not yet" in printed) == (not is_complete, not is_complete)
    assert ("solutions" in printed) == (not is_complete)
    assert reader["drawn"].shape == (20, 1, 32, 32)


def test_a_clamp_where_none_is_asked_and_an_overflow_at_full_size_are_not_accepted(reader):
    clamped = SOLUTIONS["predict_x0"].replace("return (", "return torch.clamp((")
    clamped = clamped.replace("(a_t, xt)", "(a_t, xt), -1, 1)")
    assert "clipped" in result_of(reader, "predict_x0", clamped)
    overflowing = (
        SOLUTIONS["ideal_x0"]
        .replace(
            "torch.softmax(-distances / (2 * b_t.flatten(1) ** 2), dim=1)",
            "torch.exp(-distances.float() / (2 * b_t.flatten(1).float() ** 2))",
        )
        .replace("return ", "weights = weights / weights.sum(1, keepdim=True)\n    return ")
    )
    assert "finite" in result_of(reader, "ideal_x0", overflowing)


def test_a_training_loop_that_compares_with_another_noise_is_not_accepted(reader):
    wrong = SOLUTIONS["training_loop"].replace(
        "ddpm.l_simple(network, schedule, x0, t, torch.randn(x0.shape)).mean()",
        "(network(ddpm.q_sample(schedule, x0, t, torch.randn(x0.shape)), t)"
        " - torch.randn(x0.shape)).square().mean()",
    )
    assert "noise" in result_of(reader, "training_loop", wrong)


def test_an_answer_in_place_leaves_the_later_exercises_as_they_were(reader):
    wrong = SOLUTIONS["q_sample"].replace("return ", "x0.mul_(2)\n    return ")
    assert "in place" in result_of(reader, "q_sample", wrong)
    for name in ("q_sample", "predict_x0", "posterior_mean"):
        assert result_of(reader, name, SOLUTIONS[name]) == "done"
