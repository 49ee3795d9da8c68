"""Samplers side by side at equal network evaluations, with one checkpoint and the same starting noise.

python benchmarks/samplers.py                      all, with checkpoints/mnist
python benchmarks/samplers.py --n 100 --out out    a quick look

Prints, and writes to samplers.json in --out: the Fréchet distance of the images to all training images, in the features
of checkpoints/extractors/mnist.safetensors, with the interval that resampling the images gives; and for the
deterministic samplers the RMS distance of the first 100 images, pixels in [-1, 1], to the equation's solution.
"""

import argparse
import shlex
import sys
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from mnist_ddpm import ddpm, evaluation, extractors, resumable  # noqa: E402

METHODS = {
    "DDIM, η = 0": ("ddim", {"eta": 0.0}),
    "DDIM, η = 0.5": ("ddim", {"eta": 0.5}),
    "DDIM, η = 1 (ancestral, β̃)": ("ddim", {"eta": 1.0}),
    "σ̂ (ancestral, β)": ("ddpm", {"variance": "beta"}),
    "DPM-Solver++(2M)": ("dpmpp", {}),
    "DPM-Solver++(2M), η = 1": ("dpmpp", {"eta": 1.0}),
    "Heun": ("heun", {}),
}
DETERMINISTIC = "DDIM, η = 0", "DPM-Solver++(2M)", "Heun"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/mnist"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="where the results go")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--n", type=int, default=1000, help="images of each sampler")
    parser.add_argument("--evaluations", type=int, nargs="+", default=[10, 20, 50])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.n < 2 or min(arguments.evaluations) < 1:
        parser.error("--n must be at least 2, and --evaluations at least 1")
    sys.stdout.reconfigure(errors="replace")  # Greek letters, where a console knows none
    resumable.writable_folder(arguments.out)
    model, schedule, settings = ddpm.load_checkpoint(arguments.checkpoint)
    training = ddpm.load_images(settings, arguments.data)
    judge, shape = extractors.pick_judge("auto", settings.dataset), tuple(training.shape[1:])
    reference = judge.features(training)
    unseen = ddpm.load_images(settings, arguments.data, "test")  # in no order: MNIST's first half is the neater one
    chosen = evaluation.shuffled(unseen, arguments.seed, arguments.n)

    def distance(images: Tensor) -> evaluation.Estimate:
        return evaluation.frechet_estimate(reference, judge.features(images), arguments.seed)

    floor = distance(chosen)
    print(f"real: {floor} ({len(chosen)} random test images against all training images)", flush=True)

    def draw(sampler: str, steps: int, n: int, options: dict) -> Tensor:
        return ddpm.generate(
            model, schedule, n, shape, sampler=ddpm.SAMPLERS[sampler], steps=steps, seed=arguments.seed,
            progress=False, **options,
        )[0]  # fmt: skip

    few = min(100, arguments.n)
    solution = ddpm.to_float(draw("heun", schedule.T // 2, few, {}))
    rows = {"real": floor._asdict()}
    for name, (sampler, options) in METHODS.items():
        rows[name], cells = {}, []
        for evaluations in arguments.evaluations:
            steps = (evaluations + 1) // 2 if sampler == "heun" else evaluations
            images = draw(sampler, steps, arguments.n, options)
            found = distance(images)
            rows[name][evaluations] = {"frechet": found._asdict()}
            cell = str(found)
            if name in DETERMINISTIC:
                error = (ddpm.to_float(images[:few]) - solution).square().mean().sqrt().item()
                rows[name][evaluations]["rms_to_solution"] = error
                cell += f" / {error:.3f}"
            cells.append(cell)
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    card = {
        "rows": rows, "n": arguments.n, "seed": arguments.seed, "checkpoint": str(arguments.checkpoint),
        "extractor": judge.name, "reference": f"{len(training):,} training images", "device": "cpu",
        "torch": torch.__version__, "command": shlex.join(["python", "benchmarks/samplers.py", *sys.argv[1:]]),
    }  # fmt: skip
    evaluation.write_card(arguments.out / "samplers.json", card)


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("\nstopped")
