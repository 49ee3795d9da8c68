"""A U-Net that is also told how far a step goes, and how it is sampled.

So a network can draw in one step or in many: distribution matching (arXiv 2311.18828) begins with
one, and shortcut models (arXiv 2410.12557) are trained in experiments/methods.
"""

import torch
from torch import Tensor, nn

from mnist_ddpm import ddpm


class ShortcutUNet(ddpm.UNet):
    """A U-Net that is also told the time s (N,) to go to, s <= t; None stands for t.

    Its arguments are the U-Net's. It begins without heeding s.
    """

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        c = 4 * self.base_channels
        self.span = nn.Sequential(nn.Linear(self.base_channels, c), nn.SiLU(), nn.Linear(c, c))
        nn.init.zeros_(self.span[2].weight)
        nn.init.zeros_(self.span[2].bias)

    def time_vector(self, times: tuple[Tensor, Tensor]) -> Tensor:
        """Times and how far steps go, each (N,), as the vectors (N, c_time) that blocks see."""
        t, span = times
        span = ddpm.time_embedding(1 + span, self.base_channels).to(self.conv_in.weight)
        return super().time_vector(t) + self.span(span)

    def forward(
        self, x: Tensor, t: Tensor, labels: Tensor | None = None, s: Tensor | None = None
    ) -> Tensor:
        span = torch.zeros_like(t) if s is None else t - s.to(t)
        return super().forward(x, (t, span), labels)


def with_next_times(network: ddpm.Network, times: list[int], T: int) -> ddpm.Network:
    """A network (xt, t, …) that is told, at each of a sampler's times, the one that follows."""
    after = torch.zeros(T + 1, dtype=torch.long)
    for t, s in ddpm.transitions(times, T):
        after[t] = s

    def headed(xt: Tensor, t: Tensor, *labels: Tensor) -> Tensor:
        return network(xt, t, *labels, s=after[t.cpu()].to(t.device))

    return headed


def shortcut_sampler(denoise: ddpm.Denoiser, schedule, times, x, draw_noise) -> ddpm.States:
    """DDIM without noise, by a network that is told where each step goes (with_next_times)."""
    return ddpm.ddim_sampler(denoise, schedule, times, x, draw_noise)


shortcut_sampler.needs_next_time = True
