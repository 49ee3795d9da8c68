"""Distribution matching distillation (arXiv 2311.18828): few steps to the teacher's distribution.

Drawn images get noise, and the teacher and a second network, which learns to denoise drawn images,
predict x_0 from it. Where the two differ, the distributions do, and the images move by the
difference. They are drawn by consistency_sampler in few steps, so that the network learns from its
own x_t (arXiv 2405.14867, Section 4.5).
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from mnist_ddpm.ddpm import Network, Schedule, q_sample
from mnist_ddpm.method import Batch, MakeOptimizer, Method
from mnist_ddpm.methods.guidance import Teacher, labels_at, with_labels
from mnist_ddpm.methods.predictions import Conversion, truncated_snr, weighted
from mnist_ddpm.methods.schedules import even_signal

# Images in so many steps; which of the steps learns; its share of a batch, of 20
CHAINS = (1, 1, 6), (2, 2, 4), (4, 2, 2), (4, 3, 3), (4, 4, 5)
MARGIN = 50  # times nearer to 0 or T than T / MARGIN show nothing of how digits look
FAKE_RATE_FACTOR = 20.0  # by which the second network's learning rate is higher
CRITIC_RATE = 6e-4  # learning rate of a critic, which starts untrained


def chains_of(
    n: int, schedule: Schedule, student_timesteps: Sequence[int] = ()
) -> tuple[Tensor, Tensor]:
    """For each of n images its times up to the step that learns (n, K), and their number (n,).

    student_timesteps: K falling times, at each of which the network learns equally often; if
    empty, those of CHAINS.
    """
    if student_timesteps:
        lengths = range(1, len(student_timesteps) + 1)
        chains = [([*student_timesteps[:length]], 1) for length in lengths]
    else:
        chains = [(even_signal(schedule, steps)[:which], share) for steps, which, share in CHAINS]
    longest = max(len(times) for times, _ in chains)
    rows = []
    counts = []
    for times, share in chains:
        rows += share * [times + (longest - len(times)) * [0]]
        counts += share * [len(times)]
    index = torch.arange(n) * len(rows) // n
    return torch.tensor(rows)[index], torch.tensor(counts)[index]


class DistributionMatching(Method):
    """How far what the network draws from eps is from the teacher's images; the images are unseen.

    fake: a ShortcutUNet that predicts as the network does, and learns what is drawn. It begins best
    as the teacher. As s it is given the time at which an image was drawn, so that the images of
    each step have to look right by themselves. Both are given the labels that the network is given.
    student_timesteps: the times at which it draws, falling from T; if empty, those of CHAINS.
    """

    def __init__(
        self,
        conversion: Conversion,
        fake: nn.Module,
        teacher: Teacher | None = None,
        learning_rate: float = 1e-4,
        student_timesteps: Sequence[int] = (),
    ):
        super().__init__(fake=fake)
        self.initialized_from_teacher = ("fake",)
        self.sampling_defaults = {"sampler": "consistency", "steps": 4, "spacing": "signal"}
        if student_timesteps:
            times = [*student_timesteps]
            self.sampling_defaults |= {"steps": len(times), "timesteps": times}
        self.conversion = conversion
        self.fake = fake
        self.teacher = teacher
        self.learning_rate = learning_rate
        self.student_timesteps = student_timesteps
        # so that no times are lost beside others
        self.fake_loss = weighted(conversion, truncated_snr)

    def optimizer(self, name: str, network: nn.Module, make: MakeOptimizer) -> torch.optim.Adam:
        """Adam, without momentum but for the second network, which only follows."""
        factors = {"network": 1.0, "fake": FAKE_RATE_FACTOR}
        factor = factors.get(name, CRITIC_RATE / self.learning_rate)
        betas = (0.9, 0.99) if name == "fake" else (0.0, 0.99)
        group = {"params": [*network.parameters()], "rate_factor": factor}
        return torch.optim.Adam([group], factor * self.learning_rate, betas)

    def loss(self, network: Network, schedule: Schedule, batch: Batch) -> Tensor:
        labels = batch.labels
        predict_x0 = self.conversion.x0_hat
        margin = schedule.T // MARGIN
        times, count = chains_of(len(batch.eps), schedule, self.student_timesteps)
        xt = batch.eps.clone()
        with torch.no_grad():
            for k in range(1, int(count.max())):
                goes_on = count > k
                labelled = with_labels(network, labels_at(labels, goes_on))
                t = times[goes_on, k - 1]
                image = predict_x0(labelled, schedule, xt[goes_on], t).clamp(-1, 1)
                noise = torch.randn_like(image)
                xt[goes_on] = q_sample(schedule, image, times[goes_on, k], noise)
        last_times = times.gather(1, count[:, None] - 1).flatten()
        image = predict_x0(with_labels(network, labels), schedule, xt, last_times)
        drawn = image.detach().clamp(-1, 1)
        fake = partial(with_labels(self.fake, labels), s=last_times)
        with torch.no_grad():
            t = batch.t.cpu().clamp(margin, schedule.T - margin)
            xt = q_sample(schedule, drawn, t, torch.randn_like(drawn))
            real_x0 = self.teacher(labels)(xt, t)[0].clamp(-1, 1)
            fake_x0 = predict_x0(fake, schedule, xt, t).clamp(-1, 1)
            size = (drawn - real_x0).abs().mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-3)
            target = drawn - (fake_x0 - real_x0) / size
        network_loss = (image - target).square().mean(dim=(1, 2, 3)) / 2
        t = t[torch.randperm(len(t))]  # the same times, for other images
        return network_loss + self.fake_loss(fake, schedule, drawn, t, torch.randn_like(drawn))
