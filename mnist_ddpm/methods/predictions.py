"""What a network may predict: the noise eps, the image x_0, the velocity v, the mean mu.

Given x_t, each says the same as each other. What differs is how an error is weighed.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mnist_ddpm.ddpm import (
    Denoiser,
    Network,
    Objective,
    Schedule,
    Time,
    l_simple,
    per_image,
    posterior_mean,
    predict_eps,
    predict_x0,
    q_sample,
    step_variance,
)


class Conversion(NamedTuple):
    """A prediction's way to x_0 and back: functions of (schedule, xt, t, value)."""

    to_x0: Callable[[Schedule, Tensor, Time, Tensor], Tensor]
    from_x0: Callable[[Schedule, Tensor, Time, Tensor], Tensor]
    # of (schedule, t): what x_t is multiplied by before the network sees it; None: not
    scale: Callable[[Schedule, Time], Tensor] | None = None


def identity(schedule: Schedule, xt: Tensor, t: Time, x0: Tensor) -> Tensor:
    """x_0 itself."""
    return x0


def x0_from_v(schedule: Schedule, xt: Tensor, t: Time, v: Tensor) -> Tensor:
    """x_0 from v = a_t eps - b_t x_0 (arXiv 2202.00512, Appendix D)."""
    a_t, b_t = schedule.at(t)
    norm = a_t**2 + b_t**2  # 1 on DDPM's path
    difference = per_image(a_t, xt) * xt - per_image(b_t, xt) * v
    return difference / per_image(norm, xt)


def v_from_x0(schedule: Schedule, xt: Tensor, t: Time, x0: Tensor) -> Tensor:
    """v of x_t and x_0."""
    a_t, b_t = schedule.at(t)
    norm = a_t**2 + b_t**2
    difference = per_image(a_t, xt) * xt - per_image(norm, xt) * x0
    return difference / per_image(b_t, xt)


def mu_from_x0(schedule: Schedule, xt: Tensor, t: Time, x0: Tensor) -> Tensor:
    """The mean mu of q(x_{t-1} | x_t, x_0): DDPM, Eq. 7."""
    return posterior_mean(schedule, x0, xt, t, t - 1)


def x0_from_mu(schedule: Schedule, xt: Tensor, t: Time, mu: Tensor) -> Tensor:
    """x_0 from that mean, which is a multiple of x_0 plus one of x_t."""
    zero = torch.zeros_like(xt)
    of_xt = mu_from_x0(schedule, xt, t, zero)
    of_x0 = mu_from_x0(schedule, zero, t, zero + 1)
    return (mu - of_xt) / of_x0


EPS = Conversion(predict_x0, predict_eps)
X0 = Conversion(identity, identity)
V = Conversion(x0_from_v, v_from_x0)
MU = Conversion(x0_from_mu, mu_from_x0)


def x0_and_eps(
    conversion: Conversion, schedule: Schedule, xt: Tensor, t: Time, value: Tensor
) -> tuple[Tensor, Tensor]:
    """x0_hat and eps_hat (N, C, H, W) that a predicted value stands for."""
    x0_hat = conversion.to_x0(schedule, xt, t, value)
    return x0_hat, value if conversion == EPS else predict_eps(schedule, xt, t, x0_hat)


def network_output(
    network: Network, conversion: Conversion, schedule: Schedule, xt: Tensor, t: Tensor
) -> Tensor:
    """The network's output for x_t, scaled as the prediction says, at times (N,)."""
    if conversion.scale is not None:
        return network(per_image(conversion.scale(schedule, t), xt) * xt, t).to(xt.dtype)
    return network(xt, t).to(xt.dtype)


def denoiser(network: Network, schedule: Schedule, conversion: Conversion) -> Denoiser:
    """A network whose output is the conversion's value, as a denoiser."""

    def denoise(xt: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        value = network_output(
            network, conversion, schedule, xt, torch.as_tensor(t).expand(len(xt))
        )
        return x0_and_eps(conversion, schedule, xt, t, value)

    return denoise


def as_eps_network(network: Network, schedule: Schedule, conversion: Conversion) -> Network:
    """What such a network says of the noise, for objectives that know of nothing else.

    Further channels of its output, such as a variance, stay as they are.
    """

    def predicted_noise(xt: Tensor, t: Tensor) -> Tensor:
        output = network_output(network, conversion, schedule, xt, t)
        value, more = output.split([xt.shape[1], output.shape[1] - xt.shape[1]], dim=1)
        _, eps_hat = x0_and_eps(conversion, schedule, xt, t, value)
        return torch.cat([eps_hat, more], dim=1)

    return predicted_noise


def squared_error_ratio(schedule: Schedule, t: Tensor, conversion: Conversion) -> Tensor:
    """How much larger a squared error of the prediction is than that of x_0, at times (N,).

    The value must be a function of x_t plus a multiple of x_0, by a factor of t alone.
    """
    zero = torch.zeros(len(t), 1, 1, 1, dtype=torch.float64)
    one, none = (conversion.from_x0(schedule, zero, t, x0) for x0 in (zero + 1, zero))
    return (one - none).square().flatten()


def x0_factors(schedule: Schedule, conversion: Conversion) -> tuple[Tensor, Tensor]:
    """By which x_t and the value are multiplied to give x_0: two tables over t = 0 … T, float64.

    At t = 0, x_0 is x_t.
    """
    t = torch.arange(1, schedule.T + 1)
    zero = torch.zeros(len(t), 1, 1, 1, dtype=torch.float64)
    of_xt = conversion.to_x0(schedule, zero + 1, t, zero).flatten()
    of_value = conversion.to_x0(schedule, zero, t, zero + 1).flatten()
    return F.pad(of_xt, (1, 0), value=1.0), F.pad(of_value, (1, 0))


def target(
    conversion: Conversion, schedule: Schedule, x0: Tensor, xt: Tensor, t: Tensor, eps: Tensor
) -> Tensor:
    """What a network that is right predicts of x_t (N, C, H, W)."""
    return eps if conversion == EPS else conversion.from_x0(schedule, xt, t, x0)


Weight = Callable[[Schedule, Tensor], Tensor]  # of x_0's squared error at times (N,)


def snr(schedule: Schedule, t: Tensor) -> Tensor:
    """Signal-to-noise ratio a_t² / b_t² at times (N,)."""
    a_t, b_t = schedule.at(t)
    return (a_t / b_t) ** 2


def bound_weight(schedule: Schedule, t: Tensor) -> Tensor:
    """As in the variational bound with sigma_t² = beta_t (DDPM, Eq. 12)."""
    a_s, _ = schedule.at(t - 1)
    _, b_t = schedule.at(t)
    return a_s**2 * step_variance(schedule, t, t - 1) / (2 * b_t**4)


def truncated_snr(schedule: Schedule, t: Tensor) -> Tensor:
    """The larger of SNR and 1 (arXiv 2202.00512, Section 4)."""
    return snr(schedule, t).clamp(min=1)


def one_at_zero_snr(ratio: Tensor, weight: Tensor) -> Tensor:
    """The weight, and 1 where SNR is 0, as in the code of arXiv 2303.09556.

    Sampling begins there, and a network that has learned nothing of it would spoil every image.
    """
    return torch.where(ratio == 0, 1, weight)


def min_snr(schedule: Schedule, t: Tensor) -> Tensor:
    """The smaller of SNR and gamma = 5 (arXiv 2303.09556); 1 where SNR is 0."""
    ratio = snr(schedule, t)
    return one_at_zero_snr(ratio, ratio.clamp(max=5))


def p2(schedule: Schedule, t: Tensor) -> Tensor:
    """SNR / (k + SNR)^gamma with k = gamma = 1 (arXiv 2204.00227); 1 where SNR is 0.

    Its code weighs the network's own error by (k + SNR)^-gamma, which is 1 there.
    """
    ratio = snr(schedule, t)
    return one_at_zero_snr(ratio, ratio / (1 + ratio))


def weighted(conversion: Conversion, weight: Weight | None = None) -> Objective:
    """The mean squared error of the network's own output, each image times its weight.

    None weighs all t alike in the prediction's own units. A weight is that of x_0's error: the
    loss is then the same one for all predictions.
    """

    def objective(network: Network, schedule: Schedule, x0: Tensor, t: Tensor, eps: Tensor):
        xt = q_sample(schedule, x0, t, eps)
        wanted = target(conversion, schedule, x0, xt, t, eps)
        error = (
            (network_output(network, conversion, schedule, xt, t) - wanted)
            .square()
            .mean(dim=(1, 2, 3))
        )
        if weight is None:
            return error
        return error * (weight(schedule, t) / squared_error_ratio(schedule, t, conversion)).to(
            error
        )

    return objective


def unweighted(conversion: Conversion) -> Objective:
    """The plain error of what is predicted."""
    return l_simple if conversion == EPS else weighted(conversion)


def for_any_prediction(objective: Objective) -> Callable[[Conversion], Objective]:
    """An objective of your own, such as l_simple: it is given the noise, for all predictions."""

    def make(conversion: Conversion) -> Objective:
        def told_the_noise(network: Network, schedule: Schedule, *rest: Tensor) -> Tensor:
            return objective(as_eps_network(network, schedule, conversion), schedule, *rest)

        return objective if conversion == EPS else told_the_noise

    return make
