"""How images are drawn: the same times and guidance, whoever asks and on whatever path."""

from dataclasses import replace

import pytest
import torch

from mnist_ddpm import catalogue, ddpm
from mnist_ddpm.generation import make_denoiser_for_batch
from mnist_ddpm.methods.paths import own_times
from mnist_ddpm.recipe import Recipe
from mnist_ddpm.sampling import Sampling
from mnist_ddpm.watch import validation

RECIPE = Recipe()


def test_validation_draws_at_the_times_at_which_a_network_learned(tmp_path):
    learned = {"sampler": "consistency", "steps": 2, "spacing": "signal", "timesteps": [1000, 750]}
    recipe = Recipe(image_size=16, dataset="squares", channels=1, T=1000, channel_mults=(1,))
    images = torch.randint(0, 256, (64, 1, 16, 16), generator=torch.Generator().manual_seed(0))
    real = validation.RealSet(images.byte())
    options = {"few_steps": learned, "device": "cpu"}
    with pytest.raises(ValueError, match="extractor"):  # few steps have no loss, and it no judge
        validation.Validator(tmp_path, recipe, real, **options)
    assert Sampling.chosen({}, validation.DRAWING | learned, 1000).choice(recipe).times == [
        1000,
        750,
    ]


@pytest.mark.parametrize("path", ["linear", "flow", "cosine"])
def test_an_interval_is_of_the_network_s_own_times_on_every_path(path):
    """Where signal and noise are as at 500 of the linear schedule, a path has another number."""
    asked = []

    def network(xt, t, labels=None):
        if labels is None:
            asked.append(t)
        return torch.zeros_like(xt)

    recipe = replace(RECIPE, classes=2)
    own = catalogue.make_schedule(recipe)
    schedule = Sampling(path=path).schedule(recipe)
    source = make_denoiser_for_batch(
        network, own, recipe, labels=torch.tensor([0]), scale=3.0, interval=(0, 500),
        sampling_schedule=schedule,
    )  # fmt: skip
    denoise = source(range(1))
    times = own_times(own, schedule)
    for t in range(1, 1001, 37):
        asked.clear()
        denoise(torch.zeros(1, 1, 4, 4), t)
        assert bool(asked) is (times[t].item() <= 500), f"{t} on {path}"
    last = (times <= 500).sum().item() - 1
    snr = [each.a[t].item() / each.b[t].item() for each, t in ((own, 500), (schedule, last))]
    assert snr[0] == pytest.approx(snr[1], rel=0.02)


def test_an_interval_in_which_nothing_is_sampled_is_judged_by_own_times():
    """500 of flow matching's path is 259 of the linear schedule, and 600 about 330."""
    recipe = replace(RECIPE, classes=2)
    typed = {"guidance": 2.0, "path": "flow", "timesteps": (1000, 600)}
    inside = Sampling(guidance_interval=(0, 500), **typed)
    inside.check_interval(recipe, inside.choice(recipe))
    outside = Sampling(guidance_interval=(550, 650), **typed)
    with pytest.raises(ValueError, match="550 650"):
        outside.check_interval(recipe, outside.choice(recipe))


@pytest.mark.parametrize("clip", [ddpm.clipped, None])
def test_a_path_is_that_of_the_clipping_and_of_the_noise(clip):
    """x_0 and the noise that a denoiser returns give its x_t back, on the path sampled."""
    own, path = (Sampling(path=each).schedule(RECIPE) for each in (None, "flow"))
    network = lambda xt, t: 3 * xt  # noqa: E731
    source = make_denoiser_for_batch(network, own, RECIPE, clip=clip, sampling_schedule=path)
    xt = torch.linspace(-2, 2, 16).view(1, 1, 4, 4)
    for t in (30, 500, 990):
        x0_hat, eps_hat = source(range(1))(xt, t)
        a_t, b_t = (value.item() for value in path.at(t))
        torch.testing.assert_close(a_t * x0_hat + b_t * eps_hat, xt, rtol=1e-3, atol=1e-3)
