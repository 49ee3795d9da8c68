"""One record for each data set: everything about it except how its files are read.

A new data set is a record here and a module in `data/` with the functions that it names. They are
named as "module:function", and imported when they are called, so that flags and `--help` know each
data set without PyTorch.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

# A function of (recipe, root, split), or its name as "module:function"
Reader = Callable | str


@dataclass(frozen=True)
class Classifier:
    """How an extractor is trained: as a classifier of a data set's images."""

    outputs: int  # number of classes or attributes
    targets: Reader  # the images' classes, int64 (N,), or attributes, bool (N, outputs)
    measured_on: str  # the images that its accuracy is measured on, in words
    image_size: int  # side of its training images in pixels
    input_side: int  # side of its input: padded images are cropped to it, others resized
    widths: tuple[int, ...]  # channels of each level
    shift: int  # training images are shifted by up to this many pixels
    card_noun: str = ""  # a card counts the images of each class under this name; "": it does not


@dataclass(frozen=True)
class Planning:
    """What `plan` chooses among."""

    presets: tuple[str, ...]  # largest network first
    sized_presets: tuple[str, ...]  # the presets to choose from if --image-size is given
    min_images_seen: int  # use the next smaller preset if the budget allows fewer
    changes: dict = field(default_factory=dict)  # settings that replace those of the preset
    needs_decoding: bool = True  # the first run decodes the images; the plan leaves that time out


DEFAULT_PLANNING = Planning(
    presets=("faces-64", "faces-64-small", "faces-32"),
    sized_presets=("faces-64", "faces-64-small"),  # faces-32 differs by its image size alone
    min_images_seen=150_000,
)


@dataclass(frozen=True)
class Dataset:
    """A data set: how its images are read, trained on, compared with and licensed."""

    title: str
    terms: str  # the licence of weights that were trained on it, in sentences
    license: dict  # metadata for a model page on the Hugging Face hub
    images: Reader  # uint8 (N, C, H, W)
    labels: Reader = ""  # int64 (N,), each 0 … classes - 1; "": no labels
    # What the data decide of a recipe: a function of (name, root, whether it has labels) that
    # returns settings; "": nothing
    settings: Reader = ""
    label_names: tuple[str, ...] = ()  # if they are always the same
    # A function of (name, root, split) that returns a PictureSet, for those of data.picture_sets
    pictures: Reader = ""
    channels: int = 3
    padded_side: int = 0  # originals of this side get a black margin; 0: images are resized
    is_mirrored: bool = False  # whether training mirrors each image half of the time
    held_out: str = ""  # name of the split that training does not see, if there is one; "": none
    extractor: str = ""  # name of the extractor for its images in checkpoints/extractors; "": none
    classifier: Classifier | None = None
    presets: dict[str, dict] = field(default_factory=dict)  # recipe settings by preset name
    planning: Planning = DEFAULT_PLANNING
    draw: dict = field(default_factory=dict)  # from (schedule, T) to the best flags of `sample`
    guidance: float | None = None  # the best scale for networks with labels; None: not measured


LAPTOP_SETTINGS = {
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
# The learning rate's decay to 0 is ours.
DDPM_SETTINGS = {
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
    label_names=tuple("0123456789"),
    channels=1,
    padded_side=28,
    held_out="test",
    extractor="mnist",
    classifier=Classifier(
        outputs=10,
        targets="mnist_ddpm.data.mnist:mnist_labels",
        measured_on="the 10,000 test digits",
        image_size=32,
        input_side=28,
        widths=(32, 64, 64),
        shift=2,
        card_noun="digits",
    ),
    presets={
        "mnist": {"optimizer": "muon"},
        "mnist-small": {  # for a training of minutes: docs/plan.md
            "optimizer": "muon",
            "base_channels": 16,
            "schedule": "flow",
            "prediction": "velocity",
            "times": "logit-normal",
        },
        "mnist-fast": {  # as many parameters as mnist, and a third of its operations
            "optimizer": "muon",
            "patch_size": 4,
            "base_channels": 48,
            "channel_mults": (1, 2, 2),
            "prediction": "x0",
            "times": "logit-normal",
        },
    },
    planning=Planning(
        presets=("mnist", "mnist-small"),
        sized_presets=("mnist", "mnist-small"),
        min_images_seen=180_000,
        changes={"times": "logit-normal"},
        needs_decoding=False,
    ),
    draw={
        (schedule, 1000): {"sampler": "dpmpp", "steps": 20, "eta": 1.0}
        for schedule in ("linear", "flow")
    },
    guidance=1.5,
)
CELEBA = Dataset(
    title="CelebA",
    terms=f"The weights were trained on [CelebA]({CELEBA_PAGE}) (Z. Liu, P. Luo, X. Wang, X. Tang, "
    "ICCV 2015), which is for non-commercial research only, and so are they. The generated faces "
    "show no real people.",
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
        input_side=64,
        widths=(48, 96, 128, 128),
        shift=4,
    ),
    presets={
        "faces-32": {"image_size": 32, "patch_size": 2, **LAPTOP_SETTINGS},
        "faces-64-small": {"image_size": 64, "patch_size": 4, **LAPTOP_SETTINGS},
        "faces-64": {
            "image_size": 64,
            "patch_size": 2,
            "dropout": 0.1,
            "schedule": "cosine",
            "batch_size": 64,
            "accumulation": 2,
            "epochs": 50,
            **DDPM_SETTINGS,
        },
    },
    draw={("cosine", 1000): {"sampler": "dpmpp", "steps": 20, "eta": 0.0}},
)
FFHQ = Dataset(
    title="FFHQ",
    terms=f"The weights were trained on [FFHQ]({FFHQ_PAGE}), which is under CC BY-NC-SA 4.0, and "
    "so are they. The generated faces show no real people.",
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
            **DDPM_SETTINGS,
            "channel_mults": (1, 1, 2, 2, 4, 4),
            "learning_rate": 2e-5,
        }
    },
)
OWN_TERMS = "The terms of the training images apply to the weights."
TORCHVISION = Dataset(
    title="a data set of torchvision",
    terms=OWN_TERMS,
    license={},
    images="mnist_ddpm.data.picture_sets:load_pictures",
    labels="mnist_ddpm.data.picture_sets:picture_labels",
    settings="mnist_ddpm.data.picture_sets:picture_settings",
    pictures="mnist_ddpm.data.picture_sets:torchvision_split",
    held_out="test",
)
HUB = replace(
    TORCHVISION,
    title="a data set of the Hugging Face hub",
    pictures="mnist_ddpm.data.picture_sets:hub_split",
)
SMALL_PLANNING = replace(  # for colour images of 32 x 32
    DEFAULT_PLANNING, presets=("faces-32", "cifar-32"), sized_presets=("faces-32", "cifar-32")
)
CIFAR10 = replace(
    TORCHVISION,
    title="CIFAR-10",
    is_mirrored=True,
    classifier=Classifier(
        outputs=10,
        targets="mnist_ddpm.data.picture_sets:picture_labels",
        measured_on="the 10,000 test images",
        image_size=32,
        input_side=32,
        widths=(32, 64, 128),
        shift=4,
    ),
    planning=SMALL_PLANNING,
    presets={
        # for two slow cores and some hours
        "cifar-32": {
            **LAPTOP_SETTINGS,
            "patch_size": 4,
            "epochs": 48,
            "mirrored": True,
            "classes": 10,
        },
        # 800,000 steps
        "ddpm-cifar10": {"patch_size": 1, "dropout": 0.1, "epochs": 2048, **DDPM_SETTINGS},
    },
)
GREY = replace(TORCHVISION, channels=1)
PADDED = replace(GREY, padded_side=28)
# The names of other sets of torchvision have their prefix, too
TORCHVISION_SETS = {
    f"torchvision:{name}": dataset
    for name, dataset in {
        "CIFAR10": CIFAR10,
        "CIFAR100": replace(TORCHVISION, is_mirrored=True, planning=SMALL_PLANNING),
        "SVHN": replace(TORCHVISION, planning=SMALL_PLANNING),
        **dict.fromkeys(("MNIST", "FashionMNIST", "KMNIST", "EMNIST", "QMNIST"), PADDED),
        "USPS": GREY,
    }.items()
}
SOURCES = {"torchvision": TORCHVISION, "hub": HUB}  # by the prefix of a name
OWN_FOLDER = Dataset(
    title="a folder of images",
    terms=OWN_TERMS,
    license={},
    images="mnist_ddpm.data.folders:load_own_folder",
    labels="mnist_ddpm.data.folders:folder_labels",
    settings="mnist_ddpm.data.folders:folder_settings",
    held_out="test",
)
OWN_FILE = replace(
    OWN_FOLDER,
    title="an array",
    images="mnist_ddpm.data.picture_sets:load_pictures",
    labels="mnist_ddpm.data.picture_sets:picture_labels",
    settings="mnist_ddpm.data.own_files:own_file_settings",
    pictures="mnist_ddpm.data.own_files:file_split",
)
OWN_FILES = ".npy", ".npz", ".safetensors"
DATASETS: dict[str, Dataset] = {"mnist": MNIST, "celeba": CELEBA, "ffhq": FFHQ}


def dataset_named(name: str) -> Dataset:
    """The data set of that name: a known one, one of a source, or a file or folder."""
    own = OWN_FILE if name.endswith(OWN_FILES) else OWN_FOLDER
    known = DATASETS.get(name) or TORCHVISION_SETS.get(name)
    return known or SOURCES.get(name.partition(":")[0], own)


def planning_for(name: str, channels: int) -> Planning:
    """What plan chooses among: of a record without planning, as for digits where it is grey."""
    planning = dataset_named(name).planning
    is_grey = channels == 1 and planning is DEFAULT_PLANNING
    return replace(MNIST.planning, needs_decoding=True) if is_grey else planning


def is_own(name: str) -> bool:
    """Whether a data set's name is the path of one's own folder or file, which may move."""
    return name not in DATASETS and name.partition(":")[0] not in SOURCES


def datasets_with_classifier() -> list[str]:
    """The names of the data sets on which an extractor can be trained."""
    named = DATASETS | TORCHVISION_SETS
    return [name for name, dataset in named.items() if dataset.classifier]
