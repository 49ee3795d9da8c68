"""Does `train --validate` say what is true? Trains networks of which that is known.

python benchmarks/verdicts.py                                all, one after the other
python benchmarks/verdicts.py --runs "too short" --out out   one of them

Small dense networks learn 10,000 digits of 8 x 8 pixels, or 20 or 200 of these. Distances are in
the features of a classifier that is trained first. Prints a table; the folders in --out have each
run's progress.json and progress.png.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from harness import ROOT, circumstances, make_parser, run
from torch import Tensor, nn

from mnist_ddpm import catalogue, ddpm
from mnist_ddpm.data import loading
from mnist_ddpm.evaluation.distances import shuffled
from mnist_ddpm.evaluation.extractors import Judge
from mnist_ddpm.recipe import Recipe
from mnist_ddpm.training import loop
from mnist_ddpm.training.run import new_run
from mnist_ddpm.watch.validation import RealSet, Validator
from mnist_ddpm.watch.verdict import Verdict, find_verdict

TRAINING, HELD_OUT = 10_000, 2_000  # digits
RECIPE = Recipe(
    dataset="small digits", channels=1, image_size=8, patch_size=1, batch_size=64, epochs=1,
    learning_rate=3e-3, warmup_steps=50, ema_decay=0.99, classes=10,
)  # fmt: skip


@dataclass(frozen=True)
class Known:
    """A training of which the truth is known."""

    truth: str
    steps: int
    settings: dict = field(default_factory=dict)
    images: int = TRAINING
    share: float = 0.5  # of the time of training, for validation
    change_labels: Callable[[Tensor], Tensor] = lambda labels: labels


# Slow steps, so that there are validations enough in a short training
TOO_SHORT = {"batch_size": 512, "learning_rate": 1e-3}
RUNS = {
    "too short": Known("still improving", 150, TOO_SHORT, share=1.0),
    "long enough": Known("done", 2500),
    "20 images by heart": Known("copying", 1800, {"batch_size": 20}, images=20),
    "200 images by heart": Known("copying", 48_000, {"batch_size": 200}, images=200, share=0.1),
    "learning rate too high": Known("diverged", 300, {"learning_rate": 1.0}),
    "labels shuffled": Known("wrong labels", 1200, change_labels=lambda x: shuffled(x, 7)),
}


class Dense(nn.Module):
    """Two hidden layers, and beside them a linear map that depends on t."""

    def __init__(self, pixels: int = 64, width: int = 192, classes: int = 10):
        super().__init__()
        self.sizes = width, width, pixels
        self.classes = classes
        self.time = nn.Sequential(nn.Linear(32, 128), nn.SiLU(), nn.Linear(128, sum(self.sizes)))
        self.label = nn.Embedding(classes + 1, width)
        self.first = nn.Linear(pixels, width)
        self.second = nn.Linear(width, width)
        self.last = ddpm.zero_init(nn.Linear(width, pixels))
        self.linear = nn.Linear(pixels, pixels)
        self.linear_last = ddpm.zero_init(nn.Linear(pixels, pixels))

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        time = self.time(ddpm.time_embedding(t, 32).to(x))
        scale, shift, gain = time.split(self.sizes, dim=1)
        labels = torch.full((len(x),), self.classes) if labels is None else labels
        flat = x.flatten(1)
        h = F.silu(self.first(flat) * (1 + scale) + shift + self.label(labels))
        h = h + F.silu(self.second(h) * (1 + scale) + shift)
        linear = self.linear_last(self.linear(flat) * (1 + gain))
        return (self.last(h) + linear).view_as(x)


class DigitFeatures(nn.Module):
    """A classifier of small digits: uint8 (N, 1, 8, 8) to features (N, 32)."""

    BATCH = 1000
    dataset = RECIPE.dataset
    outputs = RECIPE.classes

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.Tanh()
        )
        self.head = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.body(ddpm.to_float(images))


def load_digits(root: Path, split: str) -> tuple[Tensor, Tensor]:
    """Digits, scaled to 8 x 8 pixels, uint8 (N, 1, 8, 8), and their labels (N,)."""
    original = Recipe(image_size=28, patch_size=4, channel_mults=(1,), classes=10)
    images = loading.load_images(original, root, split).float()
    small = F.interpolate(images, size=(8, 8), mode="bilinear", antialias=True)
    labels = loading.load_labels(original, root, split)
    return small.round().clamp(0, 255).to(torch.uint8), labels


def train_judge(images: Tensor, labels: Tensor, epochs: int = 10) -> Judge:
    """A judge whose classifier has learned these digits."""
    network = DigitFeatures()
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for epoch in range(epochs):
        for part in shuffled(torch.arange(len(images)), epoch).split(100):
            logits = network.head(network(images[part]))
            optimizer.zero_grad()
            F.cross_entropy(logits, labels[part]).backward()
            optimizer.step()
    return Judge(network.eval().requires_grad_(False), "dense classifier of 8 x 8 digits")


def train_and_judge(known: Known, folder: Path, flags, real: RealSet) -> Verdict:
    """The verdict on a run in its folder."""
    images = real.training[: known.images]
    labels = known.change_labels(real.labels[: known.images])
    real = replace(real, training=images, labels=labels)
    recipe = replace(RECIPE, seed=flags.seed, **known.settings)
    epochs = known.steps / (len(images) // recipe.batch_size)
    recipe = replace(recipe, epochs=epochs)
    torch.manual_seed(flags.seed)
    method = catalogue.make_method(recipe)
    begun = new_run(recipe, Dense(), partial(catalogue.make_optimizer, recipe=recipe), method)
    validator = Validator(folder, recipe, real, share=known.share)
    options = {"labels": labels, "log": validator}
    try:
        loop.fit(begun, images, folder, **options)
        validator.finish()
    except FloatingPointError as error:
        print(error)
        validator.record_divergence()
    return find_verdict(validator.progress)


def main() -> None:
    parser = make_parser(__doc__, ROOT / "out" / "verdicts")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=[*RUNS])
    parser.add_argument("--data", type=Path, default=ROOT / "data")
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    torch.manual_seed(flags.seed)
    images, labels = load_digits(flags.data, "train")
    unseen, classes = load_digits(flags.data, "test")
    images, labels = images[:TRAINING], labels[:TRAINING]
    judge = train_judge(images, labels)
    unseen, classes = shuffled(unseen, 0, HELD_OUT), shuffled(classes, 0, HELD_OUT)
    accuracy = (judge.logits(judge.features(unseen)).argmax(dim=1) == classes).double().mean()
    print(f"accuracy of the classifier on {HELD_OUT:,} unseen digits: {accuracy:.1%}", flush=True)
    real = RealSet(images, unseen, labels, judge)
    rows = []
    for name in flags.runs:
        folder = flags.out / name.replace(" ", "-")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        verdict = train_and_judge(RUNS[name], folder, flags, real)
        text = "; ".join([verdict.reason, *verdict.notes])
        rows.append(f"| {name} | {RUNS[name].truth} | {verdict.kind} | {text} |")
        print(rows[-1], flush=True)
    about = circumstances()
    print(f"\n{about['command']} (seed {flags.seed}, {about['hardware']})\n")
    print("| run | truth | verdict | why |\n|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    torch.set_num_threads(1)
    run(main)
