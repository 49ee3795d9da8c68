"""The flags of each command as plain data, without PyTorch, so that `--help` is fast.

`command_line.COMMANDS` maps each class to the function that does the work.
"""

import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from inspect import formatannotation
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro

# Names in the catalogue, which a test compares
SamplerName = Literal["ddpm", "ddim", "dpmpp", "heun", "consistency", "shortcut"]
Spacing = Literal["trailing", "leading", "linspace", "quadratic", "edm", "signal"]
Variance = Literal["auto", "posterior", "beta", "learned"]
ClipName = Literal["static", "dynamic", "none"]


def unless_typed(meaning: str):
    """What help shows for a flag whose default is None, empty, or a number with a meaning."""
    return tyro.conf.arg(help_behavior_hint=default_hint(meaning))


def default_hint(meaning: str) -> Callable[[str], str]:
    """As help_behavior_hint of tyro.conf.arg: the meaning of an empty default, else the default."""
    empty = "None", "", "''", "0"
    return lambda default: f"(default: {meaning if default in empty else default})"


def check_kinds(flags: object) -> None:
    """Raises ValueError for a flag that is of another kind than its field, as Python may set it."""
    for name, kind in get_type_hints(type(flags)).items():
        value = getattr(flags, name)
        if not is_of_kind(value, kind):
            raise ValueError(
                f"{name} is {reprlib.repr(value)}: it must be {formatannotation(kind)}"
            )


def is_of_kind(value: object, kind: Any) -> bool:
    """Whether a value is of the kind that an annotation names; a list will do for a tuple."""
    inner = get_args(kind)
    if get_origin(kind) in (Union, UnionType):
        return any(is_of_kind(value, each) for each in inner)
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in inner
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            return False
        kinds = inner[:1] * len(value) if inner[-1] is ... else inner
        return len(value) == len(kinds) and all(map(is_of_kind, value, kinds))
    is_right = isinstance(value, int | float if kind is float else kind)
    return is_right and (kind is bool or not isinstance(value, bool))


@dataclass
class DrawingFlags:
    """How to draw images; a checkpoint's sampling defaults hold for flags that are not typed."""

    # folder that training wrote, a shipped name, or owner/name[@revision] on the Hugging Face hub
    checkpoint: Path = Path("checkpoints/mnist")
    n: int = 64  # number of images
    # ddpm: ancestral; if you name one, all of the checkpoint's sampling defaults are ignored
    sampler: Annotated[SamplerName | None, unless_typed("the checkpoint's default, else ddim")] = (
        None
    )
    # sampling steps, 1 to T: one network evaluation each; heun doubles that, and so does guidance
    steps: Annotated[int | None, unless_typed("the checkpoint's default, else 50")] = None
    # how the steps' times are spaced
    spacing: Annotated[Spacing | None, unless_typed("the checkpoint's default, else trailing")] = (
        None
    )
    # the steps' times themselves, falling, T to 1, instead of --steps and --spacing
    timesteps: Annotated[
        tuple[int, ...] | None, unless_typed("the checkpoint's default, else of --steps, --spacing")
    ] = None
    # sample along this schedule, with times matched by SNR, such as flow
    path: Annotated[str | None, unless_typed("the checkpoint's own")] = None
    # noise of ddim and dpmpp: 0 none, 1 as much as ddpm
    eta: Annotated[float | None, unless_typed("the checkpoint's default, else 0")] = None
    # of ddpm's steps; auto: learned where the network has learned it, else posterior
    variance: Variance = "auto"
    # more of the sampler's own options, as name=value
    option: Annotated[tuple[str, ...], unless_typed("the sampler's own")] = ()
    clip: ClipName = "static"  # how the predicted image is clipped to the pixel range
    # labels to draw, in turn: names or numbers
    label: Annotated[
        tuple[str | int, ...], unless_typed("all; for evaluate, drawn at random from training's")
    ] = ()
    # guidance scale: 0 ignores labels, 1 is none, more follows labels or avoids the guide
    guidance: Annotated[
        float | None, unless_typed("the checkpoint's default, else 1, or 2 with --guide")
    ] = None
    # guide only at times above the first, up to the second, of the network's own schedule
    guidance_interval: Annotated[
        tuple[int, int] | None, unless_typed("the checkpoint's default, else all times")
    ] = None
    # the guide of autoguidance: a weaker checkpoint; it acts where --guidance is above 1
    guide: Annotated[Path | None, unless_typed("the checkpoint's default, else none")] = None
    seed: int = 0  # image k depends on seed and k alone
    # images made at once; lower it if memory runs out; the GIFs show some of the first batch
    batch_size: int = 256
    precision: Literal["float32", "bfloat16", "float16"] = "float32"  # of the network
    compile: bool = False  # torch.compile: a minute or two, worth it for many images and steps
    device: str = "auto"  # cpu, cuda, cuda:1, mps; auto picks the best available
    # processes expected, each on its device, from torchrun or accelerate launch
    processes: Annotated[int, unless_typed("any number")] = 0


@dataclass
class SampleFlags(DrawingFlags):
    """Draw images with a checkpoint and save them as pictures and as an array.

    Writes samples.png (a grid, of the first 400 at most), steps.png (from noise to image),
    generation.gif, predicted_x0.gif, and samples.npz (array "images", uint8, N x H x W x C).

    Example: python -m mnist_ddpm sample --label 3 1 4 --n 3 --out out
    """

    out: Path = Path("out")  # folder for the results
    first: int = 0  # number of the first image: image k is the same in every run of a seed
    # for networks that need one (train --condition): a picture, or a folder of them, in turn
    condition_image: Annotated[Path | None, unless_typed("none")] = None
    # start from this image, partly noised (or with --mask: inpaint it)
    init_image: Annotated[Path | None, unless_typed("pure noise")] = None
    strength: float = 0.5  # how far --init-image is noised: 0 not, 1 beyond recognition
    # of --init-image's size: white stays, black is inpainted (RePaint)
    mask: Annotated[Path | None, unless_typed("nothing is kept")] = None
    resamples: int = 10  # times that RePaint repeats each --jump; 1 is plain replacement
    # steps that RePaint repeats at once
    jump: Annotated[int | None, unless_typed("4 % of --steps, as the paper")] = None


@dataclass
class EvaluateFlags(DrawingFlags):
    """Judge images: print a card of figures, beside what real images would score, and write it.

    The card is JSON. Beside it, …-closest.png shows the images nearest to training images, each
    above its nearest one.

    Without --images it draws them, rounded to 8 bits as in a file. The reference is the
    checkpoint's training images. Distances, precision and recall are computed from the features of
    a network in checkpoints/extractors. Those of real images are kept in data/cache: the first card
    of a data set takes longer.

    Example: python -m mnist_ddpm evaluate --checkpoint checkpoints/mine --n 10000
    """

    n: int = 10_000  # images to draw; of --images so many at most, chosen at random
    # judge these: a folder of pictures, or a samples.npz of the sample command
    images: Annotated[Path | None, unless_typed("those that it draws")] = None
    # also measure the bound in bits/dim, on so many held-out images
    bits: Annotated[int, unless_typed("do not")] = 0
    # a file, or "inception" for comparisons with papers; auto: the data set's own
    extractor: str = "auto"
    out: Path = Path("out/card.json")  # file for the card
    # where the folder of training images is now, if it has moved
    dataset: Annotated[str | None, unless_typed("where it was")] = None
    data: Path = Path("data")  # folder that holds the data sets known by name
    command: tyro.conf.Suppress[str] = ""  # that was given, for the card


@dataclass
class LikelihoodFlags:
    """Print the variational bound of images in bits/dim, with its standard error; write it as JSON.

    MNIST is judged on its 28 x 28 pixels: the black margin around them is taken as known.

    Example: python -m mnist_ddpm likelihood --split test --n 1000
    """

    # folder that training wrote, a shipped name, or owner/name[@revision] on the Hugging Face hub
    checkpoint: Path = Path("checkpoints/mnist")
    split: Literal["train", "valid", "test"] = "test"  # of the checkpoint's data set
    n: int = 10_000  # number of images, the first of the split; all if there are fewer
    # evaluate so many t per image: faster, but noisier
    times_per_image: Annotated[int | None, unless_typed("all")] = None
    # judge the model as a chain of fewer steps, from 1
    steps: Annotated[int | None, unless_typed("all T")] = None
    spacing: Spacing = "trailing"  # of those steps' times
    # of the steps; auto: learned where the network has learned it, else posterior
    variance: Variance = "auto"
    out: Path = Path("out/likelihood.json")  # file for the result
    # where the folder of training images is now, if it has moved
    dataset: Annotated[str | None, unless_typed("where it was")] = None
    data: Path = Path("data")  # folder that holds the data sets known by name
    seed: int = 0  # of the noise
    batch_size: int = 250  # images judged at once
    compile: bool = False  # torch.compile: a minute or two, worth it for many images
    device: str = "auto"  # cpu, cuda, cuda:1, mps; auto picks the best available


@dataclass
class StatusFlags:
    """Say how a training with --validate goes: improving, done, copying, diverged, or unclear.

    It reads the folder's progress.json, also while the training goes on.

    Example: python -m mnist_ddpm status checkpoints/mine
    """

    folder: tyro.conf.Positional[Path] = Path("checkpoints/mine")  # of the run


@dataclass
class CompareFlags:
    """Set two cards of `evaluate` side by side.

    Cards that differ in n, extractor or training images are refused.

    Example: python -m mnist_ddpm compare a.json b.json
    """

    first: tyro.conf.Positional[Path]
    second: tyro.conf.Positional[Path]


@dataclass
class PushFlags:
    """Publish a checkpoint on the Hugging Face hub: weights, settings, and a page about them.

    The page shows images, says how to load the checkpoint, and has the figures of a card.

    Example: python -m mnist_ddpm push --checkpoint checkpoints/mine --card card.json --to me/digits
    """

    to: str  # owner/name on the hub, or owner/name@branch
    # folder that training wrote, or a shipped name
    checkpoint: Path = Path("checkpoints/mnist")
    # a card of `evaluate`, about this checkpoint
    card: Annotated[Path | None, unless_typed("a page without figures")] = None
    private: bool = False  # a new repository is for you alone
    device: str = "auto"  # that draws: cpu, cuda, cuda:1, mps; auto picks the best available


@dataclass
class ExportFlags:
    """Write a checkpoint as another library reads it.

    diffusers: a folder for DDPMPipeline.from_pretrained. That has no patches, labels or learned
    variances, and one number of groups in all its normalisations: train with --patch-size 1
    --norm-groups 4.

    onnx: a file for ONNX Runtime, with the schedule in its metadata, for any network. It needs
    the extra packages of pip install ".[export]".

    Example: python -m mnist_ddpm export --checkpoint checkpoints/mine --format diffusers --out out
    """

    checkpoint: Path  # folder that training wrote, or a name on the hub
    out: Path  # folder for the result, or for onnx a file that ends in .onnx
    format: Literal["diffusers", "onnx"] = "diffusers"  # the library that is to read it
    precision: Literal["float32", "float16"] = "float32"  # of onnx's weights and computation
