"""A folder of tiny data sets, checkpoints and results, which each command gets a copy of."""

import os
import shutil
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mnist_ddpm import catalogue, trainer
from mnist_ddpm.data import celeba
from mnist_ddpm.evaluation.extractors import Extractor, save_extractor
from mnist_ddpm.formats.diffusers import save_diffusers
from mnist_ddpm.training.recipe import Recipe

ROOT = Path(__file__).parents[2]
TINY = "--image-size 16 --base-channels 4 --channel-mults 1 2 --T 8 --batch-size 8".split()
NETWORK = {"image_size": 32, "base_channels": 4, "channel_mults": (1, 2), "T": 8}
FACES = 140  # of CelebA: the extractor's batch is 128
HUGE = 13_000  # pixels: a side of an image of 169 megapixels


def picture(k: int, size: tuple[int, int] = (16, 16)) -> Image.Image:
    """A colour with a square."""
    pixels = np.full((*size[::-1], 3), 40 + 7 * k % 200, np.uint8)
    pixels[k % 8 : k % 8 + 5, k // 8 % 8 : k // 8 % 8 + 5] = 255 - k % 200, 200, 2 * k % 250
    return Image.fromarray(pixels)


def save_data(folder: Path) -> None:
    """Folders of pictures, a little CelebA and FFHQ, and MNIST."""
    for place in ("pictures", "data/celeba/img_align_celeba", "data/ffhq", "data/MNIST"):
        (folder / place).mkdir(parents=True)
    for k in range(24):
        picture(k).save(folder / "pictures" / f"{k:02d}.png")
    for k in range(24):
        picture(k, (32, 32)).save(folder / "data/ffhq" / f"{k:05d}.png")
    names = [f"{k:06d}.jpg" for k in range(1, FACES + 41)]
    for k, name in enumerate(names):
        picture(k, (89, 109)).save(folder / "data/celeba/img_align_celeba" / name)
    parts = "".join(f"{name} {int(k >= FACES)}\n" for k, name in enumerate(names))
    (folder / "data/celeba/list_eval_partition.txt").write_text(parts)
    columns = ["Smiling", "Male", *(f"A{i}" for i in range(38))]
    rows = [f"{name} " + " ".join(["1", "-1"] * 20) for name in names]
    lines = [str(len(rows)), " ".join(columns), *rows]
    (folder / "data/celeba/list_attr_celeba.txt").write_text("\n".join(lines) + "\n")
    shutil.copytree(ROOT / "data/MNIST/raw", folder / "data/MNIST/raw")
    Image.fromarray(np.eye(28, dtype=np.uint8) * 255).save(folder / "digit.png")
    mask = np.full((28, 28), 255, np.uint8)
    mask[10:20, 10:20] = 0
    Image.fromarray(mask).save(folder / "mask.png")


def save_networks(folder: Path) -> None:
    """Checkpoints that were never trained, of every kind, and extractors."""
    recipes = {
        "plain": Recipe(**NETWORK),
        "labels": Recipe(**NETWORK, classes=10, objective="hybrid"),
        "faces": Recipe("celeba", **NETWORK, attributes=("Smiling",)),
        "ffhq": Recipe("ffhq", **NETWORK),
    }
    for name, recipe in recipes.items():
        network = catalogue.make_network(recipe)
        trainer.save_checkpoint(folder / name, network, recipe, {"steps": 0})
    wide = {"image_size": 8, "base_channels": 128, "channel_mults": (1,), "patch_size": 1}
    recipe = Recipe("pictures", **NETWORK | wide)
    network = catalogue.make_network(recipe)
    save_diffusers(folder / "diffusers", network, recipe)
    trainer.save_checkpoint(folder / "wide", network, recipe, {"steps": 0})
    save_extractor(folder / "judge.safetensors", Extractor("celeba", 40, (8, 8)), {})
    save_extractor(folder / "digits.safetensors", Extractor("mnist", 10, (8, 8)), {})


def png(
    width: int, height: int, kind: int, depth: int, channels: int, rows: int | None = None
) -> bytes:
    """A black PNG: hardly any bytes, however large it is. rows: that it has, if not all."""
    row, packer = bytes(1 + width * channels * depth // 8), zlib.compressobj(1)
    data = [packer.compress(row) for _ in range(height if rows is None else rows)]
    header = np.array([width, height], ">u4").tobytes() + bytes([depth, kind, 0, 0, 0])

    def chunk(name: bytes, content: bytes) -> bytes:
        sums = np.array([zlib.crc32(name + content)], ">u4").tobytes()
        return np.array([len(content)], ">u4").tobytes() + name + content + sums

    parts = (b"IHDR", header), (b"IDAT", b"".join([*data, packer.flush()])), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def save_odd(folder: Path) -> None:
    """Files that are none of what a command wants, and large pictures."""
    (folder / "huge").mkdir()
    (folder / "huge/rgba.png").write_bytes(png(HUGE, HUGE, 6, 8, 4))
    (folder / "huge/deep.png").write_bytes(png(HUGE, HUGE, 0, 16, 1))
    (folder / "huge/claims.png").write_bytes(png(HUGE, HUGE, 2, 8, 3, rows=1))
    (folder / "huge/large.png").write_bytes(png(8000, 8000, 6, 8, 4))
    (folder / "huge/large-deep.png").write_bytes(png(8000, 8000, 0, 16, 1))
    Image.new("L", (HUGE, HUGE)).save(folder / "huge/grey.jpg")
    Image.new("L", (9000, 9000)).save(folder / "huge/steps.jpg", progressive=True)
    np.savez_compressed(folder / "many.npz", images=np.zeros((40_000, 16, 16, 3), np.uint8))
    np.savez(folder / "objects.npz", images=np.array([None, {}], dtype=object))
    np.savez(folder / "none.npz", images=np.zeros((0, 16, 16, 3), np.uint8))
    np.savez(folder / "floats.npz", images=np.zeros((4, 16, 16, 3)))
    os.symlink("loop", folder / "loop")
    os.symlink("nowhere", folder / "dangling")
    os.mkfifo(folder / "fifo")
    (folder / "empty").touch()
    (folder / "README.md").write_text("# Nothing\n")
    (folder / "secret").write_text("{}")
    (folder / "secret").chmod(0)
    (folder / "locked").mkdir()
    (folder / "locked").chmod(0)
    (folder / "readonly").mkdir(mode=0o555)
    (folder / "hollow").mkdir()
    (folder / "a\x1b]0;FORGED\x07").mkdir()
    picture(1).save(folder / "a\x1b]0;FORGED\x07" / "1\rFORGED\n.png")
    (folder / "a\x1b]0;FORGED\x07" / "2\x1b[2J\nFORGED.png").write_text("no image")


def make_base(folder: Path, command) -> None:
    """All of it. command: runs one of the project's in that folder."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    save_data(folder)
    save_networks(folder)
    save_odd(folder)
    assert len(celeba.find_celeba(folder / "data")) == 1
    run = ["--dataset", "pictures", *TINY, "--epochs", "2"]
    command(["train", *run, "--out", "run"])
    command(["sample", "--checkpoint", "run", "--n", "6", "--steps", "2", "--out", "samples"])
    judged = ["--checkpoint", "run", "--n", "6", "--steps", "2", "--extractor", "judge.safetensors"]
    for seed, name in enumerate(("card.json", "other.json")):
        command(["evaluate", *judged, "--seed", str(seed), "--out", name])
    command(["likelihood", "--checkpoint", "run", "--split", "train", "--out", "bound.json"])
    shutil.rmtree(folder / "data/cache")
