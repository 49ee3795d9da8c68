"""Samplers side by side at equal network evaluations, with one checkpoint and the same noise.

python benchmarks/samplers.py                      all, with checkpoints/mnist
python benchmarks/samplers.py --n 100 --out out    a quick look

Prints, and writes to samplers.json in --out: the Fréchet distance of the images to all training
images, in the features of checkpoints/extractors/mnist.safetensors, with its 95 % interval; and
for the deterministic samplers the RMS distance of the first 100 images, pixels in [-1, 1], to the
equation's solution.
"""

import argparse
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from mnist_ddpm import catalogue, ddpm  # noqa: E402
from mnist_ddpm.data import sets  # noqa: E402
from mnist_ddpm.evaluation import cards, extractors, generation  # noqa: E402
from mnist_ddpm.evaluation.distances import Estimate, frechet_estimate, shuffled  # noqa: E402
from mnist_ddpm.formats import checkpoints  # noqa: E402
from mnist_ddpm.machine.files import writable_folder  # noqa: E402
from mnist_ddpm.methods.solvers import dpmpp_2m_sampler, heun_sampler  # noqa: E402

METHODS = {
    "DDIM, η = 0": ddpm.ddim_sampler,
    "DDIM, η = 0.5": partial(ddpm.ddim_sampler, eta=0.5),
    "DDIM, η = 1 (ancestral, β̃)": partial(ddpm.ddim_sampler, eta=1.0),
    "σ̂ (ancestral, β)": partial(ddpm.ddpm_sampler, variance=catalogue.VARIANCES["beta"]),
    "DPM-Solver++(2M)": dpmpp_2m_sampler,
    "DPM-Solver++(2M), η = 1": partial(dpmpp_2m_sampler, eta=1.0),
    "Heun": heun_sampler,
}
DETERMINISTIC = "DDIM, η = 0", "DPM-Solver++(2M)", "Heun"
Draw = Callable[[Callable, int, int], Tensor]  # a sampler, its steps and n to images
Distance = Callable[[Tensor], Estimate]


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, default=Path("checkpoints/mnist"))
    add("--out", type=Path, default=Path("benchmarks/results"), help="where the results go")
    add("--data", type=Path, default=Path("data"))
    add("--n", type=int, default=1000, help="images of each sampler")
    add("--evaluations", type=int, nargs="+", default=[10, 20, 50])
    add("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.n < 2 or min(arguments.evaluations) < 1:
        parser.error("--n must be at least 2, and --evaluations at least 1")
    return arguments


def drawn_by(name: str, evaluations: int, n: int, draw: Draw) -> Tensor:
    """n images of a method; Heun takes two evaluations a step."""
    sampler = METHODS[name]
    steps = (evaluations + 1) // 2 if sampler is heun_sampler else evaluations
    return draw(sampler, steps, n)


def compare(a: argparse.Namespace, draw: Draw, distance: Distance, T: int) -> dict[str, dict]:
    """A row for each method, with a figure for each number of evaluations; prints them."""
    few, rows = min(100, a.n), {}
    solution = ddpm.to_float(draw(heun_sampler, T // 2, few))
    for name in METHODS:
        rows[name], cells = {}, []
        for evaluations in a.evaluations:
            images = drawn_by(name, evaluations, a.n, draw)
            found = distance(images)
            rows[name][evaluations] = {"frechet": found._asdict()}
            cell = str(found)
            if name in DETERMINISTIC:
                error = (ddpm.to_float(images[:few]) - solution).square().mean().sqrt().item()
                rows[name][evaluations]["rms_to_solution"] = error
                cell += f" / {error:.3f}"
            cells.append(cell)
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    return rows


def main() -> None:
    a = parsed()
    sys.stdout.reconfigure(errors="replace")  # Greek letters, where a console knows none
    writable_folder(a.out)
    checkpoint = checkpoints.load(a.checkpoint, "cpu")
    recipe, schedule = checkpoint.recipe, checkpoint.schedule
    training = sets.load_images(recipe, a.data, "train")
    judge = extractors.pick_judge("auto", recipe.dataset)
    reference = judge.features(training)
    # in no order: MNIST's first half is the neater one
    unseen = shuffled(sets.load_images(recipe, a.data, "test"), a.seed, a.n)
    denoisers = generation.denoisers(checkpoint.network, schedule, recipe)

    def draw(sampler: Callable, steps: int, n: int) -> Tensor:
        options = {"times": ddpm.timesteps(schedule.T, steps), "sampler": sampler}
        options |= {"seed": a.seed, "progress": False}
        return generation.generate(denoisers, schedule, n, recipe.shape, **options)[0]

    def distance(images: Tensor) -> Estimate:
        return frechet_estimate(reference, judge.features(images), a.seed)

    floor = distance(unseen)
    against = f"{len(unseen)} random test images against all training images"
    print(f"real: {floor} ({against})", flush=True)
    rows = {"real": floor._asdict()} | compare(a, draw, distance, schedule.T)
    card = {
        "rows": rows, "n": a.n, "seed": a.seed, "checkpoint": str(a.checkpoint),
        "extractor": judge.name, "reference": f"{len(training):,} training images",
        "device": "cpu", "torch": torch.__version__,
        "command": shlex.join(["python", "benchmarks/samplers.py", *sys.argv[1:]]),
    }  # fmt: skip
    cards.write_card(a.out / "samplers.json", card)


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped")
