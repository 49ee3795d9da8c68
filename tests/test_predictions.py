"""Four ways to say the same of x_t, and what they change: the weight of an error."""

import math
from functools import partial
from itertools import product

import pytest
import torch

from mnist_ddpm.ddpm import (
    Schedule,
    UNet,
    beta_schedule,
    ddim_sampler,
    ddpm_sampler,
    eps_denoiser,
    l_simple,
    noise_source,
    posterior_variance,
    predict_eps,
    q_sample,
    step_variance,
    to_float,
)
from mnist_ddpm.methods.learned_variance import (
    ancestral_sampler,
    l_hybrid,
    learned_denoiser,
    learned_step_variance,
    without_exponent,
)
from mnist_ddpm.methods.likelihood import bound_term
from mnist_ddpm.methods.predictions import (
    EPS,
    MU,
    X0,
    Conversion,
    V,
    as_eps_network,
    bound_weight,
    denoiser,
    min_snr,
    p2,
    snr,
    squared_error_ratio,
    truncated_snr,
    weighted,
)
from mnist_ddpm.methods.schedules import linear, zero_terminal_snr
from mnist_ddpm.methods.solvers import dpmpp_2m_sampler, heun_sampler

CONVERSIONS = {"eps": EPS, "x0": X0, "v": V, "mu": MU}
WEIGHTS = [bound_weight, truncated_snr, min_snr, p2]
TIMES = torch.tensor([1, 2, 400, 1000])
PAPER = linear()
t_linear = torch.arange(1001, dtype=torch.float64) / 1000
STRAIGHT = Schedule(1 - t_linear, t_linear)  # of flow matching; it ends without signal
PATHS = pytest.mark.parametrize("path", [PAPER, STRAIGHT], ids=["paper", "straight"])
KINDS = pytest.mark.parametrize("kind", CONVERSIONS)


def example(schedule, times=TIMES):
    """x_0, eps and x_t at times, in float64."""
    generator = torch.Generator().manual_seed(0)
    shape, options = (len(times), 1, 3, 3), {"generator": generator, "dtype": torch.float64}
    x0, eps = torch.rand(shape, **options) * 2 - 1, torch.randn(shape, **options)
    return x0, eps, q_sample(schedule, x0, times, eps)


def by_definition(schedule, x0, eps, xt, t=TIMES):
    a_t, b_t, a_s, b_s = (
        table[time].view(-1, 1, 1, 1) for time in (t, t - 1) for table in (schedule.a, schedule.b)
    )
    beta = b_t**2 - (a_t / a_s * b_s) ** 2
    # DDPM, Eq. 7, with any a_t and b_t
    mu = a_t / a_s * b_s**2 / b_t**2 * xt + a_s * beta / b_t**2 * x0
    return {"eps": eps, "x0": x0, "v": a_t * eps - b_t * x0, "mu": mu}


def test_mu_is_that_of_the_papers_eq_11():
    x0, eps, xt = example(PAPER)
    alpha_bar = (PAPER.a**2)[TIMES].view(-1, 1, 1, 1)
    alpha = alpha_bar / (PAPER.a**2)[TIMES - 1].view(-1, 1, 1, 1)
    expected = (xt - (1 - alpha) / (1 - alpha_bar).sqrt() * eps) / alpha.sqrt()
    torch.testing.assert_close(by_definition(PAPER, x0, eps, xt)["mu"], expected)


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
    torch.testing.assert_close(
        as_eps_network(right, PAPER, CONVERSIONS[kind])(xt, TIMES), eps, rtol=0, atol=1e-8
    )


@pytest.mark.parametrize("weight", [None, *WEIGHTS])
@KINDS
def test_a_network_that_is_right_has_no_loss(kind, weight):
    x0, eps, _ = example(PAPER)
    right = lambda xt, t: by_definition(PAPER, x0, eps, xt, t)[kind]  # noqa: E731
    objective = weighted(CONVERSIONS[kind], weight)
    losses = objective(right, PAPER, x0, TIMES, eps)
    wrong = objective(lambda xt, t: right(xt, t) + 0.1, PAPER, x0, TIMES, eps)
    assert losses.shape == (4,) and (losses < 1e-9 * wrong).all()


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


def test_the_plain_error_of_the_noise_is_the_notebooks():
    x0, eps, _ = (x.float() for x in example(PAPER))
    network = lambda xt, t: torch.cos(xt)  # noqa: E731
    losses = [each(network, PAPER, x0, TIMES, eps) for each in (weighted(EPS), l_simple)]
    assert torch.equal(*losses)


@PATHS
def test_bound_weight_is_that_of_the_bound_with_variance_beta(path):
    x0, _, xt = example(path)
    guess = torch.full_like(x0, 0.3)
    wrong, right = (
        bound_term(path, x0, xt, TIMES, x0_hat, 1.0).mean(dim=(1, 2, 3)) for x0_hat in (guess, x0)
    )
    error = (x0 - guess).square().mean(dim=(1, 2, 3))
    expected = bound_weight(path, TIMES) * error / math.log(2)
    torch.testing.assert_close((wrong - right)[1:], expected[1:])


def test_weights_by_hand():
    """alpha_bar is 0.9, 0.5 and 0.1: signal-to-noise ratios of 9, 1 and 1/9."""
    beta = torch.tensor([0, 0.1, 4 / 9, 0.8], dtype=torch.float64)
    schedule, t = beta_schedule(beta), torch.tensor([1, 2, 3])
    for weight, expected in (
        (snr, [9, 1, 1 / 9]),
        (truncated_snr, [9, 1, 1]),
        (min_snr, [5, 1, 1 / 9]),
        (p2, [0.9, 0.5, 0.1]),
        (bound_weight, [0.1 / 2 / 0.01, 4 / 9 * 0.9 / 2 / 0.25, 0.8 * 0.5 / 2 / 0.81]),
    ):
        expected = torch.tensor(expected, dtype=torch.float64)
        torch.testing.assert_close(weight(schedule, t), expected)
    torch.testing.assert_close(step_variance(schedule, t, t - 1), beta[1:])


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
def test_an_objective_of_the_noise_is_one_for_every_prediction(kind):
    """What the network says beside its prediction stays."""
    conversion = CONVERSIONS[kind]
    x0, eps, xt = example(PAPER)

    def off_by_a_half(xt, t):
        x0_hat = EPS.to_x0(PAPER, xt, t, eps + 0.5)
        return conversion.from_x0(PAPER, xt, t, x0_hat)

    losses = l_simple(as_eps_network(off_by_a_half, PAPER, conversion), PAPER, x0, TIMES, eps)
    torch.testing.assert_close(losses, torch.full_like(losses, 0.25), rtol=0, atol=1e-6)
    more = lambda xt, t: torch.cat([off_by_a_half(xt, t), 7 + 0 * xt], dim=1)  # noqa: E731
    output = as_eps_network(more, PAPER, conversion)(xt, TIMES)
    torch.testing.assert_close(output[:, :1], eps + 0.5, rtol=0, atol=1e-6)
    assert (output[:, 1:] == 7).all()


def test_a_prediction_of_ones_own_is_one_for_everything():
    """Flow matching's velocity, eps - x_0."""

    def to_x0(schedule, xt, t, u):
        a_t, b_t = (value.view(-1, 1, 1, 1) for value in schedule.at(t))
        return (xt - b_t * u) / (a_t + b_t)

    def from_x0(schedule, xt, t, x0):
        return predict_eps(schedule, xt, t, x0) - x0

    U = Conversion(to_x0, from_x0)
    x0, eps, xt = example(PAPER)
    torch.testing.assert_close(to_x0(PAPER, xt, TIMES, eps - x0), x0)
    factor = squared_error_ratio(PAPER, TIMES, U)
    torch.testing.assert_close(factor, (1 + snr(PAPER, TIMES).sqrt()).square())
    off = lambda xt, t: eps - x0 + 0.1  # noqa: E731
    losses = weighted(U, p2)(off, PAPER, x0, TIMES, eps)
    torch.testing.assert_close(losses, 0.01 * p2(PAPER, TIMES) / factor)
    x0_hat, eps_hat = denoiser(lambda xt, t: eps - x0, PAPER, U)(xt, TIMES)
    torch.testing.assert_close(x0_hat, x0)
    torch.testing.assert_close(eps_hat, eps)


@KINDS
def test_a_denoiser_samples_what_the_same_network_for_eps_samples(kind):
    conversion = CONVERSIONS[kind]

    def network(xt, t):
        return conversion.from_x0(PAPER, xt, t, EPS.to_x0(PAPER, xt, t, 0.8 * xt))

    start = torch.linspace(-2, 2, 4, dtype=torch.float64).view(4, 1, 1, 1)
    expected, got = (
        [x for _, x, _ in ddim_sampler(each, PAPER, [1000, 500, 20], start, None)]
        for each in (
            eps_denoiser(lambda xt, t: 0.8 * xt, PAPER),
            denoiser(network, PAPER, conversion),
        )
    )
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


def test_tables_on_the_processor_serve_a_network_elsewhere():
    xt = torch.zeros(2, 1, 4, 4, device="meta")
    for conversion in CONVERSIONS.values():
        x0_hat, eps_hat = denoiser(lambda xt, t: xt, PAPER, conversion)(xt, 7)
        assert x0_hat.is_meta and eps_hat.is_meta


@pytest.mark.parametrize("conversion", [V, X0])
@pytest.mark.parametrize("weight", [None, *WEIGHTS, "hybrid"])
def test_learning_and_sampling_with_pure_noise_at_the_end_stay_finite(conversion, weight):
    schedule, hybrid = zero_terminal_snr(linear(4)), weight == "hybrid"
    network = UNet(base_channels=8, channel_mults=(1,), out_channels=1 + hybrid)
    objective = l_hybrid(conversion) if hybrid else weighted(conversion, weight)
    images = torch.arange(8 * 64).view(8, 1, 8, 8).remainder(251).to(torch.uint8)
    t, optimizer = torch.arange(8) % 4 + 1, torch.optim.Adam(network.parameters(), 1e-3)
    draw_noise = noise_source(0, range(8), (1, 8, 8))
    for _ in range(2):
        loss = objective(network, schedule, to_float(images), t, draw_noise()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert loss.isfinite()
    assert all(p.isfinite().all() for p in network.parameters())
    denoise = (learned_denoiser if hybrid else denoiser)(network, schedule, conversion)
    plain = without_exponent(denoise)
    ancestral = partial(
        ancestral_sampler, variance=learned_step_variance if hybrid else posterior_variance
    )
    for sampler in (ancestral, ddpm_sampler, ddim_sampler, dpmpp_2m_sampler, heun_sampler):
        asked = denoise if sampler is ancestral else plain
        states = sampler(asked, schedule, [4, 3, 2, 1], draw_noise(), draw_noise)
        assert all(x.isfinite().all() for _, x, _ in states)
