"""One record for each data set: all that the package knows of it without reading its images.

A new data set is a record here and a module in `data/` with the functions that it names. They are
named as "module:function", and imported when they are called, so that flags and `--help` know each
data set without PyTorch.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

Reader = Callable | str  # of (recipe, root, split); or where it is, as "module:function"


@dataclass(frozen=True)
class Classifier:
    """How an extractor is trained: a classifier of a data set's images."""

    outputs: int  # classes, or attributes
    targets: Reader  # classes int64 (N,), or attributes bool (N, outputs), of the images
    measured_on: str  # what its accuracy is about
    image_size: int  # of the images that it is trained on
    side: int  # of the square that it sees
    widths: tuple[int, ...]  # of its levels
    shift: int  # pixels by which images are moved in training, at most
    counted: str = ""  # what a card calls images when it counts their classes; "": they are not


@dataclass(frozen=True)
class Planning:
    """What `plan` chooses among."""

    presets: tuple[str, ...]  # the largest network first
    sized_presets: tuple[str, ...]  # those where an image size is asked for
    images_needed: int  # that a network must see at least: with fewer, a smaller one is better
    changes: dict = field(default_factory=dict)  # of the presets' settings
    is_decoded: bool = True  # images are decoded the first time, which the plan does not count
    guide_preset: str = ""  # of a network for autoguidance; "": its share of the time was not tried
    guided_draw: dict = field(default_factory=dict)  # flags of `sample` with such a guide


PICTURES = Planning(
    presets=("faces-64", "faces-64-small", "faces-32"),
    sized_presets=("faces-64", "faces-64-small"),  # the third is smaller by its size alone
    images_needed=150_000,
)


@dataclass(frozen=True)
class Dataset:
    """What is known of a data set."""

    title: str
    terms: str  # sentences for those who get weights that were trained on it
    license: dict  # metadata of a page on the hub
    images: Reader  # uint8 (N, C, H, W)
    labels: Reader = ""  # int64 (N,), each 0 … classes - 1; "": it has none
    channels: int = 3
    padded_side: int = 0  # side of originals that get a black margin; 0: images are resized
    is_mirrored: bool = False  # in training, each image half of the time
    held_out: str = ""  # the split to compare with; "": there is none
    extractor: str = ""  # the shipped one that suits its images, in checkpoints/extractors
    classifier: Classifier | None = None
    presets: dict[str, dict] = field(default_factory=dict)  # changes of the recipe's defaults
    planning: Planning = PICTURES
    draw: dict = field(default_factory=dict)  # from (schedule, T) to the best flags of `sample`


LAPTOP = {
    "base_channels": 64,
    "channel_mults": (1, 2, 2),
    "schedule": "cosine",
    "prediction": "x0",
    "objective": "min-snr",
    "batch_size": 64,
    "optimizer": "muon",
    "learning_rate": 2e-3,
    "epochs": 80,
}
# The paper's network on 32 x 32 positions and its training (Appendix B; the warm-up is its code's).
# The rate's fall to 0 is ours.
DDPM = {
    "base_channels": 128,
    "channel_mults": (1, 2, 2, 2),
    "blocks_per_level": 2,
    "attention_resolutions": (16,),
    "learning_rate": 2e-4,
    "warmup_steps": 5000,
    "ema_decay": 0.9999,
}
CELEBA_PAGE = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
FFHQ_PAGE = "https://github.com/NVlabs/ffhq-dataset"

MNIST = Dataset(
    title="MNIST",
    terms="The weights are under the MIT licence. They were trained on MNIST, by Yann LeCun and "
    "Corinna Cortes, which is under CC BY-SA 3.0.",
    license={"license": "mit", "datasets": ["ylecun/mnist"]},
    images="mnist_ddpm.data.mnist:load_mnist",
    labels="mnist_ddpm.data.mnist:mnist_labels",
    channels=1,
    padded_side=28,
    held_out="test",
    extractor="mnist",
    classifier=Classifier(
        outputs=10,
        targets="mnist_ddpm.data.mnist:mnist_labels",
        measured_on="the 10,000 test digits",
        image_size=32,
        side=28,
        widths=(32, 64, 64),
        shift=2,
        counted="digits",
    ),
    presets={
        "mnist": {"optimizer": "muon"},
        "mnist-small": {"optimizer": "muon", "base_channels": 16, "objective": "p2"},  # for minutes
        "mnist-fast": {  # as many parameters as mnist, with a third of its operations
            "optimizer": "muon",
            "patch_size": 4,
            "base_channels": 48,
            "channel_mults": (1, 2, 2),
            "prediction": "x0",
            "objective": "p2",
        },
    },
    planning=Planning(
        presets=("mnist", "mnist-small"),
        sized_presets=("mnist", "mnist-small"),
        images_needed=300_000,
        changes={"objective": "p2"},
        is_decoded=False,
        guide_preset="mnist-small",
        guided_draw={"guidance": 1.5, "guidance_interval": [0, 500]},
    ),
    draw={("linear", 1000): {"sampler": "dpmpp", "steps": 20, "eta": 1.0}},
)
CELEBA = Dataset(
    title="CelebA",
    terms=f"The weights were trained on [CelebA]({CELEBA_PAGE}) (Z. Liu, P. Luo, X. Wang, X. Tang, "
    "ICCV 2015), which is for non-commercial research only, and so are they. The faces are of "
    "nobody.",
    license={
        "license": "other",
        "license_name": "non-commercial-research",
        "license_link": CELEBA_PAGE,
    },
    images="mnist_ddpm.data.celeba:load_celeba",
    labels="mnist_ddpm.data.celeba:celeba_labels",
    is_mirrored=True,
    held_out="valid",
    extractor="celeba",
    classifier=Classifier(
        outputs=40,
        targets="mnist_ddpm.data.celeba:celeba_targets",
        measured_on="40 attributes of the validation images",
        image_size=64,
        side=64,
        widths=(48, 96, 128, 128),
        shift=4,
    ),
    presets={
        "faces-32": {"image_size": 32, "patch_size": 2, **LAPTOP},
        "faces-64-small": {"image_size": 64, "patch_size": 4, **LAPTOP},
        "faces-64": {
            "image_size": 64,
            "patch_size": 2,
            "dropout": 0.1,
            "schedule": "cosine",
            "batch_size": 64,
            "accumulation": 2,
            "epochs": 50,
            **DDPM,
        },
        "ddpm-cifar10": {"patch_size": 1, "dropout": 0.1, "epochs": 600, **DDPM},
    },
    draw={("cosine", 1000): {"sampler": "dpmpp", "steps": 20, "eta": 0.0}},
)
FFHQ = Dataset(
    title="FFHQ",
    terms=f"The weights were trained on [FFHQ]({FFHQ_PAGE}), which is under CC BY-NC-SA 4.0, and "
    "so are they. The faces are of nobody.",
    license={"license": "cc-by-nc-sa-4.0"},
    images="mnist_ddpm.data.ffhq:load_ffhq",
    is_mirrored=True,
    held_out="test",
    extractor="celeba",
    presets={
        "ddpm-celebahq": {
            "image_size": 256,
            "patch_size": 1,
            "batch_size": 64,
            "accumulation": 8,
            "gradient_checkpointing": True,
            "epochs": 500,
            **DDPM,
            "channel_mults": (1, 1, 2, 2, 4, 4),
            "learning_rate": 2e-5,
        }
    },
)
FOLDER = Dataset(  # any other name
    title="a folder of images",
    terms="The weights were trained on images whose terms hold for them.",
    license={},
    images="mnist_ddpm.data.folders:load_own_folder",
)
DATASETS: dict[str, Dataset] = {"mnist": MNIST, "celeba": CELEBA, "ffhq": FFHQ}


def dataset_named(name: str) -> Dataset:
    """The data set of that name, else what is known of any folder of images."""
    return DATASETS.get(name, FOLDER)


def datasets_with_classifier() -> list[str]:
    """The names of the data sets on which an extractor can be trained."""
    return [name for name, dataset in DATASETS.items() if dataset.classifier]
