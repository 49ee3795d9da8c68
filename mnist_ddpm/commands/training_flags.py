"""The flags of `train` and `plan`, without PyTorch, as in `flags`."""

import time
from dataclasses import Field, dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from mnist_ddpm.commands.flags import default_hint, unless_typed
from mnist_ddpm.recipe import PRESETS, Recipe, Size, format_size, parse_size

Log = Literal["none", "tensorboard"]
SIZE = PrimitiveConstructorSpec(
    nargs=1,
    metavar="INT|HxW",
    instance_from_str=lambda words: parse_size(*words),
    is_instance=lambda value: isinstance(value, int | tuple | None),
    str_from_instance=lambda size: [format_size(size)],
)
Classes = int | Literal["auto"]
ABOUT = {each.name: each.metadata for each in fields(Recipe)}


def flag_of(setting: Field) -> tuple:
    """The flag of a recipe's setting, as dataclasses.make_dataclass takes it."""
    name = setting.name
    about = ABOUT[name]
    kind = Classes if name == "classes" else setting.type
    hint = None
    if about["unset"]:
        hint = default_hint(about["unset"])
    kind = Annotated[kind, tyro.conf.arg(help=about["about"], help_behavior_hint=hint)]
    if name == "image_size":
        kind = Annotated[kind, SIZE]
    if about["hidden"]:
        kind = tyro.conf.Suppress[kind]
    return name, kind, field(default=setting.default)


# The settings of a recipe, none checked before a preset and what was typed are known
RecipeFlags = make_dataclass("RecipeFlags", map(flag_of, fields(Recipe)), frozen=True)
RecipeFlags.__doc__ = "What to train, and how."


@dataclass
class TrainFlags:
    """Train a noise predictor and save it as a checkpoint.

    Progress shows the time left. Where a preset's batch has more images than there are, it becomes
    smaller. The checkpoint is saved after the first epoch (of some 50 steps or more), every five
    minutes, and on Ctrl-C. A preview is drawn after every epoch.

    Example: python -m mnist_ddpm train --dataset mnist --epochs 48 --out checkpoints/mine
    """

    recipe: tyro.conf.OmitArgPrefixes[RecipeFlags] = field(
        default_factory=lambda: RecipeFlags(**PRESETS[TrainFlags.preset])
    )
    # settings that belong together: a new run's defaults
    preset: Literal[tuple(PRESETS)] = "mnist"
    out: Path = Path("checkpoints/mine")  # folder for the checkpoint and its preview grids
    # go on with the run in --out; its settings become the defaults of all other flags
    resume: bool = False
    data: Path = Path("data")  # folder that holds the data sets known by name
    device: str = "auto"  # cpu, cuda, cuda:1, mps; auto picks the best available
    # processes expected, each on its device, from torchrun or accelerate launch
    processes: Annotated[int, unless_typed("any number")] = 0
    # log loss, learning rate, images/s and previews for TensorBoard, in the folder log of --out
    log: Log = "none"
    # measure loss, distance and copies while it trains: progress.json, progress.png and a verdict
    validate: bool = False
    validate_share: float = 0.05  # of the time of training that this may take
    # names of the flags that were typed
    typed: tyro.conf.Suppress[tuple[str, ...]] = ()


@dataclass
class PlanFlags:
    """Train as well as this machine can in the time you have, after measuring it for a few seconds.

    Preset, precision and batch size are chosen and printed. The learning rate and the end follow
    the clock, so that the time is used also where the machine becomes faster or slower. Where the
    data have labels, they are learned. In a short time digits are learned by flow matching.

    Example: python -m mnist_ddpm plan --minutes 10 --dataset celeba --out checkpoints/faces
    """

    # for all, from start to end; decoding a data set, the first time, is not counted
    minutes: float = 10.0
    dataset: Annotated[str, tyro.conf.arg(help=ABOUT["dataset"]["about"])] = "mnist"
    # side of square images, in pixels; or height x width, such as 64x96
    image_size: Annotated[Size | None, SIZE, unless_typed("the preset's")] = None
    # 1 grey, 3 colour
    channels: Annotated[int | None, unless_typed("the data set's; of a folder 3")] = None
    # number of different labels; auto: as many as the data set has; 0: learn none
    classes: Annotated[Classes, unless_typed("the labels that the data have")] = "auto"
    # of the images, as labels, such as Smiling Male
    attributes: Annotated[tuple[str, ...], unless_typed("none")] = ()
    seed: int = 0  # of weights, data order, times and noise
    dry_run: bool = False  # only say what would be done
    out: Path = Path("checkpoints/mine")  # folder for the checkpoint and its preview grids
    data: Path = Path("data")  # folder that holds the data sets known by name
    device: str = "auto"  # cpu, cuda, cuda:1, mps; auto picks the best available
    # log loss, learning rate, images/s and previews for TensorBoard, in the folder log of --out
    log: Log = "none"
    # when the command began, by time.monotonic(), before PyTorch is imported
    began: tyro.conf.Suppress[float] = field(default_factory=time.monotonic)


def typed_settings(flags: TrainFlags) -> dict:
    """The settings of a recipe that were typed, but for classes that the data decide."""
    typed = {name: value for name, value in vars(flags.recipe).items() if name in flags.typed}
    return {name: value for name, value in typed.items() if (name, value) != ("classes", "auto")}


def place_flags(flags: TrainFlags | PlanFlags, out: Path) -> list[str]:
    """The flags of `train` for a run in the folder out, with the same data, device and log."""
    values = {"out": out, "data": flags.data, "device": flags.device, "log": flags.log}
    words = []
    if isinstance(flags, TrainFlags) and flags.validate:
        words.append("--validate")
        values["validate_share"] = flags.validate_share
    changed = {name: value for name, value in values.items() if value != getattr(TrainFlags, name)}
    for name, value in changed.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    return words
