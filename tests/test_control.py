"""Control over what is sampled: labels and guidance, given parts, given beginnings, ways between images, the slider."""

import base64
import io
import re
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser

import pytest
import torch
from conftest import TINY, restless
from PIL import Image

from mnist_ddpm import guidance, runs
from mnist_ddpm.ddpm import (
    Prediction,
    UNet,
    ddpm_sampler,
    generate,
    ideal_denoiser,
    l_simple,
    make_schedule,
    noise_source,
    predict,
    predict_eps,
    q_sample,
    start_run,
    tile,
    timesteps,
    to_uint8,
    training_loop,
)
from mnist_ddpm.guidance import autoguided, guided, load_labels, within
from mnist_ddpm.inpainting import repaint_sampler, started_from
from mnist_ddpm.interpolation import slerp
from mnist_ddpm.parameterisation import Denoiser
from mnist_ddpm.resumable import Counted
from mnist_ddpm.slider import film_slider

POINTS = torch.tensor([-0.9, -0.3, 0.4, 0.8]).view(4, 1, 1, 1)  # the first two are of class 0, the others of class 1


def only_the_start(model, schedule, times, xT, noise):
    """A sampler that returns what it is given."""
    yield 0, xT, xT


# labels


def test_labels_matter_and_none_is_the_label_unknown():
    model = restless(UNet(base_channels=8, classes=3))
    x, t = torch.randn(2, 1, 32, 32), torch.tensor([5, 700])

    def told(label):
        return model(x, t, torch.full((2,), label))

    outputs = [told(label) for label in range(4)]
    assert torch.equal(model(x, t), outputs[3])
    assert all((outputs[i] - outputs[j]).abs().max() > 1e-3 for i in range(4) for j in range(i))
    torch.testing.assert_close(model(x, t, torch.tensor([1, 2])), torch.stack([outputs[1][0], outputs[2][1]]))


def test_training_hides_some_labels_and_shows_the_others_with_their_images(blobs):
    settings = replace(TINY, classes=7, label_dropout=0.3, epochs=1, batch_size=96, channel_mults=(1,), patch_size=8)
    settings = replace(settings, attention_resolutions=None)
    labels, shown = torch.arange(96) % 7, []
    run, images = start_run(settings), torch.arange(96, dtype=torch.uint8).view(96, 1, 1, 1).expand(-1, -1, 32, 32)

    def objective(model, schedule, x0, t, eps):
        own = ((x0[:, 0, 0, 0] + 1) * 127.5).round().long() % 7
        shown.append((model.keywords["labels"], own))
        return l_simple(model, schedule, x0, t, eps)

    for epochs in range(1, 11):
        run.settings = replace(settings, epochs=epochs)
        assert len(list(training_loop(run, images, make_schedule(settings), objective, labels))) == 1
    got, own = (torch.cat(column) for column in zip(*shown))
    hidden = got == 7
    assert torch.equal(got[~hidden], own[~hidden])
    assert hidden.float().mean().item() == pytest.approx(0.3, abs=4 * (0.3 * 0.7 / 960) ** 0.5)
    assert run.model.label.weight.grad.abs().sum(dim=1).min() > 0


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        (None, 3, "takes one of 3 labels with each image, and there are none"),
        (torch.tensor([0, 1]), 0, "labels are of no use to this network"),
        (torch.tensor([0, 1, 2]), 3, r"one label for each of 2 images, not labels \(3,\)"),
        (torch.tensor([[0], [1]]), 3, r"not labels \(2, 1\)"),
        (torch.tensor([0, 1], dtype=torch.uint8), 3, "labels must be int32 or int64, not torch.uint8"),
        (torch.tensor([0.0, 1.0]), 3, "labels must be int32 or int64, not torch.float32"),
        (torch.tensor([0, 3]), 3, "labels must be from 0 to 2: found 0 to 3"),
        (torch.tensor([-1, 2]), 3, "labels must be from 0 to 2: found -1 to 2"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, classes, message, blobs, tmp_path):
    with pytest.raises(ValueError, match=message):
        runs.check_labels(labels, 2, classes)
    settings = replace(TINY, classes=classes, batch_size=2)
    with pytest.raises(ValueError, match=message):
        runs.fit(start_run(settings), blobs[:2], make_schedule(settings), tmp_path, labels=labels)


def test_a_network_without_labels_refuses_them():
    with pytest.raises(ValueError, match="made without labels"):
        UNet(base_channels=8)(torch.zeros(1, 1, 32, 32), torch.tensor([1]), torch.tensor([0]))


def test_data_without_labels_is_named():
    with pytest.raises(ValueError, match="photos has no labels: set classes to 0"):
        load_labels(replace(TINY, dataset="photos", classes=10))
    with pytest.raises(ValueError, match="set classes to 10, not 4, and name none"):
        load_labels(replace(TINY, classes=4))


def test_a_data_set_of_ones_own_may_have_labels(monkeypatch):
    monkeypatch.setitem(guidance.LABELS, "photos", lambda settings, root, split: torch.arange(settings.classes))
    assert load_labels(replace(TINY, dataset="photos", classes=3)).tolist() == [0, 1, 2]


def test_labels_are_split_across_batches(paper):
    seen = []

    def model(xt, t, labels):
        seen.append(labels.tolist())
        return torch.zeros_like(xt)

    generate(model, paper, 5, (1, 1, 1), steps=[9], batch_size=2, labels=torch.arange(5), progress=False)
    assert seen == [[0, 1], [2, 3], [4]]


# guidance


def linear(xt, t, labels=None):
    """eps_hat and v of a network with labels, by a formula."""
    shift = 0.1 if labels is None else labels.view(-1, 1, 1, 1).to(xt.dtype)
    return torch.cat([0.5 * xt + shift, 0.2 * xt - shift], dim=1)


@pytest.mark.parametrize("scale", [0, 0.5, 1, 1.5, 4])
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_guidance_goes_from_the_unconditional_to_the_conditional_prediction_and_beyond(paper, prediction, scale):
    x, t, labels = (
        torch.linspace(-1, 1, 3).double().view(3, 1, 1, 1),
        torch.tensor([1, 30, 900]),
        torch.tensor([0, 1, 2]),
    )
    model = linear if prediction == "eps" else Denoiser(linear, paper, prediction)
    told, untold = predict(partial(model, labels=labels), paper, x, t), predict(model, paper, x, t)
    counted = Counted(model)
    got = predict(partial(guided(counted, scale), labels=labels), paper, x, t)
    assert counted.evaluations == (3 if scale in (0, 1) else 6)
    torch.testing.assert_close(got.x0_hat, untold.x0_hat + scale * (told.x0_hat - untold.x0_hat))
    torch.testing.assert_close(got.eps_hat, untold.eps_hat + scale * (told.eps_hat - untold.eps_hat))
    torch.testing.assert_close(got.exponent, told.exponent if scale else untold.exponent)


def test_guidance_works_without_a_learned_variance():
    x, t, labels = torch.ones(2, 3, 4, 4), torch.tensor([1, 30]), torch.tensor([0, 1])
    got = guided(lambda *args: linear(*args)[:, :3], 2.0)(x, t, labels)
    torch.testing.assert_close(got, 2 * linear(x, t, labels)[:, :3] - linear(x, t)[:, :3])


def test_guidance_in_an_interval_of_times_leaves_the_others_alone():
    x, labels, counted = torch.ones(2, 1, 4, 4), torch.tensor([0, 1]), Counted(linear)
    model, always = within((20, 50), guided(counted, 3.0), counted), guided(linear, 3.0)
    for t, inside in ((20, False), (21, True), (50, True), (51, False)):
        times, before = torch.full((2,), t), counted.evaluations
        expected = always(x, times, labels) if inside else linear(x, times, labels)
        torch.testing.assert_close(model(x, times, labels=labels), expected)
        assert counted.evaluations - before == (4 if inside else 2), "outside, guidance costs nothing"
    with pytest.raises(ValueError, match="only some are at times above 20, up to 50"):
        model(x, torch.tensor([20, 21]), labels=labels)


@pytest.mark.parametrize("scale", [0, 1, 2.5])
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_autoguidance_goes_from_the_worse_model_to_the_better_and_beyond(paper, prediction, scale):
    """The two may predict different things; only the better has learned a variance."""
    x, t, labels = torch.linspace(-1, 1, 2).double().view(2, 1, 1, 1), torch.tensor([30, 900]), torch.tensor([1, 2])

    def weak(xt, t, labels=None):
        return 0.3 * linear(xt, t, labels)[:, :1]

    model = linear if prediction == "eps" else Denoiser(linear, paper, prediction)
    for given in ({}, {"labels": labels}):
        good, bad = (predict(partial(each, **given), paper, x, t) for each in (model, weak))
        got = autoguided(model, weak, paper, scale)(x, t, **given)
        torch.testing.assert_close(got.x0_hat, bad.x0_hat + scale * (good.x0_hat - bad.x0_hat))
        torch.testing.assert_close(got.eps_hat, bad.eps_hat + scale * (good.eps_hat - bad.eps_hat))
        torch.testing.assert_close(got.exponent, good.exponent)


def test_autoguidance_takes_a_schedule_of_another_device(paper):
    """As load_checkpoint gives it: tables on the processor, for a network that is not there."""
    xt, t = torch.zeros(2, 1, 4, 4, device="meta"), torch.ones(2, dtype=torch.long, device="meta")
    model = lambda xt, t: 0.5 * xt  # noqa: E731
    assert autoguided(model, model, paper, 2.0)(xt, t).x0_hat.device.type == "meta"


def test_autoguidance_undoes_an_error_that_the_guide_makes_twice(paper):
    """The exact denoiser of POINTS, whose x_0 both models see too bright, the guide twice as much."""

    def brighter(by):
        def model(xt, t):
            x0_hat = predict(exact, paper, xt, t).x0_hat + by
            return Prediction(x0_hat, predict_eps(paper, xt, t, x0_hat))

        return model

    exact, x, t = ideal_denoiser(paper, POINTS), torch.linspace(-1, 1, 5).view(5, 1, 1, 1), torch.full((5,), 400)
    got = autoguided(brighter(0.1), brighter(0.2), paper, 2.0)(x, t)
    torch.testing.assert_close(got.x0_hat, exact(x, t).x0_hat)


def classes_of_points(schedule):
    """The exact denoiser of POINTS, of one class where there is a label."""
    models = [ideal_denoiser(schedule, points) for points in (POINTS[:2], POINTS[2:], POINTS)]

    def model(xt, t, labels=None):
        eps_hat = torch.stack([predict(m, schedule, xt, t).eps_hat for m in models])
        return eps_hat[2] if labels is None else eps_hat[labels, torch.arange(len(xt))]

    return model


@pytest.mark.parametrize("scale", [0, 1, 2])
def test_guided_samples_are_of_the_class_that_was_asked_for(paper, scale):
    labels, model = torch.arange(60) % 2, guided(classes_of_points(paper), scale)
    options = {"sampler": ddpm_sampler, "steps": 250, "labels": labels, "progress": False}
    images, _ = generate(model, paper, 60, (1, 1, 1), **options)
    distance, index = torch.cdist(images.view(-1, 1).float() / 127.5 - 1, POINTS.view(-1, 1)).min(dim=1)
    assert distance.max() < 0.02
    assert (index // 2 == labels).all() == (scale > 0)
    if scale < 2:
        assert set(index.tolist()) == {0, 1, 2, 3}


# filling in

PAIRS = torch.tensor([[-0.8, -0.8], [0.8, 0.8]]).view(2, 1, 1, 2)  # one pixel decides the other
LEFT = torch.tensor([1, 0]).view(1, 1, 1, 2)


def fill(schedule, n=1, seed=0, known=PAIRS[:1], mask=LEFT, steps=10, model=None, **options):
    noise = noise_source(seed, range(n), (1, 1, 2))
    model = model or ideal_denoiser(schedule, PAIRS)
    times = steps if isinstance(steps, list) else timesteps(1000, steps)
    return list(repaint_sampler(model, schedule, times, noise(), noise, known=known, mask=mask, **options))


@pytest.mark.parametrize("resamples", [1, 3])
def test_known_pixels_come_back_exactly_whatever_the_model_says(paper, resamples):
    known = torch.tensor([[0.1234, 5.0], [-0.7, 5.0]]).view(2, 1, 1, 2)
    *_, (_, x, _) = fill(paper, 2, known=known, model=lambda xt, t: 0.3 * xt, resamples=resamples, jump=4)
    assert torch.equal(x[..., 0], known[..., 0]) and x[..., 1].abs().max() <= 1.01


def test_known_pixels_have_the_noise_of_their_time_on_the_way(paper):
    known = torch.full((1, 1, 1, 2), 0.5)
    for t, x, _ in fill(paper, 400, known=known, resamples=2, jump=3, steps=[1000, 700, 400, 100])[1:-1]:
        a = paper.alpha_bar[t].item()
        left = x[..., 0]
        assert left.mean().item() == pytest.approx(0.5 * a**0.5, abs=4 * (1 - a) ** 0.5 / 20)
        assert left.std().item() == pytest.approx((1 - a) ** 0.5, rel=0.15)


def test_going_back_up_restores_the_noise_of_the_time(paper):
    """For data that are one point, x_t has its known mean and deviation, whatever the way there."""
    point, mask = torch.full((1, 1, 1, 2), 0.5), torch.zeros(1, 1, 1, 2)
    model, steps = ideal_denoiser(paper, point), [1000, 350, 300, 200, 100]
    for jump in (1, 2, 10):
        for t, x, _ in fill(paper, 1000, model=model, mask=mask, steps=steps, resamples=3, jump=jump)[:-1]:
            a = paper.alpha_bar[t].item()
            assert x.mean().item() == pytest.approx(0.5 * a**0.5, abs=0.1 * (1 - a) ** 0.5)
            assert x.std().item() == pytest.approx((1 - a) ** 0.5, rel=0.07)


@pytest.mark.parametrize("index", [0, 1])
def test_the_unknown_part_becomes_the_only_one_that_fits(paper, index):
    *_, (_, x, _) = fill(paper, 40, known=PAIRS[index : index + 1], steps=50, resamples=5)
    torch.testing.assert_close(x, PAIRS[index].expand(40, 1, 1, 2), rtol=0, atol=0.02)


def test_resampling_fits_more_often_than_plain_replacement(paper):
    def misfits(resamples):
        *_, (_, x, _) = fill(paper, 200, steps=10, resamples=resamples, jump=2)
        return ((x - PAIRS[0]).abs().amax(dim=(1, 2, 3)) > 0.1).sum().item()

    assert misfits(10) < misfits(1) / 3


@pytest.mark.parametrize(("resamples", "jump"), [(1, 10), (1, 3), (4, 10), (4, 3), (3, 1), (2, 100)])
def test_cost_and_states(paper, resamples, jump):
    model = Counted(ideal_denoiser(paper, PAIRS))
    states = fill(paper, steps=11, model=model, resamples=resamples, jump=jump)
    assert model.evaluations == 11 * resamples
    assert [t for t, _, _ in states] == [*timesteps(1000, 11), 0]
    assert torch.equal(states[-1][1], states[-1][2])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mask": torch.ones(1, 1, 1, 3)}, r"the mask is \(1, 1, 1, 3\), which does not fit images .* \(1, 1, 1, 2\)"),
        ({"mask": torch.ones(1, 2)}, r"the mask is \(1, 2\)"),
        ({"mask": torch.ones(3, 1, 1, 2)}, r"the mask is \(3, 1, 1, 2\)"),
        ({"mask": torch.ones(1, 2, 1, 2)}, r"the mask is \(1, 2, 1, 2\)"),
        ({"known": torch.ones(1, 1, 2, 2)}, r"the image is \(1, 1, 2, 2\)"),
        ({"mask": torch.tensor([0.5, 1]).view(1, 1, 1, 2)}, "must be of zeros .* and ones"),
        ({"resamples": 0}, "resamples = 0 and jump = 10 must be at least 1"),
        ({"jump": 0}, "resamples = 10 and jump = 0 must be at least 1"),
        ({"variance": "small"}, 'variance "small" is unknown'),
        ({"variance": "learned"}, "has learned no variance"),
        ({"known": torch.zeros(1, 1, 1, 2, dtype=torch.uint8)}, "must be in .-1, 1.: to_float makes it of uint8"),
    ],
    ids=str,
)
def test_what_cannot_be_filled_in_is_refused(paper, wrong, message):
    with pytest.raises(ValueError, match=message):
        fill(paper, **wrong)


def test_filling_in_works_through_generate_and_in_colour(paper):
    known, mask = torch.full((1, 3, 2, 2), 1.0), torch.zeros(1, 1, 2, 2)
    mask[..., 0] = 1
    options = {"sampler": repaint_sampler, "steps": 5, "resamples": 2, "batch_size": 2, "progress": False}
    images, _ = generate(lambda xt, t: xt, paper, 3, (3, 2, 2), known=known, mask=mask, **options)
    assert images.shape == (3, 3, 2, 2) and (images[..., 0] == 255).all() and (images[..., 1] < 255).any()


# given beginnings


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.full((1, 1, 2, 2), 200, dtype=torch.uint8), "the image must be in .-1, 1.: to_float makes it of uint8"),
        (torch.zeros(3, 1, 2, 2), "the image is .3, 1, 2, 2., which does not fit images .* = .2, 1, 2, 2."),
    ],
    ids=["black", "many"],
)
def test_beginnings_that_do_not_fit_are_refused(paper, image, message):
    with pytest.raises(ValueError, match=message):
        generate(None, paper, 2, (1, 2, 2), sampler=started_from(image, only_the_start), progress=False)


def test_a_given_beginning_is_noised_as_far_as_the_first_time_says(paper):
    images = torch.linspace(-1, 1, 5).view(5, 1, 1, 1).expand(5, 1, 2, 2)
    for image, batch_size in ((images, 5), (images[:1], 5), (images[:1], 2)):
        sampler = started_from(image, only_the_start)
        for steps, first in (([300, 20], 300), ([50], 50), (4, 1000)):
            options = {"sampler": sampler, "steps": steps, "batch_size": batch_size, "seed": 3, "progress": False}
            got, _ = generate(None, paper, 5, (1, 2, 2), **options)
            assert torch.equal(got, to_uint8(q_sample(paper, image, first, noise_source(3, range(5), (1, 2, 2))())))


def test_a_wrong_number_of_labels_is_refused(paper):
    with pytest.raises(ValueError, match="there are 4 labels: there must be one for each of 3 images"):
        labels = torch.tensor([1, 2, 3, 4])
        generate(lambda xt, t: xt, paper, 3, (1, 1, 1), steps=2, batch_size=2, progress=False, labels=labels)


def test_steps_may_be_the_times_themselves(paper):
    _, film = generate(lambda xt, t: xt, paper, 1, (1, 1, 1), steps=[800, 31, 4], film=1, progress=False)
    assert [t for t, _, _ in film] == [800, 31, 4, 0]


def test_little_noise_keeps_the_image_and_much_noise_does_not(paper):
    image, model = torch.full((1, 1, 1, 1), 0.4), ideal_denoiser(paper, POINTS)
    sampler = started_from(image, ddpm_sampler)

    def kept(first):
        times = timesteps(first, 20)
        images, _ = generate(model, paper, 100, (1, 1, 1), steps=times, sampler=sampler, progress=False)
        return (images == to_uint8(image)).float().mean().item()

    assert kept(20) > 0.95 and kept(1000) < 0.6


# ways between images


def test_slerp_ends_in_its_ends_and_keeps_the_norm():
    a, b = torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    b = b * (a.flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)).view(3, 1, 1, 1)
    torch.testing.assert_close(slerp(a, b, 0.0), a, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(slerp(a, b, 1.0), b, rtol=1e-12, atol=1e-12)
    for weight in (0.1, 0.5, 0.8):
        between = slerp(a, b, weight)
        torch.testing.assert_close(between.flatten(1).norm(dim=1), a.flatten(1).norm(dim=1), rtol=1e-12, atol=0)
        assert between.dtype == a.dtype and between.shape == a.shape
        for k in range(3):
            torch.testing.assert_close(slerp(a[k : k + 1], b[k : k + 1], weight), between[k : k + 1])


def test_slerp_shares_a_right_angle():
    a, b = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2), torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    expected = torch.tensor([3**0.5 / 2, 0.5]).view(1, 1, 1, 2)  # a third of it
    torch.testing.assert_close(slerp(a, b, 1 / 3), expected)
    assert slerp(a, b, 0.5).dtype == torch.float32


def test_slerp_between_parallel_images_is_a_straight_line():
    a, other = torch.tensor([1.0, 2.0]).view(1, 1, 1, 2), torch.tensor([-2.0, 1.0]).view(1, 1, 1, 2)
    batch = slerp(torch.cat([a, a, a]), torch.cat([3 * a, -a, other]), 0.25)
    torch.testing.assert_close(batch[:2], torch.cat([1.5 * a, 0.5 * a]))
    torch.testing.assert_close(batch[2:].norm(), a.norm())


# the slider


class Elements(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found, self.open = {}, []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.found.setdefault(tag, []).append(dict(attributes))
        if tag not in ("img", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("n", "columns"), [(8, 8), (3, 8), (6, 4)])
def test_slider_is_html_with_one_picture_of_all_moments(channels, n, columns):
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(0, 2, (2, 3, n, channels, 4, 4), generator=generator, dtype=torch.uint8) * 255
    film = list(zip((1000, 40, 0), *levels))
    text = film_slider(film, columns, scale=3)
    parsed = Elements(text)
    assert parsed.open == []
    (image,), (slider,) = parsed.found["img"], parsed.found["input"]
    assert slider["data-times"] == "1000,40,0" and slider["max"] == slider["value"] == "2"
    assert image["alt"] == f"{min(n, columns)} images at 3 moments of their generation"
    assert text.count("data:image/png;base64,") == 1

    data = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"), validate=True)
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    parts = [torch.from_numpy(tile(x[:columns], columns)) for moment in film for x in moment[1:]]
    expected = torch.cat(parts)
    height, width, _ = expected.shape
    assert picture.size == (width, height) and width == min(n, columns) * 6 + 2
    shown = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(height, width, 3)
    assert (shown.int() - expected.int()).abs().max() <= 8  # for the few colours

    box, window = parsed.found["div"]
    moment = 3 * height // 3
    assert f"width: {3 * width}px" in box["style"] and f"height: {moment}px" in window["style"]
    assert re.search(r"margin: (-?\d+)px", image["style"])[1] == str(-2 * moment)
    assert f"(-{moment} * this.value)" in slider["oninput"]
