"""The commands of `python -m mnist_ddpm`, one module each."""
