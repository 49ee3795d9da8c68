"""How many digits are those that were asked for, after the notebook's short trainings?

python benchmarks/first_minutes.py [--n 1000] [--noise-minutes 5]

It runs the notebook's own cells: the opening cell's training, and chapter 12's for watch_minutes.
With --noise-minutes, chapter 12's network is also trained so long for the noise instead of the
image. The shipped classifier of digits judges, 50 ancestral steps, seed 0; digits of 16x16 pixels
are enlarged to 32x32 first (bicubic).
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from time import perf_counter

import matplotlib
import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from mnist_ddpm import ddpm  # noqa: E402
from mnist_ddpm.evaluation.extractors import own_extractor, pick_judge  # noqa: E402

LAST = "watch-code"
PAPER = ddpm.beta_schedule(ddpm.linear_beta())


def notebook_names() -> dict:
    """What the notebook has defined after its short trainings."""
    matplotlib.use("Agg")
    cells = json.loads((ROOT / "MNIST_DDPM.ipynb").read_text(encoding="utf-8"))["cells"]
    names = {"__name__": "__main__"}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
        if cell["id"] == LAST:
            return names
    raise LookupError(f"the notebook has no cell {LAST}")


def draw(denoise: ddpm.Denoiser, shape: tuple[int, ...]) -> torch.Tensor:
    """Images in [-1, 1] by 50 ancestral steps from seed 0."""
    draw_noise = partial(torch.randn, shape, generator=torch.Generator().manual_seed(0))
    times = ddpm.timesteps(PAPER.T, 50)
    clipped = ddpm.clipped(denoise, PAPER)
    *_, (_, x0, _) = ddpm.ddpm_sampler(clipped, PAPER, times, draw_noise(), draw_noise)
    return x0.clamp(-1, 1)


def judge(name: str, x0: torch.Tensor, labels: torch.Tensor) -> None:
    """Prints how many digits the classifier takes for their labels, and how surely."""
    if x0.shape[-1] < 32:
        x0 = F.interpolate(x0, 32, mode="bicubic").clamp(-1, 1)
    classifier = pick_judge(str(own_extractor("mnist")), "mnist")
    probabilities = classifier.logits(classifier.features(ddpm.to_uint8(x0))).softmax(dim=1)
    agree = (probabilities.argmax(dim=1) == labels).float().mean()
    sure = (probabilities[torch.arange(len(labels)), labels] > 0.9).float().mean()
    print(f"{name}: {agree:.1%} are the digit asked for, {sure:.1%} surely (n = {len(labels)})")


def train_for_noise(names: dict, minutes: float) -> torch.nn.Module:
    """Chapter 12's network, trained so long by l_simple; its weights' moving average."""
    torch.manual_seed(0)
    network = ddpm.UNet(base_channels=16, classes=10)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    average = names["AveragedModel"](network, multi_avg_fn=names["get_ema_multi_avg_fn"](0.99))
    end = perf_counter() + 60 * minutes
    while perf_counter() < end:
        chosen = torch.randint(len(names["digits"]), (64,))
        x0 = ddpm.to_float(names["digits"][chosen])
        t = torch.randint(1, PAPER.T + 1, (64,))
        labelled = partial(network, labels=names["mnist"].targets[chosen])
        loss = ddpm.l_simple(labelled, PAPER, x0, t, torch.randn_like(x0)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update_parameters(network)
    return average


def main() -> None:
    """Trains, draws, judges, prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--noise-minutes", type=float, default=0.0)
    flags = parser.parse_args()
    names = notebook_names()
    labels = torch.arange(flags.n) % 10
    image_denoiser = names["image_denoiser"]
    tiny = image_denoiser(partial(names["image_guesser"], label=labels), PAPER)
    judge("the opening cell", draw(tiny, (flags.n, 1, 16, 16)), labels)
    watched = image_denoiser(partial(names["average"].cpu(), labels=labels), PAPER)
    minutes = names["watch_minutes"]
    judge(f"chapter 12, {minutes} minutes", draw(watched, (flags.n, 1, 32, 32)), labels)
    if flags.noise_minutes > 0:
        network = train_for_noise(names, flags.noise_minutes)
        noise = ddpm.eps_denoiser(partial(network, labels=labels), PAPER)
        name = f"the same network, {flags.noise_minutes:g} minutes for the noise"
        judge(name, draw(noise, (flags.n, 1, 32, 32)), labels)


if __name__ == "__main__":
    main()
