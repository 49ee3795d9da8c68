"""Trains the network whose features `evaluate` compares, and prints its accuracy on unseen images.

python tools/train_extractor.py --dataset mnist --out out/mnist.safetensors
"""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

from mnist_ddpm.data import loading
from mnist_ddpm.datasets import dataset_named, datasets_with_classifier
from mnist_ddpm.ddpm import check, mirrored
from mnist_ddpm.evaluation.extractors import Extractor, in_batches, save_extractor
from mnist_ddpm.machine import devices, files
from mnist_ddpm.machine.process import progress_bar
from mnist_ddpm.machine.processes import adapt_threads
from mnist_ddpm.machine.text import printable
from mnist_ddpm.methods.augmentation import cut_out
from mnist_ddpm.recipe import Recipe
from mnist_ddpm.training.cost import count_parameters

RATE = 2e-3  # the learning rate at its peak


def shifted(images: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Images (N, C, H, W), each moved by up to `most` pixels either way, its edge repeated."""
    n, _, height, width = images.shape
    padded = F.pad(images.float(), [most] * 4, mode="replicate").to(images.dtype)
    dy, dx = torch.randint(0, 2 * most + 1, (2, n, 1), generator=generator)
    return cut_out(padded, dy, dx, height, width)


def labelled_images(dataset: str, root: str | Path, split: str) -> tuple[Tensor, Tensor]:
    """Images uint8 (N, C, H, W), and their classes int64 (N,) or attributes float32 (N, outputs).

    Raises ValueError where there are not as many of both.
    """
    classifier = dataset_named(dataset).classifier
    size = classifier.image_size
    recipe = Recipe(dataset=dataset, image_size=size, classes=classifier.outputs)
    images = loading.load_images(recipe, root, split)
    targets = loading.reader(classifier.targets)(recipe, root, split)
    # where some could not be read, and there is no cache to say which
    counts = f"{len(images)} images of {dataset}, and {len(targets)} with labels"
    check(len(images) == len(targets), f"{counts}: repair those skipped")
    return images, targets.float() if targets.ndim == 2 else targets


def accuracy(
    extractor: Extractor, images: Tensor, wanted: Tensor, device: torch.device | str = "cpu"
) -> float:
    """Share of right digits, or of right attributes over all images and attributes."""
    logits = in_batches(extractor.eval().classify, images, device)
    is_right = (logits > 0) == (wanted > 0) if wanted.ndim == 2 else logits.argmax(dim=1) == wanted
    return is_right.double().mean().item()


def train_extractor(
    dataset: str, root: str | Path = "data", *, epochs: int = 12, **options
) -> tuple[Extractor, float]:
    """An extractor for a data set with a classifier, and its accuracy on the held-out split.

    options: others of fit_extractor. Raises ValueError for another data set, or less than one
    epoch, and as loading images does.
    """
    check(epochs >= 1, f"epochs is {epochs}: it must be at least 1")
    known = datasets_with_classifier()
    advice = f"take one of {', '.join(known)}"
    check(dataset in known, f'there is no extractor for "{dataset}": {advice}')
    training = labelled_images(dataset, root, "train")
    held_out = labelled_images(dataset, root, dataset_named(dataset).held_out)
    return fit_extractor(dataset, training, held_out, epochs=epochs, **options)


def fit_extractor(
    dataset: str,
    training: tuple[Tensor, Tensor],
    held_out: tuple[Tensor, Tensor],
    *,
    epochs: int = 12,
    batch_size: int = 128,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> tuple[Extractor, float]:
    """An extractor fitted to images with targets, as of labelled_images, and its accuracy.

    dataset: whose classifier it is. The accuracy is that on the held-out images.
    """
    images, wanted = training
    enough = len(images) >= batch_size
    check(enough, f"training takes batches of {batch_size}, and there are {len(images)} images")
    record = dataset_named(dataset)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        widths = record.classifier.widths
        extractor = Extractor(dataset, record.classifier.outputs, widths).to(device)
        generator = torch.Generator().manual_seed(seed)
        loss_of = F.cross_entropy if wanted.ndim == 1 else F.binary_cross_entropy_with_logits
        optimizer = torch.optim.AdamW(extractor.parameters(), lr=RATE, weight_decay=0.05)
        steps = epochs * (len(images) // batch_size)
        rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
        title = f"training an extractor for {dataset}"
        extractor.train()
        with progress_bar(total=steps, desc=title, unit="step") as bar:
            for batch in batches(len(images), batch_size, epochs, generator):
                x = shifted(images[batch], record.classifier.shift, generator)
                x = mirrored(x, generator) if record.is_mirrored else x
                loss = loss_of(extractor.classify(x.to(device)), wanted[batch].to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                rates.step()
                adapt_threads()
                bar.update()
                if bar.n % 50 == 0:
                    bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
    extractor.eval().requires_grad_(False)
    return extractor, accuracy(extractor, *held_out, device=device)


def batches(n: int, batch_size: int, epochs: int, generator: torch.Generator) -> Iterator[Tensor]:
    """The indices of each batch: in each epoch all n images, but for the last few, in any order."""
    for _ in range(epochs):
        order = torch.randperm(n, generator=generator)
        yield from order[: n // batch_size * batch_size].split(batch_size)


def save_trained(flags: argparse.Namespace) -> None:
    """Trains and saves an extractor. Raises FileExistsError where it would overwrite a file."""
    check(0 <= flags.seed < 2**32, f"seed is {flags.seed}: it must be from 0 to 2^32 - 1")
    device = devices.pick_device(flags.device)
    files.check_writable(flags.out)
    if flags.out.exists():
        raise FileExistsError(f"{flags.out} exists already: name another file")
    began = time.monotonic()
    options = {"epochs": flags.epochs, "seed": flags.seed, "device": device}
    network, score = train_extractor(flags.dataset, flags.data, **options)
    seconds = time.monotonic() - began
    record = {"accuracy": round(score, 5), "epochs": flags.epochs, "seed": flags.seed}
    record |= {"seconds": round(seconds, 1), "device": str(device), "torch": torch.__version__}
    save_extractor(flags.out, network, record)
    measured = f"{score:.2%} right on {dataset_named(flags.dataset).classifier.measured_on}"
    parameters = f"{count_parameters(network):,} parameters"
    print(f"{parameters}, {measured}, {seconds / 60:.1f} min on {device}\nwritten: {flags.out}")


def main(arguments: list[str] | None = None) -> int:
    """Runs the program. Returns 0, or 1 after one line about what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", choices=datasets_with_classifier(), default="mnist")
    parser.add_argument("--out", type=Path, default=Path("out/extractor.safetensors"))
    parser.add_argument("--epochs", type=int, default=12, help="passes over the training images")
    parser.add_argument("--seed", type=int, default=0, help="of weights, data order and shifts")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of the data sets")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps")
    try:
        save_trained(parser.parse_args(arguments))
    except (ValueError, OSError) as error:
        print(f"error: {printable(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
