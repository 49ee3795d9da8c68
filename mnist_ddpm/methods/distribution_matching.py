"""Distribution matching distillation (arXiv 2311.18828): few steps whose images a teacher believes.

What is drawn gets noise. Where the teacher's x0_hat of it differs from that of a second network,
which learns to denoise what is drawn, its distribution differs from the teacher's, and it moves by
the difference. The images are those of consistency_sampler in so many steps, so that the network
learns from its own x_t (arXiv 2405.14867, Section 4.5).
"""

from functools import partial

import torch
from torch import Tensor, nn

from mnist_ddpm.ddpm import Network, Schedule, q_sample
from mnist_ddpm.method import Batch, MakeOptimizer, Method
from mnist_ddpm.methods.guidance import Teacher, labels_at, with_labels
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


class DistributionMatching(Method):
    """How far what the network draws from eps is from the teacher's images; the images are unseen.

    fake: a ShortcutUNet that predicts as the network does, and learns what is drawn. It begins best
    as the teacher. As s it is given the time at which an image was drawn, so that the images of
    each step have to look right by themselves. Both are given the labels that the network is given.
    """

    def __init__(
        self,
        conversion: Conversion,
        fake: nn.Module,
        teacher: Teacher | None = None,
        learning_rate: float = 1e-4,
    ):
        super().__init__(fake=fake)
        self.begin_as_teacher = ("fake",)
        self.sampling_defaults = {"sampler": "consistency", "steps": 4, "spacing": "signal"}
        self.conversion = conversion
        self.fake = fake
        self.teacher = teacher
        self.learning_rate = learning_rate
        # so that no times are lost beside others
        self.fake_loss = weighted(conversion, truncated_snr)

    def optimizer(self, name: str, network: nn.Module, make: MakeOptimizer) -> torch.optim.Adam:
        """Adam, without momentum but for the second network, which only follows."""
        factors = {"network": 1.0, "fake": FASTER}
        factor = factors.get(name, JUDGING / self.learning_rate)
        betas = (0.9, 0.99) if name == "fake" else (0.0, 0.99)
        group = {"params": [*network.parameters()], "rate_factor": factor}
        return torch.optim.Adam([group], factor * self.learning_rate, betas)

    def predict_x0(self, network: Network, schedule: Schedule, xt: Tensor, t: Tensor) -> Tensor:
        """x0_hat (N, C, H, W) of a network that predicts as the conversion says."""
        output = network_output(network, self.conversion, schedule, xt, t)
        return self.conversion.to_x0(schedule, xt, t, output)

    def loss(self, network: Network, schedule: Schedule, batch: Batch) -> Tensor:
        labels, T = batch.labels, schedule.T
        times, count = chains_of(len(batch.eps), schedule)
        xt = batch.eps.clone()
        with torch.no_grad():
            for k in range(1, int(count.max())):
                on = count > k
                labelled = with_labels(network, labels_at(labels, on))
                image = self.predict_x0(labelled, schedule, xt[on], times[on, k - 1]).clamp(-1, 1)
                xt[on] = q_sample(schedule, image, times[on, k], torch.randn_like(image))
        own = times.gather(1, count[:, None] - 1).flatten()
        image = self.predict_x0(with_labels(network, labels), schedule, xt, own)
        drawn = image.detach().clamp(-1, 1)
        second = partial(with_labels(self.fake, labels), s=own)
        with torch.no_grad():
            t = batch.t.cpu().clamp(T // MARGIN, T - T // MARGIN)
            xt = q_sample(schedule, drawn, t, torch.randn_like(drawn))
            believed = self.teacher(labels)(xt, t)[0].clamp(-1, 1)
            difference = self.predict_x0(second, schedule, xt, t).clamp(-1, 1) - believed
            size = (drawn - believed).abs().mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-3)
            target = drawn - difference / size
        moved = (image - target).square().mean(dim=(1, 2, 3)) / 2
        t = t[torch.randperm(len(t))]  # of the same kind, at which it will be asked
        return moved + self.fake_loss(second, schedule, drawn, t, torch.randn_like(drawn))
