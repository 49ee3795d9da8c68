"""Small classifiers whose features generated images are judged by: of MNIST's digits, and of CelebA's attributes."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from mnist_ddpm.ddpm import Device, PathLike, Settings, load_images, progress_bar, to_float
from mnist_ddpm.guidance import load_labels
from mnist_ddpm.image_folder import celeba_attributes, mirrored
from mnist_ddpm.resumable import first_line, replacing

FOLDER = Path("checkpoints/extractors")
HELD_OUT = {"mnist": "the 10,000 test digits", "celeba": "40 attributes of the validation images"}
FOR = {"mnist": "mnist", "celeba": "celeba", "ffhq": "celeba"}  # the extractor that suits a data set


class Extractor(nn.Module):
    """uint8 images (N, channels, H, W) of any size to features float32 (N, widths[-1]); `classify` gives logits.

    Larger images are cropped to the centre (MNIST, whose margin is black) or resized (all else); as many 3 x 3
    convolutions in pairs as there are widths, each pair at half the side of the one before; then the mean over
    positions. In training mode it shifts and (CelebA) mirrors its images.
    """

    BATCH = 500  # images at once, unless they are large

    def __init__(self, dataset: str, outputs: int, widths: tuple[int, ...]):
        super().__init__()
        self.dataset, self.outputs, self.widths = dataset, outputs, widths
        self.channels, self.side = (1, 28) if dataset == "mnist" else (3, 64)
        layers, c = [], self.channels
        for i, width in enumerate(widths):
            first, second = 2 if self.side > 32 and i == 0 else 1, 2 if i + 1 < len(widths) else 1  # strides
            for c_in, stride in ((c, first), (width, second)):
                layers += [nn.Conv2d(c_in, width, 3, stride, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            c = width
        self.body, self.dropout, self.head = nn.Sequential(*layers), nn.Dropout(0.2), nn.Linear(c, outputs)

    def forward(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8 or images.shape[1] != self.channels:
            raise ValueError(
                f"the extractor for {self.dataset} takes uint8 images of {self.channels} channel(s), "
                f"not {images.dtype} {tuple(images.shape)}: --extractor inception takes grey and colour"
            )
        x = to_float(images)
        if self.dataset == "mnist":
            margin = (x.shape[-1] - self.side) // 2
            x = F.pad(x, [-margin] * 4, value=-1)  # black, where the image is the smaller one
        elif x.shape[-1] != self.side:
            x = F.interpolate(x, (self.side, self.side), mode="bilinear", antialias=True)
        return self.body(x).mean(dim=(2, 3))

    def classify(self, images: Tensor) -> Tensor:
        """Logits (N, outputs)."""
        return self.head(self.dropout(self(images)))


def shifted(images: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Images (N, C, H, W), each moved by up to `most` pixels either way, its edge repeated."""
    n, _, height, width = images.shape
    padded = F.pad(images.float(), [most] * 4, mode="replicate").to(images.dtype)
    dy, dx = torch.randint(0, 2 * most + 1, (2, n, 1), generator=generator)
    rows, columns = dy + torch.arange(height), dx + torch.arange(width)
    return padded.permute(0, 2, 3, 1)[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None]].permute(
        0, 3, 1, 2
    )


class Inception(nn.Module):
    """The network that papers judge by: torch-fidelity's port of its original weights, 2,048 features."""

    BATCH = 50  # whatever their size, it makes images of 299 x 299 pixels of them

    def __init__(self):
        super().__init__()
        from torchmetrics.image.fid import NoTrainInceptionV3

        try:
            self.network = NoTrainInceptionV3("inception-v3-compat", ["2048"])
        except (ModuleNotFoundError, OSError) as error:  # a missing package, or no network to download the weights
            raise ValueError(f"Inception is missing ({error}): pip install torch-fidelity, and go online") from error
        self.network.use_antialias = False  # papers resize as TensorFlow 1 did, newer torchmetrics does not

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images.expand(-1, 3, -1, -1))


@torch.no_grad()
def in_batches(
    function: Callable[[Tensor], Tensor], images: Tensor, device: Device, batch_size: int = Extractor.BATCH
) -> Tensor:
    """function of uint8 images, float64, on the processor; the same in whatever batches and order, but for rounding."""
    size = min(batch_size, max(1, 2**26 // images.shape[1:].numel()))  # of large images fewer at once
    bar = progress_bar(images.split(size), desc="extracting features", unit="batch", leave=False, delay=3)
    standard = {"memory_format": torch.contiguous_format}  # another order of values in memory rounds differently
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # and so do GPUs' shorter numbers
        return torch.cat([function(batch.clone(**standard).to(device)).cpu().double() for batch in bar])


def digest(*parts: bytes | Tensor) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of their bytes, which says exactly which they are."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part if isinstance(part, bytes) else part.contiguous().numpy())
    return found.hexdigest()[:16]


@dataclass(frozen=True)
class Judge:
    """An extractor in evaluation mode, with the name that says exactly which."""

    network: Extractor | Inception
    name: str
    device: Device = "cpu"
    share: Callable = lambda function, images: function(images)  # of several processes, each its part

    def features(self, images: Tensor) -> Tensor:
        """Float64 (N, D) of uint8 images."""
        return self.share(partial(in_batches, self.network, device=self.device, batch_size=self.network.BATCH), images)

    def logits(self, images: Tensor) -> Tensor:
        """Float64 (N, outputs) of uint8 images."""
        return self.share(partial(in_batches, self.network.classify, device=self.device), images)


def pick_judge(name: str, dataset: str, device: Device = "cpu", side: int = 28) -> Judge:
    """The extractor in a file, or "inception"; "auto": the shipped one for a data set.

    On Apple's GPUs it stays on the processor: PyTorch lacks operations there, or takes vast memory for them.
    Raises ValueError where there is none, or a damaged one, or one that would crop images, of that side, of no digits.
    """
    device = "cpu" if torch.device(device).type == "mps" else device
    if name == "inception":
        network = Inception()
        name = f"inception-v3-compat, 2048 features, SHA-256 {digest(*network.state_dict().values())}"
        return Judge(network.to(device).eval(), name, device)
    if name == "auto" and dataset not in FOR:
        raise ValueError(
            f"no extractor knows the data set {dataset}: take --extractor {FOLDER / 'celeba.safetensors'}, for colour, "
            "or --extractor inception, for grey and colour"
        )
    path = FOLDER / f"{FOR[dataset]}.safetensors" if name == "auto" else Path(name)
    network, _ = load_extractor(path)
    if network.dataset == "mnist" != dataset and side > network.side:
        raise ValueError(
            f"{path} is for digits, and sees only the middle 28 x 28 pixels: take --extractor inception for {dataset}"
        )
    return Judge(network.to(device), f"{path.name}, SHA-256 {digest(path.read_bytes())}", device)


def targets(dataset: str, root: PathLike, split: str) -> tuple[Tensor, Tensor]:
    """Images and what to say of them: MNIST's digits int64 (N,), CelebA's attributes float32 (N, 40)."""
    if dataset == "mnist":
        settings = Settings(classes=10)
        return load_images(settings, root, split), load_labels(settings, root, split)
    settings = Settings(dataset="celeba", image_size=64)
    images, (_, wanted) = load_images(settings, root, split), celeba_attributes(settings, root, split)
    if len(images) != len(wanted):  # some could not be read, and there is no cache to say which
        raise ValueError(f"{len(images)} images of CelebA, and {len(wanted)} with attributes: repair those skipped")
    return images, wanted.float()


def accuracy(extractor: Extractor, images: Tensor, wanted: Tensor, device: Device = "cpu") -> float:
    """Share of right digits, or of right attributes over all images and attributes."""
    said = in_batches(extractor.eval().classify, images, device)
    return ((said > 0) == (wanted > 0) if wanted.ndim == 2 else said.argmax(dim=1) == wanted).double().mean().item()


def train_extractor(
    dataset: str, root: PathLike = "data", *, epochs: int = 12, batch_size: int = 128, seed: int = 0,
    device: Device = "cpu",
) -> tuple[Extractor, float]:  # fmt: skip
    """An extractor for "mnist" or "celeba", and its accuracy on the test split (CelebA: "valid").

    Raises ValueError for another data set, less than one epoch, and as load_images does.
    """
    if epochs < 1:
        raise ValueError(f"epochs is {epochs}: it must be at least 1")
    if dataset not in ("mnist", "celeba"):
        raise ValueError(f'there is no extractor for "{dataset}": take mnist or celeba')
    digits, rate = dataset == "mnist", 2e-3
    (images, wanted), held_out = (targets(dataset, root, split) for split in ("train", "test" if digits else "valid"))
    if len(images) < batch_size:
        raise ValueError(f"training takes batches of {batch_size}, and there are only {len(images)} images")
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        extractor = Extractor(dataset, 10 if digits else 40, (32, 64, 64) if digits else (48, 96, 128, 128)).to(device)
        loss_of = F.cross_entropy if digits else F.binary_cross_entropy_with_logits
        optimizer = torch.optim.AdamW(extractor.parameters(), lr=rate, weight_decay=0.05)
        whole = len(images) // batch_size * batch_size
        steps = epochs * whole // batch_size
        plan = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
        with progress_bar(total=steps, desc=f"training an extractor for {dataset}", unit="step") as bar:
            for _ in range(epochs):
                extractor.train()
                for batch in torch.randperm(len(images), generator=generator)[:whole].split(batch_size):
                    x = shifted(images[batch], 2 if digits else 4, generator)
                    x = x if digits else mirrored(x, generator)
                    loss = loss_of(extractor.classify(x.to(device)), wanted[batch].to(device))
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    plan.step()
                    bar.update()
                    if bar.n % 50 == 0:
                        bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
    return extractor.eval().requires_grad_(False), accuracy(extractor, *held_out, device=device)


def save_extractor(path: PathLike, extractor: Extractor, record: dict) -> None:
    """One .safetensors file, with what rebuilds the network and a record for people in its header."""
    header = {"dataset": extractor.dataset, "outputs": extractor.outputs, "widths": extractor.widths, "record": record}
    weights = {name: tensor.cpu().contiguous() for name, tensor in extractor.state_dict().items()}
    with replacing(Path(path)) as partial:
        partial.write_bytes(save(weights, {"extractor": json.dumps(header)}))


def load_extractor(path: PathLike) -> tuple[Extractor, dict]:
    """An extractor, and its record. Raises FileNotFoundError where there is none, ValueError for a damaged one."""
    if not Path(path).is_file():
        advice = "start from the project's folder, name a file, or train one (python -m mnist_ddpm extractor)"
        raise FileNotFoundError(f"there is no extractor {path}: {advice}")
    try:
        with Path(path).open("rb"), safe_open(path, "pt") as file:  # the first says why, where it cannot be read
            header = json.loads(file.metadata()["extractor"])
            extractor = Extractor(header["dataset"], header["outputs"], tuple(header["widths"]))
            extractor.load_state_dict({name: file.get_tensor(name) for name in file.keys()})
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged or no extractor ({first_line(error)})") from error
    return extractor.eval().requires_grad_(False), header["record"]
