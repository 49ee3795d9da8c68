"""Damage that must not stay silent, in each kind of file.

One byte becomes another, n times, and a tenth as often the end is cut off. Each time the file is
loaded. That is refused in one line, or it gives the same values as before, as where a byte of
padding is hit. Other values would be silent damage. Needs MNIST's archives in data/.
"""

import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import torch
from harness import ROOT, write_result
from torchvision import datasets

from mnist_ddpm import ddpm, trainer
from mnist_ddpm.data import cache, folders, sets
from mnist_ddpm.evaluation import extractors
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.machine.progress import progress_bar
from mnist_ddpm.training import saving
from mnist_ddpm.training.recipe import Recipe
from robustness.reference import comparable
from robustness.tiny_data import save_pictures

SIZES = {"image_size": 16, "base_channels": 8, "channel_mults": (1, 2), "T": 50, "batch_size": 8}
RECIPE = Recipe(dataset="random", channels=1, epochs=1, **SIZES)
REFUSALS = ValueError, OSError  # which the command line reports in one line


class Kind(NamedTuple):
    """A kind of file, and what reads it."""

    path: Path
    load: Callable[[], object]


def run_files(folder: Path) -> dict[str, Kind]:
    """A checkpoint's weights and state, by the package and by the notebook; an extractor."""
    images = torch.arange(16 * 256).view(16, 1, 16, 16).to(torch.uint8)
    weights, state = folder / saving.WEIGHTS, folder / saving.STATE
    judge = folder / "judge.safetensors"
    settings = ddpm.Settings(dataset="random", epochs=1, **SIZES)
    linear = ddpm.beta_schedule(ddpm.linear_beta(settings.T, settings.beta_1, settings.beta_T))
    trainer.train(RECIPE, images, folder)
    extractors.save_extractor(judge, extractors.Extractor("mnist", 10, (8, 8)), {"accuracy": 0.5})

    def resume_in_notebook() -> dict:
        return vars(ddpm.resume_run(folder, settings, linear))

    return {
        "model.safetensors": Kind(weights, lambda: checkpoints.load(folder).network),
        "training_state.pt": Kind(state, lambda: saving.load_state(folder)[0]),
        "weights, by the notebook": Kind(weights, lambda: ddpm.load_checkpoint(folder)[0]),
        "training state, by the notebook": Kind(state, resume_in_notebook),
        "an extractor": Kind(judge, lambda: extractors.load_extractor(judge)),
    }


def data_files(folder: Path) -> dict[str, Kind]:
    """A cache of decoded images, of which one was skipped, and MNIST's archives."""
    pictures, raw = folder / "pictures", folder / "MNIST" / "raw"
    save_pictures(pictures, 12)
    (pictures / "05.png").write_text("no image")
    folders.load_folder(RECIPE, pictures, folder / "cache")
    (cached,) = (folder / "cache").glob("*.npy")
    ignored = shutil.ignore_patterns("*ubyte")
    shutil.copytree(ROOT / "data" / "MNIST" / "raw", raw, ignore=ignored)
    digits, images = Recipe(classes=10), raw / "t10k-images-idx3-ubyte.gz"

    def load_cache() -> tuple:
        content = cache.open_cache(cached, RECIPE.shape)
        ddpm.check(content is not None, "damaged, so that it would be made again")
        return content, cache.skipped_names(cached)

    def load_in_notebook() -> torch.Tensor:
        for unpacked in raw.glob("*ubyte"):  # by the load before, and read without a checksum
            unpacked.unlink()
        return ddpm.load_mnist(32, folder, train=False)

    load_labels = Kind(
        raw / "t10k-labels-idx1-ubyte.gz", lambda: sets.load_labels(digits, folder, "test")
    )
    return {
        "the cache of decoded images": Kind(cached, load_cache),
        "its record": Kind(cache.record_path(cached), load_cache),
        "MNIST's images": Kind(images, lambda: sets.load_images(digits, folder, "test")),
        "MNIST's labels": load_labels,
        "MNIST's images, by the notebook": Kind(images, load_in_notebook),
    }


def damage(good: bytes, n: int, rng: random.Random) -> Iterator[bytes]:
    """n contents with one byte changed, and a tenth as many whose end is missing."""
    for _ in range(n):
        place, byte = rng.randrange(len(good)), rng.randrange(1, 256)
        yield good[:place] + bytes([good[place] ^ byte]) + good[place + 1 :]
    for _ in range(n // 10):
        yield good[: rng.randrange(len(good))]


def load_damaged(kind: Kind, expected: object) -> str:
    """What loading the file as it is now comes to: same, refused, silent or error."""
    try:
        with redirect_stdout(StringIO()):
            return "same" if comparable(kind.load()) == expected else "silent"
    except REFUSALS:
        return "refused"
    except Exception as error:  # of any kind: it would be a traceback
        print(f"{kind.path.name}: {error!r}", file=sys.stderr)
        return "error"


def measure(kind: Kind, n: int, rng: random.Random, name: str) -> dict:
    """How often each outcome follows from damage to a file."""
    good, counts = kind.path.read_bytes(), Counter(refused=0, same=0, silent=0, error=0)
    expected = comparable(kind.load())
    for bad in progress_bar(damage(good, n, rng), total=n + n // 10, desc=name):
        kind.path.write_bytes(bad)
        counts[load_damaged(kind, expected)] += 1
    kind.path.write_bytes(good)
    print(f"{name}: {', '.join(f'{count} {outcome}' for outcome, count in counts.items())}")
    return {"bytes": len(good), "flips": n, "cuts": n // 10, **counts}


def main(flags) -> int:
    """Writes how often each outcome follows. Returns 1 for silent damage or another error."""
    datasets.MNIST.mirrors = ["http://127.0.0.1:9/"]  # a damaged archive would be fetched again
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            kinds = run_files(folder / "run") | data_files(folder)
        counts = {
            name: measure(kind, flags.n, random.Random(f"{flags.seed} {name}"), name)
            for name, kind in kinds.items()
        }
    write_result(flags.out, {"n": flags.n, "seed": flags.seed, "found": counts})
    return int(any(count["silent"] + count["error"] for count in counts.values()))
