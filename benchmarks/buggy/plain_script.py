"""DDPM as a beginner writes it, and right: plain_bugs changes single lines of this file."""

import copy
import math

import torch
import torch.nn.functional as F
from torch import nn

T = 250
CLASSES = 10
betas = torch.linspace(4e-4, 0.08, T, dtype=torch.float64)  # DDPM's, for a quarter of its steps
alphas = 1 - betas
alphas_cumprod = torch.cumprod(alphas, dim=0)
alphas_cumprod_prev = F.pad(alphas_cumprod[:-1], (1, 0), value=1.0)
posterior_variance = betas * (1 - alphas_cumprod_prev) / (1 - alphas_cumprod)


def cosine_betas(steps=T, s=0.008):
    """Improved DDPM's schedule."""
    x = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    bar = torch.cos((x + s) / (1 + s) * math.pi / 2) ** 2
    return (1 - bar[1:] / bar[:-1]).clamp(max=0.999)


def extract(table, t, x):
    """Entries t of a table, shaped to multiply x."""
    return table[t].to(x.dtype).view(-1, *[1] * (x.ndim - 1))


def q_sample(x0, t, noise=None):
    """x_t from x_0."""
    if noise is None:
        noise = torch.randn_like(x0)
    bar = extract(alphas_cumprod, t, x0)
    return bar.sqrt() * x0 + (1 - bar).sqrt() * noise


def predict_x0(x, t, eps):
    """x_0 from the predicted noise."""
    bar = extract(alphas_cumprod, t, x)
    return (x - (1 - bar).sqrt() * eps) / bar.sqrt()


def loss(network, x0):
    """The mean squared error of the predicted noise."""
    t = torch.randint(0, T, (len(x0),))
    noise = torch.randn_like(x0)
    return F.mse_loss(network(q_sample(x0, t, noise), t), noise)


def label_loss(network, x0, labels):
    """The same with labels, every tenth of them unknown."""
    t = torch.randint(0, T, (len(x0),))
    noise = torch.randn_like(x0)
    labels = torch.where(torch.rand(len(x0)) < 0.1, CLASSES, labels)
    return F.mse_loss(network(q_sample(x0, t, noise), t, labels), noise)


def guided(network, x, t, labels, scale):
    """Classifier-free guidance."""
    with_label = network(x, t, labels)
    without = network(x, t, torch.full_like(labels, CLASSES))
    return without + scale * (with_label - without)


@torch.no_grad()
def sample(network, shape):
    """Ancestral sampling."""
    x = torch.randn(shape)
    for i in reversed(range(T)):
        t = torch.full((shape[0],), i)
        eps = network(x, t)
        x0 = predict_x0(x, t, eps).clamp(-1, 1)
        bar, bar_prev = extract(alphas_cumprod, t, x), extract(alphas_cumprod_prev, t, x)
        beta, alpha = extract(betas, t, x), extract(alphas, t, x)
        mean = bar_prev.sqrt() * beta / (1 - bar) * x0
        mean = mean + alpha.sqrt() * (1 - bar_prev) / (1 - bar) * x
        z = torch.randn_like(x) if i > 0 else torch.zeros_like(x)
        x = mean + extract(posterior_variance, t, x).sqrt() * z
    return x


@torch.no_grad()
def sample_beta(network, shape):
    """Algorithm 2 as it stands in the paper, with sigma^2 = beta."""
    x = torch.randn(shape)
    for i in reversed(range(T)):
        t = torch.full((shape[0],), i)
        bar, alpha, beta = (extract(table, t, x) for table in (alphas_cumprod, alphas, betas))
        mean = (x - beta / (1 - bar).sqrt() * network(x, t)) / alpha.sqrt()
        x = mean + (beta.sqrt() * torch.randn_like(x) if i > 0 else 0)
    return x


@torch.no_grad()
def sample_ddim(network, shape, steps=50, eta=0.0):
    """DDIM."""
    x = torch.randn(shape)
    times = torch.linspace(-1, T - 1, steps + 1).long().flip(0).tolist()
    for i, j in zip(times[:-1], times[1:]):
        t = torch.full((shape[0],), i)
        eps = network(x, t)
        bar = alphas_cumprod[i].float()
        bar_next = alphas_cumprod[j].float() if j >= 0 else torch.tensor(1.0)
        x0 = predict_x0(x, t, eps)
        x0 = x0.clamp(-1, 1)
        eps = (x - bar.sqrt() * x0) / (1 - bar).sqrt()
        sigma = eta * ((1 - bar_next) / (1 - bar) * (1 - bar / bar_next)).sqrt()
        x = bar_next.sqrt() * x0 + (1 - bar_next - sigma**2).sqrt() * eps
        x = x + sigma * torch.randn_like(x)
    return x


def bits_per_dim(network, x0):
    """The variational bound with the posterior's variance, the decoder as a Gaussian's mass."""
    bits = torch.zeros(len(x0))
    for i in range(T):
        t = torch.full((len(x0),), i)
        x = q_sample(x0, t)
        x0_hat = predict_x0(x, t, network(x, t)).clamp(-1, 1)
        bar, bar_prev = alphas_cumprod[i].item(), alphas_cumprod_prev[i].item()
        if i > 0:
            snr_drop = bar_prev / (1 - bar_prev) - bar / (1 - bar)
            term = 0.5 * snr_drop * (x0_hat - x0).square()
        else:
            deviation = math.sqrt(posterior_variance[1].item())
            normal = torch.distributions.Normal(0.0, deviation)
            upper = normal.cdf(x0 + 1 / 255 - x0_hat).masked_fill(x0 > 0.999, 1.0)
            lower = normal.cdf(x0 - 1 / 255 - x0_hat).masked_fill(x0 < -0.999, 0.0)
            term = -(upper - lower).clamp(min=1e-12).log()
        bits += term.flatten(1).mean(dim=1) / math.log(2)
    bar = alphas_cumprod[-1].item()
    prior = 0.5 * (bar * x0.square() - bar - math.log(1 - bar))
    return bits + prior.flatten(1).mean(dim=1) / math.log(2)


def time_embedding(t, width):
    """Sines and cosines of t."""
    frequencies = torch.exp(-math.log(10_000) * torch.arange(width // 2) / (width // 2))
    angles = t[:, None].float() * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class Block(nn.Module):
    """A residual block that is told the time."""

    def __init__(self, width):
        super().__init__()
        self.norm = nn.GroupNorm(4, width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.time = nn.Linear(width, width)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x, time):
        h = self.first(F.silu(self.norm(x))) + self.time(time)[:, :, None, None]
        return x + self.second(F.silu(h))


class Attention(nn.Module):
    """One head over all positions."""

    def __init__(self, width):
        super().__init__()
        self.norm = nn.GroupNorm(4, width)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x):
        rows = self.qkv(self.norm(x)).flatten(2).permute(0, 2, 1)
        q, k, v = rows.chunk(3, dim=2)
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(h.permute(0, 2, 1).reshape(x.shape))


class Net(nn.Module):
    """A small U-Net for one channel, with labels if asked."""

    def __init__(self, width=32):
        super().__init__()
        self.width = width
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(CLASSES + 1, width)
        self.first = nn.Conv2d(1, width, 3, padding=1)
        self.down = Block(width)
        self.middle = nn.ModuleList([Block(width), Block(width)])
        self.attention = Attention(width)
        self.up = Block(width)
        self.last = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, x, t, labels=None):
        time = self.time(time_embedding(t, self.width))
        if labels is not None:
            time = time + self.label(labels)
        skip = self.down(self.first(x), time)
        h = self.middle[0](F.avg_pool2d(skip, 2), time)
        h = self.middle[1](self.attention(h), time)
        h = skip + F.interpolate(h, scale_factor=2.0)
        return self.last(F.silu(self.up(h, time)))


def train(network, images, steps, rate=2e-3, decay=0.995):
    """Trains the network on images in [-1, 1]; returns its moving average."""
    average = copy.deepcopy(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    for k in range(steps):
        batch = images[torch.randint(len(images), (64,))]
        optimizer.zero_grad()
        loss(network, batch).backward()
        optimizer.step()
        d = min(decay, (1 + k) / (10 + k))
        with torch.no_grad():
            for mean, weight in zip(average.parameters(), network.parameters()):
                mean.lerp_(weight, 1 - d)
    return average
