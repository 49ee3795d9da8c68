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

import torch
from harness import ROOT, write_result
from torchvision import datasets

from mnist_ddpm import ddpm
from mnist_ddpm.data import cache, folders, loading
from mnist_ddpm.evaluation import extractors
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.machine.process import progress_bar
from mnist_ddpm.recipe import Recipe
from mnist_ddpm.training import loop, saving
from robustness.reference import comparable
from robustness.tiny_data import save_pictures

SIZES = {"image_size": 16, "base_channels": 8, "channel_mults": (1, 2), "T": 50, "batch_size": 8}
RECIPE = Recipe(dataset="random", channels=1, epochs=1, **SIZES)
REFUSALS = ValueError, OSError  # which the command line reports in one line


Kinds = dict[str, tuple[Path, Callable[[], object]]]  # of files, with what reads them


def run_files(folder: Path) -> Kinds:
    """A checkpoint's weights and state; an extractor."""
    images = torch.arange(16 * 256).view(16, 1, 16, 16).to(torch.uint8)
    weights, state = folder / checkpoints.WEIGHTS, folder / checkpoints.STATE
    judge = folder / "judge.safetensors"
    loop.fit(loop.start_run(RECIPE), images, folder)
    extractors.save_extractor(judge, extractors.Extractor("mnist", 10, (8, 8)), {"accuracy": 0.5})

    return {
        "model.safetensors": (weights, lambda: checkpoints.load(folder).network),
        "training_state.pt": (state, lambda: saving.load_state(folder)[0]),
        "an extractor": (judge, lambda: extractors.load_extractor(judge)),
    }


def data_files(folder: Path) -> Kinds:
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

    def load_labels() -> torch.Tensor:
        return loading.load_labels(digits, folder, "test")

    return {
        "the cache of decoded images": (cached, load_cache),
        "its record": (cache.record_path(cached), load_cache),
        "MNIST's images": (images, lambda: loading.load_images(digits, folder, "test")),
        "MNIST's labels": (raw / "t10k-labels-idx1-ubyte.gz", load_labels),
    }


def damaged_copies(good: bytes, n: int, rng: random.Random) -> Iterator[bytes]:
    """n contents with one byte changed, and a tenth as many whose end is missing."""
    for _ in range(n):
        place, byte = rng.randrange(len(good)), rng.randrange(1, 256)
        yield good[:place] + bytes([good[place] ^ byte]) + good[place + 1 :]
    for _ in range(n // 10):
        yield good[: rng.randrange(len(good))]


def load_damaged(path: Path, load: Callable[[], object], expected: object) -> str:
    """What loading the file as it is now comes to: same, refused, silent or error."""
    try:
        with redirect_stdout(StringIO()):
            return "same" if comparable(load()) == expected else "silent"
    except REFUSALS:
        return "refused"
    except Exception as error:  # of any kind: it would be a traceback
        print(f"{path.name}: {error!r}", file=sys.stderr)
        return "error"


def measure(name: str, path: Path, load: Callable[[], object], flags) -> dict:
    """How often each outcome follows from damage to a file."""
    good, counts = path.read_bytes(), Counter(refused=0, same=0, silent=0, error=0)
    expected, rng = comparable(load()), random.Random(f"{flags.seed} {name}")
    n, cuts = flags.n, flags.n // 10
    for bad in progress_bar(damaged_copies(good, n, rng), total=n + cuts, desc=name):
        path.write_bytes(bad)
        counts[load_damaged(path, load, expected)] += 1
    path.write_bytes(good)
    print(f"{name}: {', '.join(f'{count} {outcome}' for outcome, count in counts.items())}")
    return {"bytes": len(good), "flips": n, "cuts": cuts, **counts}


def main(flags) -> int:
    """Writes how often each outcome follows. Returns 1 for silent damage or another error."""
    checkpoints.BETWEEN_FILES = 0  # nothing saves meanwhile: no second look is due
    datasets.MNIST.mirrors = ["http://127.0.0.1:9/"]  # a damaged archive would be fetched again
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            kinds = run_files(folder / "run") | data_files(folder)
        counts = {name: measure(name, *kind, flags) for name, kind in kinds.items()}
    write_result(flags.out, {"n": flags.n, "seed": flags.seed, "found": counts})
    return int(any(count["silent"] + count["error"] for count in counts.values()))
