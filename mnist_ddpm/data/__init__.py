"""Data sets and their labels: MNIST, CelebA, FFHQ, and folders of images."""
