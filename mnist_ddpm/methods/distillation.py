"""Learning from a network in place of the images: what guides the teacher, the student then knows.

Distillation of guided diffusion models, arXiv 2210.03142 (its first stage).
"""

import torch
from torch import Tensor

from mnist_ddpm.ddpm import Network, Objective, Schedule, q_sample
from mnist_ddpm.methods.guidance import Teacher, true_labels_of


def distilled(objective: Objective, teacher: Teacher) -> Objective:
    """The objective with what the teacher predicts from x_t in the places of x_0 and eps.

    The teacher is told the labels of all images, also those that are hidden from the network.
    Its two predictions lie on x_t too: a_t x0_hat + b_t eps_hat = x_t. So any objective will
    do; that of consistency models then steps along the teacher's path.
    """

    def taught(network: Network, schedule: Schedule, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        with torch.no_grad():
            denoise = teacher(true_labels_of(network))
            x0_hat, eps_hat = denoise(q_sample(schedule, x0, t, eps), t)
        return objective(network, schedule, x0_hat, t, eps_hat)

    return taught
