"""Schedules and objectives side by side: equal steps, equal seed, bits/dim and samples of each.

python benchmarks/variants.py            train what is not trained yet, measure, write tables and strips
python benchmarks/variants.py --epochs 1 --n 100 --out /tmp/try    a quick look

Writes variants.json and a strip of samples for each variant to --out, and prints the table.
"""

import argparse
import json
import sys
from pathlib import Path

import imageio.v3 as imageio
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from mnist_ddpm import ddpm  # noqa: E402
from mnist_ddpm.__main__ import main as command_line  # noqa: E402
from mnist_ddpm.likelihood import bits_per_dim  # noqa: E402
from mnist_ddpm.schedules import respace, respaced  # noqa: E402

VARIANTS = {
    "linear-simple": "--schedule linear --objective simple",
    "cosine-simple": "--schedule cosine --objective simple",
    "linear-hybrid": "--schedule linear --objective hybrid",
    "cosine-hybrid": "--schedule cosine --objective hybrid",
    "cosine-vlb": "--schedule cosine --objective vlb",
}
COMMON = "--precision bfloat16 --seed 0"


def train(name: str, folder: Path, epochs: int, data: Path) -> str:
    """Trains the variant to its end, going on where it was stopped. Returns the command."""
    flags = f"{VARIANTS[name]} --epochs {epochs} {COMMON}"
    done = (folder / "config.json").exists() and ddpm.load_config(folder)[1]
    if not done or done["steps"] < epochs * (60_000 // 128):
        resume = ["--resume"] if done else []
        if command_line(["train", "--data", str(data), "--out", str(folder), *flags.split(), *resume]):
            sys.exit(1)
    return f"python -m mnist_ddpm train {flags} --out {folder}"


def bound(
    model: ddpm.Model, schedule: ddpm.Schedule, variance: str, images: Tensor, steps: int, seed: int
) -> tuple[float, float]:
    """bits/dim (mean, standard error) of the 28 x 28 pixels in a chain of so many steps."""
    count = None
    if steps < schedule.T:
        times = ddpm.timesteps(schedule.T, steps)
        model, schedule = respaced(model, times), respace(schedule, times)
    elif schedule.T > 100:
        count = 50
    result = bits_per_dim(
        model, schedule, images, variance=variance, times_per_image=count, margin=2, seed=seed, progress=False
    )
    return result.mean, result.standard_error


def measure(name: str, folder: Path, out: Path, data: Path, n: int, steps: list[int], seed: int) -> dict:
    """bits/dim for each variance and number of steps, and ten ancestral samples at the second of these, in name.png."""
    model, schedule, settings = ddpm.load_checkpoint(folder)
    images = ddpm.load_images(settings, data, "test")[:n]
    variances = ["learned"] if settings.learned_variance else ["posterior", "beta"]
    bits = {
        variance: {count: bound(model, schedule, variance, images, count, seed) for count in steps}
        for variance in variances
    }
    samples, _ = ddpm.generate(
        model, schedule, 10, tuple(images.shape[1:]), sampler=ddpm.ddpm_sampler, steps=steps[1], seed=seed,
        variance=variances[0], progress=False,
    )  # fmt: skip
    imageio.imwrite(out / f"{name}.png", ddpm.enlarge(ddpm.tile(samples, 10), 2))
    minutes = ddpm.load_config(folder)[1]["seconds"] / 60
    return {
        "bits_per_dim": bits, "n": n, "seed": seed, "device": "cpu", "torch": torch.__version__,
        "training_minutes": round(minutes, 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("checkpoints/variants"), help="where the checkpoints go")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="where the results go")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--n", type=int, default=1000, help="test images")
    parser.add_argument("--steps", type=int, nargs="+", default=[1000, 50, 10], help="lengths of the chain")
    parser.add_argument("--seed", type=int, default=0, help="of the measurement")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = {}
    for name in VARIANTS:
        folder = arguments.runs / name
        command = train(name, folder, arguments.epochs, arguments.data)
        row = measure(name, folder, arguments.out, arguments.data, arguments.n, arguments.steps, arguments.seed)
        rows[name] = {"command": command, **row}
        for variance, bits in row["bits_per_dim"].items():
            cells = " | ".join(f"{mean:.3f} ± {error:.3f}" for mean, error in bits.values())
            print(f"| {name} | {variance} | {cells} |", flush=True)
    (arguments.out / "variants.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
