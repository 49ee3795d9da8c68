"""Drawing: the same images however the work is cut, kept, and shared."""

import math
from functools import partial

import pytest
import torch
from helpers import PAPER, in_processes, with_random_weights

from mnist_ddpm import ddpm
from mnist_ddpm.generation import autocast, cost_per_image, generate, make_denoiser_for_batch
from mnist_ddpm.machine.partial_results import CountedNetwork, PartialResults
from mnist_ddpm.recipe import Recipe

POINTS = torch.tensor([-0.75, 0.25]).view(2, 1, 1, 1)
SHAPE = 1, 16, 16
RECIPE = Recipe(dataset="squares", channels=1, image_size=16)
TIMES = ddpm.timesteps(1000, 5)
VARIED = partial(ddpm.ddim_sampler, eta=1.0)  # draws noise in each step


@pytest.fixture(scope="module")
def network():
    sizes = {"base_channels": 8, "channel_mults": (1, 2), "attention": (1,)}
    return with_random_weights(ddpm.UNet(**sizes), 0.05)


def ideal(batch):
    return ddpm.ideal_denoiser(PAPER, POINTS)


def of(network, **options):
    return make_denoiser_for_batch(network, PAPER, RECIPE, **options)


def drawn(network, n=7, **options):
    options = {"times": TIMES, "sampler": VARIED, "seed": 3, "progress": False} | options
    return generate(of(network), PAPER, n, SHAPE, **options)[0].int()


def test_image_k_depends_on_the_seed_and_k_alone(network):
    whole = drawn(network)
    for n, batch_size in ((7, 3), (7, 1), (2, 256)):
        part = drawn(network, n, batch_size=batch_size)
        assert (part - whole[:n]).abs().max() <= 1, "one grey level, for rounding"
    assert len(whole.unique(dim=0)) == 7 and (drawn(network, seed=4) != whole).any()


@pytest.mark.parametrize("size", [2, 3])
def test_processes_share_the_images_and_all_get_them_all(network, size):
    whole = drawn(network)
    several = in_processes(size, lambda world: drawn(network, world=world, batch_size=2))
    for images in several:
        assert (images - whole).abs().max() <= 1


def test_the_film_is_of_the_first_images_from_noise_to_the_result(tmp_path):
    def films(world):
        kept = PartialResults(tmp_path, CountedNetwork(None))
        options = {"times": ddpm.timesteps(1000, 100), "batch_size": 3, "film_images": 2}
        return generate(ideal, PAPER, 9, (1, 1, 1), **options, partial_results=kept, world=world)

    (images, film), (again, none) = in_processes(2, films)
    times = [t for t, *_ in film]
    assert times[0] == 1000 and times[-1] == 0 and times == sorted(set(times), reverse=True)
    assert 20 < len(film) <= 41, "more than a hundred would make large files"
    assert all(xt.shape == x0_hat.shape == (2, 1, 1, 1) for _, xt, x0_hat in film)
    assert torch.equal(film[-1][1], images[:2]) and torch.equal(images, again) and not none


def test_several_processes_cost_what_the_slowest_takes(tmp_path):
    def found(world):
        kept = PartialResults(tmp_path, CountedNetwork(None))
        kept.seconds, kept.evaluations = 7.0 * (1 + world.rank), 50 * len(world.share(7))
        return cost_per_image(kept, 7, world)

    assert in_processes(2, found) == [{"evaluations_per_image": 50, "seconds_per_image": 2.0}] * 2


@pytest.mark.parametrize("wrong", [{"n": 0}, {"batch_size": 0}, {"seed": -1}, {"seed": 2**32}])
def test_impossible_requests_are_refused(wrong):
    options = {"n": 1, "times": [5], **wrong}
    with pytest.raises(ValueError):
        generate(ideal, PAPER, shape=(1, 1, 1), **options)


def test_fewer_images_than_processes_are_refused():
    with pytest.raises(ValueError, match="3 process"):
        in_processes(3, lambda world: drawn(None, n=2, world=world))


@pytest.mark.parametrize("times", [[], [5], [5, 2]])
def test_a_sampler_that_does_not_end_at_the_image_is_refused(times):
    def mine(denoise, schedule, times, xT, draw_noise):
        for t in times:
            yield t, xT, xT

    with pytest.raises(ValueError, match="t = 0"):
        generate(ideal, PAPER, 1, (1, 2, 2), sampler=mine, times=times, progress=False)


def test_images_that_are_no_numbers_are_no_pictures():
    broken = of(lambda xt, t: xt * math.nan)
    with pytest.raises(FloatingPointError):
        generate(broken, PAPER, 2, (1, 2, 2), times=[5, 2], progress=False)


def test_a_sampler_of_ones_own_keeps_nothing_for_gradients(network):
    kept = []

    def mine(denoise, schedule, times, xT, draw_noise):
        kept.append(denoise(xT, 1)[0].requires_grad)
        yield 0, xT, xT

    drawn(network, n=1, sampler=mine)
    assert kept == [False]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_precision_is_that_of_the_network_alone(precision):
    seen = []

    def network(xt, t):
        product = xt.flatten(1) @ xt.flatten(1).T  # what autocast lowers
        seen.append((xt.dtype, product.dtype))
        return product.new_zeros(xt.shape)

    lowered = autocast(network, precision, "cpu")
    assert (lowered is network) == (precision == "float32")
    images = drawn(lowered, n=2)
    assert lowered(torch.zeros(2, 1, 2, 2), None).dtype == torch.float32
    assert {*seen} == {(torch.float32, getattr(torch, precision))}
    exact = drawn(lambda xt, t: torch.zeros_like(xt), n=2)
    assert torch.equal(images, exact), "x_t is float32"


@pytest.mark.parametrize("interval", [None, (300, 700)])
@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("guide", [False, True])
def test_guidance_keeps_away_from_the_guide_or_else_the_unlabelled(guide, scale, interval):
    """Labels are bound outside: image k is told labels[k % 3], in each batch, however late."""

    def network(xt, t, labels=None):
        value = torch.full((len(xt),), 5.0) if labels is None else labels.double().to(xt)
        return value.view(-1, 1, 1, 1).expand(xt.shape)

    def worse(xt, t, labels):
        return network(xt, t, labels) - 0.5

    labels, counted = torch.tensor([0, 2, 1]), CountedNetwork(network)
    counted_guide = CountedNetwork(worse)
    other = (counted_guide, RECIPE) if guide else None
    source = of(counted, labels=labels, scale=scale, guide=other, interval=interval, clip=None)
    batch, x = range(10**9, 10**9 + 3), torch.zeros(3, 1, 2, 2)
    for t in (300, 500, 700, 701):
        counted.evaluations = counted_guide.evaluations = 0
        eps_hat = source(batch)(x, t)[1][:, 0, 0, 0]
        own = torch.tensor([labels[k % 3] for k in batch]).double()
        weak = own - 0.5 if guide else torch.full((3,), 5.0)
        inside = interval is None or 300 < t <= 700
        wanted = weak + scale * (own - weak) if inside else own
        torch.testing.assert_close(eps_hat.double(), wanted.double())
        both = inside and scale not in (0, 1)
        evaluations = counted.evaluations + counted_guide.evaluations
        assert evaluations == (6 if both else 3), "what is not used is not asked"


def test_a_guide_steers_a_network_without_labels():
    weak = (lambda xt, t: torch.zeros_like(xt), RECIPE)
    source = of(lambda xt, t: torch.ones_like(xt), guide=weak, scale=3.0, clip=None)
    assert (source(range(2))(torch.zeros(2, 1, 2, 2), 500)[1] == 3).all()


def test_there_is_one_name_for_each_part(tmp_path, network):
    """A part is found again by the numbers of its images, whoever draws it."""
    names = []

    class Noting(PartialResults):
        def compute(self, name, work):
            names.append(name)
            return super().compute(name, work)

    kept = Noting(tmp_path, CountedNetwork(network))
    in_processes(2, lambda world: drawn(network, world=world, batch_size=2, partial_results=kept))
    assert sorted(names) == ["images-0-2", "images-2-3", "images-3-5", "images-5-7"]


def test_x0_hat_is_clipped_unless_asked_otherwise():
    network, x = lambda xt, t: -torch.ones_like(xt), torch.zeros(1, 1, 1, 1)
    assert of(network)(range(1))(x, 1000)[0] == 1
    assert of(network, clip=None)(range(1))(x, 1000)[0] > 100
