"""What can be set in training beyond the notebook's settings, and presets; without PyTorch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mnist_ddpm.datasets import DATASETS, TORCHVISION_SETS, dataset_named

Size = int | tuple[int, int]  # of images, in pixels: the side of squares, or height and width
LARGEST = 2**13  # side


@dataclass(frozen=True)
class Options:
    """What a recipe has beyond the notebook's settings."""

    image_size: Size = 32  # side of square images, in pixels; or height and width
    channels: int | None = None  # 1 grey, 3 colour; None: the data set's; of a folder 3
    # unet; dit and jit: transformers, the latter for large patches; shortcut: a U-Net conditioned
    # on the step size; fourier: one with Fourier features of each pixel
    network: str = "unet"
    blocks_per_level: int = 1  # residual blocks in each level
    # sides of the levels with attention, of a rectangle the shorter; None: the smallest
    attention_resolutions: tuple[int, ...] | None = None
    norm_groups: int = 0  # of each group normalisation; 0: up to 32, each of 4 channels or more
    dropout: float = 0.0  # in the residual blocks, while training
    # linear, cosine, quadratic, sigmoid, each also with -zero-snr; log-snr, flow
    schedule: str = "linear"
    prediction: str = "eps"  # what the network predicts: eps, x0, v, mu, velocity, edm
    # simple, hybrid, vlb, bound, truncated-snr, min-snr, p2, edm, velocity, consistency,
    # distribution-matching, mean-flow, drifting
    objective: str = "simple"
    times: str = "uniform"  # of training: uniform, logit-normal, log-normal, noisy
    # of objective distribution-matching: the times at which the network learns to draw, falling
    # from T; empty: those of one, two and four steps, even in signal
    student_timesteps: tuple[int, ...] = ()
    condition: str = "none"  # of each image, which the network sees beside x_t: grey, small
    # weight of the loss of a critic that distinguishes predictions of x_0 from images; 0: none
    critic: float = 0.0
    mirrored: bool = False  # flip each image half of the time; celeba and ffhq always are
    classes: int = 0  # number of different labels that the network is told; 0: no labels
    label_names: tuple[str, ...] = ()  # of one's own labels, in order
    attributes: tuple[str, ...] = ()  # of the images, as labels: attribute i counts 2^i
    # share of labels hidden in training, for guidance; the notebook hides 0.2
    label_dropout: float = 0.1
    augment: tuple[str, ...] = ()  # change images, ever fewer while training: shift, colour
    optimizer: str | None = None  # adam, muon; None: adam, the paper's
    learning_rate: float | None = None  # at its peak; None: 2e-3, with muon 5e-3
    gradient_clip: float = 1.0  # largest norm of a step's gradient, for each network
    precision: Literal["float32", "bfloat16", "float16"] | None = None  # in training; None: float32
    accumulation: int = 1  # parts a batch is computed in, one after the other: to save memory
    gradient_checkpointing: bool = False  # recompute blocks: less memory, a third more work
    compile: bool = False  # torch.compile: a minute or two, worth it for a long training
    # a checkpoint to learn from, guided by its sampling defaults; empty: the images alone
    teacher: str = ""
    teacher_guidance: float = 0.0  # the teacher's guidance scale; 0: its sampling default
    # another for images whose label is hidden; empty: the same
    teacher_unlabelled: str = ""
    init_from: str = ""  # weights to start from: checkpoint or diffusers model; empty: random


# What each changes in Recipe
PRESETS: dict[str, dict] = {
    preset: {"dataset": name, **changes}
    for name, dataset in (DATASETS | TORCHVISION_SETS).items()
    for preset, changes in dataset.presets.items()
}


def merge_settings(changes: Mapping, base: Mapping) -> dict:
    """The base's settings with changes, and without values that make no sense beside these."""
    resets = {}
    attributes = tuple(base.get("attributes", ()))
    if tuple(changes.get("attributes", attributes)) != attributes:
        resets["classes"] = 0  # as many as the attributes make
    elif attributes and not changes.get("classes", True):
        resets["attributes"] = ()  # they would bring the labels back
    before = base.get("optimizer") or "adam"
    after = changes.get("optimizer", before) or "adam"
    if before != after and "learning_rate" in base:
        resets["learning_rate"] = None  # the default of the optimizer
    return {**base, **resets, **changes}


def height_width(size: Size) -> tuple[int, int]:
    """The height and width of images of that size."""
    return size if isinstance(size, tuple) else (size, size)


def format_size(size: Size) -> str:
    """As it is typed: 64x96, or 32 for squares."""
    return "x".join(map(str, size)) if isinstance(size, tuple) else str(size)


def parse_size(text: str) -> Size:
    """The inverse of format_size. Raises ValueError for what is neither."""
    match = re.fullmatch(r"(\d{1,9})(?:x(\d{1,9}))?", text)
    if not match:
        advice = "take a side, such as 64, or height x width, such as 64x96"
        raise ValueError(f"image_size is {text[:30]!r}: {advice}")
    height, width = match.groups()
    return simplify_size((int(height), int(width or height)))


def simplify_size(size: object) -> object:
    """A pair of equal sides as a number; all else as it is."""
    is_square = isinstance(size, tuple) and len(size) == 2 and size[0] == size[1]
    return size[0] if is_square else size


def check_size(size: Size, patch_size: int, channel_mults: tuple[int, ...], dataset: str) -> None:
    """Raises ValueError for a height or width that the levels cannot halve, or out of range."""
    unit = patch_size * 2 ** (len(channel_mults) - 1)
    least = -(-max(1, dataset_named(dataset).padded_side) // unit) * unit
    for side in height_width(size):
        if not 1 <= side <= LARGEST:
            raise ValueError(f"image_size is {format_size(size)}: take sides from 1 to {LARGEST}")
        if side % unit or side < least:
            advice = f"take a multiple of {unit}, from {least}"
            rule = "each of channel_mults but the first doubles that, and patch_size multiplies it"
            raise ValueError(f"image_size is {format_size(size)}: {advice} ({rule})")
