"""The diffusion transformer, DiT (arXiv 2212.09748), with adaLN-zero."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnist_ddpm.ddpm import check, time_embedding
from mnist_ddpm.methods.guidance import labels_or_unknown


def layer_norm(x: Tensor) -> Tensor:
    """x (…, C) less its mean, over its deviation."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def position_embedding(height: int, width: int, channels: int, like: Tensor) -> Tensor:
    """Sines and cosines of the column, then of the row, of each position: (height * width, C)."""
    rate = 10_000 ** -torch.linspace(0, 1, channels // 4 + 1)[:-1]
    waves = []
    for axis in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")[::-1]:
        angle = axis.flatten()[:, None] * rate
        waves += [angle.sin(), angle.cos()]
    return torch.cat(waves, dim=1).to(like)


class DiTBlock(nn.Module):
    """(N, L, C) and an embedding of t and label (N, C) to (N, L, C). It begins as the identity."""

    normalize = staticmethod(layer_norm)

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        widen = nn.Linear(width, 4 * width)
        narrow = nn.Linear(4 * width, width)
        self.mlp = nn.Sequential(widen, nn.GELU("tanh"), nn.Dropout(dropout), narrow)
        self.modulation = nn.Linear(width, 6 * width)

    def attend(self, x: Tensor) -> Tensor:
        """Self-attention of all positions."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def forward(self, x: Tensor, embedding: Tensor, *positions: Tensor) -> Tensor:
        modulation = self.modulation(F.silu(embedding)).unsqueeze(1)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=2)
        x = x + gate1 * self.attend(self.normalize(x) * (1 + scale1) + shift1, *positions)
        return x + gate2 * self.mlp(self.normalize(x) * (1 + scale2) + shift2)


class DiT(nn.Module):
    """x_t (N, channels, H, W) and times (N,) to (N, out_channels or channels, H, W).

    With classes it also takes labels (N,), each 0 … classes - 1, or `classes` for "unknown"; None
    stands for all unknown. A head has 64 channels, or as few more as divide the width.
    """

    block_class = DiTBlock
    end_layers = "patch", "last", "label"  # for Muon

    def __init__(
        self,
        channels: int = 1,
        width: int = 128,
        depth: int = 8,
        patch_size: int = 2,
        dropout: float = 0.0,
        classes: int = 0,
        out_channels: int | None = None,
    ):
        super().__init__()
        check(width % 4 == 0, f"width is {width}: take a multiple of 4")
        self.width = width
        self.patch_size = patch_size
        self.classes = classes
        heads = next(n for n in range(max(1, width // 64), 0, -1) if width % n == 0)
        self.patch = self.make_patch_embedding(channels * patch_size**2)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        if classes:
            self.label = nn.Embedding(classes + 1, width)
        self.blocks = nn.ModuleList(self.block_class(width, heads, dropout) for _ in range(depth))
        self.modulation = nn.Linear(width, 2 * width)
        self.last = nn.Linear(width, (out_channels or channels) * patch_size**2)
        self.reset()

    def make_patch_embedding(self, inputs: int) -> nn.Module:
        """From the numbers of a patch to its embedding."""
        return nn.Linear(inputs, self.width)

    def positions(self, shape: tuple[int, int]) -> tuple[Tensor, ...]:
        """What blocks are given of the positions of so many rows and columns of patches."""
        return ()

    def reset(self) -> None:
        """Weights as in the paper: each block begins as the identity, and the output is 0."""
        zero = self.last, self.modulation, *(block.modulation for block in self.blocks)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                init = nn.init.zeros_ if layer in zero else nn.init.xavier_uniform_
                init(layer.weight)
                nn.init.zeros_(layer.bias)
            elif isinstance(layer, nn.Embedding):
                nn.init.normal_(layer.weight, std=0.02)
        for layer in (self.time[0], self.time[2]):
            nn.init.normal_(layer.weight, std=0.02)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        h = F.pixel_unshuffle(x, self.patch_size)
        shape = h.shape[2:]
        h = self.patch(h.flatten(2).mT)
        h = h + position_embedding(*shape, self.width, h)
        embedding = self.time(time_embedding(t, self.width).to(self.last.weight))
        if self.classes:
            embedding = embedding + self.label(labels_or_unknown(labels, x, self.classes))
        positions = self.positions(shape)
        for block in self.blocks:
            h = block(h, embedding, *positions)
        shift, scale = self.modulation(F.silu(embedding)).unsqueeze(1).chunk(2, dim=2)
        h = self.last(self.block_class.normalize(h) * (1 + scale) + shift)
        return F.pixel_shuffle(h.mT.unflatten(2, shape), self.patch_size)
