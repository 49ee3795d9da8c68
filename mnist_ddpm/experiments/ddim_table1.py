"""DDIM, Table 1: steps against eta, beside second-order solvers."""

from functools import partial

from matplotlib.figure import Figure

from mnist_ddpm import ddpm
from mnist_ddpm.experiments.claims import Claim, claim
from mnist_ddpm.experiments.plots import Experiment, floor_line, lines
from mnist_ddpm.experiments.rows import Row
from mnist_ddpm.experiments.runner import LONGER, Lab, Trained
from mnist_ddpm.methods.solvers import ddim_encoder, dpmpp_2m_sampler, heun_sampler

METHODS = {
    **{f"η = {eta:g}": partial(ddpm.ddim_sampler, eta=eta) for eta in (0.0, 0.2, 0.5, 1.0)},
    "σ̂": partial(ddpm.ddpm_sampler, variance=ddpm.step_variance),
    "Heun": heun_sampler,
    "DPM-Solver++": dpmpp_2m_sampler,
    "DPM-Solver++, η = 1": partial(dpmpp_2m_sampler, eta=1.0),
}
ABOUT = """\
One network for all samplers. Left: the dotted line is the distance of real digits. Heun takes one
evaluation fewer than it says. Right: 100 unseen digits are encoded to noise and decoded again,
pixels in [-1, 1]. Points are geometric means, the table has plain ones."""


def run(lab: Lab) -> None:
    for seed in range(lab.scale.seeds):
        trained = lab.network("eps, longer", seed)
        for S in (10, 20, 50, 100, lab.scale.long):
            times = ddpm.timesteps(trained.schedule.T, S)
            for arm, sampler in METHODS.items():
                half = ddpm.timesteps(trained.schedule.T, (S + 1) // 2)  # two evaluations a step
                chosen = half if sampler is heun_sampler else times
                key = {"arm": arm, "seed": seed, "S": S}
                lab.quality(key, trained, chosen, sampler)
            key = {"arm": "reconstruction", "seed": seed, "S": S}
            lab.measured(key, partial(reconstruction, lab, trained, times))
    lab.real()


def reconstruction(lab: Lab, trained: Trained, times: list[int]) -> Row:
    """What 100 unseen digits lose on the way to their noise and back."""
    denoise, schedule = trained.denoiser(), trained.schedule
    x0 = ddpm.to_float(lab.unseen[:100]).to(lab.device)
    *_, (_, code, _) = ddim_encoder(denoise, schedule, times, x0)
    *_, (_, again, _) = ddpm.ddim_sampler(denoise, schedule, times, code, draw_noise=None)
    return {"reconstruction": (again - x0).square().mean().item()}


def plot(rows: list[Row], figure: Figure) -> None:
    first, second = figure.subplots(1, 2, width_ratios=[1.5, 1])
    lines(first, rows, "frechet", "S", {arm: {"arm": arm} for arm in METHODS}, log=True)
    floor_line(first, rows)
    first.set(title="How many steps does each sampler need?", xlabel="network evaluations")
    first.set(xscale="log", ylabel="Fréchet distance")
    first.legend(fontsize=8, loc="upper right", ncols=2)
    lines(second, rows, "reconstruction", "S", {"": {"arm": "reconstruction"}}, log=True)
    second.set(title="How exact are encoding and decoding?", xlabel="steps")
    second.set(xscale="log", ylabel="mean squared error")


def claims(rows: list[Row]) -> list[Claim]:
    nearer = partial(claim, rows, "frechet")
    none, full, second = ({"arm": arm, "S": 10} for arm in ("η = 0", "η = 1", "DPM-Solver++"))
    noisy, first = ({"arm": arm, "S": 20} for arm in ("DPM-Solver++, η = 1", "η = 1"))
    few, many = ({"arm": "reconstruction", "S": S} for S in (10, 100))
    return [
        nearer("in 10 steps, η = 0 beats η = 1", none, full),
        nearer("in 10 steps, second order beats first", second, none),
        nearer("in 20 steps with η = 1, second order beats first", noisy, first),
        claim(rows, "reconstruction", "more steps make a smaller error", many, few),
    ]


EXPERIMENT = Experiment(run, plot, claims, ABOUT, (9.5, 4.2), LONGER)
