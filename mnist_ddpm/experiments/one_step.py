"""Methods for few evaluations that begin with random weights, after equal time."""

from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.figure import Figure

from mnist_ddpm import ddpm
from mnist_ddpm.experiments.plots import Experiment, plot_lines, plot_real_distance
from mnist_ddpm.experiments.results import Claim, Row
from mnist_ddpm.experiments.runner import ExperimentRun
from mnist_ddpm.methods.consistency import consistency_sampler
from mnist_ddpm.methods.schedules import even_signal
from mnist_ddpm.methods.shortcuts import shortcut_sampler

FLOW = {"schedule": "flow", "prediction": "velocity", "times": "logit-normal"}
BASELINE = "flow matching"


@dataclass(frozen=True)
class Arm:
    """A method: its changes to the recipe, and how it draws."""

    changes: dict
    sampler: Callable
    cost: float = 1.0  # time of a training step, in those of BASELINE
    budgets: tuple[int, ...] = (1, 2, 4)  # evaluations an image


# Costs: processor time on one core of an AMD EPYC (Zen 3), median of 9 steps
ARMS = {
    BASELINE: Arm(FLOW, ddpm.ddim_sampler),
    "shortcuts": Arm(FLOW | {"network": "shortcut"}, shortcut_sampler, cost=1.48),
    "mean flows": Arm(
        FLOW | {"network": "shortcut", "objective": "mean-flow"}, shortcut_sampler, cost=2.32
    ),
    "consistency": Arm(
        {"objective": "consistency", "prediction": "v", "learning_rate": 1e-3},
        consistency_sampler,
        cost=1.3,
    ),
    "drifting, pixels": Arm(
        {"objective": "drifting", "prediction": "x0"}, consistency_sampler, 1.03, budgets=(1,)
    ),
}


class FewEvaluations(Experiment):
    """Methods that learn to draw in few evaluations, from images alone."""

    about = """\
        Networks without labels, trained from random weights, without a teacher, for about the same
        time, and drawn by their own samplers. The dotted line is the distance of real digits.
        Points are geometric means, the table has plain ones."""
    size = 6.0, 4.2

    def measure(self, run: ExperimentRun, seed: int) -> None:
        for name, arm in ARMS.items():
            epochs = run.scale.epochs / arm.cost
            trained = run.network(name, seed, **arm.changes, epochs=epochs)
            for S in arm.budgets:
                times = ddpm.timesteps(trained.schedule.T, S)
                options = {}
                if arm.sampler is shortcut_sampler:
                    options["next_times"] = times
                if arm.sampler is consistency_sampler:
                    times = even_signal(trained.schedule, S)
                key = {"arm": name, "seed": seed, "S": S}
                run.measure_images(key, trained, times, arm.sampler, **options)

    def plot(self, rows: list[Row], figure: Figure) -> None:
        ax = figure.subplots()
        plot_lines(ax, rows, "frechet", "S", {name: {"arm": name} for name in ARMS}, log=True)
        plot_real_distance(ax, rows)
        ax.set(title="Which method needs the fewest evaluations?", ylabel="Fréchet distance")
        ax.set(xscale="log", xlabel="network evaluations")
        ax.set_xticks([1, 2, 4], [1, 2, 4])
        ax.legend(fontsize=8)

    def claims(self, rows: list[Row]) -> list[Claim]:
        pairs = [(name, BASELINE) for name in ARMS if name != BASELINE]
        pairs += [
            ("mean flows", "shortcuts"),
            ("mean flows", "consistency"),
            ("drifting, pixels", "mean flows"),
        ]
        claims = []
        for a, b in pairs:
            text = f"in one evaluation, {a} beat {b}"
            less, more = ({"arm": name, "S": 1} for name in (a, b))
            claims.append(Claim.of(rows, "frechet", text, less, more))
        return claims
