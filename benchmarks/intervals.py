"""Do the distances' 95 % intervals hold? Draws sets of images again and again, and counts.

python benchmarks/intervals.py                                   all; minutes on one core
python benchmarks/intervals.py --repeats 40 --n 250 --out out    a quick look

Real: random training digits, always the same. Drawn: from the other ones, as they are, blurred, or
noised. An interval holds if the mean of what all sets of its size got is in it. Writes
intervals.json and intervals.png to --out.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from mnist_ddpm import ddpm  # noqa: E402
from mnist_ddpm.evaluation import distances, extractors  # noqa: E402
from mnist_ddpm.evaluation.distances import Estimate  # noqa: E402
from mnist_ddpm.machine import devices  # noqa: E402
from mnist_ddpm.machine.files import writable_folder  # noqa: E402
from mnist_ddpm.machine.progress import progress_bar  # noqa: E402
from mnist_ddpm.training.recipe import Recipe  # noqa: E402

REAL = 10_000  # images to compare with
TITLES = {"frechet": "Fréchet distance", "kernel": "kernel distance"}


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--n", type=int, nargs="+", default=[250, 500, 1000, 2000], help="images of a set")
    add("--repeats", type=int, default=400, help="sets of each kind and size")
    add("--seed", type=int, default=0)
    add("--data", type=Path, default=Path("data"))
    add("--out", type=Path, default=Path("benchmarks/results"), help="where the results go")
    arguments = parser.parse_args()
    if min(arguments.n) < 4 or arguments.repeats < 2:
        parser.error("--n must be at least 4, and --repeats at least 2")
    return arguments


def populations(images: Tensor, seed: int) -> dict[str, Tensor]:
    """Near, less near and far: uint8 (N, 1, 32, 32) each."""
    x = images.float()
    blurred = F.avg_pool2d(F.pad(x, [1] * 4), 3, stride=1)
    generator = ddpm.random_generator(seed, 0)
    noised = x + 50 * torch.randn(x.shape, generator=generator)
    changed = {"half blurred": (x + blurred) / 2, "noised": noised}
    as_pixels = {name: y.round().clamp(0, 255).to(torch.uint8) for name, y in changed.items()}
    return {"real": images} | as_pixels


def sets(pool: Tensor, n: int, repeats: int, seed: int) -> Iterator[Tensor]:
    """Features (n, D), drawn independently from the pool (N, D)."""
    generator = ddpm.random_generator(seed, 1, n)
    for _ in range(repeats):
        yield pool[torch.randint(len(pool), (n,), generator=generator)]


def tallied(found: list[Estimate]) -> dict[str, float]:
    """How often the intervals hold the mean, lie above or below, and how wide they are."""
    value, low, high = np.array(found).T
    mean, deviation = value.mean(), value.std(ddof=1)
    return {
        "mean": mean, "standard_deviation": deviation,
        "coverage": np.mean((low <= mean) & (mean <= high)),
        "too_high": np.mean(low > mean), "too_low": np.mean(high < mean),
        "half_width_to_1.96_deviations": np.mean(high - low) / 2 / 1.96 / deviation,
    }  # fmt: skip


def measured(a: argparse.Namespace, real: Tensor, pools: dict[str, Tensor]) -> list[dict]:
    """A row for each distance, population and n."""
    rows = []
    for name, pool in pools.items():
        for n in a.n:
            drawn = [*sets(pool, n, a.repeats, a.seed)]
            bar = progress_bar(drawn, desc=f"{name}, n = {n}", leave=False)
            kernel = [*distances.kernel_distances(real, drawn)]
            frechet = [distances.frechet_estimate(real, each, k) for k, each in enumerate(bar)]
            for distance, found in (("frechet", frechet), ("kernel", kernel)):
                row = {"distance": distance, "drawn": name, "n": n} | tallied(found)
                print(json.dumps(row, default=float), flush=True)
                rows.append(row)
    return rows


def plot(rows: list[dict], path: Path) -> None:
    """Coverage against n, a panel for each distance."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for ax, (distance, title) in zip(figure.subplots(1, 2, sharey=True), TITLES.items()):
        ax.axhspan(92, 98, color="grey", alpha=0.15, lw=0)
        ax.axhline(95, color="grey", lw=1, ls=":")
        own = [row for row in rows if row["distance"] == distance]
        for name in dict.fromkeys(row["drawn"] for row in own):
            n, coverage = zip(*[(r["n"], 100 * r["coverage"]) for r in own if r["drawn"] == name])
            ax.plot(n, coverage, "o-", ms=4, lw=1, label=name)
        ax.set(xscale="log", xlabel="images of a set", title=title, ylim=(85, 100))
        ax.set_xticks(n, [f"{value:,}" for value in n])
        ax.minorticks_off()
        ax.legend(fontsize=8, loc="lower right")
    figure.axes[0].set_ylabel("intervals that hold, %")
    figure.suptitle("Do the 95 % intervals of the distances hold?")
    figure.savefig(path, dpi=110)


def main() -> None:
    a = parsed()
    matplotlib.use("Agg")
    writable_folder(a.out)
    images = distances.shuffled(sets.load_images(Recipe(), a.data, "train"), a.seed)
    judge = extractors.pick_judge("auto", "mnist")
    real = judge.features(images[:REAL])
    drawn = populations(images[REAL:], a.seed)
    pools = {name: judge.features(each) for name, each in drawn.items()}
    record = {
        "command": shlex.join(["python", "benchmarks/intervals.py", *sys.argv[1:]]),
        "repeats": a.repeats, "seed": a.seed, "extractor": judge.name,
        "real": f"{REAL:,} random training images",
        "drawn": f"from the {len(images) - REAL:,} other training images, with replacement",
        "rows": measured(a, real, pools), "device": "cpu", "threads": torch.get_num_threads(),
        "hardware": devices.hardware("cpu"), "versions": devices.versions(),
    }  # fmt: skip
    text = json.dumps(record, indent=1, default=float) + "\n"
    (a.out / "intervals.json").write_text(text, encoding="utf-8")
    plot(record["rows"], a.out / "intervals.png")


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped")
