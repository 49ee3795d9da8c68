"""Shortcut models (arXiv 2410.12557): a network that is also told how far a step goes.

Told t alone it predicts as any other: where the ODE goes from x_t. Told s < t as well, it predicts
what takes DDIM's one step to where the ODE is at s. So one network draws in one step, or in many.
"""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from mnist_ddpm import ddpm
from mnist_ddpm.method import Batch, Decorator, Method
from mnist_ddpm.methods.guidance import Teacher, labels_at, with_labels
from mnist_ddpm.methods.predictions import Conversion

# Of 32 images in training, how many are for steps of what length: T / the number, 0 for none
SHARES = {0: 8, 16: 3, 8: 4, 4: 5, 2: 5, 1: 7}
FINEST = max(SHARES)  # these steps are learned from the ODE, each longer one from two of half


def steps_of(n: int) -> Tensor:
    """For each of n images, in how many steps it goes from T to 0: (n,), by SHARES; 0 none.

    Fewer images than SHARES has are drawn from it, by PyTorch's global generator.
    """
    table = torch.tensor([count for count, share in SHARES.items() for _ in range(share)])
    if n < len(table):  # a small part of a batch: in turn, it would never have some of them
        return table[torch.randperm(len(table))[:n]].sort().values
    return table[torch.arange(n) * len(table) // n]


def grid(schedule: ddpm.Schedule, t: Tensor, count: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The step in which t lies, of `count` from T to 0: its start, middle and end, each (N,).

    Times are those of ddpm.timesteps.
    """
    T = schedule.T
    k = torch.ceil(t.double() * count / T)
    return tuple((T * (k - back) / count).round().long() for back in (0, 0.5, 1))


def step(schedule: ddpm.Schedule, xt: Tensor, t: Tensor, s: Tensor, x0: Tensor) -> Tensor:
    """x_s of DDIM's step from x_t, without noise."""
    return ddpm.q_sample(schedule, x0, s, ddpm.predict_eps(schedule, xt, t, x0))


def x0_of_step(schedule: ddpm.Schedule, xt: Tensor, t: Tensor, s: Tensor, xs: Tensor) -> Tensor:
    """The x_0 with which that step ends at x_s."""
    a_t, b_t = schedule.at(t)
    a_s, b_s = schedule.at(s)
    difference = ddpm.per_image(b_t, xt) * xs - ddpm.per_image(b_s, xt) * xt
    return difference / ddpm.per_image(a_s * b_t - a_t * b_s, xt)


def two_steps(
    network: ddpm.Network,
    conversion: Conversion,
    schedule: ddpm.Schedule,
    xt: Tensor,
    times: tuple[Tensor, Tensor, Tensor],
    is_finest: Tensor,
) -> Tensor:
    """x_0 with which one step ends where two do, at times (t, middle, s), each (N,).

    is_finest (N,): where both use predictions for steps of length 0, as DPM-Solver++(2S) does.
    """
    t, middle, s = times

    def predict(xt: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return conversion.x0_hat(partial(network, s=s), schedule, xt, t).clamp(-1, 1)

    first = predict(xt, t, torch.where(is_finest, t, middle))
    xm = step(schedule, xt, t, middle, first)
    second = predict(xm, middle, torch.where(is_finest, middle, s))
    joined = x0_of_step(schedule, xt, t, s, step(schedule, xm, middle, s, second))
    return torch.where(is_finest.view(-1, 1, 1, 1).to(xt.device), second, joined)


class Shortcuts(Decorator):
    """A method, for steps of all lengths: for those of length 0 what it is on its own.

    teacher: what these learn from, in place of images and noise, as in distillation.Distilled.
    A step of T / FINEST has the form of DPM-Solver++(2S) with r_1 = 1/2 (arXiv 2211.01095,
    Algorithm 1): DDIM's step from x_t with the x_0 that is predicted, with length 0, where DDIM's
    step arrives in the middle. That is the middle of the times, not of log(a / b). A longer step
    learns two steps of half its length. The loss raises ValueError for a T that cannot be halved
    so often.
    """

    def __init__(self, method: Method, conversion: Conversion, teacher: Teacher | None = None):
        super().__init__(method)
        self.conversion = conversion
        self.teacher = teacher
        self.sampling_defaults = {"sampler": "shortcut", "steps": 4}

    def loss(self, network: ddpm.Network, schedule: ddpm.Schedule, batch: Batch) -> Tensor:
        least = 2 * FINEST
        ddpm.check(schedule.T >= least, f"T is {schedule.T}: shortcuts need {least} or more")
        x0 = batch.x0.clone()
        eps = batch.eps.clone()
        t = batch.t.cpu().clone()
        count = steps_of(len(x0))
        jumps = count > 0
        s = t.clone()
        t[jumps], middle, s[jumps] = grid(schedule, t[jumps], count[jumps])
        xt = ddpm.q_sample(schedule, x0, t, eps)
        with torch.no_grad():
            if self.teacher is not None and not jumps.all():
                denoise = self.teacher(labels_at(batch.true_labels, ~jumps))
                x0[~jumps], eps[~jumps] = denoise(xt[~jumps], t[~jumps])
            if jumps.any():  # a part of a batch may be of one image
                labelled = with_labels(network, labels_at(batch.labels, jumps))
                times = t[jumps], middle, s[jumps]
                is_finest = count[jumps] == FINEST
                x0[jumps] = two_steps(
                    labelled, self.conversion, schedule, xt[jumps], times, is_finest=is_finest
                )
                eps[jumps] = ddpm.predict_eps(schedule, xt[jumps], t[jumps], x0[jumps])
        batch = replace(batch, x0=x0, t=t, eps=eps)
        return self.method.loss(partial(network, s=s), schedule, batch)
