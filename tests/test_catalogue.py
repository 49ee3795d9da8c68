"""Names and what they stand for: methods, data sets, and the rules that tie them together."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers import change_dataset, with_random_weights
from PIL import Image
from torch import nn
from training_helpers import TINY, same, squares, train

from mnist_ddpm import catalogue, ddpm
from mnist_ddpm.catalogue import (
    OBJECTIVES,
    PREDICTIONS,
    SAMPLERS,
    SCHEDULES,
    SPACINGS,
    VARIANCES,
    make_denoiser,
    make_method,
    make_network,
    make_schedule,
    plain_entry,
    sampling_times,
    uses_betas,
)
from mnist_ddpm.data import loading
from mnist_ddpm.data.loading import held_out, load_images, load_labels
from mnist_ddpm.datasets import DATASETS
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.methods.flow import flow
from mnist_ddpm.methods.guidance import with_labels
from mnist_ddpm.methods.learned_variance import ImportanceTimes
from mnist_ddpm.methods.predictions import for_any_prediction, p2, weighted
from mnist_ddpm.methods.times import NormalTimes
from mnist_ddpm.recipe import Recipe
from mnist_ddpm.training.loop import start_run, training_loop

ZERO_SNR = [name for name in SCHEDULES if name.endswith("zero-snr")]
DIGITS = Recipe(base_channels=8, channel_mults=(1, 2))
TIMES = torch.tensor([1, 2, 400, 1000])


def example(schedule):
    """x_0, eps and x_t at TIMES, in float64."""
    generator = torch.Generator().manual_seed(0)
    x0 = torch.rand(4, 1, 3, 3, generator=generator, dtype=torch.float64) * 2 - 1
    eps = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    return x0, eps, ddpm.q_sample(schedule, x0, TIMES, eps)


@pytest.mark.parametrize("name", ZERO_SNR)
def test_noise_is_not_predicted_from_pure_noise(name):
    for prediction in ("x0", "v", "mu"):
        make_schedule(Recipe(schedule=name, prediction=prediction))
    with pytest.raises(ValueError, match=f'"{name}".* take prediction "v" or "x0"'):
        make_schedule(Recipe(schedule=name))
    with pytest.raises(ValueError, match="T"):
        make_schedule(Recipe(schedule=name, prediction="v", T=1))


def test_a_schedule_needs_one_function_and_one_name(monkeypatch):
    monkeypatch.setitem(SCHEDULES, "mine", flow)
    schedule = make_schedule(Recipe(schedule="mine", prediction="x0", T=8))
    assert schedule.at(2) == (0.75, 0.25)


@pytest.mark.parametrize("beta", [1.2, 0.0, math.nan])
def test_tables_that_are_no_schedules_are_refused(beta, monkeypatch):
    table = torch.tensor([0, 0.1, beta, 0.1], dtype=torch.float64)
    monkeypatch.setitem(SCHEDULES, "mine", lambda *numbers: ddpm.beta_schedule(table))
    with pytest.raises(ValueError, match="mine"):
        make_schedule(Recipe(schedule="mine", T=3))
    with pytest.raises(ValueError, match="T = 4"):
        make_schedule(Recipe(schedule="mine", T=4))


def test_tables_begin_with_the_image(monkeypatch):
    whole = ddpm.beta_schedule(ddpm.linear_beta(4))
    cut = ddpm.Schedule(whole.a[1:], whole.b[1:])
    monkeypatch.setitem(SCHEDULES, "mine", lambda *numbers: cut)
    with pytest.raises(ValueError, match="mine"):
        make_schedule(Recipe(schedule="mine", T=3))


@pytest.mark.parametrize("T", [1, 1000])
def test_which_schedules_have_betas_of_their_own(T):
    names = SCHEDULES if T > 1 else SCHEDULES.keys() - ZERO_SNR
    own = {name for name in names if not uses_betas(Recipe(schedule=name, T=T))}
    assert own == {"cosine", "cosine-zero-snr", "flow", "log-snr"} & {*names}


@pytest.mark.parametrize("T, steps", [(1000, 50), (1000, 7), (10, 10), (3, 1)])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_spacing_gives_falling_times(spacing, T, steps):
    for name in ("linear", "cosine-zero-snr", "flow"):
        schedule = make_schedule(Recipe(schedule=name, prediction="v", T=T))
        times = sampling_times(schedule, steps, spacing)
        assert len(ddpm.transitions(times, T)) == steps
        assert sampling_times(schedule, steps) == ddpm.timesteps(T, steps)
        for wrong in (0, T + 1):
            with pytest.raises(ValueError, match=str(wrong)):
                sampling_times(schedule, wrong, spacing)


def test_unknown_names_are_told_with_the_known_ones(tmp_path):
    recipe = replace(TINY, **dict.fromkeys(("schedule", "prediction", "objective"), "mine"))
    recipe = replace(recipe, optimizer="mine", dataset=str(tmp_path / "mine"))
    for ask, known in (
        (lambda: make_schedule(recipe), "cosine-zero-snr"),
        (lambda: make_method(replace(recipe, objective="p2")), "x0"),
        (lambda: make_denoiser(None, None, recipe), "x0"),
        (lambda: make_method(replace(recipe, prediction="v")), "truncated-snr"),
        (lambda: start_run(replace(TINY, optimizer="mine")), "muon"),
        (lambda: sampling_times(make_schedule(TINY), 5, "mine"), "linspace"),
        (lambda: load_images(recipe), "celeba"),
    ):
        with pytest.raises(ValueError, match=f'mine" is unknown: .*{known}'):
            ask()


def test_the_papers_loss_is_the_notebooks():
    assert make_method(Recipe()).objective is ddpm.l_simple


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_simple_is_the_plain_error_of_what_is_predicted(kind):
    recipe = Recipe(prediction=kind)
    schedule, conversion = make_schedule(recipe), PREDICTIONS[kind]
    x0, eps, xt = example(schedule)
    right = eps if kind == "eps" else conversion.from_x0(schedule, xt, TIMES, x0)
    off = torch.arange(4.0).view(4, 1, 1, 1)
    losses = make_method(recipe).objective(lambda xt, t: right + off, schedule, x0, TIMES, eps)
    torch.testing.assert_close(losses.double(), off.flatten().square().double())
    weighed = make_method(replace(recipe, objective="p2")).objective
    given = lambda xt, t: right + off, schedule, x0, TIMES, eps
    torch.testing.assert_close(weighed(*given), weighted(conversion, p2)(*given))


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_an_objective_of_ones_own_is_told_the_noise_whatever_is_predicted(kind, monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "mine", plain_entry(for_any_prediction(ddpm.l_simple)))
    recipe = Recipe(prediction=kind, objective="mine")
    schedule = make_schedule(recipe)
    x0, eps, _ = example(schedule)

    def off_by_a_half(xt, t):
        if (scale := PREDICTIONS[kind].scale) is not None:  # of what the network sees
            xt = xt / ddpm.per_image(scale(schedule, t), xt)
        guess = ddpm.predict_x0(schedule, xt, t, eps + 0.5)
        return eps + 0.5 if kind == "eps" else PREDICTIONS[kind].from_x0(schedule, xt, t, guess)

    losses = make_method(recipe).objective(off_by_a_half, schedule, x0, TIMES, eps)
    torch.testing.assert_close(losses, torch.full_like(losses, 0.25), rtol=0, atol=1e-5)


FITTING = [
    (prediction, objective)
    for objective in sorted(OBJECTIVES.keys() - {"distribution-matching", "mean-flow"})
    for prediction in ("v", "velocity" if objective == "consistency" else "x0")
]


@pytest.mark.parametrize(("prediction", "objective"), FITTING)
def test_training_and_sampling_with_pure_noise_at_the_end_stay_finite(prediction, objective):
    names = {"schedule": "linear-zero-snr", "prediction": prediction, "objective": objective}
    recipe = replace(TINY, channel_mults=(1,), T=4, epochs=2, **names)
    schedule, run = make_schedule(recipe), start_run(recipe)
    losses = list(training_loop(run, squares(16), schedule))
    assert len(losses) == 2 and all(map(math.isfinite, losses))
    assert all(weight.isfinite().all() for weight in run.network.parameters())
    denoise = ddpm.clipped(make_denoiser(run.ema, schedule, recipe), schedule)
    for sampler in SAMPLERS.values():
        draw_noise = ddpm.noise_source(0, range(1), recipe.shape)
        states = sampler(denoise, schedule, [4, 3, 2, 1], draw_noise(), draw_noise)
        assert all(x.isfinite().all() for _, x, _ in states)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_learned_variance_has_channels_of_its_own(objective):
    recipe = replace(TINY, channels=3, objective=objective, prediction="v")
    learned, schedule = objective in ("hybrid", "vlb"), make_schedule(recipe)
    network = with_random_weights(make_network(recipe))
    x, t = torch.randn(2, *recipe.shape), torch.tensor([1, 50])
    assert network(x, t).shape == (2, 6 if learned else 3, 16, 16)
    assert catalogue.learns_variance(recipe) == learned
    x0_hat, eps_hat = make_denoiser(network, schedule, recipe)(x, t)
    with_exponent = make_denoiser(network, schedule, recipe, with_exponent=True)(x, t)
    assert {part.shape for part in with_exponent} == {x.shape}
    assert len(with_exponent) == 2 + learned and torch.equal(with_exponent[1], eps_hat)
    torch.testing.assert_close(ddpm.q_sample(schedule, x0_hat, t, eps_hat), x)
    times = catalogue.make_times(recipe)
    assert isinstance(times, ImportanceTimes) if objective == "vlb" else times is None


def test_times_are_the_recipe_s_or_the_objective_s_own():
    assert isinstance(catalogue.make_times(Recipe(times="log-normal")), NormalTimes)
    schedule, half = catalogue.make_schedule(Recipe()), {}
    for name in ("log-normal", "logit-normal", "noisy"):
        chance = catalogue.make_times(Recipe(times=name)).probability()
        half[name] = chance[(schedule.b > schedule.a)[1:]].sum()
    assert half["log-normal"] < 0.2 and half["noisy"] > 0.7
    assert half["logit-normal"] == pytest.approx(0.5, abs=0.01)
    with pytest.raises(ValueError, match="log-normal"):
        catalogue.make_times(Recipe(times="mine"))
    with pytest.raises(ValueError, match="vlb"):
        catalogue.make_times(Recipe(times="log-normal", objective="vlb"))


def test_a_path_is_for_networks_that_tell_x0():
    for prediction in ("eps", "v", "edm"):
        path = catalogue.make_sampling_schedule(Recipe(prediction=prediction), "flow")
        assert path.at(500) == (0.5, 0.5)
    with pytest.raises(ValueError, match="mu"):
        catalogue.make_sampling_schedule(Recipe(prediction="mu"), "flow")
    with pytest.raises(ValueError, match="cosine"):
        catalogue.make_sampling_schedule(Recipe(), "mine")


def test_the_papers_network_is_the_notebooks():
    ours, theirs = make_network(TINY), ddpm.make_network(TINY)
    assert same(ours, theirs) and type(ours) is type(theirs)
    assert not same(ours, make_network(replace(TINY, seed=1)))


def test_making_a_network_draws_from_no_generator_of_the_users(monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("theirs"))
    before = torch.get_rng_state()
    make_network(TINY)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_network_needs_one_class_and_one_name(monkeypatch):
    class Mine(nn.Module):
        def __init__(self, recipe, in_channels, out_channels):
            super().__init__()
            self.layer = nn.Conv2d(in_channels, out_channels, 1)

        def forward(self, x, t):
            return self.layer(x)

    monkeypatch.setitem(catalogue.NETWORKS, "mine", Mine)
    recipe = replace(TINY, network="mine", epochs=1)
    run = start_run(recipe)
    list(training_loop(run, squares(), make_schedule(recipe)))
    assert run.step == 6 and isinstance(run.ema, Mine)
    with pytest.raises(ValueError, match="Mine takes no labels"):
        start_run(replace(recipe, classes=2))


@pytest.fixture
def pictures(tmp_path):
    """A folder of one grey picture and two in colour."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for k, mode in enumerate(["L", "RGB", "RGB"]):
        Image.new(mode, (20, 20), 90).save(folder / f"{k}.png")
    return folder


def test_a_folder_is_a_data_set_unless_it_has_the_name_of_one(pictures, tmp_path, monkeypatch):
    images = load_images(replace(TINY, dataset=str(pictures), channels=3), tmp_path)
    assert images.shape == (3, 3, 16, 16) and images.dtype == torch.uint8
    monkeypatch.chdir(pictures.parent)
    pictures.rename("mnist")
    change_dataset(monkeypatch, "mnist", images=lambda recipe, root, split: squares(5))
    assert len(load_images(DIGITS)) == 5


def test_images_of_other_channels_are_refused(monkeypatch):
    change_dataset(monkeypatch, "mnist", images=lambda recipe, root, split: squares())
    with pytest.raises(ValueError, match="mnist has 1 channel"):
        load_images(replace(DIGITS, channels=3))


def test_what_is_held_out_depends_on_the_data_set(pictures, monkeypatch, capsys):
    def load(recipe, root, split):
        if recipe.dataset == "ffhq":
            raise ValueError("only a part of it is there")
        return torch.full((2, 3, 16, 16), len(split), dtype=torch.uint8)

    for name in DATASETS:
        change_dataset(monkeypatch, name, images=load)
    recipe = replace(DIGITS, channels=3)
    of = {name: held_out(replace(recipe, dataset=name)) for name in DATASETS}
    assert of["mnist"].unique() == len("test") and of["celeba"].unique() == len("valid")
    assert of["ffhq"] is None and "only a part of it is there" in capsys.readouterr().out
    assert held_out(replace(TINY, dataset=str(pictures))) is None
    assert capsys.readouterr().out == ""


def test_labels_are_those_of_a_data_set_that_has_them(pictures, monkeypatch):
    recipe = replace(TINY, dataset=str(pictures), classes=3)
    for ask in (load_labels, loading.check_labelled):
        with pytest.raises(ValueError, match="0.png"):
            ask(recipe)
        with pytest.raises(ValueError, match="10"):
            ask(replace(DIGITS, classes=3))
    loading.check_labelled(replace(recipe, classes=0))
    change_dataset(monkeypatch, "mnist", labels=lambda recipe, root, split: split)
    assert load_labels(replace(DIGITS, classes=10)) == "train"


def test_a_run_starts_from_the_weights_that_its_recipe_names(tmp_path):
    network = make_network(replace(TINY, seed=5))
    checkpoints.save_checkpoint(tmp_path / "mine", network, TINY, {})
    recipe = replace(TINY, init_from=str(tmp_path / "mine"))
    run = start_run(recipe)
    assert same(run.network, network) and same(run.network, run.ema)
    assert not same(run.network, start_run(TINY).network)
    with pytest.raises(ValueError, match=r"mine .*time.0.weight is \(32, 8\), .* \(64, 16\)"):
        start_run(replace(recipe, base_channels=16))
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        start_run(replace(TINY, init_from="elsewhere"))


@pytest.mark.parametrize("optimizer", catalogue.OPTIMIZERS)
def test_training_saves_what_draws_and_goes_on(tmp_path, optimizer, capsys):
    names = {"objective": "hybrid", "prediction": "v", "schedule": "cosine", "classes": 3}
    recipe = replace(TINY, T=5, epochs=1, optimizer=optimizer, **names)
    labels = torch.arange(32) % 3
    first = train(recipe, squares(32), tmp_path, labels)
    assert [path.name for path in (tmp_path / "previews").iterdir()] == ["epoch_001.png"]
    assert train(replace(recipe, epochs=2), squares(32), tmp_path, labels, resume=True).step == 4
    network, schedule, loaded = checkpoints.load(tmp_path)
    _, record = checkpoints.load_config(tmp_path)
    assert (loaded.epochs, record["steps"]) == (2, 4) and not same(network, first.ema)
    asked = with_labels(network, torch.tensor([0, 2]))
    denoise = catalogue.bound_denoiser(asked, schedule, loaded, with_exponent=True)
    draw_noise = ddpm.noise_source(0, range(2), recipe.shape)
    options = {"variance": VARIANCES["learned"]}
    times = sampling_times(schedule, 5)
    sampler = SAMPLERS["ddpm"]
    *_, (t, x, _) = sampler(denoise, schedule, times, draw_noise(), draw_noise, **options)
    assert t == 0 and x.isfinite().all()


def test_faces_are_mirrored_and_digits_are_not(tmp_path, monkeypatch):
    seen, images = {}, F.pad(squares(), [8] * 4)

    def watched(network, schedule, x0, t, eps):
        seen[recipe.dataset] = x0
        return ddpm.l_simple(network, schedule, x0, t, eps)

    monkeypatch.setitem(OBJECTIVES, "watched", plain_entry(lambda conversion: watched))
    for dataset in ("squares", *DATASETS):
        recipe = replace(DIGITS, dataset=dataset, T=4, epochs=0.2, batch_size=16)
        train(replace(recipe, objective="watched"), images, tmp_path / dataset)
    assert torch.equal(seen["mnist"], seen["squares"])
    for name in ("celeba", "ffhq"):
        pairs = [*zip(seen["squares"], seen[name])]
        flipped = [not torch.equal(a, b) for a, b in pairs]
        assert any(flipped) and not all(flipped)
        assert all(
            torch.equal(b, a.flip(-1) if turned else a) for (a, b), turned in zip(pairs, flipped)
        )
