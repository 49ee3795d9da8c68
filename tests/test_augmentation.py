"""Augmentation changes images as it says, and none once the last part of training has begun."""

from dataclasses import replace

import pytest
import torch
from helpers import PAPER
from training_helpers import TINY, squares

from mnist_ddpm import catalogue, ddpm
from mnist_ddpm.method import Batch, PlainMethod
from mnist_ddpm.methods.augmentation import Augmented, randomly_recoloured, randomly_shifted
from mnist_ddpm.methods.conditioning import grey
from mnist_ddpm.training.loop import start_run, training_loop

IMAGES = torch.rand(40, 3, 10, 20, generator=ddpm.random_generator(0)) * 2 - 1


def test_a_shift_moves_all_of_an_image_by_up_to_a_tenth():
    torch.manual_seed(0)
    inside = slice(None), slice(1, -1), slice(2, -2)
    offsets = [(down, right) for down in (-1, 0, 1) for right in (-2, -1, 0, 1, 2)]
    seen = set()
    for before, after in zip(IMAGES, randomly_shifted(IMAGES)):
        rolled = {each: before.roll(each, (1, 2)) for each in offsets}
        moves = [each for each in offsets if torch.equal(after[inside], rolled[each][inside])]
        assert len(moves) == 1
        seen |= {*moves}
    assert len(seen) > 8 and {down for down, _ in seen} == {-1, 0, 1}


def test_new_colours_keep_the_order_of_pixels_and_grey_grey():
    torch.manual_seed(0)
    one_channel = IMAGES[:, :1]
    changed = randomly_recoloured(one_channel)
    assert changed.abs().max() <= 1 and not torch.allclose(changed, one_channel, atol=0.2)
    order = one_channel.flatten(1).argsort(dim=1)
    assert (changed.flatten(1).gather(1, order).diff(dim=1) >= 0).all()
    coloured = randomly_recoloured(one_channel.expand(-1, 3, -1, -1))
    torch.testing.assert_close(coloured, coloured[:, :1].expand_as(coloured))
    saturation = IMAGES.std(dim=1).mean(dim=(1, 2))
    assert (randomly_recoloured(IMAGES).std(dim=1).mean(dim=(1, 2)) / saturation).std() > 0.05


def test_saturation_leaves_the_luminance_and_contrast_changes_it_by_up_to_three_tenths():
    torch.manual_seed(0)
    faint = 0.1 * IMAGES  # nothing is cut off
    before, after = (grey(x).flatten(1) for x in (faint, randomly_recoloured(faint)))
    brightness = after.mean(dim=1) - before.mean(dim=1)
    before, after = (x - x.mean(dim=1, keepdim=True) for x in (before, after))
    contrast = (before * after).sum(dim=1) / before.square().sum(dim=1)
    torch.testing.assert_close(after, contrast[:, None] * before)
    for change in (contrast - 1, brightness):
        assert change.min() < -0.2 and change.max() > 0.2 and change.abs().max() < 0.31


@pytest.mark.parametrize("progress, share", [(0.0, 1.0), (0.35, 0.5), (0.7, 0.0), (1.0, 0.0)])
def test_ever_fewer_images_are_changed(progress, share):
    torch.manual_seed(0)
    x0 = IMAGES.repeat(10, 1, 1, 1)
    seen = []
    method = PlainMethod(lambda network, schedule, x0, t, eps: seen.append(x0))
    t = torch.ones(len(x0), dtype=torch.long)
    Augmented(method, [lambda x: -x]).loss(None, PAPER, Batch(x0, t, x0, progress=progress))
    changed = (seen[0] != x0).flatten(1).any(dim=1).float().mean().item()
    assert changed == pytest.approx(share, abs=0.1)


def test_it_is_a_setting_of_a_recipe():
    losses = {}
    for augment in ((), ("shift", "colour")):
        recipe = replace(TINY, augment=augment)
        run = start_run(recipe)
        losses[augment] = list(training_loop(run, squares(), catalogue.make_schedule(recipe)))
    assert losses[()] != losses["shift", "colour"]
    with pytest.raises(ValueError, match="mine"):
        catalogue.make_method(replace(TINY, augment=("mine",)))
