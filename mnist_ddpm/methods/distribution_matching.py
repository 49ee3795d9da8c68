"""Distribution matching distillation (arXiv 2311.18828): few steps whose images a teacher believes.

What is drawn gets noise. Where the teacher's x0_hat of it differs from that of a second network,
which learns to denoise what is drawn, its distribution differs from the teacher's, and it moves by
the difference. The images are those of consistency_sampler in so many steps, so that the network
learns from its own x_t (arXiv 2405.14867, Section 4.5).
"""

from functools import partial

import torch
from torch import Tensor, nn

from mnist_ddpm.ddpm import Network, Objective, Schedule, q_sample
from mnist_ddpm.methods.distillation import Teacher
from mnist_ddpm.methods.guidance import labels_at, labels_of, with_labels
from mnist_ddpm.methods.predictions import Conversion, network_output, truncated_snr, weighted
from mnist_ddpm.methods.schedules import even_signal

# Images in so many steps; which of the steps learns; its share of a batch, of 20
CHAINS = (1, 1, 6), (2, 2, 4), (4, 2, 2), (4, 3, 3), (4, 4, 5)
MARGIN = 50  # times nearer to 0 or T than this part of T say nothing of how digits look
FASTER = 20.0  # the second network's learning rate, in the network's
JUDGING = 6e-4  # the critic's own: it begins with nothing


def chains_of(n: int, schedule: Schedule) -> tuple[Tensor, Tensor]:
    """For each of n images its times up to the step that learns (n, 4), and their number (n,)."""
    rows, counts = [], []
    for steps, which, share in CHAINS:
        times = even_signal(schedule, steps)[:which]
        rows += share * [times + (4 - which) * [0]]
        counts += share * [which]
    own = torch.arange(n) * len(rows) // n
    return torch.tensor(rows)[own], torch.tensor(counts)[own]


def optimizer(
    network: nn.Module, fake: nn.Module, learning_rate: float, critic: nn.Module | None = None
) -> torch.optim.Adam:
    """Adam for a network, and at other rates for a second one and a critic that are parts of it.

    The second, which only follows, has momentum.
    """
    groups = [{"params": [*fake.parameters()], "pace": FASTER, "betas": (0.9, 0.99)}]
    if critic is not None:
        groups.append({"params": [*critic.parameters()], "pace": JUDGING / learning_rate})
    others = {id(p) for group in groups for p in group["params"]}
    own = [p for p in network.parameters() if id(p) not in others]
    groups.insert(0, {"params": own, "pace": 1.0})
    for group in groups:
        group["lr"] = group["pace"] * learning_rate
    return torch.optim.Adam(groups, betas=(0.0, 0.99))


def matching(
    conversion: Conversion, fake: nn.Module | None = None, teacher: Teacher | None = None
) -> Objective:
    """How far what the network draws from eps is from the teacher's images; the images are unseen.

    fake: a ShortcutUNet that predicts as it does, and learns by the same gradients: its parameters
    are to be in the same optimiser, at a higher rate. It begins best as the teacher. As s it is
    told the time at which an image was drawn, so that the images of each step have to look right
    by themselves. Both are told the labels that the network is told.
    """

    learns = weighted(conversion, truncated_snr)  # so that no times are lost beside others

    def objective(network: Network, schedule: Schedule, x0: Tensor, t: Tensor, eps: Tensor):
        labels, T = labels_of(network), schedule.T

        def x0_of(network: Network, xt: Tensor, t: Tensor) -> Tensor:
            return conversion.to_x0(
                schedule, xt, t, network_output(network, conversion, schedule, xt, t)
            )

        times, count = chains_of(len(eps), schedule)
        xt = eps.clone()
        with torch.no_grad():
            for k in range(1, int(count.max())):
                on = count > k
                asked = with_labels(network, labels_at(labels, on))
                image = x0_of(asked, xt[on], times[on, k - 1]).clamp(-1, 1)
                xt[on] = q_sample(schedule, image, times[on, k], torch.randn_like(image))
        own = times.gather(1, count[:, None] - 1).flatten()
        image = x0_of(network, xt, own)
        drawn, second = image.detach().clamp(-1, 1), partial(with_labels(fake, labels), s=own)
        with torch.no_grad():
            t = t.cpu().clamp(T // MARGIN, T - T // MARGIN)
            xt = q_sample(schedule, drawn, t, torch.randn_like(drawn))
            believed = teacher(labels)(xt, t)[0].clamp(-1, 1)
            difference = x0_of(second, xt, t).clamp(-1, 1) - believed
            size = (drawn - believed).abs().mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-3)
            wanted = drawn - difference / size
        moved = (image - wanted).square().mean(dim=(1, 2, 3)) / 2
        t = t[torch.randperm(len(t))]  # of the same kind, at which it will be asked
        return moved + learns(second, schedule, drawn, t, torch.randn_like(drawn))

    return objective
