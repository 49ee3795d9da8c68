"""A folder of tiny data sets, checkpoints and results, which each random command gets a copy of."""

import os
import shutil
import zlib
from pathlib import Path

import numpy as np
import torch
from harness import ROOT
from PIL import Image

from mnist_ddpm import catalogue
from mnist_ddpm.commands.command_line import run_command_line
from mnist_ddpm.evaluation.extractors import Extractor, save_extractor
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.formats.diffusers import save_diffusers
from mnist_ddpm.recipe import Recipe

FACES = 140  # of CelebA to train on: the extractor's batch is 128
HUGE = 13_000  # pixels: a side of an image of 169 megapixels
COMMANDS = """
train --dataset pictures --image-size 16 --base-channels 4 --channel-mults 1 2 --T 8 \
    --batch-size 8 --epochs 2 --out run
sample --checkpoint run --n 6 --steps 2 --out samples
evaluate --checkpoint run --n 6 --steps 2 --extractor judge.safetensors --out card.json
evaluate --checkpoint run --n 6 --steps 2 --extractor judge.safetensors --seed 1 --out other.json
likelihood --checkpoint run --split train --out bound.json
""".strip().splitlines()


def picture(k: int, size: tuple[int, int] = (16, 16)) -> Image.Image:
    """A colour with a square."""
    pixels = np.full((*size[::-1], 3), 40 + 7 * k % 200, np.uint8)
    pixels[k % 8 : k % 8 + 5, k // 8 % 8 : k // 8 % 8 + 5] = 255 - k % 200, 200, 2 * k % 250
    return Image.fromarray(pixels)


def save_pictures(
    folder: Path, count: int, size: tuple[int, int] = (16, 16), name: str = "{:02d}.png"
) -> None:
    """Makes a folder of different pictures."""
    folder.mkdir(parents=True)
    for k in range(count):
        picture(k, size).save(folder / name.format(k))


def save_data(folder: Path) -> None:
    """Folders of pictures, a little CelebA and FFHQ, and MNIST."""
    save_pictures(folder / "pictures", 24)
    save_pictures(folder / "data/ffhq", 24, (32, 32), "{:05d}.png")
    faces = folder / "data/celeba/img_align_celeba"
    save_pictures(faces, FACES + 40, (89, 109), "{:06d}.jpg")
    names = sorted(path.name for path in faces.iterdir())
    splits = "".join(f"{name} {int(k >= FACES)}\n" for k, name in enumerate(names))
    (folder / "data/celeba/list_eval_partition.txt").write_text(splits)
    columns = " ".join(["Smiling", "Male", *(f"A{i}" for i in range(38))])
    rows = [f"{name} " + " ".join(["1", "-1"] * 20) for name in names]
    lines = "\n".join([str(len(rows)), columns, *rows, ""])
    (folder / "data/celeba/list_attr_celeba.txt").write_text(lines)
    shutil.copytree(ROOT / "data/MNIST/raw", folder / "data/MNIST/raw")
    Image.fromarray(np.eye(28, dtype=np.uint8) * 255).save(folder / "digit.png")
    mask = np.full((28, 28), 255, np.uint8)
    mask[10:20, 10:20] = 0
    Image.fromarray(mask).save(folder / "mask.png")


def save_networks(folder: Path) -> None:
    """Untrained checkpoints of every kind, and extractors."""
    sizes = {"image_size": 32, "base_channels": 4, "channel_mults": (1, 2), "T": 8}
    wide = {"image_size": 8, "base_channels": 128, "channel_mults": (1,), "patch_size": 1}
    recipes = {
        "plain": Recipe(**sizes),
        "labels": Recipe(**sizes, classes=10, objective="hybrid"),
        "faces": Recipe("celeba", **sizes, attributes=("Smiling",)),
        "ffhq": Recipe("ffhq", **sizes),
        "wide": Recipe("pictures", **sizes | wide),
    }
    for name, recipe in recipes.items():
        network = catalogue.make_network(recipe)
        checkpoints.save_checkpoint(folder / name, network, recipe, {"steps": 0})
    save_diffusers(folder / "diffusers", network, recipe)
    save_extractor(folder / "judge.safetensors", Extractor("celeba", 40, (8, 8)), {})
    save_extractor(folder / "digits.safetensors", Extractor("mnist", 10, (8, 8)), {})


def black_png(side: int, kind: int, depth: int, channels: int, rows: int | None = None) -> bytes:
    """A square PNG of hardly any bytes, however large. rows: those that it has, if not all."""
    row, packer = bytes(1 + side * channels * depth // 8), zlib.compressobj(1)
    data = [packer.compress(row) for _ in range(side if rows is None else rows)]
    header = np.array([side, side], ">u4").tobytes() + bytes([depth, kind, 0, 0, 0])
    chunks = {b"IHDR": header, b"IDAT": b"".join([*data, packer.flush()]), b"IEND": b""}
    parts = [b"\x89PNG\r\n\x1a\n"]
    for name, content in chunks.items():
        length, checksum = np.array([len(content), zlib.crc32(name + content)], ">u4")
        parts += [length.tobytes(), name, content, checksum.tobytes()]
    return b"".join(parts)


def save_odd(folder: Path) -> None:
    """Files that are none of what a command wants, and large pictures."""
    huge, forged = folder / "huge", folder / "a\x1b]0;FORGED\x07"
    for path in (huge, forged, folder / "locked", folder / "readonly", folder / "hollow"):
        path.mkdir()
    (huge / "rgba.png").write_bytes(black_png(HUGE, 6, 8, 4))
    (huge / "deep.png").write_bytes(black_png(HUGE, 0, 16, 1))
    (huge / "claims.png").write_bytes(black_png(HUGE, 2, 8, 3, rows=1))
    (huge / "large.png").write_bytes(black_png(8000, 6, 8, 4))
    (huge / "large-deep.png").write_bytes(black_png(8000, 0, 16, 1))
    Image.new("L", (HUGE, HUGE)).save(huge / "grey.jpg")
    Image.new("L", (9000, 9000)).save(huge / "steps.jpg", progressive=True)
    np.savez_compressed(folder / "many.npz", images=np.zeros((40_000, 16, 16, 3), np.uint8))
    np.savez(folder / "objects.npz", images=np.array([None, {}], dtype=object))
    np.savez(folder / "none.npz", images=np.zeros((0, 16, 16, 3), np.uint8))
    np.savez(folder / "floats.npz", images=np.zeros((4, 16, 16, 3)))
    os.symlink("loop", folder / "loop")
    os.symlink("nowhere", folder / "dangling")
    os.mkfifo(folder / "fifo")
    (folder / "empty").touch()
    (folder / "README.md").write_text("# Nothing\n")
    (folder / "secret").touch(mode=0)
    (folder / "locked").chmod(0)
    (folder / "readonly").chmod(0o555)
    picture(1).save(forged / "1\rFORGED\n.png")
    (forged / "2\x1b[2J\nFORGED.png").write_text("no image")


def make_base(folder: Path) -> int:
    """Makes all of it, in the working directory. Returns the status of the first failure, or 0."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    save_data(folder)
    save_networks(folder)
    save_odd(folder)
    status = next(filter(None, (run_command_line(command.split()) for command in COMMANDS)), 0)
    shutil.rmtree(folder / "data/cache")
    return status
