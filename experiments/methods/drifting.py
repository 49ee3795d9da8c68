"""Drifting models (arXiv 2602.04770): one evaluation, and training moves what it draws.

Each drawn image is drawn towards real images near it and away from other drawn ones. Where drawn
and real images have one distribution, both cancel out.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, distributed

from mnist_ddpm.ddpm import Network, Schedule, check
from mnist_ddpm.method import Batch, Method
from mnist_ddpm.methods.guidance import with_labels
from mnist_ddpm.methods.predictions import Conversion

TEMPERATURES = 0.02, 0.05, 0.2
FARTHER = 1e6  # how much farther an image is from itself, and images of other labels are

# images (N, C, H, W) to sets of features, each (L, N, D): one drift for each of the L
Features = Callable[[Tensor], list[Tensor]]


def pixel_features(images: Tensor) -> list[Tensor]:
    """The images' pixels, and their 8×8 patches: (1, N, C*H*W) and (L, N, C*64)."""
    patches = F.unfold(images, kernel_size=8, stride=8).permute(2, 0, 1)
    return [images.flatten(1).unsqueeze(0), patches]


def drift(distance_to_real: Tensor, distance_to_drawn: Tensor, real: Tensor, drawn: Tensor):
    """The drift (L, N, D) of features `drawn` towards `real`, each (L, N, D): Algorithm 2.

    The distances (L, N, N) are those over the temperature; an image's to itself is large.
    """
    logits = -torch.cat([distance_to_real, distance_to_drawn], dim=2)
    affinity = (logits.softmax(dim=2) * logits.softmax(dim=1)).sqrt()
    to_real, to_drawn = affinity.chunk(2, dim=2)
    real_weight = to_real * to_drawn.sum(dim=2, keepdim=True)
    drawn_weight = to_drawn * to_real.sum(dim=2, keepdim=True)
    return real_weight @ real - drawn_weight @ drawn


def drifting_loss(drawn: Tensor, real: Tensor, from_real: Tensor, from_drawn: Tensor) -> Tensor:
    """The loss of each drawn image, (N,), from features (L, N, D): Appendix A.6.

    from_real, from_drawn (N, N): what to add to the distances of drawn image i from image j.
    Features are scaled so that distances are sqrt(D) on average, and drifts to a mean square of 1
    for each temperature. Targets have no gradient.
    """
    D = drawn.shape[2]
    with torch.no_grad():
        to_real = torch.cdist(drawn, real)
        to_drawn = torch.cdist(drawn, drawn)
        scale = (to_real.mean() + to_drawn.mean()).clamp(min=1e-6) / 2 / D**0.5
        itself = FARTHER * torch.eye(drawn.shape[1], device=drawn.device)
        total = torch.zeros_like(drawn)
        for temperature in TEMPERATURES:
            unit = scale * temperature * D**0.5
            far = to_real / unit + from_real, to_drawn / unit + from_drawn + itself
            field = drift(*far, real, drawn)
            total += field / field.square().mean().sqrt().clamp(min=1e-12)
    scaled = drawn / scale
    return (scaled - (scaled.detach() + total)).square().mean(dim=(0, 2))


class Drifting(Method):
    """How far the images that the network draws from eps at T drift: one loss an image.

    features: where distances are measured; the paper uses those of a large pretrained network. With
    labels, images drift towards those of their own label alone; where the label is hidden, towards
    all. The loss raises ValueError for one image, which has nothing to drift away from, and where
    several processes train, each of which has a part of the batch.
    """

    def __init__(self, conversion: Conversion, features: Features = pixel_features):
        super().__init__()
        self.sampling_defaults = {"sampler": "consistency", "steps": 1}
        self.conversion = conversion
        self.features = features

    def loss(self, network: Network, schedule: Schedule, batch: Batch) -> Tensor:
        check(len(batch.x0) > 1, "drifting compares images, and this batch has 1: take 2 or more")
        is_alone = not distributed.is_initialized() or distributed.get_world_size() == 1
        check(is_alone, "drifting compares all images of a batch: train it in one process")
        network = with_labels(network, batch.labels)
        T = torch.full_like(batch.t, schedule.T)
        images = self.conversion.x0_hat(network, schedule, batch.eps, T)
        farther = (image_pairs.to(images) for image_pairs in pairs_apart(batch))
        from_real, from_drawn = (FARTHER * each for each in farther)
        pairs = zip(self.features(images), self.features(batch.x0), strict=True)
        return sum(drifting_loss(drawn, real, from_real, from_drawn) for drawn, real in pairs)


def pairs_apart(batch: Batch) -> tuple[Tensor, Tensor]:
    """Whether drawn image i is not compared with real image j, and with drawn image j: (N, N).

    Those of one label are compared with each other. Those whose label is hidden are compared with
    all real images, and with each other.
    """
    n = len(batch.x0)
    if batch.labels is None:
        return torch.zeros(n, n), torch.zeros(n, n)
    given, true = batch.labels.cpu(), batch.true_labels.cpu()
    is_hidden = given != true
    other_real = (given[:, None] != true) & ~is_hidden[:, None]
    return other_real, given[:, None] != given
