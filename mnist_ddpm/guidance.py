"""Class labels, and classifier-free guidance (Ho, Salimans, arXiv 2207.12598)."""

import torch
from torch import Tensor
from torchvision import datasets

from mnist_ddpm.ddpm import Model, PathLike, Prediction, Settings


def load_labels(settings: Settings, root: PathLike = "data", split: str = "train") -> Tensor:
    """The labels of load_images(settings, root, split), int64 (N,). Raises ValueError where there are none."""
    if settings.dataset != "mnist":
        raise ValueError(f"{settings.dataset} has no labels: set classes to 0")
    if settings.classes != 10:
        raise ValueError(f"mnist has labels 0 to 9: set classes to 10, not {settings.classes}")
    return datasets.MNIST(root, train=split == "train", download=True).targets


def guided(model: Model, scale: float) -> Model:
    """A model (xt, t, labels) with uncond + scale (cond - uncond) for its prediction: Eq. 6, with scale = 1 + w.

    0 ignores the label, 1 is the conditional model; both cost one evaluation an image, all others two.
    A learned variance is the conditional model's.
    """

    def guided_model(xt: Tensor, t: Tensor, labels: Tensor) -> Tensor | Prediction:
        if scale == 0:
            return model(xt, t)
        told = model(xt, t, labels)
        if scale == 1:
            return told
        untold = model(xt, t)
        if isinstance(told, Tensor):
            channels = xt.shape[1]
            mixed = torch.lerp(untold[:, :channels], told[:, :channels], scale)
            return torch.cat([mixed, told[:, channels:]], dim=1)
        x0_hat, eps_hat = (torch.lerp(untold[i], told[i], scale) for i in range(2))
        return Prediction(x0_hat, eps_hat, told.exponent)

    return guided_model
