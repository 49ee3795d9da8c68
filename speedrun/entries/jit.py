"""JiT (arXiv 2511.13720): a transformer on patches of 4x4, x_0 and the velocity's error."""

from clocked_training import train_by_clock

from mnist_ddpm.recipe import Recipe


def train(images, labels, seconds, seed):
    """Trains as long as drawing leaves time; the learning rate reaches 0 at that moment."""
    recipe = Recipe(
        network="jit",
        patch_size=4,
        prediction="x0",
        schedule="flow",
        objective="velocity",
        times="logit-normal",
        optimizer="muon",
        batch_size=64,
        seed=seed,
    )
    return train_by_clock(recipe, images, seconds)
