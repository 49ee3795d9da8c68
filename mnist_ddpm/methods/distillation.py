"""Learning from a network in place of the images: what guides the teacher, the student then knows.

Distillation of guided diffusion models, arXiv 2210.03142 (its first stage).
"""

from dataclasses import replace

import torch
from torch import Tensor

from mnist_ddpm.ddpm import Network, Schedule, q_sample
from mnist_ddpm.method import Batch, Decorator, Method
from mnist_ddpm.methods.guidance import Teacher


class Distilled(Decorator):
    """A method with what a teacher predicts from x_t in the places of x_0 and eps.

    The teacher is given the labels of all images, also those that are hidden from the network.
    Its two predictions lie on x_t too: a_t x0_hat + b_t eps_hat = x_t. So any method will
    do; consistency models then step along the teacher's path.
    """

    def __init__(self, method: Method, teacher: Teacher):
        super().__init__(method)
        self.teacher = teacher

    def loss(self, network: Network, schedule: Schedule, batch: Batch) -> Tensor:
        with torch.no_grad():
            xt = q_sample(schedule, batch.x0, batch.t, batch.eps)
            x0_hat, eps_hat = self.teacher(batch.true_labels)(xt, batch.t)
        return self.method.loss(network, schedule, replace(batch, x0=x0_hat, eps=eps_hat))
