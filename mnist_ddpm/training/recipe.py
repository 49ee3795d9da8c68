"""A recipe: all that decides a training run, the paper's method or another."""

import os
from dataclasses import dataclass, fields, replace

from mnist_ddpm.datasets import dataset_named
from mnist_ddpm.ddpm import Settings, check
from mnist_ddpm.machine.text import CONTROL
from mnist_ddpm.training.options import Options, Size, check_size, height_width, simplify_size

# The least and the most of each number: far beyond any use, and small enough to work with
LIMITS = {
    "patch_size": (1, 2**13),
    "base_channels": (1, 2**14),
    "blocks_per_level": (1, 100),
    "T": (1, 10**6),
    "batch_size": (1, 10**6),
    "accumulation": (1, 10**6),
    "warmup_steps": (0, 10**12),
    "classes": (0, 2**16),
    "norm_groups": (0, 2**14),
    "critic": (0, 10**6),
    "teacher_guidance": (0, 10**3),
    "epochs": (1e-9, 1e9),
    "learning_rate": (1e-12, 1e3),
    "gradient_clip": (1e-12, 1e12),
    "beta_1": (1e-10, 1),
    "beta_T": (1e-10, 1),
}
MOST_LEVELS = 13
MOST_ATTRIBUTES = 16  # which make 2^16 classes
PRECISIONS = "float32", "bfloat16", "float16"


@dataclass(frozen=True)
class Recipe(Options, Settings):
    """The notebook's settings and more. Raises ValueError for a value that cannot work."""

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
        paths = "dataset", "teacher", "teacher_unlabelled", "init_from"
        filled = {name: os.fspath(getattr(self, name)) for name in paths}
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
            filled["classes"] = 2 ** len(self.attributes)
        for name in (
            "channel_mults",
            "attention_resolutions",
            "attributes",
            "augment",
            "label_names",
            "student_timesteps",
        ):
            if isinstance(getattr(self, name), list):
                filled[name] = tuple(getattr(self, name))
        if not self.classes:
            filled["label_names"] = ()
        size = self.image_size
        filled["image_size"] = simplify_size(tuple(size) if isinstance(size, list) else size)
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
                may_be_empty = f.name in ("teacher", "teacher_unlabelled", "init_from")
                is_valid = bool(value or may_be_empty) and not CONTROL.search(value)
                check(is_valid, f"{f.name} is {value!r}: it must be a name or path in one line")

    def check_values(self) -> None:
        """Raises ValueError for a value out of range."""
        lists = "channel_mults", "attention_resolutions", "student_timesteps"
        for name, (least, most) in LIMITS.items():
            value = getattr(self, name)
            is_in_range = least <= value <= most
            check(is_in_range, f"{name} is {value!r}: it must be from {least:g} to {most:g}")
        for names, is_valid, wanted in (
            (("dropout", "label_dropout", "ema_decay"), lambda x: 0 <= x < 1, "in [0, 1)"),
            (("precision",), lambda x: x in PRECISIONS, "float32, bfloat16 or float16"),
            (("image_size",), is_image_size, "a whole number, or two: height and width"),
            (
                ("attributes", "augment", "label_names"),
                is_names,
                "a list of names, each in one line",
            ),
            (lists, lambda x: x is None or is_tuple_of(int, x), "a list of whole numbers"),
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
        message = f"norm_groups is {groups}: it must divide base_channels, {self.base_channels}"
        check(groups == 0 or self.base_channels % groups == 0, message)
        message = f"accumulation is {self.accumulation}: take at most {self.batch_size}"
        check(self.accumulation <= self.batch_size, message)
        check(self.beta_T < 1, f"beta_T is {self.beta_T}: take a number between 0 and 1")
        check(self.beta_1 <= self.beta_T, f"beta_1 is {self.beta_1}: take at most beta_T")
        check(0 <= self.seed < 2**32, f"seed is {self.seed}: take a number from 0 to 2^32 - 1")
        resolutions = self.attention_resolutions
        message = f"attention_resolutions is {resolutions}: take sides of levels, {self.sides}"
        check({*(resolutions or ())} <= {*self.sides}, message)
        name = "distribution-matching"
        is_used = self.objective == name or not self.student_timesteps
        check(is_used, f"student_timesteps are for objective {name}, not {self.objective}")


def fit_batch_size(recipe: Recipe, n: int, processes: int = 1) -> Recipe:
    """The recipe with a batch of at most n images, which so many processes can share equally."""
    size = n // processes * processes
    if not 0 < size < recipe.batch_size:
        return recipe
    return replace(recipe, batch_size=size, accumulation=min(size, recipe.accumulation))


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
