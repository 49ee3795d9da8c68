"""JiT, "just image transformers" (arXiv 2511.13720): a transformer on large patches of pixels.

The paper's network predicts x_0, and its loss is the error of the velocity: flow.velocity_weight.
Beside the diffusion transformer it has a bottleneck before the patches' embedding, RMS norms,
normalised queries and keys, rotary positions and a gated MLP. Left out are its tokens of labels,
and the learned weights of the norms of queries and keys.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnist_ddpm.ddpm import check
from mnist_ddpm.methods.transformer import DiT, DiTBlock

BOTTLENECK = 32  # features of a patch before its embedding


def normalized(x: Tensor) -> Tensor:
    """x (…, C) over its root mean square."""
    return F.rms_norm(x, x.shape[-1:], eps=1e-6)


def rotary_angles(height: int, width: int, head_width: int) -> Tensor:
    """The angles (height * width, head_width / 2) by which positions rotate pairs of features.

    Half of the pairs follow the row, half the column (arXiv 2104.09864, for two dimensions).
    """
    rate = 10_000 ** -torch.linspace(0, 1, head_width // 4 + 1)[:-1]
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.cat([axis.flatten()[:, None] * rate for axis in (row, column)], dim=1)


def rotated(x: Tensor, angles: Tensor) -> Tensor:
    """x (…, L, C), with feature k and k + C/2 as a pair that is rotated by angles (L, C/2)."""
    first, second = x.chunk(2, dim=-1)
    cosine = angles.cos().to(x)
    sine = angles.sin().to(x)
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], dim=-1)


class GatedMLP(nn.Module):
    """SwiGLU (arXiv 2002.05202), with as many weights as an MLP four times as wide as C."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        hidden = 8 * width // 3
        self.widen = nn.Linear(width, 2 * hidden)
        self.dropout = nn.Dropout(dropout)
        self.narrow = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.widen(x).chunk(2, dim=-1)
        return self.narrow(self.dropout(F.silu(gate) * value))


class JiTBlock(DiTBlock):
    """As DiTBlock, with rotary positions: it is also given the angles of rotary_angles."""

    normalize = staticmethod(normalized)

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__(width, heads, dropout)
        check(width // heads % 4 == 0, f"width is {width}: take a multiple of {4 * heads}")
        self.mlp = GatedMLP(width, dropout)

    def attend(self, x: Tensor, angles: Tensor) -> Tensor:
        """Self-attention of all positions."""
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q = rotated(normalized(q), angles)
        k = rotated(normalized(k), angles)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class JiT(DiT):
    """The network; arguments, input and output are DiT's."""

    block_class = JiTBlock

    def make_patch_embedding(self, inputs: int) -> nn.Module:
        """From the numbers of a patch to its embedding, through the bottleneck."""
        return nn.Sequential(nn.Linear(inputs, BOTTLENECK), nn.Linear(BOTTLENECK, self.width))

    def positions(self, shape: tuple[int, int]) -> tuple[Tensor, ...]:
        """The angles of each position."""
        head_width = self.width // self.blocks[0].heads
        return (rotary_angles(*shape, head_width).to(self.last.weight.device),)
