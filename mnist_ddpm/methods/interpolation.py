"""Between two images: spherical interpolation of their noise (DDIM, Section 5.3 and Eq. 67)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def slerp(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """From a (N, C, H, W) at weight 0 to b at 1 along a great circle, image by image.

    Averages of noise have too small a variance for a sampler; points on the arc do not. Between
    parallel images it is a straight line.
    """
    flat_a = a.flatten(1).cpu().double()
    flat_b = b.flatten(1).cpu().double()
    cosine = F.cosine_similarity(flat_a, flat_b, dim=1).clamp(-1, 1)
    angle = torch.arccos(cosine).unsqueeze(1)
    straight = angle.sin() < 1e-6
    sine = angle.sin().masked_fill(straight, 1)
    weight_a = torch.where(straight, 1 - weight, ((1 - weight) * angle).sin() / sine)
    weight_b = torch.where(straight, weight, (weight * angle).sin() / sine)
    return (weight_a * flat_a + weight_b * flat_b).view(a.shape).to(a)
