"""The papers' experiments in miniature, on MNIST: `python -m mnist_ddpm.experiments NAME`."""
