"""Denoising diffusion from scratch: `ddpm` is MNIST_DDPM.ipynb's code, all else builds on it."""

__version__ = "0.31.0"
__all__ = ["load_checkpoint", "push_to_hub", "sample"]


def __dir__() -> list[str]:
    """What Tab shows: the names that are there to be used, and the version."""
    return [*__all__, "__version__"]


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
        message = "the doctor is a package of its own: diffusion_doctor.examine, in doctor/"
        raise AttributeError(message)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
