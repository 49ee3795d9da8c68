"""Further schedules by their formulas, schedules on fewer steps, and the tables that all methods are entered into."""

import math
from functools import partial

import pytest
import torch

import mnist_ddpm
from mnist_ddpm import ddpm, parameterisation, schedules
from mnist_ddpm.ddpm import (
    Settings,
    ddpm_sampler,
    generate,
    ideal_denoiser,
    linear_schedule,
    make_schedule,
    noise_source,
    timesteps,
)
from mnist_ddpm.likelihood import bits_per_dim
from mnist_ddpm.schedules import cosine_schedule, respace, respaced, zero_terminal_snr

ALL = sorted(ddpm.SCHEDULES)
ZERO_SNR = [name for name in ALL if name.endswith("zero-snr")]


def test_cosine_schedule_by_hand():
    """Up to T, where the formula ends at 0 and beta is held at 0.999."""
    schedule = cosine_schedule(Settings(T=100))

    def f(t):
        return math.cos((t / 100 + 0.008) / 1.008 * math.pi / 2) ** 2

    for t in (1, 37, 99):
        assert schedule.alpha_bar[t].item() == pytest.approx(f(t) / f(0), rel=1e-12)
    assert schedule.beta[100] == 0.999 and schedule.beta[:100].max() < 0.999


def test_quadratic_and_sigmoid_schedules_by_hand():
    settings = Settings(T=5, beta_1=0.01, beta_T=0.09)
    expected = torch.tensor([0, 0.01, 0.0225, 0.04, 0.0625, 0.09], dtype=torch.float64)
    torch.testing.assert_close(schedules.quadratic_schedule(settings).beta, expected)
    rise = torch.tensor([1 / (1 + math.exp(-x)) for x in (-6, -3, 0, 3, 6)], dtype=torch.float64)
    torch.testing.assert_close(schedules.sigmoid_schedule(settings).beta[1:], 0.01 + 0.08 * rise)


@pytest.mark.parametrize("T", [2, 10, 1000])
@pytest.mark.parametrize("name", ALL)
def test_every_schedule_adds_noise_at_every_step(name, T):
    schedule = make_schedule(Settings(schedule=name, T=T, prediction="v"))
    assert schedule.T == T and schedule.beta.dtype == schedule.alpha_bar.dtype == torch.float64
    assert schedule.beta[0] == 0 and schedule.alpha_bar[0] == 1
    assert ((schedule.beta[1:] > 0) & (schedule.beta[1:] <= 1)).all()
    assert (schedule.alpha_bar.diff() < 0).all()
    torch.testing.assert_close(schedule.alpha_bar, schedule.alpha.cumprod(0))


@pytest.mark.parametrize("name", ZERO_SNR)
def test_zero_snr_ends_in_pure_noise_and_begins_as_before(name):
    for T in (2, 10, 1000):
        settings = Settings(schedule=name, T=T, prediction="v")
        schedule, before = make_schedule(settings), ddpm.SCHEDULES[name.removesuffix("-zero-snr")](settings)
        assert schedule.alpha_bar[-1] == 0 and schedule.beta[-1] == 1
        torch.testing.assert_close(schedule.alpha_bar[1], before.alpha_bar[1])


def test_zero_terminal_snr_by_hand():
    """The roots 0.8, 0.6, 0.4 are moved to 0.4, 0.2, 0, and scaled to 0.8, 0.4, 0."""
    root = torch.tensor([1, 0.8, 0.6, 0.4], dtype=torch.float64)
    schedule = ddpm.Schedule.from_beta(1 - root[1:].square() / root[:-1].square())
    expected = torch.tensor([1, 0.64, 0.16, 0], dtype=torch.float64)
    torch.testing.assert_close(zero_terminal_snr(schedule).alpha_bar, expected)


@pytest.mark.parametrize("name", ZERO_SNR)
def test_predicting_eps_from_pure_noise_is_refused(name):
    with pytest.raises(ValueError, match=f'schedule "{name}" ends in pure noise.* take prediction "v" or "x0"'):
        make_schedule(Settings(schedule=name))
    make_schedule(Settings(schedule=name, prediction="x0"))


@pytest.mark.parametrize("name", ALL)
def test_one_step_is_enough_for_all_but_zero_snr(name):
    settings = Settings(schedule=name, T=1, prediction="v")
    if name in ZERO_SNR:
        with pytest.raises(ValueError, match="T must be at least 2"):
            make_schedule(settings)
    else:
        assert make_schedule(settings).T == 1


TIMES = [1000, 700, 450, 449, 200, 30, 1]


def test_respaced_schedule_has_the_alpha_bar_of_its_times(paper):
    for times in (TIMES, [999, 3], list(range(1000, 0, -1))):
        torch.testing.assert_close(respace(paper, times).alpha_bar[1:], paper.alpha_bar[times].flip(0))
    with pytest.raises(ValueError, match="fall strictly"):
        respace(paper, [3, 30])


def test_respaced_model_is_told_the_original_time():
    model = respaced(lambda xt, t, *labels: (t, *labels), TIMES)
    assert model(None, torch.tensor([1, 2, 7]))[0].tolist() == [1, 30, 1000]
    assert model(None, torch.tensor([4]), "label") == (torch.tensor([449]), "label")


def network(xt, t):
    """eps_hat and v, of no meaning but of t."""
    return torch.cat([0.9 * xt + 1e-4 * t.view(-1, 1, 1, 1), torch.sin(xt)], dim=1)


@pytest.mark.parametrize("variance", ["posterior", "beta", "learned"])
def test_ancestral_sampling_is_the_same_on_the_respaced_schedule(paper, variance):
    def states(model, schedule, times):
        generator = torch.Generator().manual_seed(0)
        draw = partial(torch.randn, 3, 1, 2, 2, generator=generator, dtype=torch.float64)
        return [x for _, x, _ in ddpm_sampler(model, schedule, times, draw(), draw, variance=variance)]

    got = states(respaced(network, TIMES), respace(paper, TIMES), list(range(7, 0, -1)))
    torch.testing.assert_close(got, states(network, paper, TIMES), rtol=1e-9, atol=1e-9)


def test_bound_of_a_respaced_schedule_is_finite_and_above_that_of_all_steps(paper):
    points = torch.tensor([[0, 30], [255, 200]], dtype=torch.uint8).view(2, 1, 1, 2)
    model, images, times = ideal_denoiser(paper, ddpm.to_float(points)), points.repeat(20, 1, 1, 1), timesteps(1000, 50)
    whole = bits_per_dim(model, paper, images, times_per_image=50, progress=False)
    few = bits_per_dim(respaced(model, times), respace(paper, times), images, progress=False)
    assert few.terms.shape == (50,)
    assert whole.mean + 2 * whole.standard_error < few.mean - 2 * few.standard_error < 10


def test_respaced_model_takes_labels_as_sampling_hands_them_over(paper):
    def model(xt, t, labels):
        assert labels.tolist() == [4, 2]
        return xt

    times = timesteps(1000, 3)
    options = {"steps": 3, "labels": torch.tensor([4, 2]), "progress": False}
    generate(respaced(model, times), respace(paper, times), 2, (1, 1, 1), **options)


def test_sampling_from_pure_noise_is_finite_and_lands_on_the_data():
    schedule = make_schedule(Settings(schedule="linear-zero-snr", prediction="x0"))
    points = torch.tensor([-0.8, 0.6]).view(2, 1, 1, 1)

    def model(xt, t):
        a = ddpm.at(schedule.alpha_bar, t).float()
        distance = (xt - a.sqrt() * points.view(1, 2, 1, 1)).square()
        x0_hat = (torch.softmax(-distance / (2 * (1 - a)), dim=1) * points.view(1, 2, 1, 1)).sum(1, keepdim=True)
        return ddpm.Prediction(x0_hat, ddpm.predict_eps(schedule, xt, t, x0_hat))

    for name, sampler in ddpm.SAMPLERS.items():
        noise = noise_source(0, range(200), (1, 1, 1))
        *_, (_, x, _) = sampler(model, schedule, timesteps(1000, 50), noise(), noise)
        assert torch.minimum((x + 0.8).abs(), (x - 0.6).abs()).max() < 0.01, name
        assert (x > 0).float().mean().item() == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(200)), name


def test_all_methods_are_entered_into_the_notebooks_tables():
    assert {"linear", "cosine", "quadratic", "sigmoid", "sigmoid-zero-snr", "linear-zero-snr"} <= set(ddpm.SCHEDULES)
    assert {"objective", "denoiser"} == set(ddpm.OTHER_PREDICTIONS)
    assert {"eps", "x0", "v", "mu"} <= set(parameterisation.CONVERSIONS)  # and what tests enter
    assert {"simple", "bound", "truncated-snr", "min-snr", "p2", "hybrid", "vlb"} <= set(ddpm.OBJECTIVES)
    assert "vlb" in ddpm.TIME_SAMPLERS
    assert {"ddpm", "ddim", "dpmpp", "heun"} <= set(ddpm.SAMPLERS)
    assert ddpm.SCHEDULES["linear"] is linear_schedule


def test_methods_are_entered_into_a_namespace_that_has_tables():
    own = {"SCHEDULES": {"mine": None, "sigmoid": "mine too"}, "SAMPLERS": {}, "other": {}}
    mnist_ddpm.add_methods(own)
    assert set(own) == {"SCHEDULES", "SAMPLERS", "other"} and own["other"] == {}
    assert own["SCHEDULES"]["cosine"] is cosine_schedule and "mine" in own["SCHEDULES"]
    assert own["SCHEDULES"]["sigmoid"] == "mine too", "what the user has entered stays"
    assert {"dpmpp", "heun"} <= set(own["SAMPLERS"])


@pytest.mark.parametrize("betas", [[0.1, 1.5], [0.1, 0.0], [0.1, -0.2], [0.1, math.nan]], ids=str)
def test_tables_that_are_no_schedules_are_refused(betas, monkeypatch):
    schedule = ddpm.Schedule.from_beta(torch.tensor(betas))
    monkeypatch.setitem(ddpm.SCHEDULES, "mine", lambda settings: schedule)
    with pytest.raises(ValueError, match="of mine are no schedule's: each beta_t must be above 0, and at most 1"):
        make_schedule(Settings(schedule="mine", T=2))


def test_the_loss_that_a_user_has_changed_is_the_one_that_trains(monkeypatch):
    """But for another prediction than the noise, of which it knows nothing."""
    mine = lambda *arguments: None  # noqa: E731
    monkeypatch.setitem(ddpm.OBJECTIVES, "simple", lambda settings: mine)
    mnist_ddpm.add_methods(vars(ddpm))  # the notebook enters them several times
    assert ddpm.make_objective(Settings()) is mine
    assert ddpm.make_objective(Settings(prediction="v")) is not mine


def test_times_spaced_otherwise():
    assert timesteps(1000, 4, "leading") == [751, 501, 251, 1] and timesteps(1000, 4, "linspace") == [1000, 667, 334, 1]
    assert timesteps(1000, 4, "quadratic") == [1000, 445, 112, 1]
    assert timesteps(20, 15, "quadratic")[-5:] == [5, 4, 3, 2, 1], "none twice"
