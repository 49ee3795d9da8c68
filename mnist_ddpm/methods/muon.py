"""Muon: momentum with every matrix orthogonalised.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon. Adam makes all entries of a step
about equally large, Muon all its singular values, so that rare directions are learned too.
"""

from collections import defaultdict

import torch
from torch import Tensor, nn

from mnist_ddpm.ddpm import UNet, check

UNET_ENDS = "conv_in", "conv_out", "label"


def end_layers(network: nn.Module) -> tuple[str, ...]:
    """The layers between a network and pixels or labels, by its attribute end_layers, or a U-Net's.

    Adam trains these, as the authors advise. Raises ValueError for a network that names none.
    """
    of_unet = UNET_ENDS if isinstance(network, UNet) else None
    names = getattr(network, "end_layers", of_unet)
    advice = 'give it an attribute end_layers, such as ("first", "last")'
    kind = type(network).__name__
    check(names is not None, f"muon must know the first and last layers of {kind}: {advice}")
    return names


def orthogonalised(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Matrices (…, m, n) with their singular values brought near 1 by Newton-Schulz iterations.

    Those above 1/500 of the Frobenius norm become 0.7 … 1.2, smaller ones grow up to 485 times.
    An iteration is x <- p x with p = a + b x x' + c (x x')^2. All p commute, so it suffices to
    iterate x x', which is smaller than x: it becomes p x x' p.
    """
    a, b, c = 3.4445, -4.7750, 2.0315  # the authors' values: steep at 0, flat near 1
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-12)
    one = torch.eye(x.shape[-2], dtype=x.dtype, device=x.device)
    gram = x @ x.mT

    def polynomial(gram: Tensor) -> Tensor:
        return a * one + b * gram + c * gram @ gram

    product = p = polynomial(gram)
    for _ in range(iterations - 1):
        gram = p @ gram @ p
        p = polynomial(gram)
        product = p @ product
    x = product @ x
    return x.mT if is_tall else x


class Muon(torch.optim.Optimizer):
    """Muon for a network's matrices and kernels, Adam, at the same rate, for all else.

    A step is 0.2 sqrt(max(m, n)) times the orthogonalised matrix (m, n) times the rate: its entries
    are as large as those of Adam's steps (arXiv 2502.16982, Eq. 4).
    """

    def __init__(self, network: nn.Module, learning_rate: float, momentum: float = 0.95):
        matrices = []
        others = []
        ends = {*end_layers(network)}
        for name, p in network.named_parameters():
            is_matrix = p.ndim > 1 and name.split(".")[0] not in ends
            (matrices if is_matrix else others).append(p)
        groups = [{"params": matrices}, {"params": others}]
        super().__init__(groups, {"lr": learning_rate, "momentum": momentum})
        self.adam = torch.optim.Adam(others, learning_rate)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One step, with Nesterov's momentum: the gradient is mixed in twice."""
        group = self.param_groups[0]
        updates_by_shape = defaultdict(list)  # so that equal shapes need one product
        for p in group["params"]:
            if p.grad is None:
                continue
            if p not in self.state:
                self.state[p]["momentum"] = torch.zeros_like(p)
            momentum = self.state[p]["momentum"]
            momentum.lerp_(p.grad, 1 - group["momentum"])
            update = p.grad.lerp(momentum, group["momentum"]).flatten(1)
            updates_by_shape[update.shape].append((p, update))
        for shape, pairs in updates_by_shape.items():
            parameters, updates = zip(*pairs)
            for p, update in zip(parameters, orthogonalised(torch.stack(updates))):
                p.add_(update.view_as(p), alpha=-0.2 * max(shape) ** 0.5 * group["lr"])
        self.adam.param_groups[0]["lr"] = group["lr"]
        self.adam.step()

    def state_dict(self) -> dict:
        return {"muon": super().state_dict(), "adam": self.adam.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
