"""A critic beside an objective: it learns to distinguish x0_hat from x_0, and the network to pass.

A generative adversarial network (arXiv 1406.2661) whose generator is the denoiser: x0_hat of a
mean error is blurred where x_t leaves doubt, and a critic takes no blurred image. As in consistency
trajectory models (arXiv 2310.02279, Section 4), it makes one or two evaluations sharp.
"""

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import softplus

from mnist_ddpm.ddpm import Network, Schedule, per_image, time_embedding
from mnist_ddpm.method import Batch, Decorator, Method
from mnist_ddpm.methods.guidance import labels_at, labels_or_unknown
from mnist_ddpm.methods.predictions import Conversion

SMALLEST = 4  # side of the critic's last level
WIDTH = 256  # of its features of an image
GAMMA = 0.02  # of the gradient's penalty, for each 1,024 values of an image (arXiv 2006.06676)
SIGMA = 0.05  # deviation of the noise by which the gradient is measured


class Critic(nn.Module):
    """How real images (N, C, height, width) look, (N,), given times and labels, each (N,).

    It is given the time at which each image was predicted, so that images too dark at one time do
    not make up for images too bright at another. classes: different labels; 0: none.
    """

    end_layers = ("label",)  # for Muon; so its figures were measured

    def __init__(self, channels: int, height: int, width: int, classes: int = 0, features=32):
        super().__init__()
        layers = []
        while max(height, width) > SMALLEST:
            if layers:
                layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.LeakyReLU(0.2)]
            layers += [nn.Conv2d(channels, features, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
            channels, features = features, 2 * features
            height, width = height // 2, width // 2
        layers += [nn.Flatten(), nn.Linear(channels * height * width, WIDTH)]
        self.layers = nn.Sequential(*layers, nn.LeakyReLU(0.2))
        self.score = nn.Linear(WIDTH, 1)
        self.time = nn.Linear(WIDTH, WIDTH)
        nn.init.normal_(self.time.weight, std=1 / WIDTH)
        self.classes = classes
        if classes:
            self.label = nn.Embedding(classes + 1, WIDTH)
            nn.init.normal_(self.label.weight, std=WIDTH**-0.5)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        features = self.layers(x)
        query = self.time(time_embedding(t.to(x.device), WIDTH).to(features))
        if self.classes:
            query = query + self.label(labels_or_unknown(labels, x, self.classes))
        return self.score(features).flatten() + (query * features).sum(dim=1)


class RecordedNetwork:
    """A network, and the inputs and output of its last call that has gradients."""

    def __init__(self, network: Network):
        self.network = network

    def __call__(
        self, xt: Tensor, t: Tensor, *labels: Tensor, s: Tensor | None = None, **options: Tensor
    ) -> Tensor:
        if s is not None:
            options["s"] = s
        output = self.network(xt, t, *labels, **options)
        if output.requires_grad:
            self.inputs = xt, t, s
            self.output = output
        return output


def adversarial_losses(
    critic: nn.Module, real: Tensor, fake: Tensor, t: Tensor, labels: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The losses of network and critic, each (N,): which of two images looks more real.

    Each gives gradients to one of the two alone. They are relativistic (arXiv 1807.00734). The
    critic's has R1's penalty of the gradient at real images (arXiv 1801.04406), measured by a
    little noise (arXiv 2501.08316, Section 3.4). The critic sees fakes clipped, as they are drawn.
    """
    real_scores = critic(real, t, labels)
    frozen = {name: value.detach() for name, value in critic.named_parameters()}
    fake_scores = functional_call(critic, frozen, (fake, t, labels))
    network_loss = softplus(real_scores.detach() - fake_scores)
    noisy_scores = critic(real + SIGMA * torch.randn_like(real), t, labels)
    gamma = GAMMA * real[0].numel() / 1024
    penalty = gamma / 2 * ((noisy_scores - real_scores) / SIGMA).square()
    clipped_scores = critic(fake.detach().clamp(-1, 1), t, labels)
    return network_loss, softplus(clipped_scores - real_scores) + penalty


class Adversarial(Decorator):
    """A method, plus weight times how easily a critic distinguishes x0_hat from x_0.

    The critic is a part, "critic", and learns by the gradients of the same loss.
    """

    def __init__(self, method: Method, conversion: Conversion, critic: nn.Module, weight: float):
        super().__init__(method, critic=critic)
        self.conversion = conversion
        self.critic = critic
        self.weight = weight

    def loss(self, network: Network, schedule: Schedule, batch: Batch) -> Tensor:
        recorded = RecordedNetwork(network)
        losses = self.method.loss(recorded, schedule, batch)
        xt, t, s = recorded.inputs
        if self.conversion.scale is not None:
            xt = xt / per_image(self.conversion.scale(schedule, t), xt)
        x0 = batch.x0
        labels = batch.labels
        fake = self.conversion.to_x0(schedule, xt, t, recorded.output.to(xt.dtype))
        ends = slice(None)
        if s is not None:  # what other steps predict is no image
            ends = (s == 0).to(x0.device)
            x0 = x0[ends]
            fake = fake[ends]
            t = t[ends.to(t.device)]
            labels = labels_at(labels, ends)
        with torch.autocast(x0.device.type, enabled=False):  # the penalty is of small differences
            network_loss, critic_loss = adversarial_losses(self.critic, x0, fake, t, labels)
        added = torch.zeros_like(losses)
        added[ends] = self.weight * network_loss + critic_loss
        return losses + added
