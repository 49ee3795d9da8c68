"""The preset mnist at logit-normal times: patches of 2x2, predicts the noise, Muon."""

from clocked_training import train_by_clock

from mnist_ddpm.recipe import preset


def train(images, labels, seconds, seed):
    """Trains as long as drawing leaves time; the learning rate reaches 0 at that moment."""
    recipe = preset("mnist", times="logit-normal", seed=seed)
    return train_by_clock(recipe, images, seconds)
