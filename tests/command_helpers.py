"""The command line as tests use it: tiny networks, pictures, and what a command answers."""

from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from helpers import with_random_weights
from PIL import Image

from mnist_ddpm import catalogue, ddpm
from mnist_ddpm.commands.command_line import run_command_line
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.recipe import Recipe

NETWORK = {"base_channels": 8, "channel_mults": (1, 2), "T": 20}
DIGITS = Recipe(**NETWORK, objective="hybrid", classes=10)  # with labels and a learned variance
SMALL = "--image-size 16 --base-channels 8 --channel-mults 1 2 --T 20 --batch-size 16".split()


def run(*arguments) -> int:
    """The status of a command."""
    return run_command_line([str(argument) for argument in arguments])


def error_of(capsys, *arguments) -> str:
    """The one line that a command ends in."""
    capsys.readouterr()
    assert run(*arguments) == 1
    *_, line = capsys.readouterr().err.strip().split("\r")[-1].splitlines()
    assert line.startswith("error: ")
    return line


def save_pictures(folder: Path, n: int = 48) -> Path:
    """Small coloured pictures of one bright square each."""
    folder.mkdir(parents=True)
    for k in range(n):
        pixels = np.full((16, 16, 3), 40 + 2 * k, np.uint8)
        pixels[k % 12 : k % 12 + 4, k // 12 : k // 12 + 8] = 255 - k, 200, 2 * k
        Image.fromarray(pixels).save(folder / f"{k:02d}.png")
    return folder


def save_network(folder: Path, recipe: Recipe, std: float = 0.1, **changes) -> Path:
    """An untrained checkpoint, with random weights everywhere."""
    recipe = replace(recipe, **changes)
    network = with_random_weights(catalogue.make_network(recipe), std)
    checkpoints.save_checkpoint(folder, network, recipe, {})
    return folder


def blobs(n: int, first: int = 0) -> torch.Tensor:
    """Grey pictures like digits with their margin: uint8 (n, 1, 32, 32)."""
    images = torch.zeros(n, 1, 32, 32, dtype=torch.uint8)
    for k, image in enumerate(images[:, 0], first):
        row, column = 3 + k % 15, 3 + k // 15 % 15
        image[row : row + 8, column : column + 8] = 255 - k % 7
    return images


def drawn(out: Path, *arguments) -> np.ndarray:
    """The images that `sample` writes, (N, H, W): their first channel, whole numbers."""
    assert run("sample", "--out", out, *arguments) == 0
    return np.load(out / "samples.npz")["images"][..., 0].astype(int)


def skip_films(monkeypatch) -> None:
    """Strips and GIFs take most of the time of `sample`: for tests that do not look at them."""
    monkeypatch.setattr(ddpm, "show_strip", lambda film, **options: plt.figure())
    monkeypatch.setattr(ddpm, "save_gif", lambda *arguments, **options: None)
