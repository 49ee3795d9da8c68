"""Networks whose features images are compared by, and the judge that computes them."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from mnist_ddpm.datasets import DATASETS, dataset_named
from mnist_ddpm.ddpm import check, to_float
from mnist_ddpm.formats.checkpoints import check_header, load_weights, shipped_path, warn_unverified
from mnist_ddpm.machine import devices
from mnist_ddpm.machine.files import replacing
from mnist_ddpm.machine.process import import_extra, is_first_process, progress_bar
from mnist_ddpm.machine.processes import ProcessGroup
from mnist_ddpm.machine.text import describe_error, first_line, parse_json

FOLDER = Path("checkpoints/extractors")
LARGEST = 2**30  # bytes of an extractor
PAIR = 6  # layers of an extractor: twice a convolution, a normalisation, and ReLU
COMPUTING = 1  # to be raised when the same extractor gives the same images other features


class Extractor(nn.Module):
    """uint8 images (N, channels, H, W) of any size to features float32 (N, widths[-1]).

    Larger images are cropped to the centre where the data set has a black margin, or else resized,
    to squares in any case, as Inception does.
    Then come as many 3 x 3 convolutions in pairs as there are widths, each pair at half the side
    of the one before, and the mean over positions. `classify` gives logits.
    """

    BATCH = 500  # images at once, unless they are large

    def __init__(self, dataset: str, outputs: int, widths: tuple[int, ...]):
        super().__init__()
        self.dataset = dataset
        self.outputs = outputs
        self.widths = widths
        known = dataset_named(dataset)
        check(known.classifier is not None, f'no extractor is trained on "{dataset}"')
        self.channels = known.channels
        self.input_side = known.classifier.input_side
        self.is_padded = known.padded_side > 0
        layers = []
        c_in = self.channels
        for i, width in enumerate(widths):
            first_stride = 2 if self.input_side > 32 and i == 0 else 1
            second_stride = 2 if i + 1 < len(widths) else 1
            for stride in (first_stride, second_stride):
                layers.append(nn.Conv2d(c_in, width, 3, stride, padding=1, bias=False))
                layers += [nn.BatchNorm2d(width), nn.ReLU()]
                c_in = width
        self.body = nn.Sequential(*layers)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(c_in, outputs)

    def forward(self, images: Tensor) -> Tensor:
        fits = images.dtype == torch.uint8 and images.shape[1] == self.channels
        wanted = (
            f"the extractor for {self.dataset} takes uint8 images of {self.channels} channel(s)"
        )
        actual = f"not {images.dtype} {tuple(images.shape)}"
        check(fits, f"{wanted}, {actual}: --extractor inception takes grey and colour")
        return self.body(self.resized(to_float(images))).mean(dim=(2, 3))

    def resized(self, x: Tensor) -> Tensor:
        """Images (N, channels, H, W) in [-1, 1], cropped or resized to the side of its input."""
        if self.is_padded:
            vertical, horizontal = ((side - self.input_side) // 2 for side in x.shape[2:])
            margin = [-horizontal, -horizontal, -vertical, -vertical]
            return F.pad(x, margin, value=-1)  # black, where the image is the smaller one
        if x.shape[2:] != (self.input_side, self.input_side):
            size = self.input_side, self.input_side
            return F.interpolate(x, size, mode="bilinear", antialias=True)
        return x

    def stages(self, x: Tensor) -> Iterator[Tensor]:
        """(N, width, H, W) after each pair of convolutions, of images (N, channels, H, W).

        The images are in [-1, 1], so that gradients reach them.
        """
        x = self.resized(x)
        for start in range(0, len(self.body), PAIR):
            x = self.body[start : start + PAIR](x)
            yield x

    def classify(self, images: Tensor) -> Tensor:
        """Logits (N, outputs)."""
        return self.head(self.dropout(self(images)))


class Inception(nn.Module):
    """The network that papers judge by: its original weights as torch-fidelity has them.

    uint8 images (N, 1 or 3, H, W) to features (N, 2048).
    """

    BATCH = 50  # whatever their size, it makes images of 299 x 299 pixels of them

    def __init__(self):
        super().__init__()
        _, fid = import_extra("inception", "torch_fidelity", "torchmetrics.image.fid")
        try:
            self.network = fid.NoTrainInceptionV3("inception-v3-compat", ["2048"])
        except OSError as error:
            raise ValueError(f"Inception's weights cannot be downloaded: {error}") from error
        self.network.use_antialias = False  # papers resize as TensorFlow 1 did

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.expand(-1, 3, -1, -1))


@torch.no_grad()
def in_batches(
    function: Callable[[Tensor], Tensor],
    images: Tensor,
    device: torch.device | str,
    batch_size: int = Extractor.BATCH,
    title: str = "extracting features",
) -> Tensor:
    """function of uint8 images (N, C, H, W): float64 (N, …), on the processor.

    It is the same in all batches and orders, up to rounding. title: of the progress bar.
    """
    size = min(batch_size, max(1, 2**26 // images.shape[1:].numel()))  # of large images fewer
    parts = images.split(size)
    bar = progress_bar(parts, desc=title, unit="batch", leave=False, delay=3)
    standard = torch.contiguous_format  # another order of values in memory rounds differently
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # as GPUs' shorter numbers do
        outputs = [function(part.clone(memory_format=standard).to(device)) for part in bar]
        return torch.cat([values.cpu().double() for values in outputs])


def digest(*parts: bytes | Tensor) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of their bytes."""
    sha256 = hashlib.sha256()
    for part in parts:
        sha256.update(part if isinstance(part, bytes) else part.contiguous().numpy())
    return sha256.hexdigest()[:16]


@dataclass(frozen=True)
class Judge:
    """An extractor in evaluation mode, with the name that says exactly which."""

    network: Extractor | Inception
    name: str
    device: torch.device | str = "cpu"
    world: ProcessGroup = field(
        default_factory=ProcessGroup
    )  # of several processes, each takes its part

    def features(self, images: Tensor, title: str = "images", mirrored: bool = False) -> Tensor:
        """float64 (N, D) of uint8 images (N, C, H, W), or of their mirror images.

        title: what the progress bar calls them.
        """

        def function(part: Tensor) -> Tensor:
            return self.network(part.flip(-1) if mirrored else part)

        share = self.world.share(len(images))
        images_here = images[share.start : share.stop]
        title = f"features of {title}"
        features = in_batches(function, images_here, self.device, self.network.BATCH, title)
        return self.world.gather_shares(features, len(images))

    def logits(self, features: Tensor) -> Tensor:
        """A classifier's float64 (N, outputs) of features (N, D)."""
        return in_batches(self.network.head, features.float(), self.device)


def pick_judge(
    name: str,
    dataset: str,
    device: torch.device | str = "cpu",
    side: int = 28,
    world: ProcessGroup | None = None,
) -> Judge:
    """The extractor in a file, or "inception"; "auto": the shipped one for a data set.

    side: the images', of a rectangle the longer. Raises ValueError where there is none or a damaged
    one, and for one of digits that would crop other images. On Apple's GPUs it stays on the
    processor: PyTorch lacks operations there, or takes vast memory for them.
    """
    device = "cpu" if torch.device(device).type == "mps" else device
    world = world or ProcessGroup()
    if name == "inception":
        network = Inception()
        sha256 = digest(*network.state_dict().values())
        full_name = f"inception-v3-compat, 2048 features, SHA-256 {sha256}"
        return Judge(network.to(device).eval(), full_name, device, world)
    suits = own_extractor(dataset)
    advice = f"take --extractor inception, or one of those shipped ({shipped_extractors()})"
    is_known = name != "auto" or suits is not None
    check(is_known, f"no extractor knows the data set {dataset}: {advice}")
    path = find_extractor(suits if name == "auto" else name)
    network, _ = load_extractor(path)
    crops = network.is_padded and network.dataset != dataset and side > network.input_side
    sees = f"sees only the middle {network.input_side} x {network.input_side} pixels"
    advice = f"take --extractor inception for {dataset}"
    check(not crops, f"{path} is for {network.dataset}, and {sees}: {advice}")
    name = f"{path.name}, SHA-256 {digest(path.read_bytes())}"
    return Judge(network.to(device), name, device, world)


def save_extractor(path: str | Path, extractor: Extractor, record: dict) -> None:
    """A .safetensors file; its header has what rebuilds the network, and a record for people.

    Beside it, written before it, its SHA-256, as `sha256sum --check` reads it.
    """
    path = Path(path)
    header = {
        "dataset": extractor.dataset,
        "outputs": extractor.outputs,
        "widths": extractor.widths,
        "record": record,
    }
    weights = {name: each.cpu().contiguous() for name, each in extractor.state_dict().items()}
    content = save(weights, {"extractor": json.dumps(header)})
    with replacing(digest_path(path)) as temporary:
        line = f"{hashlib.sha256(content).hexdigest()}  {path.name}\n"
        temporary.write_text(line, encoding="utf-8")
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def own_extractor(dataset: str) -> Path | None:
    """The file of the shipped extractor that suits a data set; None where there is none."""
    name = dataset_named(dataset).extractor
    return FOLDER / f"{name}.safetensors" if name else None


def shipped_extractors() -> str:
    """The files of those shipped, in one line."""
    return " or ".join(sorted({str(own_extractor(name)) for name in DATASETS} - {"None"}))


def find_extractor(path: str | Path) -> Path:
    """An extractor's file; shipped ones, in checkpoints/extractors, are found from any folder.

    Raises FileNotFoundError where there is none.
    """
    path = Path(path)
    if path.is_file():
        return path
    own = shipped_path(FOLDER.name) / path.name
    if path.parent == FOLDER and own.is_file():
        return own
    raise FileNotFoundError(
        f"there is no extractor {path}, which would be {path.absolute()}: "
        f"take {shipped_extractors()} of a clone of the repository "
        "(an installed package holds only mnist's), or train one there by tools/train_extractor.py"
    )


def digest_path(path: Path) -> Path:
    """Where an extractor's SHA-256 stands."""
    return path.with_name(f"{path.name}.sha256")


def check_digest(path: Path) -> None:
    """Raises ValueError unless a file's SHA-256 is that beside it; without one, prints a line."""
    check(path.stat().st_size <= LARGEST, f"{path} is no extractor: it is larger than 1 GB")
    if not digest_path(path).is_file():
        warn_unverified(path)
        return
    with digest_path(path).open("rb") as file:
        expected = file.read(200).decode(errors="replace").split()[:1]
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    damage = f"{path} is damaged (its SHA-256 is not that in {digest_path(path).name})"
    check(expected == [sha256], f"{damage}: copy both once more")


def load_extractor(path: str | Path) -> tuple[Extractor, dict]:
    """An extractor, and its record.

    Raises FileNotFoundError where there is none, ValueError for a damaged one.
    """
    path = find_extractor(path)
    check_digest(path)
    try:
        with path.open("rb"), safe_open(path, "pt") as file:  # open() says why it cannot
            header = parse_json(file.metadata()["extractor"])
            widths = tuple(header["widths"])
            sizes = header["outputs"], *widths
            check(0 < len(widths) < 9 and max(sizes) <= 4096, f"layers of {sizes}")
            options = header["dataset"], header["outputs"], widths
            with torch.device("meta"):  # without memory, should the header describe a huge one
                check_header(path, Extractor(*options).state_dict(), path)
            extractor = Extractor(*options)
            weights = {name: file.get_tensor(name) for name in file.keys()}
            load_weights(extractor.state_dict(), weights, path)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged or no extractor ({describe_error(error)})") from error
    return extractor.eval().requires_grad_(False), header["record"]


class RealFeatures(NamedTuple):
    """Features, float64 (N, D), of the real images that others are compared with."""

    training: Tensor
    mirrored: Tensor | None  # of the training images' mirror images, if training saw them, too
    held_out: Tensor | None


@dataclass(frozen=True)
class RealImages:
    """Real images, uint8 (N, C, H, W), whose features a judge reads from files, or computes."""

    judge: Judge
    training: Tensor
    held_out: Tensor | None = None
    mirrored: bool = False  # whether training saw each image from both sides
    folder: Path | None = None  # for the features' files; None: there are no files

    @cached_property
    def digests(self) -> list[str]:
        """Digests of the images: of training, and of those held out."""
        parts = self.training, self.held_out
        return [digest(part) for part in parts if part is not None]

    @property
    def kinds(self) -> dict[str, tuple[Tensor, str]]:
        """By the names of RealFeatures: the images, and what a progress bar calls them."""
        n = f"{len(self.training):,}"
        kinds = {"training": (self.training, f"{n} training images")}
        if self.mirrored:
            kinds["mirrored"] = self.training, f"{n} mirrored training images"
        if self.held_out is not None:
            kinds["held_out"] = self.held_out, f"{len(self.held_out):,} held-out images"
        return kinds

    def path(self, kind: str) -> Path:
        """The file of features, named for all that they depend on, to the last bit."""
        judge = self.judge
        device = torch.device(judge.device)
        machine = {"device": device.type, "hardware": devices.hardware(device)}
        machine |= {"processes": judge.world.size, **devices.versions()}
        shape = list(self.kinds[kind][0].shape)
        images = self.digests[kind == "held_out"]
        facts = json.dumps([COMPUTING, judge.name, machine, images, shape, kind])
        return self.folder / f"features-{kind}-{digest(facts.encode())}.npz"

    def announce_missing(self) -> None:
        """Prints beforehand which features have to be computed, since that takes long."""
        titles = [title for kind, (_, title) in self.kinds.items() if not self.path(kind).is_file()]
        if titles and is_first_process():
            features = f"the features of {' and '.join(titles)}"
            work = f"{features} are computed, and kept in {self.folder}"
            print(f"the first card takes longer: {work}", flush=True)

    def features(self) -> RealFeatures:
        """The features, from files as far as they are there. Each of several processes calls it."""
        features = dict.fromkeys(RealFeatures._fields)
        for kind, (images, title) in self.kinds.items():
            features[kind] = self.folder and read_features(self.path(kind), len(images))
            is_missing = features[kind] is None
            if self.judge.world.any(is_missing):  # then each has its part to compute
                features[kind] = self.judge.features(images, title, kind == "mirrored")
                if self.folder and is_missing:
                    write_features(self.path(kind), features[kind])
        return RealFeatures(**features)


def read_features(path: Path, n: int) -> Tensor | None:
    """The features (n, D) in a file; None where there is none, or a damaged one."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as opened, np.load(opened) as file:  # which compares checksums
            features = file["features"]
            name = file["name"].item()
        check(name == path.name and features.dtype == np.float32, f"it holds {name}")
        check(features.ndim == 2 and len(features) == n, f"it holds {features.shape}")
        return torch.from_numpy(features).double()
    except Exception as error:  # NumPy's are of many kinds
        if is_first_process():
            reason = f"{path} is damaged or of other images ({first_line(error)})"
            print(f"{reason}: the features are computed again", flush=True)
        return None


def write_features(path: Path, features: Tensor) -> None:
    """Writes features to a file; prints a line where that fails: they are computed again, then."""
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            # extractors give float32: nothing is lost
            np.savez(file, features=features.float().numpy(), name=path.name)
    except OSError as error:
        if is_first_process():
            reason = f"the features cannot be kept ({first_line(error)})"
            print(f"{reason}: the next card computes them again", flush=True)
