"""Consistency models (arXiv 2303.01469): from any x_t to x_0 in one evaluation.

The consistency function f is what the prediction makes of the network's output, x0_hat. At t = 0,
without noise, every prediction but x0 and mu gives x_0 itself, for any output: that is
the boundary condition, and EDM's prediction is the paper's Eq. 5. Training may begin with a
diffusion network, and is then called tuning (ECT, arXiv 2406.14548).
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from mnist_ddpm.ddpm import Network, Schedule, States, check, q_sample, transitions
from mnist_ddpm.method import Batch, Method
from mnist_ddpm.methods import edm
from mnist_ddpm.methods.guidance import with_labels
from mnist_ddpm.methods.predictions import MU, X0, Conversion, Weight

# Earlier times (N,) for times (N,) of a schedule, once so large a part of training is done
Earlier = Callable[[Schedule, Tensor, float], Tensor]


def ect_times(
    schedule: Schedule,
    t: Tensor,
    done: float,
    q: float = 2.0,
    stages: int = 8,
    k: float = 8.0,
    steepness: float = 1.0,
) -> Tensor:
    """The times r < t (N,) to agree with: sigma_r = sigma_t (1 - n(sigma_t) / q^e), 0 at least.

    e rises from 1 to stages while the part that is done rises from 0 to 1;
    n(sigma) = 1 + k sigmoid(-steepness sigma) (ECT, Section 3.2). sigma is b / a, at most 80; r is
    the last time whose sigma is no larger than that.
    """
    sigma = (schedule.b / schedule.a).clamp(max=edm.SIGMA_MAX)
    exponent = 1 + min(stages - 1, int(done * stages))
    sigma_t = sigma[t.cpu()]
    wanted = sigma_t * (1 - (1 + k * torch.sigmoid(-steepness * sigma_t)) / q**exponent)
    return torch.searchsorted(sigma, wanted.clamp(min=0), right=True) - 1


class Consistency(Method):
    """How far f(x_t, t) is from f(x_r, r), which learns nothing by it: one loss an image.

    x_r has the same noise. distillation.Distilled makes it DDIM's step of a teacher from x_t. Where
    r = 0 it is the image itself, so that the loss is a diffusion model's. The distance is
    sqrt(mean square + c²) - c (arXiv 2310.14189, Section 3.3). The weights are EDM's, as in ECT's
    code for ImageNet; that for CIFAR-10 has 1 / (sigma_t - sigma_r). As there, both evaluations
    share one dropout mask.
    """

    def __init__(
        self,
        conversion: Conversion,
        earlier: Earlier = ect_times,
        weight: Weight = edm.edm_weight,
        c: float = 0.00054,
    ):
        message = "consistency needs a prediction that is x_0 itself at t = 0, as v: not x0 or mu"
        check(conversion not in (X0, MU), message)
        super().__init__()
        self.sampling_defaults = {"sampler": "consistency", "steps": 4}
        self.conversion = conversion
        self.earlier = earlier
        self.weight = weight
        self.c = c

    def loss(self, network: Network, schedule: Schedule, batch: Batch) -> Tensor:
        network = with_labels(network, batch.labels)
        f = partial(self.conversion.x0_hat, network, schedule)
        t = batch.t.cpu()
        r = self.earlier(schedule, t, batch.progress)
        xt = q_sample(schedule, batch.x0, t, batch.eps)
        devices = [xt.device] if xt.is_cuda else []
        # The random numbers of dropout are drawn once more for f(xt, t).
        with torch.random.fork_rng(devices), torch.no_grad():
            xr = q_sample(schedule, batch.x0, r, batch.eps)
            ends = (r == 0).view(-1, 1, 1, 1).to(xr.device)
            target = torch.where(ends, xr, f(xr, r.clamp(min=1)))
        distance = (f(xt, t) - target).square().mean(dim=(1, 2, 3))
        return ((distance + self.c**2).sqrt() - self.c) * self.weight(schedule, t).to(distance)


@torch.no_grad()
def consistency_sampler(denoise, schedule, times, x, draw_noise) -> States:
    """x0_hat at T, noised again to the next time, and so on: Algorithm 1, "multistep".

    For a network that was trained to be consistent. One evaluation a time; one time will do.
    """
    for t, s in transitions(times, schedule.T):
        x0_hat, _ = denoise(x, t)
        yield t, x, x0_hat
        x = q_sample(schedule, x0_hat, s, draw_noise()) if s > 0 else x0_hat
    yield 0, x, x
