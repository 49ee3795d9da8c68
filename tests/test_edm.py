"""EDM's preconditioning, loss and spacing, beside its table and another implementation."""

import math

import pytest
import torch
from diffusers import EDMEulerScheduler
from helpers import PAPER, PATHS, STRAIGHT

from mnist_ddpm.ddpm import q_sample, random_generator, transitions
from mnist_ddpm.methods.edm import EDM, edm_weight, karras_times
from mnist_ddpm.methods.flow import flow
from mnist_ddpm.methods.predictions import denoiser, weighted
from mnist_ddpm.methods.schedules import linear

TIMES = torch.tensor([1, 30, 400, 990])


def example(path, times=TIMES):
    generator = random_generator(0)
    x0, eps = torch.randn(2, len(times), 1, 3, 3, generator=generator, dtype=torch.float64)
    return x0, eps, q_sample(path, x0, times, eps)


@PATHS
def test_preconditioning_is_that_of_the_papers_table(path):
    """With x = x_t / a and sigma = s / a; diffusers scales as the table does, too."""
    theirs, seen, (_, _, xt) = EDMEulerScheduler(sigma_data=0.5), [], example(path)
    network = lambda x, t: seen.append(x) or torch.tanh(x)  # noqa: E731
    x0_hat, eps_hat = denoiser(network, path, EDM)(xt, TIMES)
    for k, t in enumerate(TIMES.tolist()):
        a_t, b_t = path.at(t)
        sigma, x = b_t / a_t, xt[k] / a_t
        norm = torch.sqrt(sigma**2 + 0.25)
        c_skip, c_out, c_in = 0.25 / norm**2, 0.5 * sigma / norm, 1 / norm
        torch.testing.assert_close(seen[0][k], c_in * x)
        torch.testing.assert_close(x0_hat[k], c_skip * x + c_out * torch.tanh(c_in * x))
        torch.testing.assert_close(seen[0][k], theirs.precondition_inputs(x, sigma))
        output = torch.tanh(seen[0][k])
        torch.testing.assert_close(x0_hat[k], theirs.precondition_outputs(x, output, sigma))
    torch.testing.assert_close(q_sample(path, x0_hat, TIMES, eps_hat), xt)


@PATHS
def test_the_loss_is_that_of_the_paper(path):
    """Eq. 2 with Table 1's lambda, which weighs all noise alike in the network's own units."""
    x0, eps, xt = example(path)
    network = lambda x, t: 0.3 * x + 0.1  # noqa: E731
    error = (denoiser(network, path, EDM)(xt, TIMES)[0] - x0).square().mean(dim=(1, 2, 3))
    sigma = (path.b / path.a)[TIMES]
    wanted = (sigma**2 + 0.25) / (0.5 * sigma) ** 2 * error
    for each in (None, edm_weight):
        torch.testing.assert_close(weighted(EDM, each)(network, path, x0, TIMES, eps), wanted)


@PATHS
def test_output_and_image_say_the_same(path):
    times = torch.tensor([1, 500, 1000])
    x0, _, xt = example(path, times)
    output = EDM.from_x0(path, xt, times, x0)
    torch.testing.assert_close(EDM.to_x0(path, xt, times, output), x0)
    torch.testing.assert_close(EDM.to_x0(path, xt[1:2], 500, output[1:2]), x0[1:2])
    assert torch.equal(EDM.to_x0(path, x0, 0, output), x0), "the boundary"


@pytest.mark.parametrize("n", [2, 5, 18])
def test_steps_are_spaced_as_in_the_paper(n):
    fine = linear(4000, 1e-4 / 4, 0.02 / 4)
    times, sigma = karras_times(fine, n), fine.b / fine.a
    assert times[0] == 4000
    theirs = EDMEulerScheduler(sigma_min=sigma[1].item(), sigma_max=80.0, sigma_data=0.5)
    theirs.set_timesteps(n)
    for t, wanted in zip(times[1:], theirs.sigmas[1:n].tolist()):
        error = [abs(math.log(sigma[near] / wanted)) for near in (max(1, t - 1), t, t + 1)]
        assert min(error) == error[1]


@pytest.mark.parametrize("T", [1, 2, 7, 1000])
@pytest.mark.parametrize("make", [flow, linear], ids=["flow", "ddpm"])
def test_any_number_of_steps_has_times_of_its_own(make, T):
    schedule = make(T)
    for n in {1, 2, 5, T // 2 + 1, T - 1, T} & {*range(1, T + 1)}:
        times = karras_times(schedule, n)
        assert len(transitions(times, T)) == n and times[0] == T
    for wrong in (0, T + 1):
        with pytest.raises(ValueError, match=str(wrong)):
            karras_times(schedule, wrong)
    assert karras_times(STRAIGHT, 3)[0] == karras_times(PAPER, 3)[0] == 1000
