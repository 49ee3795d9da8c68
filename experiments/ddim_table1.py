"""DDIM, Table 1: steps against eta, beside second-order solvers."""

from functools import partial

from matplotlib.figure import Figure

from experiments.plots import Experiment, plot_lines, plot_real_distance
from experiments.results import Claim, Row
from experiments.runner import LONG_TRAINING, ExperimentRun, TrainedNetwork
from mnist_ddpm import ddpm
from mnist_ddpm.methods.solvers import ddim_encoder, dpmpp_2m_sampler, heun_sampler

SAMPLERS = {
    **{f"η = {eta:g}": partial(ddpm.ddim_sampler, eta=eta) for eta in (0.0, 0.2, 0.5, 1.0)},
    "σ̂": partial(ddpm.ddpm_sampler, variance=ddpm.step_variance),
    "Heun": heun_sampler,
    "DPM-Solver++": dpmpp_2m_sampler,
    "DPM-Solver++, η = 1": partial(dpmpp_2m_sampler, eta=1.0),
}


def reconstruction_error(run: ExperimentRun, trained: TrainedNetwork, times: list[int]) -> Row:
    """The mean squared error of 100 unseen digits that are encoded to noise and decoded again."""
    denoise = trained.denoiser()
    x0 = ddpm.to_float(run.test_images[:100]).to(run.device)
    *_, (_, xT, _) = ddim_encoder(denoise, trained.schedule, times, x0)
    *_, (_, decoded, _) = ddpm.ddim_sampler(denoise, trained.schedule, times, xT, draw_noise=None)
    return {"reconstruction": (decoded - x0).square().mean().item()}


class StepsAndEta(Experiment):
    """One network drawn with samplers that differ in their order, noise and number of steps."""

    about = """\
        One network for all samplers. Left: the dotted line is the distance of real digits. Heun
        takes one evaluation fewer than it says. Right: 100 unseen digits are encoded to noise and
        decoded again, pixels in [-1, 1]. Points are geometric means, the table has plain ones."""
    size = 9.5, 4.2
    training = LONG_TRAINING

    def measure(self, run: ExperimentRun, seed: int) -> None:
        trained = run.network("eps, longer", seed)
        for S in (10, 20, 50, 100, run.scale.long):
            times = ddpm.timesteps(trained.schedule.T, S)
            for arm, sampler in SAMPLERS.items():
                steps = (S + 1) // 2 if sampler is heun_sampler else S  # two evaluations each
                run.measure_images({"arm": arm, "seed": seed, "S": S}, trained, steps, sampler)
            key = {"arm": "reconstruction", "seed": seed, "S": S}
            run.measure_once(key, partial(reconstruction_error, run, trained, times))

    def plot(self, rows: list[Row], figure: Figure) -> None:
        left_ax, right_ax = figure.subplots(1, 2, width_ratios=[1.5, 1])
        plot_lines(left_ax, rows, "frechet", "S", {arm: {"arm": arm} for arm in SAMPLERS}, log=True)
        plot_real_distance(left_ax, rows)
        left_ax.set(title="How many steps does each sampler need?", xlabel="network evaluations")
        left_ax.set(xscale="log", ylabel="Fréchet distance")
        left_ax.legend(fontsize=8, loc="upper right", ncols=2)
        arms = {"": {"arm": "reconstruction"}}
        plot_lines(right_ax, rows, "reconstruction", "S", arms, log=True)
        right_ax.set(title="How exact are encoding and decoding?", xlabel="steps")
        right_ax.set(xscale="log", ylabel="mean squared error")

    def claims(self, rows: list[Row]) -> list[Claim]:
        nearer = partial(Claim.of, rows, "frechet")
        ddim, ddpms, dpmpp = ({"arm": arm, "S": 10} for arm in ("η = 0", "η = 1", "DPM-Solver++"))
        sde, ddpm_20 = ({"arm": arm, "S": 20} for arm in ("DPM-Solver++, η = 1", "η = 1"))
        steps_10, steps_100 = ({"arm": "reconstruction", "S": S} for S in (10, 100))
        smaller_error = "more steps make a smaller error"
        return [
            nearer("in 10 steps, η = 0 beats η = 1", ddim, ddpms),
            nearer("in 10 steps, second order beats first", dpmpp, ddim),
            nearer("in 20 steps with η = 1, second order beats first", sde, ddpm_20),
            Claim.of(rows, "reconstruction", smaller_error, less=steps_100, more=steps_10),
        ]
