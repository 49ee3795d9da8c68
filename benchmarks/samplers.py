"""Samplers side by side at equal network evaluations, with one checkpoint and the same starting noise.

python benchmarks/samplers.py            all, with checkpoints/mnist
python benchmarks/samplers.py --n 100    a quick look

Prints, and writes to samplers.json in --out: the Fréchet distance of the images' pixels, averaged over 2 x 2, to those
of all training images (a crude measure, which sees contrast, noise and the shares of strokes, not legibility), and for
the deterministic samplers the RMS distance of the first 100 images, pixels in [-1, 1], to the equation's solution.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from mnist_ddpm import ddpm  # noqa: E402

METHODS = {
    "DDIM, η = 0": ("ddim", {"eta": 0.0}),
    "DDIM, η = 0.5": ("ddim", {"eta": 0.5}),
    "DDIM, η = 1 (ancestral, β̃)": ("ddim", {"eta": 1.0}),
    "σ̂ (ancestral, β)": ("ddpm", {"variance": "beta"}),
    "DPM-Solver++(2M)": ("dpmpp", {}),
    "Heun": ("heun", {}),
}
DETERMINISTIC = "DDIM, η = 0", "DPM-Solver++(2M)", "Heun"


def moments(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (196,) and covariance (196, 196) of the 28 x 28 pixels in [0, 1], averaged over 2 x 2."""
    x = F.avg_pool2d(images[..., 2:-2, 2:-2].double() / 255, 2).flatten(1)
    return x.mean(dim=0), torch.cov(x.T)


def frechet(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> float:
    """|m_a - m_b|² + tr(C_a + C_b - 2 (C_a C_b)^½)."""
    values, vectors = torch.linalg.eigh(a[1])
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ b[1] @ root).clamp(min=0).sqrt().sum()
    return ((a[0] - b[0]).square().sum() + a[1].trace() + b[1].trace() - 2 * cross).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/mnist"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="where the results go")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--n", type=int, default=1000, help="images of each sampler")
    parser.add_argument("--evaluations", type=int, nargs="+", default=[10, 20, 50])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    model, schedule, settings = ddpm.load_checkpoint(arguments.checkpoint)
    training = ddpm.load_images(settings, arguments.data)
    reference, shape = moments(training), tuple(training.shape[1:])
    unseen = ddpm.load_images(settings, arguments.data, "test")  # in no order: MNIST's first half is the neater one
    chosen = torch.randperm(len(unseen), generator=torch.Generator().manual_seed(arguments.seed))[: arguments.n]
    floor = frechet(moments(unseen[chosen]), reference)
    print(f"real: {floor:.3f} ({len(chosen)} random test images against all training images)", flush=True)

    def draw(sampler: str, steps: int, n: int, options: dict) -> Tensor:
        return ddpm.generate(
            model, schedule, n, shape, sampler=ddpm.SAMPLERS[sampler], steps=steps, seed=arguments.seed,
            progress=False, **options,
        )[0]  # fmt: skip

    few = min(100, arguments.n)
    solution = ddpm.to_float(draw("heun", schedule.T // 2, few, {}))
    rows = {"real": floor}
    for name, (sampler, options) in METHODS.items():
        rows[name] = {}
        for evaluations in arguments.evaluations:
            steps = (evaluations + 1) // 2 if sampler == "heun" else evaluations
            images = draw(sampler, steps, arguments.n, options)
            rows[name][evaluations] = {"frechet": frechet(moments(images), reference)}
            if name in DETERMINISTIC:
                error = (ddpm.to_float(images[:few]) - solution).square().mean().sqrt().item()
                rows[name][evaluations]["rms_to_solution"] = error
        cells = [" / ".join(f"{value:.3f}" for value in cell.values()) for cell in rows[name].values()]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    card = {
        "rows": rows, "n": arguments.n, "seed": arguments.seed, "checkpoint": str(arguments.checkpoint),
        "extractor": "pixels averaged over 2 x 2", "reference": "60,000 training images", "device": "cpu",
        "torch": torch.__version__, "command": shlex.join(["python", "benchmarks/samplers.py", *sys.argv[1:]]),
    }  # fmt: skip
    (arguments.out / "samplers.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
