"""Do the distances' 95 % intervals hold? Draws sets of images again and again, and counts.

python benchmarks/intervals.py                                   all; minutes on one core
python benchmarks/intervals.py --repeats 40 --n 250 --out out    a quick look

Real: random training digits, always the same. Drawn: from the other ones, as they are, blurred, or
noised. An interval holds if it contains the mean of the distances of all sets of its size. Writes
intervals.json and intervals.png to --out.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from harness import ROOT, make_parser, run, write_result
from matplotlib.figure import Figure
from torch import Tensor

from mnist_ddpm import ddpm
from mnist_ddpm.data import loading
from mnist_ddpm.evaluation import distances, extractors
from mnist_ddpm.evaluation.distances import Estimate
from mnist_ddpm.machine.files import writable_folder
from mnist_ddpm.machine.process import progress_bar
from mnist_ddpm.recipe import Recipe

REAL = 10_000  # images to compare with
TITLES = {"frechet": "Fréchet distance", "kernel": "kernel distance"}


def make_populations(images: Tensor, seed: int) -> dict[str, Tensor]:
    """Near, less near and far images, uint8 (N, 1, 32, 32) each."""
    x = images.float()
    blurred = F.avg_pool2d(F.pad(x, [1] * 4), 3, stride=1)
    noised = x + 50 * torch.randn(x.shape, generator=ddpm.random_generator(seed, 0))
    changed = {"half blurred": (x + blurred) / 2, "noised": noised}
    as_pixels = {name: y.round().clamp(0, 255).to(torch.uint8) for name, y in changed.items()}
    return {"real": images} | as_pixels


def draw_sets(pool: Tensor, n: int, repeats: int, seed: int) -> Iterator[Tensor]:
    """Features (n, D), drawn independently from the pool (N, D)."""
    generator = ddpm.random_generator(seed, 1, n)
    for _ in range(repeats):
        yield pool[torch.randint(len(pool), (n,), generator=generator)]


def count(estimates: list[Estimate]) -> dict[str, float]:
    """How often the intervals contain the mean, lie above or below, and how wide they are."""
    value, low, high = np.array(estimates).T
    mean, deviation = value.mean(), value.std(ddof=1)
    row = {"mean": mean, "standard_deviation": deviation}
    row |= {"coverage": np.mean((low <= mean) & (mean <= high))}
    row |= {"too_high": np.mean(low > mean), "too_low": np.mean(high < mean)}
    return row | {"half_width_to_1.96_deviations": np.mean(high - low) / 2 / 1.96 / deviation}


def measure(flags, real: Tensor, pools: dict[str, Tensor]) -> list[dict]:
    """A row for each distance, population and n."""
    rows = []
    for name, pool in pools.items():
        for n in flags.n:
            drawn = [*draw_sets(pool, n, flags.repeats, flags.seed)]
            bar = progress_bar(drawn, desc=f"{name}, n = {n}", leave=False)
            kernel = [*distances.kernel_distances(real, drawn)]
            frechet = [distances.frechet_estimate(real, each, k) for k, each in enumerate(bar)]
            for distance, estimates in (("frechet", frechet), ("kernel", kernel)):
                row = {"distance": distance, "drawn": name, "n": n} | count(estimates)
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
    parser = make_parser(__doc__)
    parser.add_argument("--n", type=int, nargs="+", default=[250, 500, 1000, 2000])
    parser.add_argument("--repeats", type=int, default=400, help="sets of each kind and size")
    parser.add_argument("--data", type=Path, default=ROOT / "data")
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    if min(flags.n) < 4 or flags.repeats < 2:
        parser.error("--n must be at least 4, and --repeats at least 2")
    writable_folder(flags.out)
    images = distances.shuffled(loading.load_images(Recipe(), flags.data, "train"), flags.seed)
    judge = extractors.pick_judge("auto", "mnist")
    real = judge.features(images[:REAL])
    populations = make_populations(images[REAL:], flags.seed)
    pools = {name: judge.features(each) for name, each in populations.items()}
    rows = measure(flags, real, pools)
    record = {"repeats": flags.repeats, "seed": flags.seed, "extractor": judge.name}
    record |= {"real": f"{REAL:,} random training images", "drawn": "with replacement from others"}
    write_result(flags.out / "intervals.json", record | {"rows": rows})
    plot(rows, flags.out / "intervals.png")


if __name__ == "__main__":
    run(main)
