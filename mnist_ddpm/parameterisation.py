"""What the network's output stands for: the noise eps, the image x_0, the velocity v or the posterior's mean mu.

Given x_t, each says the same as each other, so all convert by way of x_0. What differs is how an error is weighed.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mnist_ddpm.ddpm import (
    LEARNED_VARIANCE,
    Model,
    Objective,
    Prediction,
    Schedule,
    Settings,
    at,
    look_up,
    predict_eps,
    predict_x0,
    q_posterior,
    q_sample,
    split_variance,
)


def x0_from_v(schedule: Schedule, xt: Tensor, t: int | Tensor, v: Tensor) -> Tensor:
    """x_0 from v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0 (arXiv 2202.00512, Appendix D)."""
    alpha_bar = at(schedule.alpha_bar, t)
    return alpha_bar.sqrt().to(xt.dtype) * xt - (1 - alpha_bar).sqrt().to(xt.dtype) * v


def v_from_x0(schedule: Schedule, xt: Tensor, t: int | Tensor, x0: Tensor) -> Tensor:
    """v of x_t and x_0."""
    alpha_bar = at(schedule.alpha_bar, t)
    return (alpha_bar.sqrt().to(xt.dtype) * xt - x0) / (1 - alpha_bar).sqrt().to(xt.dtype)


def mu_from_x0(schedule: Schedule, xt: Tensor, t: int | Tensor, x0: Tensor) -> Tensor:
    """The mean mu of q(x_{t-1} | x_t, x_0): DDPM, Eq. 7."""
    return q_posterior(schedule, x0, xt, t, t - 1)[0]


def x0_from_mu(schedule: Schedule, xt: Tensor, t: int | Tensor, mu: Tensor) -> Tensor:
    """x_0 from that mean, which is a multiple of x_0 plus one of x_t."""
    zero = torch.zeros_like(xt)
    return (mu - mu_from_x0(schedule, xt, t, zero)) / mu_from_x0(schedule, zero, t, zero + 1)


# name: (to x_0, from x_0), each called with schedule, xt, t, value. What a module of yours enters here is a prediction
CONVERSIONS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "eps": (predict_x0, predict_eps),
    "x0": (lambda schedule, xt, t, x0: x0, lambda schedule, xt, t, x0: x0),
    "v": (x0_from_v, v_from_x0),
    "mu": (x0_from_mu, mu_from_x0),
}


def convert(schedule: Schedule, xt: Tensor, t: int | Tensor, value: Tensor, given: str, wanted: str) -> Tensor:
    """The `wanted` ("eps", "x0", "v", "mu") at time t or times (N,) that says the same of x_t as the `given` value.

    Raises ValueError for an unknown name.
    """
    (to_x0, _), (_, from_x0) = (look_up("prediction", name, CONVERSIONS) for name in (given, wanted))
    return value if given == wanted else from_x0(schedule, xt, t, to_x0(schedule, xt, t, value))


def interpret(schedule: Schedule, xt: Tensor, t: int | Tensor, output: Tensor, prediction: str) -> Prediction:
    """What a network's output (N, C or 2C, H, W) says, if its first C channels are a `prediction`."""
    value, exponent = split_variance(output.to(xt.dtype), xt.shape[1])
    x0_hat = convert(schedule, xt, t, value, prediction, "x0")
    return Prediction(x0_hat, convert(schedule, xt, t, value, prediction, "eps"), exponent)


class Denoiser(nn.Module):
    """A network that predicts something else than eps, as a model for samplers. Raises ValueError for a wrong name."""

    def __init__(self, network: nn.Module, schedule: Schedule, prediction: str):
        super().__init__()
        look_up("prediction", prediction, CONVERSIONS)
        self.network, self.schedule, self.prediction = network, schedule, prediction

    def forward(self, xt: Tensor, t: Tensor, labels: Tensor | None = None) -> Prediction:
        output = self.network(xt, t) if labels is None else self.network(xt, t, labels)
        return interpret(self.schedule.to(xt.device), xt, t, output, self.prediction)


def x0_factor(schedule: Schedule, t: Tensor, prediction: str) -> Tensor:
    """How many times larger a squared error of the prediction is than that of the x_0 that follows, (N, 1, 1, 1).

    A prediction must be a multiple of x_0, by a factor that depends on t alone, plus a function of x_t.
    """
    _, from_x0 = look_up("prediction", prediction, CONVERSIONS)
    zero = torch.zeros_like(at(schedule.alpha_bar, t))
    return (from_x0(schedule, zero, t, zero + 1) - from_x0(schedule, zero, t, zero)).square()


def snr(schedule: Schedule, t: Tensor) -> Tensor:
    """Signal-to-noise ratio alpha_bar / (1 - alpha_bar) at times (N,)."""
    alpha_bar = at(schedule.alpha_bar, t)
    return alpha_bar / (1 - alpha_bar)


def bound_weight(schedule: Schedule, t: Tensor) -> Tensor:
    """As in the variational bound with sigma_t² = beta_t (DDPM, Eq. 12)."""
    alpha_bar = at(schedule.alpha_bar, t)
    return at(schedule.beta, t) * at(schedule.alpha_bar, t - 1) / (2 * (1 - alpha_bar).square())


# The weight of x_0's squared error at times (N,)
WEIGHTS: dict[str, Callable[[Schedule, Tensor], Tensor]] = {
    "bound": bound_weight,
    "truncated-snr": lambda schedule, t: snr(schedule, t).clamp(min=1),  # arXiv 2202.00512, Section 4
    "min-snr": lambda schedule, t: snr(schedule, t).clamp(max=5),  # arXiv 2303.09556, gamma = 5
    "p2": lambda schedule, t: snr(schedule, t) / (1 + snr(schedule, t)),  # arXiv 2204.00227, k = gamma = 1
}


def weighted(prediction: str, weight: str = "uniform") -> Objective:
    """The mean squared error of the network's own output, each image times its weight.

    "uniform" weighs all t alike in the prediction's own units. The names in WEIGHTS mean the same loss whatever is
    predicted. Raises ValueError for an unknown prediction.
    """
    look_up("prediction", prediction, CONVERSIONS)

    def objective(model: Model, schedule: Schedule, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        xt = q_sample(schedule, x0, t, eps)
        value, _ = split_variance(model(xt, t).to(xt.dtype), xt.shape[1])
        error = (value - convert(schedule, xt, t, x0, "x0", prediction)).square().mean(dim=(1, 2, 3))
        if weight == "uniform":
            return error
        return error * (WEIGHTS[weight](schedule, t) / x0_factor(schedule, t, prediction)).flatten().to(xt.dtype)

    return objective


AWARE = {*WEIGHTS, *LEARNED_VARIANCE}  # objectives that mind what is predicted by themselves: all others need not


def suited(make: Callable[[Settings], Objective], settings: Settings) -> Objective:
    """The objective for a prediction other than noise. One that is not in AWARE is told the noise that follows from it.

    "simple" is the plain error of what is predicted. Raises ValueError for an unknown prediction.
    """
    prediction = settings.prediction
    look_up("prediction", prediction, CONVERSIONS)
    if settings.objective == "simple":
        return weighted(prediction)
    objective = make(settings)
    if settings.objective in AWARE:
        return objective

    def told_the_noise(model: Model, schedule: Schedule, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        def noise(xt: Tensor, t: Tensor) -> Tensor:
            output = model(xt, t)
            eps_hat = interpret(schedule, xt, t, output, prediction).eps_hat
            return torch.cat([eps_hat, output[:, xt.shape[1] :]], dim=1)  # any variance as it is

        return objective(noise, schedule, x0, t, eps)

    return told_the_noise


OTHER_PREDICTIONS = {"objective": suited, "denoiser": Denoiser}
OBJECTIVES = {name: lambda settings, name=name: weighted(settings.prediction, name) for name in WEIGHTS}
