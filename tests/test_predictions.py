"""What a network may predict: all predictions agree, and the weight of an error."""

import math
from itertools import product

import pytest
import torch
from helpers import PAPER, PATHS, STRAIGHT

from mnist_ddpm import ddpm
from mnist_ddpm.methods.flow import VELOCITY
from mnist_ddpm.methods.likelihood import bound_term
from mnist_ddpm.methods.predictions import (
    EPS,
    MU,
    X0,
    V,
    as_eps_network,
    bound_weight,
    denoiser,
    min_snr,
    p2,
    snr,
    truncated_snr,
    weighted,
)
from mnist_ddpm.methods.schedules import zero_terminal_snr

CONVERSIONS = {"eps": EPS, "x0": X0, "v": V, "mu": MU, "velocity": VELOCITY}
WEIGHTS = [bound_weight, truncated_snr, min_snr, p2]
TIMES = torch.tensor([1, 2, 400, 1000])
KINDS = pytest.mark.parametrize("kind", CONVERSIONS)


def example(schedule, times=TIMES):
    """x_0, eps and x_t at times, in float64."""
    generator = torch.Generator().manual_seed(0)
    shape, options = (len(times), 1, 3, 3), {"generator": generator, "dtype": torch.float64}
    x0, eps = torch.rand(shape, **options) * 2 - 1, torch.randn(shape, **options)
    return x0, eps, ddpm.q_sample(schedule, x0, times, eps)


def by_definition(schedule, x0, eps, xt, t=TIMES):
    a_t, b_t, a_s, b_s = (
        table[time].view(-1, 1, 1, 1) for time in (t, t - 1) for table in (schedule.a, schedule.b)
    )
    beta = b_t**2 - (a_t / a_s * b_s) ** 2
    # DDPM, Eq. 7, with any a_t and b_t
    mu = a_t / a_s * b_s**2 / b_t**2 * xt + a_s * beta / b_t**2 * x0
    return {"eps": eps, "x0": x0, "v": a_t * eps - b_t * x0, "mu": mu, "velocity": eps - x0}


@PATHS
@pytest.mark.parametrize(("given", "wanted"), list(product(CONVERSIONS, CONVERSIONS)))
def test_each_says_the_same_as_each_other(path, given, wanted):
    times = TIMES if given != "eps" or path is PAPER else TIMES[:3]  # no noise tells x_0 at the end
    x0, eps, xt = example(path, times)
    says = by_definition(path, x0, eps, xt, times)
    to_x0, from_x0 = CONVERSIONS[given].to_x0, CONVERSIONS[wanted].from_x0
    got = from_x0(path, xt, times, to_x0(path, xt, times, says[given]))
    # from mu to eps at large t: the factor of x_0 in mu is small, and its error grows
    torch.testing.assert_close(got, says[wanted], rtol=0, atol=1e-8)
    for k, t in enumerate(times.tolist()):
        x, value = xt[k : k + 1], says[given][k : k + 1]
        one = from_x0(path, x, t, to_x0(path, x, t, value))
        torch.testing.assert_close(one, says[wanted][k : k + 1], rtol=0, atol=1e-8)


@KINDS
def test_a_network_that_is_right_is_right_in_every_prediction(kind):
    x0, eps, xt = example(PAPER)
    right = lambda x, t: by_definition(PAPER, x0, eps, x, t)[kind]  # noqa: E731
    x0_hat, eps_hat = denoiser(right, PAPER, CONVERSIONS[kind])(xt, TIMES)
    torch.testing.assert_close(x0_hat, x0, rtol=0, atol=1e-8)
    torch.testing.assert_close(eps_hat, eps, rtol=0, atol=1e-8)


@PATHS
@pytest.mark.parametrize("weight", WEIGHTS)
def test_weights_mean_the_same_loss_whatever_is_predicted(path, weight):
    times = TIMES[:3]
    x0, eps, _ = example(path, times)
    error = (x0 - 0.3).square().mean(dim=(1, 2, 3))
    expected = weight(path, times) * error
    for conversion in CONVERSIONS.values():

        def network(xt, t, conversion=conversion):  # always says that x_0 is 0.3
            return conversion.from_x0(path, xt, t, torch.full_like(xt, 0.3))

        losses = weighted(conversion, weight)(network, path, x0, times, eps)
        torch.testing.assert_close(losses, expected)


@KINDS
def test_without_a_weight_the_loss_is_the_plain_error_of_the_output(kind):
    x0, eps, _ = example(PAPER)

    def network(xt, t):
        return by_definition(PAPER, x0, eps, xt, t)[kind] + torch.arange(4).view(4, 1, 1, 1)

    losses = weighted(CONVERSIONS[kind])(network, PAPER, x0, TIMES, eps)
    torch.testing.assert_close(losses, torch.tensor([0, 1, 4, 9], dtype=torch.float64))


@PATHS
def test_bound_weight_is_that_of_the_bound_with_variance_beta(path):
    x0, _, xt = example(path)
    guess = torch.full_like(x0, 0.3)
    terms = (bound_term(path, x0, xt, TIMES, x0_hat, 1.0) for x0_hat in (guess, x0))
    wrong, right = (each.mean(dim=(1, 2, 3)) for each in terms)
    error = (x0 - guess).square().mean(dim=(1, 2, 3))
    expected = bound_weight(path, TIMES) * error / math.log(2)
    torch.testing.assert_close((wrong - right)[1:], expected[1:])


def test_weights_by_hand():
    """alpha_bar is 0.9, 0.5 and 0.1: signal-to-noise ratios of 9, 1 and 1/9."""
    beta = torch.tensor([0, 0.1, 4 / 9, 0.8], dtype=torch.float64)
    schedule, t = ddpm.beta_schedule(beta), torch.tensor([1, 2, 3])
    for weight, expected in (
        (snr, [9, 1, 1 / 9]),
        (truncated_snr, [9, 1, 1]),
        (min_snr, [5, 1, 1 / 9]),
        (p2, [0.9, 0.5, 0.1]),
        (bound_weight, [0.1 / 2 / 0.01, 4 / 9 * 0.9 / 2 / 0.25, 0.8 * 0.5 / 2 / 0.81]),
    ):
        expected = torch.tensor(expected, dtype=torch.float64)
        torch.testing.assert_close(weight(schedule, t), expected)
    torch.testing.assert_close(ddpm.step_variance(schedule, t, t - 1), beta[1:])


@pytest.mark.parametrize("conversion", [V, X0])
@pytest.mark.parametrize("weight", [truncated_snr, min_snr, p2])
def test_where_no_signal_is_left_the_networks_own_error_counts_in_full(conversion, weight):
    """Sampling begins there. As the code of arXiv 2303.09556 does; SNR itself would give 0."""
    T = TIMES[-1:]
    for schedule in (zero_terminal_snr(PAPER), STRAIGHT):
        x0, eps, xt = example(schedule, T)
        off = conversion.from_x0(schedule, xt, T, x0) + 0.5
        (loss,) = weighted(conversion, weight)(lambda *_, off=off: off, schedule, x0, T, eps)
        assert loss.item() == pytest.approx(0.25)
        last, before = weight(schedule, torch.tensor([1000, 999])).tolist()
        assert last == 1 and (before < 0.01 or weight is truncated_snr)


@KINDS
def test_any_network_is_one_that_predicts_eps_and_further_channels_are_passed_on(kind):
    conversion = CONVERSIONS[kind]
    _, eps, xt = example(PAPER)

    def network(xt, t):
        value = conversion.from_x0(PAPER, xt, t, EPS.to_x0(PAPER, xt, t, eps + 0.5))
        return torch.cat([value, 7 + 0 * xt], dim=1)

    output = as_eps_network(network, PAPER, conversion)(xt, TIMES)
    torch.testing.assert_close(output[:, :1], eps + 0.5, rtol=0, atol=1e-6)
    assert (output[:, 1:] == 7).all()


def test_tables_on_the_processor_serve_a_network_elsewhere():
    xt = torch.zeros(2, 1, 4, 4, device="meta")
    for conversion in CONVERSIONS.values():
        x0_hat, eps_hat = denoiser(lambda xt, t: xt, PAPER, conversion)(xt, 7)
        assert x0_hat.is_meta and eps_hat.is_meta
