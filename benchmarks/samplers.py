"""Samplers side by side at equal network evaluations, with one checkpoint and the same noise.

python benchmarks/samplers.py                      all, with checkpoints/mnist-unlabelled
python benchmarks/samplers.py --n 100 --out out    rough figures, in minutes

Prints, and writes to samplers.json in --out: the Fréchet distance of the images to all training
images, in the features of checkpoints/extractors/mnist.safetensors, with its 95 % interval; and
for the deterministic samplers the RMS distance of the first 100 images, pixels in [-1, 1], to the
equation's solution.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from harness import ROOT, make_parser, run, write_result
from torch import Tensor

from mnist_ddpm import catalogue, ddpm, generation
from mnist_ddpm.data import loading
from mnist_ddpm.evaluation import extractors
from mnist_ddpm.evaluation.distances import Estimate, frechet_estimate, shuffled
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.machine.files import writable_folder
from mnist_ddpm.methods.solvers import dpmpp_2m_sampler, heun_sampler

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


def compare(flags, draw: Callable, distance: Callable[[Tensor], Estimate], T: int) -> dict:
    """Prints a row for each method, with figures for each number of evaluations.

    draw: a sampler, its steps and n to images. Returns {method: {evaluations: figures}}.
    """
    count, rows = min(100, flags.n), {}
    solution = ddpm.to_float(draw(heun_sampler, T // 2, count))
    for name, sampler in METHODS.items():
        rows[name], cells = {}, []
        for evaluations in flags.evaluations:
            steps = (evaluations + 1) // 2 if sampler is heun_sampler else evaluations
            images = draw(sampler, steps, flags.n)
            estimate = distance(images)
            rows[name][evaluations] = {"frechet": estimate._asdict()}
            cells.append(str(estimate))
            if name in DETERMINISTIC:
                error = (ddpm.to_float(images[:count]) - solution).square().mean().sqrt().item()
                rows[name][evaluations]["rms_to_solution"] = error
                cells[-1] += f" / {error:.3f}"
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    return rows


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "checkpoints/mnist-unlabelled")
    parser.add_argument("--data", type=Path, default=ROOT / "data")
    parser.add_argument("--n", type=int, default=1000, help="images of each sampler")
    parser.add_argument("--evaluations", type=int, nargs="+", default=[10, 20, 50])
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    if flags.n < 2 or min(flags.evaluations) < 1:
        parser.error("--n must be at least 2, and --evaluations at least 1")
    sys.stdout.reconfigure(errors="replace")  # Greek letters, where a console has none
    writable_folder(flags.out)
    checkpoint = checkpoints.load(flags.checkpoint, "cpu")
    recipe, schedule = checkpoint.recipe, checkpoint.schedule
    training = loading.load_images(recipe, flags.data, "train")
    judge = extractors.pick_judge("auto", recipe.dataset)
    reference = judge.features(training)
    # shuffled, since MNIST's first half is the neater one
    unseen = shuffled(loading.load_images(recipe, flags.data, "test"), flags.seed, flags.n)
    denoiser_for_batch = generation.make_denoiser_for_batch(checkpoint.network, schedule, recipe)

    def draw(sampler: Callable, steps: int, n: int) -> Tensor:
        options = {"times": ddpm.timesteps(schedule.T, steps), "sampler": sampler}
        options |= {"seed": flags.seed, "progress": False}
        return generation.generate(denoiser_for_batch, schedule, n, recipe.shape, **options)[0]

    def distance(images: Tensor) -> Estimate:
        return frechet_estimate(reference, judge.features(images), flags.seed)

    floor = distance(unseen)
    against = f"{len(unseen)} random test images against all training images"
    print(f"real: {floor} ({against})", flush=True)
    rows = {"real": floor._asdict()} | compare(flags, draw, distance, schedule.T)
    record = {"rows": rows, "n": flags.n, "seed": flags.seed, "extractor": judge.name}
    record |= {"checkpoint": str(flags.checkpoint)}
    record |= {"reference": f"{len(training):,} training images"}
    write_result(flags.out / "samplers.json", record)


if __name__ == "__main__":
    run(main)
