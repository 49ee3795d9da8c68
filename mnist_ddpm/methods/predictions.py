"""What a network may predict: the noise eps, the image x_0, the velocity v, the mean mu.

Given x_t, each determines the others. What differs is the weight of an error.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mnist_ddpm import ddpm
from mnist_ddpm.ddpm import Denoiser, Network, Objective, Schedule, Time, per_image, predict_eps


class Conversion(NamedTuple):
    """From a predicted value to x_0 and back: functions of (schedule, xt, t, value)."""

    to_x0: Callable[[Schedule, Tensor, Time, Tensor], Tensor]
    from_x0: Callable[[Schedule, Tensor, Time, Tensor], Tensor]
    # of (schedule, t): the factor of x_t in the network's input; None: 1
    scale: Callable[[Schedule, Time], Tensor] | None = None

    def x0_hat(self, network: Network, schedule: Schedule, xt: Tensor, t: Time) -> Tensor:
        """The x_0 that a network of such values predicts (N, C, H, W)."""
        return self.to_x0(schedule, xt, t, network_output(network, self, schedule, xt, t))


def x0_from_v(schedule: Schedule, xt: Tensor, t: Time, v: Tensor) -> Tensor:
    """x_0 from v = a_t eps - b_t x_0 (arXiv 2202.00512, Appendix D)."""
    a_t, b_t = schedule.at(t)
    norm = a_t**2 + b_t**2  # 1 on DDPM's path
    difference = per_image(a_t, xt) * xt - per_image(b_t, xt) * v
    return difference / per_image(norm, xt)


def v_from_x0(schedule: Schedule, xt: Tensor, t: Time, x0: Tensor) -> Tensor:
    """v with which x_t gives x_0."""
    a_t, b_t = schedule.at(t)
    norm = a_t**2 + b_t**2
    difference = per_image(a_t, xt) * xt - per_image(norm, xt) * x0
    return difference / per_image(b_t, xt)


def mu_from_x0(schedule: Schedule, xt: Tensor, t: Time, x0: Tensor) -> Tensor:
    """The mean mu of q(x_{t-1} | x_t, x_0): DDPM, Eq. 7."""
    return ddpm.posterior_mean(schedule, x0, xt, t, t - 1)


def x0_from_mu(schedule: Schedule, xt: Tensor, t: Time, mu: Tensor) -> Tensor:
    """x_0 from mu, which is a multiple of x_0 plus a multiple of x_t."""
    zero = torch.zeros_like(xt)
    xt_part = mu_from_x0(schedule, xt, t, zero)
    x0_weight = mu_from_x0(schedule, zero, t, zero + 1)
    return (mu - xt_part) / x0_weight


EPS = Conversion(ddpm.predict_x0, predict_eps)
X0 = Conversion(lambda schedule, xt, t, x0: x0, lambda schedule, xt, t, x0: x0)
V = Conversion(x0_from_v, v_from_x0)
MU = Conversion(x0_from_mu, mu_from_x0)


def x0_and_eps(
    conversion: Conversion, schedule: Schedule, xt: Tensor, t: Time, value: Tensor
) -> tuple[Tensor, Tensor]:
    """x0_hat and eps_hat (N, C, H, W) of a predicted value."""
    x0_hat = conversion.to_x0(schedule, xt, t, value)
    return x0_hat, value if conversion == EPS else predict_eps(schedule, xt, t, x0_hat)


def network_output(
    network: Network, conversion: Conversion, schedule: Schedule, xt: Tensor, t: Time
) -> Tensor:
    """The network's output for x_t, scaled where the conversion has a scale."""
    t = torch.as_tensor(t).expand(len(xt))
    x = xt if conversion.scale is None else per_image(conversion.scale(schedule, t), xt) * xt
    return network(x, t).to(xt.dtype)


def denoiser(network: Network, schedule: Schedule, conversion: Conversion) -> Denoiser:
    """The denoiser of a network whose output is the conversion's value."""

    def denoise(xt: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        value = network_output(network, conversion, schedule, xt, t)
        return x0_and_eps(conversion, schedule, xt, t, value)

    return denoise


def as_eps_network(network: Network, schedule: Schedule, conversion: Conversion) -> Network:
    """A network of any prediction as one of eps; further channels, as a variance, are passed on."""

    def eps_network(xt: Tensor, t: Tensor) -> Tensor:
        output = network_output(network, conversion, schedule, xt, t)
        value, variance = output.split([xt.shape[1], output.shape[1] - xt.shape[1]], dim=1)
        _, eps_hat = x0_and_eps(conversion, schedule, xt, t, value)
        return torch.cat([eps_hat, variance], dim=1)

    return eps_network


def squared_error_ratio(schedule: Schedule, t: Tensor, conversion: Conversion) -> Tensor:
    """The squared error of the predicted value over that of x_0, which t alone determines (N,)."""
    zero = torch.zeros(len(t), 1, 1, 1, dtype=torch.float64)
    at_one, at_zero = (conversion.from_x0(schedule, zero, t, x0) for x0 in (zero + 1, zero))
    return (at_one - at_zero).square().flatten()


def x0_factors(schedule: Schedule, conversion: Conversion) -> tuple[Tensor, Tensor]:
    """The factors of x_t and of the predicted value in x_0, at t = 0 … T: float64 (T+1,) each."""
    t = torch.arange(1, schedule.T + 1)
    zero = torch.zeros(len(t), 1, 1, 1, dtype=torch.float64)
    xt_factor = conversion.to_x0(schedule, zero + 1, t, zero).flatten()
    value_factor = conversion.to_x0(schedule, zero, t, zero + 1).flatten()
    return F.pad(xt_factor, (1, 0), value=1.0), F.pad(value_factor, (1, 0))


def target(
    conversion: Conversion, schedule: Schedule, x0: Tensor, xt: Tensor, t: Tensor, eps: Tensor
) -> Tensor:
    """The value that a network should predict (N, C, H, W)."""
    return eps if conversion == EPS else conversion.from_x0(schedule, xt, t, x0)


Weight = Callable[[Schedule, Tensor], Tensor]  # times (N,) to the weights of x_0's squared error


def snr(schedule: Schedule, t: Tensor) -> Tensor:
    """Signal-to-noise ratio a_t² / b_t² at times (N,)."""
    a_t, b_t = schedule.at(t)
    return (a_t / b_t) ** 2


def bound_weight(schedule: Schedule, t: Tensor) -> Tensor:
    """The weight in the variational bound with sigma_t² = beta_t (DDPM, Eq. 12)."""
    a_s, _ = schedule.at(t - 1)
    _, b_t = schedule.at(t)
    return a_s**2 * ddpm.step_variance(schedule, t, t - 1) / (2 * b_t**4)


def truncated_snr(schedule: Schedule, t: Tensor) -> Tensor:
    """The larger of SNR and 1 (arXiv 2202.00512, Section 4)."""
    return snr(schedule, t).clamp(min=1)


def one_at_zero_snr(ratio: Tensor, weight: Tensor) -> Tensor:
    """The weight, but 1 where SNR is 0, where sampling begins: as in arXiv 2303.09556's code."""
    return torch.where(ratio == 0, 1, weight)


def min_snr(schedule: Schedule, t: Tensor) -> Tensor:
    """The smaller of SNR and gamma = 5 (arXiv 2303.09556); 1 where SNR is 0."""
    ratio = snr(schedule, t)
    return one_at_zero_snr(ratio, ratio.clamp(max=5))


def p2(schedule: Schedule, t: Tensor) -> Tensor:
    """SNR / (k + SNR)^gamma with k = gamma = 1 (arXiv 2204.00227); 1 where SNR is 0."""
    ratio = snr(schedule, t)
    return one_at_zero_snr(ratio, ratio / (1 + ratio))


def weighted(conversion: Conversion, weight: Weight | None = None) -> Objective:
    """The weighted mean squared error of x_0; without a weight, that of the network's output."""

    def objective(network: Network, schedule: Schedule, x0: Tensor, t: Tensor, eps: Tensor):
        xt = ddpm.q_sample(schedule, x0, t, eps)
        wanted = target(conversion, schedule, x0, xt, t, eps)
        output = network_output(network, conversion, schedule, xt, t)
        error = (output - wanted).square().mean(dim=(1, 2, 3))
        if weight is None:
            return error
        ratio = weight(schedule, t) / squared_error_ratio(schedule, t, conversion)
        return error * ratio.to(error)

    return objective


def unweighted(conversion: Conversion) -> Objective:
    """The mean squared error of the network's output: l_simple for eps."""
    return ddpm.l_simple if conversion == EPS else weighted(conversion)


def for_any_prediction(objective: Objective) -> Callable[[Conversion], Objective]:
    """An objective for networks that predict eps, such as l_simple, as one for any prediction."""

    def make(conversion: Conversion) -> Objective:
        def converted(network: Network, schedule: Schedule, x0, t, eps) -> Tensor:
            return objective(as_eps_network(network, schedule, conversion), schedule, x0, t, eps)

        return objective if conversion == EPS else converted

    return make
