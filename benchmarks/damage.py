"""Damage that must not stay silent: `python benchmarks/damage.py` writes damage.json.

In each kind of file one byte becomes another, --n times (300), and a tenth as often its end is cut
off. Each time it is loaded. That is refused in one line, or it gives the same values as before, as
where a byte of padding is hit. Other values would be silent damage: the status is 1 if there are
any, or any other error. --seed (0) chooses places and bytes. Needs MNIST's archives in data/.
"""

import argparse
import contextlib
import gzip
import io
import json
import random
import shlex
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision import datasets

sys.path.insert(1, str(Path(__file__).parents[1]))

from mnist_ddpm import ddpm, trainer
from mnist_ddpm.data import cache, folders, sets
from mnist_ddpm.evaluation import extractors
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.machine import devices
from mnist_ddpm.machine.progress import progress_bar
from mnist_ddpm.training import saving
from mnist_ddpm.training.recipe import Recipe

RESULTS = Path(__file__).parent / "results"
ARCHIVES = Path(__file__).parents[1] / "data" / "MNIST" / "raw"
SIZES = {"image_size": 16, "base_channels": 8, "channel_mults": (1, 2), "T": 50, "batch_size": 8}
RECIPE = Recipe(dataset="random", channels=1, epochs=1, **SIZES)
TOLD = ValueError, OSError  # what the command line tells in one line


class Kind(NamedTuple):
    """A kind of file, what reads it, and the errors that refuse it."""

    path: Path
    load: Callable[[], object]
    refusals: tuple[type[Exception], ...] = TOLD


def kinds(folder: Path) -> dict[str, Kind]:
    """One file of each, small, in a folder."""
    return {**of_a_run(folder / "run"), **of_data(folder)}


def of_a_run(folder: Path) -> dict[str, Kind]:
    """A checkpoint's weights and state, by the package and by the notebook; an extractor."""
    images = torch.arange(16 * 256).view(16, 1, 16, 16).to(torch.uint8)
    weights, state = folder / saving.WEIGHTS, folder / saving.STATE
    judge = folder / "judge.safetensors"
    settings = ddpm.Settings(dataset="random", epochs=1, **SIZES)
    linear = ddpm.beta_schedule(ddpm.linear_beta(settings.T, settings.beta_1, settings.beta_T))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        trainer.train(RECIPE, images, folder)
    extractors.save_extractor(judge, extractors.Extractor("mnist", 10, (8, 8)), {"accuracy": 0.5})
    return {
        "model.safetensors": Kind(weights, lambda: checkpoints.load(folder).network),
        "training_state.pt": Kind(state, lambda: saving.load_state(folder)[0]),
        "model.safetensors, by the notebook": Kind(
            weights, lambda: ddpm.load_checkpoint(folder)[0]
        ),
        "training_state.pt, by the notebook": Kind(
            state, lambda: vars(ddpm.resume_run(folder, settings, linear))
        ),
        "an extractor": Kind(judge, lambda: extractors.load_extractor(judge)),
    }


def of_data(folder: Path) -> dict[str, Kind]:
    """A cache of decoded images, of which one was skipped, and MNIST's archives."""
    pictures, raw = folder / "pictures", folder / "MNIST" / "raw"
    pictures.mkdir()
    for k in range(12):
        Image.new("L", (16, 16), 20 * k).save(pictures / f"{k:02d}.png")
    (pictures / "05.png").write_text("no image")
    with contextlib.redirect_stdout(io.StringIO()):
        folders.load_folder(RECIPE, pictures, folder / "cache")
    (cached,) = (folder / "cache").glob("*.npy")
    raw.mkdir(parents=True)
    for path in ARCHIVES.glob("t10k*.gz"):
        shutil.copy(path, raw)
        (raw / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    archives = folder / "notebook" / "MNIST" / "raw"
    archives.mkdir(parents=True)
    for path in ARCHIVES.glob("*.gz"):
        shutil.copy(path, archives)
    archive = archives / "t10k-images-idx3-ubyte.gz"
    digits = Recipe(classes=10)
    images, labels = raw / "t10k-images-idx3-ubyte", raw / "t10k-labels-idx1-ubyte"

    def load_images() -> torch.Tensor:
        return sets.load_images(digits, folder, "test")

    def load_labels() -> torch.Tensor:
        return sets.load_labels(digits, folder, "test")

    def load_in_notebook() -> torch.Tensor:
        for unpacked in archives.glob("*ubyte"):  # by the load before, and read without a checksum
            unpacked.unlink()
        return ddpm.load_mnist(32, folder / "notebook", train=False)

    return {
        "the cache of decoded images": Kind(cached, lambda: load_cache(cached)),
        "its record": Kind(cache.record_path(cached), lambda: load_cache(cached)),
        "MNIST's images": Kind(images.with_suffix(".gz"), load_images),
        "MNIST's labels": Kind(labels.with_suffix(".gz"), load_labels),
        "MNIST's images, unpacked": Kind(images, load_images),
        "MNIST's labels, unpacked": Kind(labels, load_labels),
        "MNIST's images, by the notebook": Kind(archive, load_in_notebook),
    }


def load_cache(path: Path) -> tuple:
    """Images, and the names of those skipped. Raises ValueError where it would be made anew."""
    images = cache.open_cache(path, RECIPE.shape)
    ddpm.check(images is not None, "damaged")
    return images, cache.skipped_names(path)


def plain(value: object) -> object:
    """A state as what == compares bit by bit."""
    if isinstance(value, nn.Module | torch.optim.Optimizer):
        value = value.state_dict()
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return [*map(plain, value)] if isinstance(value, list | tuple) else value


def damaged(good: bytes, n: int, chance: random.Random) -> Iterator[bytes]:
    """n contents with one byte changed, and a tenth as many whose end is missing."""
    for _ in range(n):
        place, byte = chance.randrange(len(good)), chance.randrange(1, 256)
        yield good[:place] + bytes([good[place] ^ byte]) + good[place + 1 :]
    for _ in range(n // 10):
        yield good[: chance.randrange(len(good))]


def outcome(kind: Kind, expected: object) -> str:
    """What loading the file as it is now comes to."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return "same" if plain(kind.load()) == expected else "silent"
    except kind.refusals:
        return "refused"
    except Exception as error:  # of any kind: it would be a traceback
        print(f"{kind.path.name}: {error!r}", file=sys.stderr)
        return "error"


def measure(kind: Kind, n: int, chance: random.Random, name: str) -> dict:
    """How often each outcome comes of damage to a file."""
    good, found = kind.path.read_bytes(), Counter(refused=0, same=0, silent=0, error=0)
    expected = plain(kind.load())
    for bad in progress_bar(damaged(good, n, chance), total=n + n // 10, desc=name):
        kind.path.write_bytes(bad)
        found[outcome(kind, expected)] += 1
    kind.path.write_bytes(good)
    return {"bytes": len(good), "flips": n, "cuts": n // 10, **found}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "damage.json")
    flags = parser.parse_args()
    datasets.MNIST.mirrors = ["http://127.0.0.1:9/"]  # a damaged archive would be fetched anew
    with tempfile.TemporaryDirectory() as folder:
        found = {
            name: measure(kind, flags.n, random.Random(f"{flags.seed} {name}"), name)
            for name, kind in kinds(Path(folder)).items()
        }
    record = {
        "command": shlex.join(["python", *sys.argv]), "n": flags.n, "seed": flags.seed,
        "found": found, "device": "cpu", "hardware": devices.hardware("cpu"),
        "versions": devices.versions() | {"numpy": np.__version__},
    }  # fmt: skip
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    flags.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for name, counts in found.items():
        print(f"{name}: {', '.join(f'{count} {what}' for what, count in counts.items())}")
    return int(any(counts["silent"] + counts["error"] for counts in found.values()))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("\nstopped")
