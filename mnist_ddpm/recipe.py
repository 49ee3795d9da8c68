"""All that decides a training run, in one place and without PyTorch: a recipe, and presets.

Each setting says its default, its help, its limits, whether a resumed run may change it, and what
it decides. Flags, help, saved files, plans and what may start from what are derived from that.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Literal

from mnist_ddpm.datasets import DATASETS, TORCHVISION_SETS, dataset_named
from mnist_ddpm.machine.text import CONTROL, check

Size = int | tuple[int, int]  # of images, in pixels: the side of squares, or height and width
LARGEST = 2**13  # side
MOST_LEVELS = 13
MOST_ATTRIBUTES = 16  # which make 2^16 classes
NAMED = ", ".join(DATASETS)


def setting(
    default: object,
    about: str,
    *,
    limits: tuple[float, float] = (),
    decides: str = "",
    changeable: bool = False,
    unset: str = "",
    hidden: bool = False,
):
    """A field of a recipe. about: its help. limits: its least and most, far beyond any use.

    decides: words among "data", which plan leaves as asked for; "network", its weights and what its
    output means; and "method", what rebuilds it beside the notebook's settings. changeable: a
    resumed run may have another. unset: what help says of a default that stands for something.
    hidden: it is no flag.
    """
    metadata = {"about": about, "limits": limits, "decides": decides.split()}
    metadata |= {"changeable": changeable, "unset": unset, "hidden": hidden}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Recipe:
    """The notebook's settings and more. Raises ValueError for a value that cannot work."""

    # The notebook's, with its defaults but for label_dropout
    dataset: str = setting(
        "mnist",
        f"{NAMED}, torchvision:NAME, hub:NAME, a folder, or a .npz, .npy or .safetensors file",
        decides="data",
    )
    image_size: Size = setting(
        32, "side of square images, in pixels; or height x width, such as 64x96", decides="network"
    )
    channels: int | None = setting(
        None, "1 grey, 3 colour", decides="data network", unset="the data set's; of a folder 3"
    )
    base_channels: int = setting(
        32, "width of the first level of the U-Net", limits=(1, 2**14), decides="network"
    )
    channel_mults: tuple[int, ...] = setting(
        (1, 2, 4), "width of each level, in base_channels", decides="network"
    )
    patch_size: int = setting(
        2,
        "the network sees patches of p x p pixels as one position",
        limits=(1, 2**13),
        decides="network",
    )
    T: int = setting(1000, "diffusion steps", limits=(1, 10**6), decides="network")
    beta_1: float = setting(1e-4, "variance added by step 1", limits=(1e-10, 1), decides="network")
    beta_T: float = setting(0.02, "variance added by step T", limits=(1e-10, 1), decides="network")
    epochs: float = setting(
        20, "passes over the training images", limits=(1e-9, 1e9), changeable=True
    )
    batch_size: int = setting(128, "images in a training step", limits=(1, 10**6))
    learning_rate: float | None = setting(
        None, "at its peak", limits=(1e-12, 1e3), changeable=True, unset="2e-3, with muon 5e-3"
    )
    warmup_steps: int = setting(
        500,
        "steps of rising learning rate, at most a tenth of all",
        limits=(0, 10**12),
        changeable=True,
    )
    ema_decay: float = setting(0.999, "of the moving average of the weights", changeable=True)
    seed: int = setting(0, "of weights, order, times and noise", decides="data")
    classes: int = setting(
        0,
        "number of different labels; auto: as many as the data set has",
        limits=(0, 2**16),
        decides="data network",
        unset="no labels",
    )
    label_dropout: float = setting(
        0.1,
        "share of labels hidden in training, for guidance; the notebook hides 0.2",
        changeable=True,
    )
    # Options of the package
    network: str = setting(
        "unet",
        "unet; dit and jit: transformers, the latter for large patches; shortcut: a U-Net "
        "conditioned on the step size; fourier: one with Fourier features of each pixel",
        decides="network method",
    )
    blocks_per_level: int = setting(
        1, "residual blocks in each level", limits=(1, 100), decides="network method"
    )
    attention_resolutions: tuple[int, ...] | None = setting(
        None,
        "sides of the levels with attention, of a rectangle the shorter",
        decides="network",
        unset="the smallest",
    )
    norm_groups: int = setting(
        0,
        "of each group normalisation; 0: up to 32, each of 4 channels or more",
        limits=(0, 2**14),
        decides="network method",
    )
    dropout: float = setting(0.0, "in the residual blocks, while training", decides="network")
    schedule: str = setting(
        "linear",
        "linear, cosine, quadratic, sigmoid, each also with -zero-snr; log-snr, flow",
        decides="network",
    )
    prediction: str = setting(
        "eps", "what the network predicts: eps, x0, v, mu, velocity, edm", decides="network"
    )
    objective: str = setting(
        "simple",
        "simple, hybrid, vlb, bound, truncated-snr, min-snr, p2, edm, velocity, consistency, "
        "distribution-matching",
        decides="network",
    )
    times: str = setting("uniform", "of training: uniform, logit-normal, log-normal, noisy")
    student_timesteps: tuple[int, ...] = setting(
        (),
        "of objective distribution-matching: the times at which the network learns to draw, "
        "falling from T",
        unset="those of one, two and four steps, even in signal",
    )
    condition: str = setting(
        "none",
        "of each image, which the network sees beside x_t: grey, small",
        decides="network method",
    )
    critic: float = setting(
        0.0,
        "weight of the loss of a critic that distinguishes predictions of x_0 from images; 0: none",
        limits=(0, 10**6),
    )
    mirrored: bool = setting(False, "flip each image half of the time; celeba and ffhq always are")
    label_names: tuple[str, ...] = setting(
        (), "of one's own labels, in order", decides="data", hidden=True
    )
    attributes: tuple[str, ...] = setting(
        (),
        "of the images, as labels: attribute i counts 2^i",
        decides="data network method",
        unset="none",
    )
    augment: tuple[str, ...] = setting(
        (), "change images, ever fewer while training: shift, colour", unset="none"
    )
    optimizer: str | None = setting(None, "adam, muon", unset="adam, the paper's")
    gradient_clip: float = setting(
        1.0,
        "largest norm of a step's gradient, for each network",
        limits=(1e-12, 1e12),
        changeable=True,
    )
    precision: Literal["float32", "bfloat16", "float16"] | None = setting(
        None,
        "of the network in training",
        changeable=True,
        unset="bfloat16 on NVIDIA GPUs that compute in it, else float32",
    )
    accumulation: int = setting(
        1,
        "parts a batch is computed in, one after the other: to save memory",
        limits=(1, 10**6),
        changeable=True,
    )
    gradient_checkpointing: bool = setting(
        False, "recompute blocks: less memory, a third more work", changeable=True
    )
    compile: bool = setting(
        False, "torch.compile: a minute or two, worth it for a long training", changeable=True
    )
    teacher: str = setting(
        "",
        "a checkpoint to learn from, guided by its sampling defaults",
        unset="none: the images alone",
    )
    teacher_guidance: float = setting(
        0.0,
        "the teacher's guidance scale; 0: its sampling default",
        limits=(0, 10**3),
        changeable=True,
    )
    teacher_unlabelled: str = setting(
        "", "another for images whose label is hidden", unset="the same"
    )
    init_from: str = setting(
        "", "weights to start from: checkpoint or diffusers model", unset="random weights"
    )

    def __post_init__(self):
        self.fill_in()
        self.check_types()
        self.check_values()
        self.check_fit()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image: channels, height, width."""
        return self.channels, *height_width(self.image_size)

    @property
    def is_mirrored(self) -> bool:
        """Whether training mirrors each image half of the time."""
        return self.mirrored or dataset_named(self.dataset).is_mirrored

    @property
    def positions(self) -> list[tuple[int, int]]:
        """Height and width that the network sees, on each level."""
        _, height, width = self.shape
        units = [self.patch_size * 2**level for level in range(len(self.channel_mults))]
        return [(height // unit, width // unit) for unit in units]

    @property
    def sides(self) -> list[int]:
        """The shorter of these, by which attention_resolutions names a level."""
        return [min(each) for each in self.positions]

    @property
    def attention(self) -> tuple[int, ...]:
        """The levels with self-attention, as the U-Net takes them."""
        sides = self.sides
        chosen = sides[-1:] if self.attention_resolutions is None else self.attention_resolutions
        return tuple(level for level, side in enumerate(sides) if side in chosen)

    @property
    def conditional(self) -> bool:
        """Whether the network sees a condition beside x_t."""
        return self.condition != "none"

    def fill_in(self) -> None:
        """Replaces None by its default, paths by text and lists, which JSON has, by tuples."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        filled = {
            name: tuple(value) if isinstance(value, list) else os.fspath(value)
            for name, value in values.items()
            if isinstance(value, list | os.PathLike)
        }
        if self.channels is None:
            filled["channels"] = dataset_named(self.dataset).channels
        if self.optimizer is None:
            filled["optimizer"] = "adam"
        if self.learning_rate is None:
            filled["learning_rate"] = 5e-3 if self.optimizer == "muon" else 2e-3
        if self.precision is None:
            filled["precision"] = "float32"
        if self.attributes and not self.classes:
            n = len(self.attributes)
            check(n <= MOST_ATTRIBUTES, f"attributes are {n}: name at most {MOST_ATTRIBUTES}")
            filled["classes"] = 2**n
        if not self.classes:
            filled["label_names"] = ()
        filled["image_size"] = simplify_size(filled.get("image_size", self.image_size))
        for name, value in filled.items():
            object.__setattr__(self, name, value)

    def check_types(self) -> None:
        """Raises ValueError for a value of another kind than its field."""
        kinds = {int: ((int,), "a whole number (int)"), bool: ((bool,), "True or False")}
        kinds |= dict.fromkeys((float, float | None), ((int, float), "a number"))
        kinds |= dict.fromkeys((str, str | None), ((str,), "text"))
        for f in fields(self):
            value = getattr(self, f.name)
            types, wanted = kinds.get(f.type, ((type(value),), ""))
            check(type(value) in types, f"{f.name} is {value!r}: it must be {wanted}")
            if isinstance(value, str):
                is_valid = (value or f.default == "") and not CONTROL.search(value)
                check(is_valid, f"{f.name} is {value!r}: it must be a name or path in one line")

    def check_values(self) -> None:
        """Raises ValueError for a value out of range."""
        for f in fields(self):
            if f.metadata["limits"]:
                least, most = f.metadata["limits"]
                value = getattr(self, f.name)
                is_in_range = least <= value <= most
                check(is_in_range, f"{f.name} is {value!r}: it must be from {least:g} to {most:g}")
        whole = "channel_mults", "attention_resolutions", "student_timesteps"
        for names, is_valid, wanted in (
            (("dropout", "label_dropout", "ema_decay"), lambda x: 0 <= x < 1, "in [0, 1)"),
            (("precision",), lambda x: x in PRECISIONS, "float32, bfloat16 or float16"),
            (("image_size",), is_image_size, "a whole number, or two: height and width"),
            (
                ("attributes", "augment", "label_names"),
                is_names,
                "a list of names, each in one line",
            ),
            (whole, lambda x: x is None or is_tuple_of(int, x), "a list of whole numbers"),
            (("channel_mults",), is_widths, f"1 to {MOST_LEVELS} numbers above 0"),
        ):
            for name in names:
                value = getattr(self, name)
                check(bool(is_valid(value)), f"{name} is {value!r}: it must be {wanted}")

    def check_fit(self) -> None:
        """Raises ValueError for values that do not fit each other."""
        check_size(self.image_size, self.patch_size, self.channel_mults, self.dataset)
        channels = self.channels
        is_known = type(channels) is int and channels in (1, 3)
        check(is_known, f"channels is {channels!r}: it must be 1 (grey) or 3 (colour)")
        names = len(self.label_names)
        is_named = names in (0, self.classes)
        check(is_named, f"classes is {self.classes}, and label_names are {names}: name each")
        groups = self.norm_groups
        divides = groups == 0 or self.base_channels % groups == 0
        check(
            divides, f"norm_groups is {groups}: it must divide base_channels, {self.base_channels}"
        )
        parts = self.accumulation
        check(parts <= self.batch_size, f"accumulation is {parts}: take at most {self.batch_size}")
        check(self.beta_T < 1, f"beta_T is {self.beta_T}: take a number between 0 and 1")
        check(self.beta_1 <= self.beta_T, f"beta_1 is {self.beta_1}: take at most beta_T")
        check(0 <= self.seed < 2**32, f"seed is {self.seed}: take a number from 0 to 2^32 - 1")
        resolutions = self.attention_resolutions or ()
        are_sides = {*resolutions} <= {*self.sides}
        check(
            are_sides, f"attention_resolutions is {resolutions}: take sides of levels, {self.sides}"
        )
        name = "distribution-matching"
        is_used = self.objective == name or not self.student_timesteps
        check(is_used, f"student_timesteps are for objective {name}, not {self.objective}")
        most = self.batch_size  # each time has images in each batch
        count = len(self.student_timesteps)
        check(count <= most, f"student_timesteps are {count}: name at most batch_size, {most}")


PRECISIONS = "float32", "bfloat16", "float16"
# What each preset changes in Recipe
PRESETS: dict[str, dict] = {
    preset: {"dataset": name, **changes}
    for name, dataset in (DATASETS | TORCHVISION_SETS).items()
    for preset, changes in dataset.presets.items()
}


def deciding(what: str) -> list[str]:
    """The names of the settings that decide "data", "network" or "method"."""
    return [each.name for each in fields(Recipe) if what in each.metadata["decides"]]


def changeable() -> list[str]:
    """The names of the settings that may differ when a run is resumed."""
    return [each.name for each in fields(Recipe) if each.metadata["changeable"]]


def preset(name: str, **changes) -> Recipe:
    """The recipe of that name, with some changes. Raises ValueError for an unknown name."""
    check(name in PRESETS, f'preset "{name}" is unknown: take one of {", ".join(PRESETS)}')
    return resolve(changes, PRESETS[name])


def resolve(changes: Mapping, base: Mapping) -> Recipe:
    """The recipe of a base, such as a preset or a saved run's settings, with some changes.

    A change always wins, also one to the default. Values of the base that no longer make sense
    beside it are left out.
    """
    return Recipe(**merge_settings(changes, base))


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


def fit_batch_size(recipe: Recipe, n: int, processes: int = 1) -> Recipe:
    """The recipe with a batch of at most n images, which so many processes can share equally."""
    size = n // processes * processes
    if not 0 < size < recipe.batch_size:
        return recipe
    return replace(recipe, batch_size=size, accumulation=min(size, recipe.accumulation))


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


def is_image_size(value: Size) -> bool:
    """Whether it is a side, or a height and a width."""
    sides = height_width(value)
    return is_tuple_of(int, sides) and len(sides) == 2


def is_names(values: tuple) -> bool:
    """Whether it is a tuple of names, without control characters."""
    return is_tuple_of(str, values) and not CONTROL.search("".join(values))


def is_widths(values: tuple) -> bool:
    """Whether levels can have these widths."""
    return 0 < len(values) <= MOST_LEVELS and min(values) > 0


def is_tuple_of(kind: type, values) -> bool:
    """Whether it is a tuple of that kind."""
    return type(values) is tuple and {*map(type, values)} <= {kind}
