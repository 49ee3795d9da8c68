"""Do samples have the data's mean colour, and if not, why? Small networks learn 1,000 faces.

python benchmarks/tint.py               three seeds, about an hour of one core
python benchmarks/tint.py --seeds 1     one of them

Trains on the first CelebA faces below --data, 32 x 32. For each network: how far the samples' mean
colour is from the faces', and how far x0_hat's is at each time. Then samples whose x0_hat is
corrected by that, at all times or at some: which times cause the tint? Writes tint.json and
tint.png; the same command continues.
"""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from harness import RESULTS, ROOT, make_parser, run, write_result
from matplotlib.figure import Figure
from torch import Tensor

from experiments.results import mean_and_half_interval
from mnist_ddpm import catalogue, ddpm, generation
from mnist_ddpm.data import loading
from mnist_ddpm.machine.process import progress_bar
from mnist_ddpm.methods.solvers import dpmpp_2m_sampler
from mnist_ddpm.recipe import Recipe
from mnist_ddpm.training import loop
from mnist_ddpm.training.loop import training_loop

FACES = 1000  # of training, and as many others to compare with
SAMPLES = 256
STEPS = 1000  # of training
TIMES = ddpm.timesteps(1000, 20)
LEVELS = 255 / 2  # grey levels in 1 of the range [-1, 1]
BASE = {
    "dataset": "celeba", "image_size": 32, "patch_size": 2, "base_channels": 16, "batch_size": 32,
    "optimizer": "muon", "learning_rate": 5e-3, "warmup_steps": 100, "ema_decay": 0.99,
}  # fmt: skip
CONSTANT = "ε, constant learning rate"
NETWORKS = {  # changes to the recipe, and how many times STEPS
    "ε": ({}, 1),
    "v": ({"prediction": "v"}, 1),
    "x0": ({"prediction": "x0"}, 1),
    "ε, three times as long": ({}, 3),
    CONSTANT: ({}, 1),
    "ε, groups of 1 and 2 channels": ({"norm_groups": 16}, 1),
    "ε, half the learning rate": ({"learning_rate": 2.5e-3}, 1),
}
ONCE = [*NETWORKS][4:]  # trained with one seed: they only look for the cause
RANGES = {"t > 500": (500, 1000), "t ≤ 500": (0, 500), "all t": (0, 1000)}


def mean_colours(images: Tensor) -> Tensor:
    """Of uint8 images or of floats in [-1, 1], (N, C, H, W): (N, C), in grey levels."""
    x = ddpm.to_float(images) if images.dtype == torch.uint8 else images
    return LEVELS * x.double().flatten(2).mean(dim=2)


def tint(colours: Tensor, real: Tensor) -> float:
    """The distance of two sets' mean colours (N, C), root mean square over the channels."""
    return (colours.mean(dim=0) - real.mean(dim=0)).square().mean().sqrt().item()


@torch.no_grad()
def colour_errors(denoise: ddpm.Denoiser, schedule: ddpm.Schedule, faces: Tensor) -> Tensor:
    """By how much x0_hat's mean colour is off, on average over faces, at TIMES: (times, C)."""
    x0 = ddpm.to_float(faces)
    generator = torch.Generator().manual_seed(0)
    errors = []
    for t in TIMES:
        noise = torch.randn(x0.shape, generator=generator)
        a_t, b_t = schedule.at(t)
        x0_hat, _ = denoise(a_t * x0 + b_t * noise, t)
        errors.append((x0_hat - x0).flatten(2).mean(dim=(0, 2)))
    return torch.stack(errors)


def corrected(
    denoise: ddpm.Denoiser, schedule: ddpm.Schedule, errors: Tensor, low: int, high: int
) -> ddpm.Denoiser:
    """A denoiser with x0_hat freed of its mean error at the TIMES low < t <= high."""

    def denoise_and_correct(xt: Tensor, t: ddpm.Time) -> tuple[Tensor, Tensor]:
        x0_hat, eps_hat = denoise(xt, t)
        time = int(torch.as_tensor(t).flatten()[0])
        if not low < time <= high:
            return x0_hat, eps_hat
        x0_hat = x0_hat - errors[TIMES.index(time)].view(1, -1, 1, 1)
        return x0_hat, ddpm.predict_eps(schedule, xt, t, x0_hat)

    return denoise_and_correct


def draw(denoise: ddpm.Denoiser, schedule: ddpm.Schedule, shape: tuple, seed: int) -> Tensor:
    """SAMPLES images, by 20 steps of DPM-Solver++."""
    sampler = partial(dpmpp_2m_sampler, eta=0.0)
    options = {"times": TIMES, "sampler": sampler, "seed": seed, "progress": False}
    return generation.generate(lambda _: denoise, schedule, SAMPLES, shape, **options)[0]


def train(name: str, seed: int, faces: Tensor) -> Iterator[tuple[str, torch.nn.Module, Recipe]]:
    """The networks of a training to measure: the averaged one, of CONSTANT the raw one, too."""
    changes, factor = NETWORKS[name]
    steps = factor * STEPS
    planned = 1000 * steps if name == CONSTANT else steps  # from where the rate falls
    epochs = planned / (len(faces) // BASE["batch_size"])
    recipe = Recipe(**{**BASE, **changes, "epochs": epochs, "seed": seed})
    training = loop.start_run(recipe)
    losses = training_loop(training, faces, catalogue.make_schedule(recipe))
    for _ in progress_bar(range(steps), desc=f"{name}, seed {seed}"):
        next(losses)
    if name == CONSTANT:
        yield f"{name}, raw weights", training.network.eval(), recipe
    yield name, training.ema.eval(), recipe


@torch.no_grad()
def measure(network: torch.nn.Module, recipe: Recipe, faces: Tensor, real: Tensor) -> dict:
    """The tint of a network's samples and its causes, in grey levels.

    real: mean colours of other faces. spread: the standard deviation of the samples' mean colours
    over that of the real ones.
    """
    schedule = catalogue.make_schedule(recipe)
    denoise = ddpm.clipped(catalogue.make_denoiser(network, schedule, recipe), schedule)
    errors = colour_errors(denoise, schedule, faces[:SAMPLES])
    colours = mean_colours(draw(denoise, schedule, recipe.shape, recipe.seed))
    row = {
        "tint": tint(colours, real),
        "standard error": (colours.var(dim=0) / len(colours)).mean().sqrt().item(),
        "spread": (colours.std(dim=0) / real.std(dim=0)).mean().item(),
        "errors": (LEVELS * errors).square().mean(dim=1).sqrt().tolist(),
    }
    for name, (low, high) in RANGES.items():
        changed = corrected(denoise, schedule, errors, low, high)
        samples = draw(changed, schedule, recipe.shape, recipe.seed)
        row[f"corrected, {name}"] = tint(mean_colours(samples), real)
    return row


def table(rows: list[dict], floor: float) -> list[str]:
    """Markdown: means over the seeds, with 95 % intervals where there are several.

    floor: the tint of as many real faces.
    """
    columns = "tint", "spread", *[f"corrected, {name}" for name in RANGES]
    lines = [" | ".join(["", *columns]), "|---" * (len(columns) + 1) + "|"]
    for name in dict.fromkeys(row["network"] for row in rows):
        own = [row for row in rows if row["network"] == name]
        cells = []
        for column in columns:
            mean, half = mean_and_half_interval([row[column] for row in own])
            cells.append(f"{mean:.2f}" if len(own) == 1 else f"{mean:.2f} ± {half:.2f}")
        lines.append(" | ".join([name, *cells]))
    return [*lines, f"{SAMPLES} real faces | {floor:.2f}"]


def plot(rows: list[dict], path: Path) -> None:
    """Left: the tint of each network's samples. Right: the error of x0_hat's mean colour by t."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    names = list(dict.fromkeys(row["network"] for row in rows))
    for place, name in enumerate(names):
        own = [row for row in rows if row["network"] == name]
        left.plot([row["tint"] for row in own], [place] * len(own), "o", ms=4)
        errors = torch.tensor([row["errors"] for row in own]).mean(dim=0)
        right.plot(TIMES, errors, label=name, lw=1.2)
    left.set_yticks(range(len(names)), names)
    left.invert_yaxis()
    left.set(title="How far the samples' mean colour is off", xlabel="grey levels of 255")
    left.set_xlim(left=0)
    right.set(title="… and that of x0_hat, given a noisy face", xlabel="t", yscale="log")
    right.set_ylim(bottom=0.005)  # room for the legend
    right.legend(fontsize=7, loc="lower right")
    for ax in (left, right):
        ax.grid(alpha=0.3)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = make_parser(__doc__, RESULTS / "tint.json")
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="holds celeba/")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=[*NETWORKS])
    flags = parser.parse_args()
    everything = loading.load_images(Recipe(**BASE), flags.data, "train")
    faces = everything[:FACES]
    real = mean_colours(everything[FACES : 2 * FACES])
    floor = tint(mean_colours(faces[:SAMPLES]), real)
    rows = json.loads(flags.out.read_text())["rows"] if flags.out.exists() else []
    for seed in range(flags.seeds):
        for name in flags.only:
            if seed and name in ONCE:
                continue
            if any(row["network"] == name and row["seed"] == seed for row in rows):
                continue
            for network_name, network, recipe in train(name, seed, faces):
                about = {"network": network_name, "seed": seed}
                rows.append(about | measure(network, recipe, faces, real))
            write_result(flags.out, {"n": SAMPLES, "real": floor, "rows": rows})
    print(*table(rows, floor), sep="\n")
    plot(rows, flags.out.with_suffix(".png"))


if __name__ == "__main__":
    run(main)
