"""Mean flows: the average velocity of a step from t to s, so that one step goes from T to 0.

MeanFlow (arXiv 2505.13447) with the loss of improved mean flows (arXiv 2512.02012). The network is
a ShortcutUNet on flow matching's path, which predicts the velocity; shortcut_sampler samples.
"""

import torch
from torch import Tensor
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from mnist_ddpm.ddpm import Network, Schedule, check, per_image, q_sample
from mnist_ddpm.method import Batch, Method
from mnist_ddpm.methods.guidance import with_labels

SHARE_OF_STEPS = 0.5  # of a batch; the others have s = t, where the velocity is plain


def pair_times(t: Tensor) -> tuple[Tensor, Tensor]:
    """From times (N,) the later and the earlier of two, t and s, each (N,).

    The first half of the images gets a second time, that of another image; for the others s = t.
    """
    steps = round(SHARE_OF_STEPS * len(t))
    other = t.clone()
    other[:steps] = t[torch.randperm(len(t))][:steps]
    return torch.maximum(t, other), torch.minimum(t, other)


def average_velocity(
    network: Network, schedule: Schedule, xt: Tensor, t: Tensor, s: Tensor
) -> tuple[Tensor, Tensor]:
    """The network's average velocity u from t to s, and the velocity at t that it implies.

    The latter is u + (t - s) du/dt along the path (MeanFlow, Eq. 6). Its derivative takes the
    network's own velocity, u for s = t, and has no gradient (improved mean flows, Algorithm 1).
    """
    T = schedule.T
    start = t.to(xt)
    end = s.to(xt)
    with torch.no_grad():
        velocity = network(xt, start, s=start)

    def u(x: Tensor, time: Tensor) -> Tensor:
        return network(x, time, s=end)

    with sdpa_kernel(SDPBackend.MATH):  # the only attention with a forward derivative
        average, derivative = jvp(u, (xt, start), (velocity.to(xt), torch.full_like(start, T)))
    return average, average + per_image((start - end) / T, xt) * derivative.detach()


class MeanFlow(Method):
    """The squared error of the velocity that the average velocity implies: one loss an image.

    Each is divided by itself plus c, without gradient (MeanFlow, Eq. 22, with p = 1). Here it is a
    mean over an image's numbers, in the paper a sum: the c of Eq. 22 is c times how many there are.
    The loss raises ValueError for one image, which has no second time.
    """

    def __init__(self, c: float = 1e-3):
        super().__init__()
        self.sampling_defaults = {"sampler": "shortcut", "steps": 1}
        self.c = c

    def loss(self, network: Network, schedule: Schedule, batch: Batch) -> Tensor:
        check(len(batch.t) > 1, "mean flows pair times, and this batch has 1: take 2 or more")
        network = with_labels(network, batch.labels)
        t, s = pair_times(batch.t.cpu())
        xt = q_sample(schedule, batch.x0, t, batch.eps)
        _, implied = average_velocity(network, schedule, xt, t, s)
        error = (implied - (batch.eps - batch.x0)).square().mean(dim=(1, 2, 3))
        return error / (error.detach() + self.c)
