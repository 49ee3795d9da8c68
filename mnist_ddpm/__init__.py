"""Denoising diffusion from scratch. `mnist_ddpm.ddpm` is generated from MNIST_DDPM.ipynb."""

__version__ = "0.1.0"
