"""DDPM, Table 2: what to predict, and what to minimise."""

from matplotlib.figure import Figure

from experiments.plots import Experiment, plot_points, plot_real_distance
from experiments.results import Claim, Row
from experiments.runner import ExperimentRun, ancestral

NETWORKS = {
    "eps, L_simple": {},
    "eps, L": {"prediction": "eps", "objective": "bound"},
    "mu, L": {"prediction": "mu", "objective": "bound"},
    "mu, plain error": {"prediction": "mu"},
    "v, plain error": {"prediction": "v"},
    "x0, plain error": {"prediction": "x0"},
    "eps, L_hybrid": {"prediction": "eps", "objective": "hybrid"},
}
LEARNED = "eps, L_hybrid, learned variance"  # the last network again


class PredictionsAndLosses(Experiment):
    """Networks that differ in what they predict and minimise."""

    about = """\
        Distances of what eight networks draw by ancestral sampling in 50 of 1000 steps. The dotted
        line is that of real digits. Points are geometric means, the table has plain ones."""
    size = 7.5, 3.8

    def measure(self, run: ExperimentRun, seed: int) -> None:
        for arm, changes in NETWORKS.items():
            trained = run.network(arm, seed, **changes)
            key = {"arm": arm, "seed": seed}
            run.measure_images(key, trained, 50, ancestral("posterior"))
            if trained.learns_variance:
                key = {"arm": LEARNED, "seed": seed}
                sampler = ancestral("learned")
                run.measure_images(key, trained, 50, sampler, with_exponent=True)

    def plot(self, rows: list[Row], figure: Figure) -> None:
        ax = figure.subplots()
        arms = {arm: {"arm": arm} for arm in (*NETWORKS, LEARNED)}
        plot_points(ax, rows, "frechet", arms, log=True)
        plot_real_distance(ax, rows, vertical=True)
        ax.legend(fontsize=8, loc="lower right")
        ax.set(title="Which prediction and which loss draw best?", xlabel="Fréchet distance")

    def claims(self, rows: list[Row]) -> list[Claim]:
        others = {
            "L_simple beats L": "eps, L",
            "eps with L_simple beats mu with L": "mu, L",
            "eps beats x0": "x0, plain error",
            "a fixed variance beats the one that L_hybrid learns": LEARNED,
        }
        simple = {"arm": "eps, L_simple"}
        arms = {text: {"arm": arm} for text, arm in others.items()}
        return [Claim.of(rows, "frechet", text, simple, other) for text, other in arms.items()]
