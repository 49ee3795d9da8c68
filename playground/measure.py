"""What the page's first settings rest on: `python playground/measure.py --n 1000`.

With the page's 8-bit weights of mnist-few, judged by the digit classifier: how many test digits
keep their class when they are noised up to t and denoised, and how many images show their label.
"""

import argparse

import build
import torch
from torchvision.datasets import MNIST

from mnist_ddpm import catalogue, ddpm
from mnist_ddpm.evaluation.extractors import pick_judge
from mnist_ddpm.formats import checkpoints
from mnist_ddpm.methods import inpainting
from mnist_ddpm.methods.consistency import consistency_sampler
from mnist_ddpm.methods.guidance import guided, with_labels

TIMES = 200, 250, 300, 400, 500, 550
SETTINGS = (1, 1.0), (4, 1.0), (4, 1.5), (4, 2.0)  # steps, guidance
STEPS = 4


def page_times(schedule: ddpm.Schedule, last: int, n: int) -> list[int]:
    """samplers.js's evenSignal: n falling times from the last."""
    signal = schedule.a.tolist()
    least = signal[last] if last < schedule.T else 0
    times = [last]
    t = last
    for k in range(1, n):
        while signal[t] < least + (1 - least) * k / n:
            t -= 1
        times.append(min(t, times[-1] - 1))
    return [max(t, n - k) for k, t in enumerate(times)]


def as_in_the_page(source: str) -> checkpoints.Checkpoint:
    """A checkpoint with the weights that the page reads."""
    checkpoint = checkpoints.load(source)
    read = build.read_weights(build.stored_weights(build.weights_of(checkpoint), "int8"))
    tensors = {name: torch.from_numpy(value) for name, value in read.items()}
    checkpoint.network.load_state_dict(tensors)
    return checkpoint


def main() -> None:
    """Reads the flags, and prints a line for each setting."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=100, help="images of each setting")
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    network, schedule, recipe = as_in_the_page(build.CHECKPOINT)
    judge = pick_judge("auto", "mnist", side=recipe.shape[-1])

    def draw(sampler, last, steps, labels=None, guidance=1.0):
        """The class of each of the n images."""
        plain = catalogue.make_denoiser(network, schedule, recipe)
        denoise = plain
        if labels is not None:
            labelled = catalogue.make_denoiser(with_labels(network, labels), schedule, recipe)
            denoise = guided(plain, labelled, guidance)
        denoise = ddpm.clipped(denoise, schedule)
        draw_noise = ddpm.noise_source(flags.seed, range(flags.n), recipe.shape)
        times = page_times(schedule, last, steps)
        *_, (_, x, _) = sampler(denoise, schedule, times, draw_noise(), draw_noise)
        return judge.logits(judge.features(ddpm.to_uint8(x))).argmax(1)

    images = ddpm.to_float(ddpm.load_mnist(recipe.shape[-1], train=False)[: flags.n])
    classes = MNIST("data", train=False).targets[: flags.n]
    for t in TIMES:
        found = draw(inpainting.sdedit(images, consistency_sampler), t, STEPS)
        print(f"t = {t}: {(found == classes).double().mean():.1%} keep their class", flush=True)
    labels = torch.arange(flags.n) % recipe.classes
    for steps, guidance in SETTINGS:
        found = draw(consistency_sampler, schedule.T, steps, labels, guidance)
        share = (found == labels).double().mean()
        print(f"{steps} steps, guidance {guidance}: {share:.1%} show their label", flush=True)


if __name__ == "__main__":
    main()
