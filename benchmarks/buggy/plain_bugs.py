"""Bugs of the plain script: each replaces pieces of its text."""

from functools import partial

import torch

from buggy import plain_script
from buggy.case import Case, as_cases, changed_module, digits, text_changes

NAME = "plain script"
# bug | part of the script | old text => new text | further changes
BUGS = r"""
neighbour-padding | sample | F.pad(alphas_cumprod[:-1], (1, 0), value=1.0) => \
    F.pad(alphas_cumprod[1:], (0, 1), value=0.0)
neighbour-padding | sample | F.pad(alphas_cumprod[:-1], (1, 0), value=1.0) => \
    F.pad(alphas_cumprod[:-1], (0, 1), value=1.0)
last-noise | sample_beta | randn_like(x) if i > 0 else 0) => randn_like(x))
ddim-alpha | sample_ddim | (1 - bar_next - sigma**2).sqrt() * eps => (1 - bar).sqrt() * eps
respacing | sample_ddim | alphas_cumprod[j].float() if => alphas_cumprod[i - 1].float() if
network-time | sample | eps = network(x, t) => eps = network(x, (t - 1).clamp(min=0))
network-time | sample_ddim | eps = network(x, t) => eps = network(x, t * 0 + max(j, 0))
early-end | sample | reversed(range(T)) => reversed(range(1, T))
early-end | sample_ddim | torch.tensor(1.0) => alphas_cumprod[0].float()
no-clipping | sample | predict_x0(x, t, eps).clamp(-1, 1) => predict_x0(x, t, eps)
no-clipping | sample_ddim | x0 = x0.clamp(-1, 1) => pass
stale-eps | sample_ddim | eps = (x - bar.sqrt() * x0) / (1 - bar).sqrt() => pass
missing-sqrt | forward | (1 - bar).sqrt() * noise => (1 - bar) * noise
missing-sqrt | sample | posterior_variance, t, x).sqrt() => posterior_variance, t, x)
missing-sqrt | sample_beta | beta / (1 - bar).sqrt() * net => beta / (1 - bar) * net
missing-sqrt | sample_ddim | x = bar_next.sqrt() * x0 => x = bar_next * x0
alpha-for-alpha-bar | forward | bar = extract(alphas_cumprod, t, x0) => bar = extract(alphas, t, x0)
alpha-for-alpha-bar | sample_ddim | alphas_cumprod[j].float() if => alphas[j].float() if
alpha-for-alpha-bar | sample_beta | (alphas_cumprod, alphas, betas) => (alphas, alphas, betas)
uniform-noise | sample | x = torch.randn(shape) => x = torch.rand(shape)
uniform-noise | sample | z = torch.randn_like(x) => z = torch.rand_like(x)
uniform-noise | loss | noise = torch.randn_like(x0) => noise = torch.rand_like(x0)
posterior-variance | sample | posterior_variance, t, x) => posterior_variance, (t + 1) % T, x)
posterior-variance | sample | posterior_variance, t, x) => posterior_variance, t - 1, x)
cosine-end | cosine | .clamp(max=0.999) =>
half-schedule | sample | torch.cumprod(alphas, => torch.cumprod(alphas.half(),
half-schedule | sample | alphas = 1 - betas => alphas = (1 - betas.half()).double()
one-time | loss | torch.randint(0, T, (len(x0),)) => torch.randint(0, T, (1,)).expand(len(x0))
unseen-end | loss | torch.randint(0, T, (len(x0),)) => torch.randint(0, T - 25, (len(x0),))
unseen-end | loss | torch.randint(0, T, (len(x0),)) => torch.randint(0, T - 1, (len(x0),))
unseen-end | loss | torch.randint(0, T, (len(x0),)) => torch.randint(1, T, (len(x0),))
shared-noise | loss | noise = torch.randn_like(x0) => noise = torch.randn_like(x0[:1]).expand_as(x0)
other-target | loss | q_sample(x0, t, noise), t), noise) => q_sample(x0, t), t), noise)
start-noise | sample_ddim | x = torch.randn(shape) => x = 0.5 * torch.randn(shape)
weak-end | sample | torch.linspace(4e-4, 0.08 => torch.linspace(4e-4, 0.02
reversed-schedule | sample_ddim | torch.cumprod(alphas, dim=0) => torch.cumprod(alphas, 0).flip(0)
swapped-factors | forward | bar.sqrt() * x0 + (1 - bar).sqrt() => (1 - bar).sqrt() * x0 + bar.sqrt()
no-noise | sample | z = torch.randn_like(x) => z = torch.zeros_like(x)
repeated-noise | sample | z = torch.randn_like(x) => \
    z = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
guidance-sign | guided | without + scale => without - scale
guidance-sign | guided | (with_label - without) => (without - with_label)
guidance-scale | guided | without + scale * (with_label - without) => without + scale * with_label
guidance-scale | guided | scale * (with => scale**2 * (with
frozen-likelihood | likelihood | network(x, t)).clamp => network(x, t * 0)).clamp
frozen-likelihood | likelihood | network(x, t)).clamp => network(x, t * 0 + T // 2)).clamp
time-ignored | network | + self.time(time)[:, :, None, None] =>
unit-time | network | time_embedding(t, self.width) => time_embedding(t / T, self.width)
attention-reshape | network | .flatten(2).permute(0, 2, 1) => .reshape(len(x), h * w, -1) | \
    (self, x):\n        rows => (self, x):\n        *_, h, w = x.shape\n        rows | \
    h.permute(0, 2, 1).reshape => h.reshape
channel-groups | network | GroupNorm(4, width) => GroupNorm(width, width)
batch-leak | network | nn.GroupNorm(4, width) => nn.BatchNorm2d(width, track_running_stats=False)
data-range | data | =>
no-null-label | labels | labels = torch.where(torch.rand(len(x0)) < 0.1, CLASSES, labels) => pass
young-average | average | d = min(decay, (1 + k) / (10 + k)) => d = 0.9999
"""


def arguments(script, part: str) -> dict:
    """What an examination is given of the script: its functions, with the part's own."""
    given = {"schedule": script.alphas_cumprod, "forward": script.q_sample, "loss": script.loss}
    given["sampler"] = getattr(script, part if part.startswith("sample") else "sample_ddim")
    if part == "cosine":
        return {"schedule": script.cosine_betas(), "prediction": "eps"}
    if part == "guided":
        return given | {"guidance": script.guided}
    if part == "likelihood":
        return given | {"likelihood": script.bits_per_dim}
    if part == "labels":
        given["loss"] = script.label_loss
    if part in ("network", "average", "labels", "data"):
        return given | trained(script, part)
    return given


def trained(script, part: str) -> dict:
    """A network of the script after a short training, and what it was trained on."""
    torch.manual_seed(0)
    images = digits()
    if part == "data":
        images = (images + 1) / 2
    network = script.Net(16)
    average = script.train(network, images, 120)
    return {"network": network, "averaged_network": average, "data": images, "shape": (1, 16, 16)}


def changed(part: str, changes: list) -> dict:
    """The arguments of a script with a bug."""
    return arguments(changed_module(plain_script, *changes), part)


def healthy() -> list[Case]:
    """The script as it is, by each of its parts."""
    parts = "sample", "sample_beta", "sample_ddim", "cosine", "guided", "likelihood", "network"
    return as_cases(NAME, [("", part, partial(arguments, plain_script, part)) for part in parts])


def ill() -> list[Case]:
    """One case for each bug."""
    return as_cases(NAME, text_changes(BUGS, changed))
