"""A network for vectors: residual blocks of two layers, which see t and the label."""

import torch.nn.functional as F
from torch import Tensor, nn

from mnist_ddpm.ddpm import time_embedding, zero_init
from mnist_ddpm.methods.guidance import labels_or_unknown


class MLPBlock(nn.Module):
    """Vectors (N, width) and vectors of time (N, width) to (N, width)."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, width)
        self.time = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.linear2 = zero_init(nn.Linear(width, width))

    def forward(self, h: Tensor, time: Tensor) -> Tensor:
        inner = F.silu(self.linear1(self.norm(h)) + self.time(time))
        return h + self.linear2(self.dropout(inner))


class ResidualMLP(nn.Module):
    """x_t (N, D, 1, 1) and times (N,) to an output like x_t; its layers are 4 base_channels wide.

    With classes it also takes labels (N,), each 0 … classes - 1, or `classes` for "unknown"; None
    stands for all unknown.
    """

    def __init__(
        self, columns: int, base_channels: int, blocks: int, dropout: float = 0.0, classes: int = 0
    ):
        super().__init__()
        width = 4 * base_channels
        self.base_channels = base_channels
        self.classes = classes
        self.time = nn.Sequential(
            nn.Linear(base_channels, width), nn.SiLU(), nn.Linear(width, width)
        )
        if classes:
            self.label = nn.Embedding(classes + 1, width)
        self.columns_in = nn.Linear(columns, width)
        self.blocks = nn.ModuleList(MLPBlock(width, dropout) for _ in range(blocks))
        self.norm_out = nn.LayerNorm(width)
        self.last = zero_init(nn.Linear(width, columns))

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        time = self.time(time_embedding(t, self.base_channels).to(self.columns_in.weight))
        if self.classes:
            time = time + self.label(labels_or_unknown(labels, x, self.classes))
        time = F.silu(time)
        h = self.columns_in(x.flatten(1))
        for block in self.blocks:
            h = block(h, time)
        return self.last(F.silu(self.norm_out(h))).view_as(x)
