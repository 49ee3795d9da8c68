"""Training of extractors: classifiers of MNIST's digits, and of CelebA's attributes."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from mnist_ddpm.data import sets
from mnist_ddpm.data.celeba import celeba_attributes
from mnist_ddpm.ddpm import check, mirrored
from mnist_ddpm.evaluation.extractors import Extractor, in_batches
from mnist_ddpm.machine.progress import progress_bar
from mnist_ddpm.machine.threads import adapt_threads
from mnist_ddpm.training.recipe import Recipe

HELD_OUT = {"mnist": "the 10,000 test digits", "celeba": "40 attributes of the validation images"}
RATE = 2e-3  # the learning rate at its peak


def shifted(images: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Images (N, C, H, W), each moved by up to `most` pixels either way, its edge repeated."""
    n, _, height, width = images.shape
    padded = F.pad(images.float(), [most] * 4, mode="replicate").to(images.dtype)
    dy, dx = torch.randint(0, 2 * most + 1, (2, n, 1), generator=generator)
    rows, columns = dy + torch.arange(height), dx + torch.arange(width)
    pixels = padded.permute(0, 2, 3, 1)
    moved = pixels[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None]]
    return moved.permute(0, 3, 1, 2)


def targets(dataset: str, root: str | Path, split: str) -> tuple[Tensor, Tensor]:
    """Images and what to say of them.

    That is MNIST's digits int64 (N,), or CelebA's attributes float32 (N, 40).
    """
    if dataset == "mnist":
        recipe = Recipe(classes=10)
        images = sets.load_images(recipe, root, split)
        return images, sets.load_labels(recipe, root, split)
    recipe = Recipe(dataset="celeba", image_size=64)
    images = sets.load_images(recipe, root, split)
    _, wanted = celeba_attributes(recipe, root, split)
    # where some could not be read, and there is no cache to say which
    found = f"{len(images)} images of CelebA, and {len(wanted)} with attributes"
    check(len(images) == len(wanted), f"{found}: repair those skipped")
    return images, wanted.float()


def accuracy(
    extractor: Extractor, images: Tensor, wanted: Tensor, device: torch.device | str = "cpu"
) -> float:
    """Share of right digits, or of right attributes over all images and attributes."""
    logits = in_batches(extractor.eval().classify, images, device)
    said, true = (logits > 0, wanted > 0) if wanted.ndim == 2 else (logits.argmax(dim=1), wanted)
    return (said == true).double().mean().item()


def train_extractor(
    dataset: str,
    root: str | Path = "data",
    *,
    epochs: int = 12,
    batch_size: int = 128,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> tuple[Extractor, float]:
    """An extractor for "mnist" or "celeba", and its accuracy on the test split (CelebA: "valid").

    Raises ValueError for another data set or less than one epoch, and as loading images does.
    """
    check(epochs >= 1, f"epochs is {epochs}: it must be at least 1")
    check(dataset in HELD_OUT, f'there is no extractor for "{dataset}": take mnist or celeba')
    digits = dataset == "mnist"
    images, wanted = targets(dataset, root, "train")
    held_out = targets(dataset, root, "test" if digits else "valid")
    few = f"training takes batches of {batch_size}, and there are only {len(images)} images"
    check(len(images) >= batch_size, few)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        outputs, widths = (10, (32, 64, 64)) if digits else (40, (48, 96, 128, 128))
        extractor = Extractor(dataset, outputs, widths).to(device)
        teach(extractor, images, wanted, epochs, batch_size, seed)
    extractor.eval().requires_grad_(False)
    return extractor, accuracy(extractor, *held_out, device=device)


def teach(
    extractor: Extractor, images: Tensor, wanted: Tensor, epochs: int, batch_size: int, seed: int
) -> None:
    """Trains it on uint8 images (N, C, H, W), shifted and (faces) mirrored."""
    digits, generator = extractor.dataset == "mnist", torch.Generator().manual_seed(seed)
    loss_of = F.cross_entropy if digits else F.binary_cross_entropy_with_logits
    device = extractor.head.weight.device
    optimizer = torch.optim.AdamW(extractor.parameters(), lr=RATE, weight_decay=0.05)
    whole = len(images) // batch_size * batch_size
    steps = epochs * whole // batch_size
    plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    title = f"training an extractor for {extractor.dataset}"
    with progress_bar(total=steps, desc=title, unit="step") as bar:
        for _ in range(epochs):
            extractor.train()
            order = torch.randperm(len(images), generator=generator)[:whole]
            for batch in order.split(batch_size):
                x = shifted(images[batch], 2 if digits else 4, generator)
                x = x if digits else mirrored(x, generator)
                loss = loss_of(extractor.classify(x.to(device)), wanted[batch].to(device))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                plan.step()
                adapt_threads()
                bar.update()
                if bar.n % 50 == 0:
                    bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
