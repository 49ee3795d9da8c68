# Written by tools/notebook.py from MNIST_DDPM.ipynb: edit that, not this file.


# %% check
def check(condition: bool, message: str) -> None:
    """Raises ValueError with this message unless the condition holds."""
    if not condition:
        raise ValueError(message)


# %% imports
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


# %% mnist
def to_float(images: Tensor) -> Tensor:
    """uint8 images as float32 in [-1, 1]. Raises ValueError for another type."""
    check(images.dtype == torch.uint8, f"images are {images.dtype}: they must be uint8")
    return images.float() / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """Floats, clipped to [-1, 1], as uint8: the inverse of to_float."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


# %% pictures
def tile(images: Tensor, columns: int, scale: int = 1) -> np.ndarray:
    """uint8 images (N, C, H, W), framed, in rows: uint8 (height, width, 3)."""
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    height, width = images.shape[2] + 2, images.shape[3] + 2
    picture = np.full((rows * height + 2, columns * width + 2, 3), 64, np.uint8)
    for k, image in enumerate(images.cpu().permute(0, 2, 3, 1).numpy()):
        y, x = k // columns * height + 2, k % columns * width + 2
        picture[y : y + height - 2, x : x + width - 2] = image
    return picture.repeat(scale, axis=0).repeat(scale, axis=1)


def show(picture: np.ndarray, title: str = "", width: float = 8, columns=(), rows=()):
    """A picture's figure, `width` inches wide; columns and rows are their names."""
    import matplotlib.pyplot as plt

    height, pixels = picture.shape[:2]
    size = width, width * height / pixels + (0.5 if title else 0.2)
    figure, ax = plt.subplots(figsize=size, layout="constrained")
    ax.imshow(picture, cmap="gray", interpolation="nearest")
    ax.set_title(title, fontsize=10)
    ax.set_xticks(np.linspace(0, pixels, 2 * len(columns) + 1)[1::2], columns)
    ax.set_yticks(np.linspace(0, height, 2 * len(rows) + 1)[1::2], rows)
    ax.tick_params(length=0, labelsize=8)
    return figure


# %% schedule-code
Time = int | Tensor  # one time for all images, or times (N,)


@dataclass(frozen=True)
class Schedule:
    """x_t = a[t] x_0 + b[t] eps, for t = 0 … T: signal and noise, float64 (T+1,)."""

    a: Tensor
    b: Tensor

    @property
    def T(self) -> int:
        """The last time."""
        return len(self.a) - 1

    def at(self, t: Time) -> tuple[Tensor, Tensor]:
        """a_t and b_t, each () or (N,)."""
        t = torch.as_tensor(t).cpu()
        return self.a[t], self.b[t]


def linear_beta(T: int = 1000, beta_1: float = 1e-4, beta_T: float = 0.02) -> Tensor:
    """0, then beta_1 … beta_T, evenly spaced: float64 (T+1,). DDPM, Section 4."""
    return F.pad(torch.linspace(beta_1, beta_T, T, dtype=torch.float64), (1, 0))


def beta_schedule(beta: Tensor) -> Schedule:
    """DDPM's schedule for beta_0 = 0 … beta_T (T+1,): a^2 is alpha_bar, b^2 1 - a^2."""
    alpha_bar = (1 - beta).cumprod(dim=0)
    return Schedule(alpha_bar.sqrt(), (1 - alpha_bar).sqrt())


# %% q-sample
def per_image(values: Tensor, x: Tensor) -> Tensor:
    """Values () or (N,) in a shape that multiplies images x (N, C, H, W)."""
    return values.to(x).view(-1, 1, 1, 1)


def q_sample(schedule: Schedule, x0: Tensor, t: Time, eps: Tensor) -> Tensor:
    """x_t (N, C, H, W) from x_0 and noise of the same shape: Eq. 4."""
    a_t, b_t = schedule.at(t)
    return per_image(a_t, x0) * x0 + per_image(b_t, x0) * eps


# %% posterior-code
def predict_x0(schedule: Schedule, xt: Tensor, t: Time, eps: Tensor) -> Tensor:
    """The x_0 that q_sample turned into x_t with this noise: Eq. 15."""
    a_t, b_t = schedule.at(t)
    return (xt - per_image(b_t, xt) * eps) / per_image(a_t, xt)


def predict_eps(schedule: Schedule, xt: Tensor, t: Time, x0: Tensor) -> Tensor:
    """The noise with which q_sample turned x_0 into x_t."""
    a_t, b_t = schedule.at(t)
    return (xt - per_image(a_t, xt) * x0) / per_image(b_t, xt)


def step_variance(schedule: Schedule, t: Time, s: Time) -> Tensor:
    """Variance of q(x_t | x_s), s < t: beta_t where s = t - 1."""
    a_t, b_t = schedule.at(t)
    a_s, b_s = schedule.at(s)
    return b_t**2 - (a_t / a_s * b_s) ** 2


def posterior_variance(schedule: Schedule, t: Time, s: Time) -> Tensor:
    """Variance of q(x_s | x_t, x_0), s < t: Eq. 7."""
    _, b_t = schedule.at(t)
    _, b_s = schedule.at(s)
    return step_variance(schedule, t, s) * (b_s / b_t) ** 2


def posterior_mean(schedule: Schedule, x0: Tensor, xt: Tensor, t: Time, s: Time):
    """Mean of q(x_s | x_t, x_0), s < t (N, C, H, W): Eq. 7."""
    a_t, b_t = schedule.at(t)
    a_s, b_s = schedule.at(s)
    xt_weight = a_t / a_s * b_s**2 / b_t**2
    x0_weight = a_s * step_variance(schedule, t, s) / b_t**2
    return per_image(xt_weight, xt) * xt + per_image(x0_weight, xt) * x0


# %% objective-code
Network = Callable[[Tensor, Tensor], Tensor]  # from x_t (N, C, H, W) and times (N,)
Objective = Callable[[Network, Schedule, Tensor, Tensor, Tensor], Tensor]  # l_simple's


def l_simple(
    network: Network, schedule: Schedule, x0: Tensor, t: Tensor, eps: Tensor
) -> Tensor:
    """Mean squared error of the predicted noise, by image (N,): Eq. 14, per pixel."""
    eps_hat = network(q_sample(schedule, x0, t, eps), t)
    return (eps_hat.float() - eps).square().mean(dim=(1, 2, 3))


# %% denoisers
Denoiser = Callable[[Tensor, Time], tuple[Tensor, Tensor]]  # x_t, t to x0_hat, eps_hat


def eps_denoiser(network: Network, schedule: Schedule) -> Denoiser:
    """The denoiser of a network that predicts the noise."""

    def denoise(xt: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        eps_hat = network(xt, torch.as_tensor(t).expand(len(xt))).to(xt.dtype)
        return predict_x0(schedule, xt, t, eps_hat), eps_hat

    return denoise


def clipped(denoise: Denoiser, schedule: Schedule) -> Denoiser:
    """A denoiser with x0_hat clipped to [-1, 1], and eps_hat to match."""

    def denoise_and_clip(xt: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        x0_hat, _ = denoise(xt, t)
        x0_hat = x0_hat.clamp(-1, 1)
        return x0_hat, predict_eps(schedule, xt, t, x0_hat)

    return denoise_and_clip


# %% times-code
def timesteps(T: int, steps: int) -> list[int]:
    """`steps` times, falling evenly from T; 0 would follow."""
    check(1 <= steps <= T, f"sampling_steps is {steps}: take 1 to T = {T}")
    return [round(T * k / steps) for k in range(steps, 0, -1)]


def transitions(times: list[int], T: int) -> list[tuple[int, int]]:
    """Each time with its successor, the last with 0. ValueError unless they fall."""
    falls = times and [T + 1, *times, 0] == sorted({T + 1, *times, 0}, reverse=True)
    check(bool(falls), f"times are {times}: they must fall, from at most {T} to 1")
    return list(zip(times, [*times[1:], 0]))


# %% ddpm-sampler
States = Iterator[tuple[int, Tensor, Tensor]]  # (t, x_t, x0_hat), last (0, x_0, x_0)


@torch.no_grad()
def ddpm_sampler(
    denoise: Denoiser, schedule: Schedule, times: list[int], x: Tensor,
    draw_noise: Callable[[], Tensor], variance=posterior_variance,
) -> States:
    """Ancestral sampling (Algorithm 2) along falling times, from noise (N, C, H, W)."""
    for t, s in transitions(times, schedule.T):
        x0_hat, _ = denoise(x, t)
        yield t, x, x0_hat
        x = posterior_mean(schedule, x0_hat, x, t, s)
        if s > 0:
            x = x + variance(schedule, t, s).sqrt().to(x) * draw_noise()
    yield 0, x, x


# %% ddim-sampler
@torch.no_grad()
def ddim_sampler(
    denoise: Denoiser, schedule: Schedule, times: list[int], x: Tensor,
    draw_noise: Callable[[], Tensor], eta: float = 0.0,
) -> States:
    """DDIM (Eq. 12 and 16) along falling times, from noise (N, C, H, W)."""
    check(0 <= eta <= 1, f"eta is {eta}: take 0, for no noise, to 1, as in DDPM")
    for t, s in transitions(times, schedule.T):
        x0_hat, eps_hat = denoise(x, t)
        yield t, x, x0_hat
        a_s, b_s = (value.item() for value in schedule.at(s))
        sigma = eta * posterior_variance(schedule, t, s).sqrt().item()
        x = a_s * x0_hat + math.sqrt(max(0, b_s**2 - sigma**2)) * eps_hat
        if sigma > 0:
            x = x + sigma * draw_noise()
    yield 0, x, x


# %% ideal-denoiser
def ideal_denoiser(schedule: Schedule, points: Tensor) -> Denoiser:
    """The exact E[x_0 | x_t] for data of these equally likely points (K, C, H, W)."""
    flat = points.double().flatten(1)

    def denoise(xt: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        a_t, b_t = (value.view(-1, 1, 1) for value in schedule.at(t))
        difference = xt.double().flatten(1).unsqueeze(1) - a_t * flat
        distance = difference.square().sum(dim=2)
        weights = torch.softmax(-distance / (2 * b_t.squeeze(1) ** 2), dim=1)  # (N, K)
        x0_hat = (weights @ flat).view(xt.shape).to(xt)
        return x0_hat, predict_eps(schedule, xt, t, x0_hat)

    return denoise


# %% imports-2
import json
import sys
from dataclasses import field
from pathlib import Path

import imageio.v3 as imageio
from safetensors.torch import load_file
from tqdm import tqdm


# %% time-embedding
def time_embedding(t: Tensor, dim: int) -> Tensor:
    """Sines and cosines of t - 1 at dim/2 frequencies, 1 to 1/10000: (N, dim)."""
    k = torch.arange(dim // 2, device=t.device)
    angle = (t - 1)[:, None] * torch.exp(-math.log(10_000) * k / max(1, dim // 2 - 1))
    return F.pad(torch.cat([angle.sin(), angle.cos()], dim=1), (0, dim % 2))


# %% residual-block
def group_norm(channels: int) -> nn.GroupNorm:
    """At most 32 groups, of 4 channels or more: a lone channel would lose its mean."""
    groups = math.gcd(32, channels, max(1, channels // 4))
    return nn.GroupNorm(groups, channels, eps=1e-6)


def zero_init(layer: nn.Conv2d) -> nn.Conv2d:
    """The layer with weights and biases of 0."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class ResidualBlock(nn.Module):
    """Images (N, c_in, H, W) and time vectors (N, c_time) to (N, c_out, H, W)."""

    def __init__(self, c_in: int, c_out: int, c_time: int, dropout: float):
        super().__init__()
        self.norm1 = group_norm(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.time = nn.Linear(c_time, c_out)
        self.norm2 = group_norm(c_out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_init(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = h + self.time(F.silu(time))[:, :, None, None]
        return self.skip(x) + self.conv2(self.dropout(F.silu(self.norm2(h))))


# %% attention-code
class SelfAttention(nn.Module):
    """One head over the H x W positions of (N, C, H, W)."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zero_init(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        rows = self.qkv(self.norm(x)).flatten(2).mT.contiguous()  # (N, H*W, 3*C)
        q, k, v = rows.unsqueeze(1).chunk(3, dim=-1)
        h = F.scaled_dot_product_attention(q, k, v).squeeze(1)
        return x + self.out(h.mT.reshape(x.shape))


class Block(nn.Module):
    """A residual block, followed by self-attention where asked."""

    def __init__(self, c_in: int, c_out: int, c_time: int, dropout: float, attends):
        super().__init__()
        self.residual = ResidualBlock(c_in, c_out, c_time, dropout)
        self.attention = SelfAttention(c_out) if attends else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.attention(self.residual(x, time))


# %% resampling
class Downsample(nn.Module):
    """(N, C, H, W) to (N, C, H/2, W/2). The time vectors are not used."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """(N, C, H, W) to (N, C, 2H, 2W). The time vectors are not used."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


# %% u-net-paths
def down_path(c: int, widths: list[int], blocks: int, make_block):
    """The blocks and halvings of each level, and the channels that each leaves."""
    layers = nn.ModuleList()
    skip_channels = [c]  # of the first convolution
    for level, width in enumerate(widths):
        if level > 0:
            layers.append(Downsample(skip_channels[-1]))
            skip_channels.append(skip_channels[-1])
        for _ in range(blocks):
            layers.append(make_block(skip_channels[-1], width, level))
            skip_channels.append(width)
    return layers, skip_channels


def up_path(widths: list[int], skip_channels: list[int], make_block) -> nn.ModuleList:
    """The blocks of each level, one for each skip connection, and the doublings."""
    layers = nn.ModuleList()
    blocks_per_level = len(skip_channels) // len(widths)
    c = widths[-1]
    for level, width in reversed([*enumerate(widths)]):
        for _ in range(blocks_per_level):
            layers.append(make_block(c + skip_channels.pop(), width, level))
            c = width
        if level > 0:
            layers.append(Upsample(c))
    return layers


# %% u-net-code
class UNet(nn.Module):
    """From x_t (N, channels, H, W), times and labels (N,) to the same shape as x_t.

    blocks: residual blocks of a level, going down. attention: levels that have it.
    out_channels: of the output, where it has others than the input.
    classes: how many labels there are; the label `classes`, or no labels, means "none".
    """

    def __init__(
        self, channels=1, base_channels=32, channel_mults=(1, 2, 4), patch_size=2,
        dropout=0.0, blocks=1, attention=(2,), out_channels=None, classes=0,
    ):
        super().__init__()
        self.base_channels = base_channels
        self.patch_size = patch_size
        self.classes = classes
        c, c_time = base_channels, 4 * base_channels
        widths = [c * mult for mult in channel_mults]

        def make_block(c_in: int, c_out: int, level: int) -> Block:
            return Block(c_in, c_out, c_time, dropout, level in attention)

        linear = nn.Linear(c, c_time), nn.Linear(c_time, c_time)
        self.time = nn.Sequential(linear[0], nn.SiLU(), linear[1])
        self.conv_in = nn.Conv2d(channels * patch_size**2, c, 3, padding=1)
        self.down, skip_channels = down_path(c, widths, blocks, make_block)
        c = widths[-1]
        middle = [Block(c, c, c_time, dropout, attends) for attends in (True, False)]
        self.up = up_path(widths, skip_channels, make_block)
        self.middle = nn.ModuleList(middle)  # after the others, as in saved runs
        self.norm_out = group_norm(widths[0])
        c_out = (out_channels or channels) * patch_size**2
        self.conv_out = zero_init(nn.Conv2d(widths[0], c_out, 3, padding=1))
        if classes:
            self.label = nn.Embedding(classes + 1, c_time)

    def time_vector(self, t: Tensor) -> Tensor:
        """Times (N,) as the vectors (N, c_time) that each block sees."""
        return self.time(time_embedding(t, self.base_channels).to(self.conv_in.weight))

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        check(labels is None or self.classes > 0, "this network has no labels")
        time = self.time_vector(t)
        if self.classes:
            none = torch.full((len(x),), self.classes)
            time = time + self.label((none if labels is None else labels).to(x.device))
        h = self.conv_in(F.pixel_unshuffle(x, self.patch_size))
        skips = [h]
        for layer in self.down:
            skips.append(layer(skips[-1], time))
        h = skips[-1]
        for layer in self.middle:
            h = layer(h, time)
        for layer in self.up:
            skip = [] if isinstance(layer, Upsample) else [skips.pop()]
            h = layer(torch.cat([h, *skip], dim=1), time)
        h = self.conv_out(F.silu(self.norm_out(h)))
        return F.pixel_shuffle(h, self.patch_size)


# %% guided-network
def guided_network(network: UNet, labels: Tensor, scale: float = 1.0) -> Network:
    """The network with these labels (N,), guided by a scale w: of x_t and t."""

    def predict(xt: Tensor, t: Tensor) -> Tensor:
        with_labels = network(xt, t, labels)
        if scale == 1:
            return with_labels
        without = network(xt, t)
        return without + scale * (with_labels - without)

    return predict


# %% device
def best_device() -> str:
    """A CUDA GPU, else Apple's, else the processor."""
    apple = torch.backends.mps.is_available()
    return "cuda" if torch.cuda.is_available() else "mps" if apple else "cpu"


# %% settings
@dataclass(frozen=True)
class Settings:
    """All settings of a training run except mirroring."""

    dataset: str = "mnist"  # mnist, celeba, ffhq, or a folder of images
    image_size: int = 32  # side of the square images, in pixels
    channels: int = 1  # 1 grey, 3 colour
    base_channels: int = 32  # width of the first level of the U-Net
    channel_mults: tuple[int, ...] = (1, 2, 4)  # width of each level, in base_channels
    patch_size: int = 2  # the network sees patches of p x p pixels as one position
    T: int = 1000  # diffusion steps
    beta_1: float = 1e-4  # variance added by step 1
    beta_T: float = 0.02  # variance added by step T
    epochs: float = 20  # passes over the training images
    batch_size: int = 128  # images in a training step
    learning_rate: float = 2e-3  # at its peak
    warmup_steps: int = 500  # steps of rising learning rate, at most a tenth of all
    ema_decay: float = 0.999  # of the moving average of the weights
    seed: int = 0  # of weights, order, times and noise
    classes: int = 0  # how many labels there are; 0 for images without
    label_dropout: float = 0.2  # share of labels that training replaces by "none"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        return self.channels, self.image_size, self.image_size


def make_network(settings: Settings) -> UNet:
    """A new U-Net with attention on its last level; its weights depend on the seed."""
    s = settings
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(s.seed)
        sizes = s.channels, s.base_channels, s.channel_mults, s.patch_size
        return UNet(*sizes, attention=(len(s.channel_mults) - 1,), classes=s.classes)


# %% load-mnist
def progress_bar(*args, **kwargs) -> tqdm:
    """tqdm's bar as plain text, with the time that is left."""
    return tqdm(*args, file=sys.stdout, mininterval=1.0, ncols=88, **kwargs)


def load_mnist(size: int = 32, root: str | Path = "data", train: bool = True) -> Tensor:
    """Digits with a black margin: uint8 (60000 or, to test, 10000, 1, size, size).

    Downloads what is missing. Raises FileNotFoundError where they cannot be read.
    """
    try:
        from torchvision.datasets import MNIST  # takes two seconds

        digits = MNIST(root, train=train, download=True).data
    except Exception as error:  # no network, a damaged file, a full disk …
        folder = Path(root, "MNIST", "raw")
        advice = f"put its four .gz files into {folder}, and remove what else is there"
        raise FileNotFoundError(f"MNIST: {error!r}; {advice}") from error
    return F.pad(digits[:, None], [(size - 28) // 2] * 4)


# %% run
@dataclass
class Run:
    """A training run: all that changes while it trains."""

    settings: Settings
    network: UNet
    ema: UNet  # the moving average of the network
    optimizer: torch.optim.Optimizer
    step: int = 0  # steps done
    losses: list[float] = field(default_factory=list)  # of each of them

    @property
    def parts(self) -> dict:
        """What has a state, by its name in a file."""
        return {"model": self.network, "ema": self.ema, "optimizer": self.optimizer}


def start_run(settings: Settings, device: str = "cpu") -> Run:
    """A run at step 0, with Adam, the paper's optimiser."""
    network = make_network(settings).to(device)
    ema = make_network(settings).to(device).eval().requires_grad_(False)
    return Run(settings, network, ema, torch.optim.Adam(network.parameters()))


def total_steps(settings: Settings, n: int) -> int:
    """Steps of all epochs on n images, in whole batches. ValueError for too few."""
    size = settings.batch_size
    check(size <= n, f"batch_size is {size}: take at most {n}")
    return max(1, round(settings.epochs * (n // settings.batch_size)))


def learning_rate_at(step: int, total: int, settings: Settings) -> float:
    """Of step 1 … total: a linear warm-up, times a cosine from 1 towards 0."""
    warmup = max(1, min(settings.warmup_steps, total // 10))
    cosine = 0.5 * (1 + math.cos(math.pi * (step - 1) / total))
    return settings.learning_rate * min(1, step / warmup) * cosine


# %% training-step
def training_step(
    run: Run, objective: Objective, schedule: Schedule, x0: Tensor,
    generator: torch.Generator, labels: Tensor | None = None,
) -> float:
    """One step of Algorithm 1 on images (N, C, H, W) in [-1, 1], with any labels (N,).

    Returns the loss. Raises FloatingPointError, before it reaches the weights, for one
    that is not finite.
    """
    options = {"generator": generator, "device": generator.device}
    t = torch.randint(1, schedule.T + 1, (len(x0),), **options).to(x0.device)
    eps = torch.randn(x0.shape, **options).to(x0.device)
    network = run.network.train()
    if labels is not None:
        is_hidden = torch.rand(len(x0), **options) < run.settings.label_dropout
        labels = labels.to(is_hidden.device)
        labels = labels.masked_fill(is_hidden, run.settings.classes)
        network = guided_network(run.network, labels)
    loss = objective(network, schedule, x0, t, eps).mean()
    run.optimizer.zero_grad()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(run.network.parameters(), 1.0)
    value = loss.item()
    if not math.isfinite(value + norm.item()):
        message = f"the loss is {value} in step {run.step + 1}: lower learning_rate"
        raise FloatingPointError(message)
    run.optimizer.step()
    run.step += 1
    run.losses.append(value)
    decay = min(run.settings.ema_decay, (1 + run.step) / (10 + run.step))
    weights = [weight.detach() for weight in run.network.parameters()]
    torch._foreach_lerp_(list(run.ema.parameters()), weights, 1 - decay)
    return value


# %% training-loop-code
def random_generator(*key: int, device: str = "cpu") -> torch.Generator:
    """A generator whose numbers depend on a key such as (seed, step) alone."""
    seed = int(np.random.default_rng(key).integers(2**63))
    return torch.Generator(device).manual_seed(seed)


def mirrored(x0: Tensor, generator: torch.Generator) -> Tensor:
    """Images (N, C, H, W), each mirrored or not, by a coin."""
    coins = torch.rand(len(x0), generator=generator, device=generator.device)
    is_mirrored = (coins < 0.5).to(x0.device).view(-1, 1, 1, 1)
    return torch.where(is_mirrored, x0.flip(-1), x0)


def training_loop(
    run: Run, images: Tensor, schedule: Schedule, objective: Objective = l_simple,
    augment: Callable | None = None, labels: Tensor | None = None,
) -> Iterator[float]:
    """Trains run on uint8 images (N, C, H, W), with any labels (N,), to its last epoch.

    Yields the loss of each step.
    """
    settings = run.settings
    device = next(run.network.parameters()).device
    total = total_steps(settings, len(images))
    epoch_steps = len(images) // settings.batch_size
    while run.step < total:
        epoch, position = divmod(run.step, epoch_steps)
        shuffle = random_generator(settings.seed, 0, epoch)
        order = torch.randperm(len(images), generator=shuffle)
        batches = order.split(settings.batch_size)
        for batch in batches[position:epoch_steps][: total - run.step]:
            generator = random_generator(settings.seed, 1, run.step, device=device)
            rate = learning_rate_at(run.step + 1, total, settings)
            run.optimizer.param_groups[0]["lr"] = rate
            x0 = to_float(images[batch].to(device))
            if augment is not None:
                x0 = augment(x0, generator)
            chosen = None if labels is None else labels[batch]
            yield training_step(run, objective, schedule, x0, generator, chosen)


# %% load
def load_checkpoint(folder, device="cpu") -> tuple[UNet, Schedule, Settings]:
    """The averaged network, schedule and settings. ValueError for another method."""
    config = json.loads(Path(folder, "config.json").read_text())
    method = config.get("method") or {}
    known = {"schedule", "prediction", "a", "b"}
    is_known = method.keys() <= known and method.get("prediction") == "eps"
    is_known = is_known and method["schedule"] in ("linear", "tables")
    advice = f"python -m mnist_ddpm sample --checkpoint {folder}"
    check(is_known, f"{folder} is of another method, {method}: {advice}")
    mults = tuple(config["settings"]["channel_mults"])
    settings = Settings(**config["settings"] | {"channel_mults": mults})
    schedule = beta_schedule(linear_beta(settings.T, settings.beta_1, settings.beta_T))
    if method["schedule"] == "tables":
        tables = [torch.tensor(method[k], dtype=torch.float64) for k in "ab"]
        schedule = Schedule(*tables)
    network = make_network(settings)
    network.load_state_dict(load_file(Path(folder, "model.safetensors")))
    return network.to(device).eval().requires_grad_(False), schedule, settings


# %% generate
def noise_source(seed: int, indices: range, shape: tuple, device="cpu") -> Callable:
    """Draws noise (len(indices), *shape), image k's from the stream of (seed, k)."""
    streams = [np.random.default_rng((seed, k)) for k in indices]

    def draw_noise() -> Tensor:
        noise = [stream.standard_normal(shape, np.float32) for stream in streams]
        return torch.from_numpy(np.stack(noise)).to(device)

    return draw_noise


Film = list[tuple[int, Tensor, Tensor]]  # (t, x_t, x0_hat), both uint8 (M, C, H, W)


def generate(
    denoise: Denoiser, schedule: Schedule, n: int, shape: tuple, sampler=ddpm_sampler,
    steps=50, seed=0, film_images=0, device="cpu",
) -> tuple[Tensor, Film]:
    """n images, uint8 (n, C, H, W), and a film of the first; image k by seed and k."""
    draw_noise = noise_source(seed, range(n), shape, device)
    times = timesteps(schedule.T, steps)
    states = sampler(denoise, schedule, times, draw_noise(), draw_noise)
    film = {}
    bar = progress_bar(states, total=steps + 1, desc="sampling", leave=False)
    for t, xt, x0_hat in bar:
        moment = round(40 * math.sqrt(t / schedule.T))  # closer towards the end
        if moment not in film:
            pictures = [to_uint8(x[:film_images]).cpu() for x in (xt, x0_hat)]
            film[moment] = t, *pictures
    return to_uint8(xt).cpu(), [*film.values()]


# %% save-gif
def save_gif(path: str | Path, film: Film, predicted=False, columns: int = 6) -> None:
    """A film as a GIF of x_t or (predicted) of x0_hat: 4 seconds, then 2 of the end."""
    scale = max(1, 64 // film[0][1].shape[-1])
    # 18 levels of grey, since noise compresses badly
    frames = [tile(moment[1 + predicted], columns, scale) // 15 * 15 for moment in film]
    progress = [math.sqrt(t / film[0][0]) for t, *_ in film]
    durations = [*4000 * -np.diff(progress), 2000]  # ms
    imageio.imwrite(path, frames, extension=".gif", duration=durations, loop=0)


# %% show-strip
def show_strip(film: Film, images: int = 2, moments: int = 11):
    """The figure of a film's first images: x_t over time, each x0_hat below."""
    chosen = [film[round(k)] for k in np.linspace(0, len(film) - 1, moments)]
    pairs = [torch.stack(moment[1:], dim=1)[:images] for moment in chosen]
    rows = torch.stack(pairs, dim=2)
    columns = [f"t = {t}" for t, *_ in chosen]
    picture = tile(rows.flatten(0, 2), len(chosen))
    return show(picture, columns=columns, rows=[r"$x_t$", r"$\hat{x}_0$"] * len(rows))
