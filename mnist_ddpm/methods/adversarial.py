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
WIDTH = 256  # of what it finds in an image
# Of the gradient's penalty: its factor for each 1,024 values of an image, which it grows with as in
# arXiv 2006.06676, and the noise that measures it
GAMMA, SIGMA = 0.02, 0.05


class Critic(nn.Module):
    """How real images (N, C, height, width) look, (N,), as others with their labels (N,) do.

    Told also the time (N,) at which each was predicted, so that what is too dark at one is not
    made up for by what is too bright at another. classes: different labels; 0: none.
    """

    def __init__(self, channels: int, height: int, width: int, classes: int = 0, features=32):
        super().__init__()
        layers = []
        while max(height, width) > SMALLEST:
            if layers:
                layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.LeakyReLU(0.2)]
            layers += [nn.Conv2d(channels, features, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
            height, width, channels, features = height // 2, width // 2, features, 2 * features
        layers += [nn.Flatten(), nn.Linear(channels * height * width, WIDTH)]
        self.layers = nn.Sequential(*layers, nn.LeakyReLU(0.2))
        self.score, self.time = nn.Linear(WIDTH, 1), nn.Linear(WIDTH, WIDTH)
        nn.init.normal_(self.time.weight, std=1 / WIDTH)
        self.classes = classes
        if classes:
            self.label = nn.Embedding(classes + 1, WIDTH)
            nn.init.normal_(self.label.weight, std=WIDTH**-0.5)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        found, t = self.layers(x), time_embedding(t.to(x.device), WIDTH)
        wanted = self.time(t.to(found))
        if self.classes:
            wanted = wanted + self.label(labels_or_unknown(labels, x, self.classes))
        return self.score(found).flatten() + (wanted * found).sum(dim=1)


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


def rivalry(
    critic: nn.Module, real: Tensor, fake: Tensor, *told: Tensor | None
) -> tuple[Tensor, Tensor]:
    """What network and critic are to lower, one loss a pair: which of the two looks more real.

    told: what the critic is, times and labels. Each learns by separate gradients. The loss is
    relativistic (arXiv 1807.00734). The critic's has R1's penalty of the gradient at real images
    (arXiv 1801.04406), measured by a little noise (arXiv 2501.08316, Section 3.4). The critic
    learns of fakes as they are drawn, clipped.
    """
    scores = critic(real, *told)
    frozen = {name: value.detach() for name, value in critic.named_parameters()}
    passing = softplus(scores.detach() - functional_call(critic, frozen, (fake, *told)))
    near = critic(real + SIGMA * torch.randn_like(real), *told)
    gamma = GAMMA * real[0].numel() / 1024
    penalty = gamma / 2 * ((near - scores) / SIGMA).square()
    return passing, softplus(critic(fake.detach().clamp(-1, 1), *told) - scores) + penalty


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
        x0, labels = batch.x0, batch.labels
        fake = self.conversion.to_x0(schedule, xt, t, recorded.output.to(xt.dtype))
        ends = slice(None)
        if s is not None:  # what other steps predict is no image
            ends = (s == 0).to(x0.device)
            x0, fake, t = x0[ends], fake[ends], t[ends.to(t.device)]
            labels = labels_at(labels, ends)
        with torch.autocast(x0.device.type, enabled=False):  # the penalty is of small differences
            passing, own = rivalry(self.critic, x0, fake, t, labels)
        added = torch.zeros_like(losses)
        added[ends] = self.weight * passing + own
        return losses + added
