"""Denoising diffusion from scratch: `ddpm` is MNIST_DDPM.ipynb's code, all else builds on it."""

__version__ = "0.29.0"


def __getattr__(name: str):
    """Names that import PyTorch when they are first used."""
    if name == "load_checkpoint":
        from mnist_ddpm.formats.checkpoints import load

        return load
    if name == "sample":
        from mnist_ddpm.commands.sample import sample

        return sample
    if name == "push_to_hub":
        from mnist_ddpm.commands.push import push_to_hub

        return push_to_hub
    if name == "examine":
        from mnist_ddpm.doctor.examination import examine

        return examine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
