"""Which prediction suits vectors? Trains the command line's network on signals and on points.

python benchmarks/vectors.py                    three seeds, some minutes of one core
python benchmarks/vectors.py --only moons       one of the data sets

Prints a table and writes vectors.json; what it has already is not measured again. The data,
networks and cards are in a temporary folder.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from harness import RESULTS, ROOT, make_parser, run, write_result

from mnist_ddpm.experiments.results import mean_and_half_interval

SETTINGS = {
    "eps, simple, linear": ("eps", "simple", "linear"),
    "x0, min-snr, cosine": ("x0", "min-snr", "cosine"),
    "v, simple, cosine": ("v", "simple", "cosine"),
}
EPOCHS = {"waves": 30, "moons": 40}  # 630 and 1,120 steps
SEEDS = 0, 1, 2
HELD_OUT = "held-out rows"


def write_waves(path: Path) -> None:
    """3,000 damped waves of 64 numbers; labels are three frequencies."""
    random = np.random.default_rng(0)
    labels = np.arange(3000) % 3
    frequency, phase, decay, size = (
        random.uniform(low, high, (3000, 1))
        for low, high in ((2.8, 3.2), (0, 2 * np.pi), (1, 4), (0.5, 1.5))
    )
    time = np.linspace(0, 1, 64)
    angle = 2 * np.pi * frequency * (1 + labels[:, None]) * time + phase
    np.savez(path, x=(size * np.exp(-decay * time) * np.sin(angle)).astype("f4"), labels=labels)


def write_moons(path: Path) -> None:
    """4,000 points of two half-circles, with noise."""
    random = np.random.default_rng(0)
    labels = np.arange(4000) % 2
    angle = random.uniform(0, np.pi, 4000)
    x = np.where(labels, 1 - np.cos(angle), np.cos(angle))
    y = np.where(labels, 0.5 - np.sin(angle), np.sin(angle))
    points = np.stack([x, y], axis=1) + random.normal(0, 0.05, (4000, 2))
    rows = [f"{a:.5f},{b:.5f},{'upper lower'.split()[k]}" for (a, b), k in zip(points, labels)]
    path.write_text("\n".join(["x,y,moon", *rows]) + "\n")


DATA = {"waves": ("waves.npz", write_waves), "moons": ("moons.csv", write_moons)}


def command(*words: object) -> None:
    """Runs a command of the package. Raises ValueError with what it printed if it fails."""
    line = [sys.executable, "-m", "mnist_ddpm", *map(str, words)]
    ended = subprocess.run(line, cwd=ROOT, capture_output=True, text=True)
    if ended.returncode:
        raise ValueError(ended.stderr.strip())


def measure(data: Path, settings: tuple[str, str, str], epochs: int, seed: int) -> dict:
    """The figures of a card of a network that is trained on a file."""
    folder = data.parent / f"{data.stem}-{settings[0]}-{seed}"
    prediction, objective, schedule = settings
    how = ["--prediction", prediction, "--objective", objective, "--schedule", schedule]
    how += ["--classes", "auto", "--epochs", epochs, "--seed", seed, "--device", "cpu"]
    command("train", "--dataset", data, *how, "--out", folder)
    card = folder.with_suffix(".json")
    how = ["--sampler", "ddim", "--steps", 50, "--seed", seed, "--device", "cpu"]
    command("evaluate", "--checkpoint", folder, "--n", 300, *how, "--out", card)
    return json.loads(card.read_text(encoding="utf-8"))


def figures(metrics: dict) -> dict:
    """Of a card's metrics."""
    return {name: metrics[name]["value"] for name in ("frechet_distance", "recall")}


def cell(rows: list[dict]) -> str:
    """The mean distance, with its 95 % interval where there are several seeds, and mean recall."""
    distances = [row["frechet_distance"] for row in rows]
    mean, half = mean_and_half_interval(distances)
    text = f"{mean:.3g}" if len(rows) == 1 else f"{mean:.3g} ± {half:.2g}"
    return f"{text} ({np.mean([row['recall'] for row in rows]):.2f})"


def table(rows: list[dict]) -> list[str]:
    """Markdown: a line for each data set, a column for each network."""
    columns = [*SETTINGS, HELD_OUT]
    lines = [" | ".join(["| ", *columns]) + " |", "|---" * (1 + len(columns)) + "|"]
    for data in dict.fromkeys(row["data"] for row in rows):
        own = [row for row in rows if row["data"] == data]
        cells = [cell([row for row in own if row["settings"] == name]) for name in columns]
        lines.append(" | ".join([f"| {data}", *cells]) + " |")
    return lines


def main() -> None:
    parser = make_parser(__doc__, RESULTS / "vectors.json")
    parser.add_argument("--only", nargs="+", choices=DATA, default=[*DATA])
    flags = parser.parse_args()
    rows = json.loads(flags.out.read_text())["rows"] if flags.out.exists() else []
    known = {row["data"] for row in rows}
    with tempfile.TemporaryDirectory() as name:
        for data in flags.only:
            if data in known:
                continue
            file, write = DATA[data]
            write(path := Path(name, file))
            for label, settings in SETTINGS.items():
                for seed in SEEDS:
                    card = measure(path, settings, EPOCHS[data], seed)
                    about = {"data": data, "settings": label, "seed": seed}
                    rows.append(about | figures(card["metrics"]))
                    print(rows[-1], flush=True)
            real = figures(card["floor"]["training against held out"])  # as good as can be
            rows.append({"data": data, "settings": HELD_OUT} | real)
            write_result(flags.out, {"n": 300, "rows": rows})
    print(*table(rows), sep="\n")


if __name__ == "__main__":
    run(main)
