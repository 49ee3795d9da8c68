"""Denoising diffusion from scratch: `ddpm` is MNIST_DDPM.ipynb's code, all else builds on it."""

__version__ = "0.5.0"
