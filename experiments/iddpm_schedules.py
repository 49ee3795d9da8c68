"""Improved DDPM: schedules, learned variance, and chains of few steps."""

from functools import partial

from matplotlib.figure import Figure

from experiments.plots import Experiment, plot_lines, plot_points
from experiments.results import Claim, Row, select_rows, values_by_seed
from experiments.runner import ExperimentRun, TrainedNetwork, ancestral
from mnist_ddpm import ddpm
from mnist_ddpm.data.pictures import margin
from mnist_ddpm.machine.process import progress_bar
from mnist_ddpm.methods.likelihood import bits_per_dim

LINEAR = {"T": 4000, "beta_1": 1e-4 / 4, "beta_T": 0.02 / 4}  # four times the steps, as much noise
COSINE = {"T": 4000, "schedule": "cosine"}
NETWORKS = {
    "1k linear, simple": {},
    "1k cosine, simple": {"schedule": "cosine"},
    "4k linear, simple": LINEAR,
    "4k linear, hybrid": {**LINEAR, "objective": "hybrid"},
    "4k cosine, simple": COSINE,
    "4k cosine, hybrid": {**COSINE, "objective": "hybrid"},
    "4k cosine, vlb": {**COSINE, "objective": "vlb"},
}
SKIPPING = "1k linear, simple", "1k cosine, simple"  # the networks whose chains skip steps
SKIPPED = 0.1, 0.2, 0.3, 0.4, 0.5


def measure_bound(run: ExperimentRun, trained: TrainedNetwork, seed: int) -> Row:
    """The bound of unseen digits, whose margin is known."""
    estimate = bits_per_dim(
        trained.denoiser(trained.learns_variance),
        trained.schedule,
        run.test_images[: run.scale.bits],
        exponent=None if trained.learns_variance else 0.0,
        times_per_image=min(50, trained.schedule.T),
        margin=margin(trained.recipe),
        seed=seed,
        device=run.device,
        progress=progress_bar,
    )
    return {"bits_per_dim": estimate.mean}


def skipping_costs(rows: list[Row], arm: str) -> dict[int, float]:
    """How much larger the distance is, by seed, if a fifth of the way is skipped."""
    keys = ({"arm": arm, "steps": 50, "skipped": part} for part in (0.2, 0.0))
    skipped, complete = (values_by_seed(rows, "frechet", key) for key in keys)
    return {seed: skipped[seed] - complete[seed] for seed in skipped if seed in complete}


class SchedulesAndVariances(Experiment):
    """Linear and cosine schedules, three losses, and chains of many lengths."""

    about = """\
        Names say the steps T in thousands, the schedule and the loss. Above, left: the bound of
        unseen digits, without their margin. Above, right: the first part of the way back is
        skipped, of 50 steps. Below: ancestral sampling, with the learned variance where there is
        one. The points of distances are geometric means, the table has plain ones."""
    size = 9.0, 7.0

    def measure(self, run: ExperimentRun, seed: int) -> None:
        for arm, changes in NETWORKS.items():
            name = arm if changes else "eps, L_simple"  # the same as in ddpm-table2
            self.measure_network(run, arm, seed, run.network(name, seed, **changes))

    def measure_network(
        self, run: ExperimentRun, arm: str, seed: int, trained: TrainedNetwork
    ) -> None:
        """Measures a network's chains of many lengths, chains that skip, and its bound."""
        T = trained.schedule.T
        lengths = {10, 25, 50, 100, run.scale.long, run.scale.long * T // 1000}
        chains = [(ddpm.timesteps(T, min(steps, T)), 0.0) for steps in sorted(lengths)]
        if arm in SKIPPING:
            fifty = ddpm.timesteps(T, 50)
            chains += [([t for t in fifty if t <= (1 - part) * T], part) for part in SKIPPED]
        sampler = ancestral("learned" if trained.learns_variance else "posterior")
        for times, part in chains:
            steps = 50 if part else len(times)
            key = {"arm": arm, "seed": seed, "steps": steps, "skipped": part}
            run.measure_images(key, trained, times, sampler, with_exponent=trained.learns_variance)
        key = {"arm": arm, "seed": seed, "steps": T, "measure": "bound"}
        run.measure_once(key, partial(measure_bound, run, trained, seed))

    def plot(self, rows: list[Row], figure: Figure) -> None:
        layout = [["bits", "skipped"], ["steps", "steps"]]
        axes = figure.subplot_mosaic(layout, height_ratios=[1, 1.2])
        arms = {arm: {"arm": arm, "measure": "bound"} for arm in NETWORKS}
        plot_points(axes["bits"], rows, "bits_per_dim", arms)
        axes["bits"].set(title="Which network needs the fewest bits?", xlabel="bits/dim")
        arms = {arm: {"arm": arm, "steps": 50} for arm in SKIPPING}
        plot_lines(axes["skipped"], rows, "frechet", "skipped", arms, log=True)
        axes["skipped"].set_title("How much can be skipped?")
        axes["skipped"].set(xlabel="share of the way skipped, from T", ylabel="Fréchet distance")
        axes["skipped"].legend(fontsize=8)
        arms = {arm: {"arm": arm, "skipped": 0.0} for arm in NETWORKS}
        plot_lines(axes["steps"], rows, "frechet", "steps", arms, log=True)
        axes["steps"].set_title("How many steps are enough?")
        axes["steps"].set(xscale="log", ylabel="Fréchet distance")
        axes["steps"].legend(fontsize=8, ncols=2)

    def claims(self, rows: list[Row]) -> list[Claim]:
        hybrid, simple, vlb = (
            {"arm": f"4k cosine, {loss}"} for loss in ("hybrid", "simple", "vlb")
        )
        linear_hybrid = {"arm": "4k linear, hybrid"}
        short_cosine = {"arm": "1k cosine, simple"}
        fewer_bits = partial(Claim.of, rows, "bits_per_dim")
        nearer = partial(Claim.of, rows, "frechet")
        longest = max(row["steps"] for row in select_rows(rows, hybrid | {"skipped": 0.0}))
        steps_25, steps_100, steps_longest = (
            {"steps": steps, "skipped": 0.0} for steps in (25, 100, longest)
        )
        linear_costs, cosine_costs = (skipping_costs(rows, arm) for arm in SKIPPING)
        return [
            fewer_bits("cosine needs fewer bits than linear", hybrid, linear_hybrid),
            fewer_bits("with cosine, 4000 steps need fewer bits than 1000", simple, short_cosine),
            fewer_bits("hybrid needs fewer bits than simple", hybrid, simple),
            fewer_bits("vlb needs the fewest bits", vlb, hybrid),
            nearer("a learned variance helps in 25 steps", hybrid | steps_25, simple | steps_25),
            nearer("vlb draws worse than hybrid", hybrid | steps_100, vlb | steps_100),
            nearer(
                f"with hybrid, {longest} steps beat 100", hybrid | steps_longest, hybrid | steps_100
            ),
            Claim("skipping a fifth costs linear less", linear_costs, cosine_costs),
        ]
