"""Four ways to say the same of x_t, and what they change: the weight of an error."""

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import nn

from mnist_ddpm import ddpm, runs
from mnist_ddpm.ddpm import (
    Prediction,
    Settings,
    ddim_sampler,
    l_simple,
    make_denoiser,
    make_objective,
    make_schedule,
    noise_source,
    predict,
    q_sample,
    start_run,
    training_loop,
)
from mnist_ddpm.diffusers_weights import pretrained
from mnist_ddpm.likelihood import bound_term
from mnist_ddpm.parameterisation import CONVERSIONS, WEIGHTS, Denoiser, bound_weight, convert, snr, weighted, x0_factor

KINDS = list(CONVERSIONS)
TIMES = torch.tensor([1, 2, 400, 1000])


def example(schedule, times=TIMES):
    """x_0, eps and x_t at times, in float64."""
    generator = torch.Generator().manual_seed(0)
    x0 = torch.rand(len(times), 1, 3, 3, generator=generator, dtype=torch.float64) * 2 - 1
    eps = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    return x0, eps, q_sample(schedule, x0, times, eps)


def by_definition(schedule, x0, eps, xt, times=TIMES):
    a, alpha, beta = (table[times].view(-1, 1, 1, 1) for table in (schedule.alpha_bar, schedule.alpha, schedule.beta))
    mu = (xt - beta / (1 - a).sqrt() * eps) / alpha.sqrt()  # DDPM, Eq. 11
    return {"eps": eps, "x0": x0, "v": a.sqrt() * eps - (1 - a).sqrt() * x0, "mu": mu}


@pytest.mark.parametrize(("given", "wanted"), list(product(KINDS, KINDS)))
def test_each_says_the_same_as_each_other(paper, given, wanted):
    x0, eps, xt = example(paper)
    says = by_definition(paper, x0, eps, xt)
    # from mu to eps at large t: the factor of x_0 in mu is small, and its error grows
    torch.testing.assert_close(convert(paper, xt, TIMES, says[given], given, wanted), says[wanted], rtol=0, atol=1e-8)
    for k, t in enumerate(TIMES.tolist()):
        one = convert(paper, xt[k : k + 1], t, says[given][k : k + 1], given, wanted)
        torch.testing.assert_close(one, says[wanted][k : k + 1], rtol=0, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_that_is_right_is_right_in_every_parameterisation(paper, kind):
    x0, eps, xt = example(paper)
    model = Denoiser(lambda x, t: by_definition(paper, x0, eps, x, t)[kind], paper, kind)
    got = predict(model, paper, xt, TIMES)
    torch.testing.assert_close(got.x0_hat, x0, rtol=0, atol=1e-8)
    torch.testing.assert_close(got.eps_hat, eps, rtol=0, atol=1e-8)
    assert got.exponent is None


@pytest.mark.parametrize("weight", ["uniform", *WEIGHTS])
@pytest.mark.parametrize("kind", KINDS)
def test_a_network_that_is_right_has_no_loss(paper, kind, weight):
    x0, eps, _ = example(paper)
    right = lambda xt, t: by_definition(paper, x0, eps, xt, t)[kind]  # noqa: E731
    losses = weighted(kind, weight)(right, paper, x0, TIMES, eps)
    wrong = weighted(kind, weight)(lambda xt, t: right(xt, t) + 0.1, paper, x0, TIMES, eps)
    assert losses.shape == (4,) and (losses < 1e-9 * wrong).all()


@pytest.mark.parametrize("weight", WEIGHTS)
def test_named_weights_mean_the_same_loss_whatever_is_predicted(paper, weight):
    x0, eps, _ = example(paper)
    losses = []
    for kind in KINDS:

        def model(xt, t, kind=kind):  # always says that x_0 is 0.3
            return convert(paper, xt, t, torch.full_like(xt, 0.3), "x0", kind)

        losses.append(weighted(kind, weight)(model, paper, x0, TIMES, eps))
    error = (x0 - 0.3).square().mean(dim=(1, 2, 3))
    expected = WEIGHTS[weight](paper, TIMES).flatten() * error
    for loss in losses:
        torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_uniform_weight_is_the_plain_error_of_the_output(paper, kind):
    x0, eps, _ = example(paper)
    losses = weighted(kind)(
        lambda xt, t: by_definition(paper, x0, eps, xt, t)[kind] + torch.arange(4).view(4, 1, 1, 1),
        paper,
        x0,
        TIMES,
        eps,
    )
    torch.testing.assert_close(losses.double(), torch.tensor([0, 1, 4, 9], dtype=torch.float64))


def test_bound_weight_is_that_of_the_bound_with_variance_beta(paper):
    x0, _, xt = example(paper)
    guess = torch.full_like(x0, 0.3)
    wrong, right = (
        bound_term(paper, x0, xt, TIMES, Prediction(x0_hat, xt, 1.0)).mean(dim=(1, 2, 3)) for x0_hat in (guess, x0)
    )
    expected = bound_weight(paper, TIMES).flatten() * (x0 - guess).square().mean(dim=(1, 2, 3)) / math.log(2)
    torch.testing.assert_close((wrong - right)[1:], expected[1:])


def test_weights_by_hand():
    """alpha_bar is 0.9, 0.5 and 0.1: signal-to-noise ratios of 9, 1 and 1/9."""
    schedule, t = ddpm.Schedule.from_beta(torch.tensor([0.1, 4 / 9, 0.8], dtype=torch.float64)), torch.tensor([1, 2, 3])

    def check(values, expected):
        torch.testing.assert_close(values.flatten(), torch.tensor(expected, dtype=torch.float64))

    check(snr(schedule, t), [9, 1, 1 / 9])
    check(WEIGHTS["truncated-snr"](schedule, t), [9, 1, 1])
    check(WEIGHTS["min-snr"](schedule, t), [5, 1, 1 / 9])
    check(WEIGHTS["p2"](schedule, t), [0.9, 0.5, 0.1])
    check(WEIGHTS["bound"](schedule, t), [0.1 / 2 / 0.01, 4 / 9 * 0.9 / 2 / 0.25, 0.8 * 0.5 / 2 / 0.81])


def test_simple_loss_of_the_noise_is_the_notebooks():
    assert make_objective(Settings()) is l_simple


def test_settings_choose_prediction_and_weight(paper):
    x0, eps, _ = example(paper)
    model = lambda xt, t: 0.5 * xt  # noqa: E731
    for kind, weight in product(KINDS, WEIGHTS):
        losses = make_objective(Settings(prediction=kind, objective=weight))(model, paper, x0, TIMES, eps)
        torch.testing.assert_close(losses, weighted(kind, weight)(model, paper, x0, TIMES, eps))
    network = nn.Identity()
    assert make_denoiser(network, paper, Settings()) is network
    for kind in ("x0", "v", "mu"):
        assert make_denoiser(network, paper, Settings(prediction=kind)).prediction == kind
        losses = make_objective(Settings(prediction=kind))(model, paper, x0, TIMES, eps)
        torch.testing.assert_close(losses, weighted(kind)(model, paper, x0, TIMES, eps))


@pytest.mark.parametrize("kind", KINDS)
def test_an_objective_of_the_noise_is_one_for_every_prediction(paper, kind, monkeypatch):
    exponents = lambda model, schedule, x0, t, eps: model(x0, t)[:, 1:].mean(dim=(1, 2, 3))  # noqa: E731
    minding = lambda settings: weighted(settings.prediction)  # noqa: E731
    own = {"mine": lambda settings: l_simple, "exponents": lambda settings: exponents, "p2": minding}
    monkeypatch.setattr(ddpm, "OBJECTIVES", ddpm.OBJECTIVES | own)
    x0, eps, _ = example(paper)

    def off_by_a_half(xt, t):
        return convert(paper, xt, t, eps + 0.5, "eps", kind)

    def learned(xt, t):
        return torch.cat([off_by_a_half(xt, t), torch.full_like(xt, 7.0)], dim=1)

    for model, name, wanted in ((off_by_a_half, "mine", 0.25), (learned, "exponents", 7.0)):
        objective = make_objective(Settings(prediction=kind, objective=name))
        losses = objective(model, paper, x0, TIMES, eps)
        torch.testing.assert_close(losses, torch.full_like(losses, wanted), rtol=0, atol=1e-6)
    plain, entered = weighted(kind), make_objective(Settings(prediction=kind, objective="p2"))
    assert torch.equal(*(each(off_by_a_half, paper, x0, TIMES, eps) for each in (plain, entered)))


def test_a_prediction_that_a_module_enters_is_one_for_everything(paper, tiny, blobs, tmp_path, monkeypatch):
    def to_x0(schedule, xt, t, u):
        alpha_bar = ddpm.at(schedule.alpha_bar, t)
        signal, noise = alpha_bar.sqrt().to(xt.dtype), (1 - alpha_bar).sqrt().to(xt.dtype)
        return (xt - noise * u) / (signal + noise)

    def from_x0(schedule, xt, t, x0):
        return ddpm.predict_eps(schedule, xt, t, x0) - x0

    monkeypatch.setitem(CONVERSIONS, "u", (to_x0, from_x0))
    x0, eps, xt = example(paper)
    torch.testing.assert_close(to_x0(paper, xt, TIMES, eps - x0), x0)
    torch.testing.assert_close(x0_factor(paper, TIMES, "u"), (1 + snr(paper, TIMES).sqrt()).square())
    losses = weighted("u", "p2")(lambda xt, t: eps - x0 + 0.1, paper, x0, TIMES, eps)
    torch.testing.assert_close(losses, 0.01 * (WEIGHTS["p2"](paper, TIMES) / x0_factor(paper, TIMES, "u")).flatten())
    settings = replace(tiny, prediction="u", objective="min-snr")
    runs.fit(start_run(settings), blobs, make_schedule(settings), tmp_path)
    model, schedule, _ = ddpm.load_checkpoint(tmp_path)
    assert ddpm.generate(model, schedule, 2, settings.shape, steps=2, progress=False)[0].shape == (2, *settings.shape)
    decided, weights = pretrained(tmp_path)
    assert decided["prediction"] == "u"
    start_run(settings, weights=weights)


def test_unknown_predictions_are_refused(paper):
    with pytest.raises(ValueError, match='prediction "score" is unknown: take one of eps, x0, v, mu'):
        weighted("score")
    with pytest.raises(ValueError, match='prediction "score" is unknown'):
        make_denoiser(None, paper, Settings(prediction="score"))
    with pytest.raises(ValueError, match='prediction "score" is unknown'):
        make_objective(Settings(prediction="score"))


def test_denoiser_keeps_the_learned_variance_and_hands_labels_on(paper):
    x0, _, xt = example(paper)

    def network(x, t, labels):
        assert labels.tolist() == [3, 1, 4, 1]
        return torch.cat([x0, torch.full_like(x, 0.5)], dim=1)

    got = Denoiser(network, paper, "x0")(xt, TIMES, torch.tensor([3, 1, 4, 1]))
    torch.testing.assert_close(got.exponent, torch.full_like(x0, 0.75))
    assert torch.equal(got.x0_hat, x0)


def test_a_denoiser_works_where_its_network_has_gone(paper):
    model = Denoiser(lambda xt, t: xt, paper, "v")
    model.forward(torch.zeros(2, 1, 4, 4, device="meta"), torch.full((2,), 7, device="meta"))


@pytest.mark.parametrize("kind", ["x0", "v", "mu"])
def test_a_denoiser_samples_what_the_same_network_for_eps_samples(paper, kind):
    eps_network = lambda xt, t: 0.8 * xt  # noqa: E731
    model = Denoiser(lambda xt, t: convert(paper, xt, t, 0.8 * xt, "eps", kind), paper, kind)
    start = torch.linspace(-2, 2, 4, dtype=torch.float64).view(4, 1, 1, 1)
    expected, got = (list(ddim_sampler(m, paper, [1000, 500, 20], start, None)) for m in (eps_network, model))
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("prediction", ["v", "x0"])
@pytest.mark.parametrize("objective", ["simple", "min-snr", "p2", "truncated-snr", "bound", "hybrid"])
def test_training_and_sampling_with_pure_noise_at_the_end_stay_finite(tiny, blobs, prediction, objective):
    settings = replace(tiny, T=4, schedule="linear-zero-snr", prediction=prediction, objective=objective)
    schedule, run = make_schedule(settings), start_run(settings)
    images = blobs[:16]
    losses = [step.loss for step in training_loop(run, images, schedule, make_objective(settings))]
    assert len(losses) == 2 and all(math.isfinite(loss) for loss in losses)
    assert all(p.isfinite().all() for p in run.model.parameters())
    model = make_denoiser(run.model, schedule, settings)
    for sampler in ddpm.SAMPLERS.values():
        noise = noise_source(0, range(1), (1, 32, 32))
        assert all(x.isfinite().all() for _, x, _ in sampler(model, schedule, [4, 3, 2, 1], noise(), noise))
