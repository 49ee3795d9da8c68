"""What averaging the weights gains, while the learning rate falls and if it is constant."""

from matplotlib.figure import Figure

from experiments.plots import Experiment, plot_lines, plot_real_distance
from experiments.results import Claim, Row, select_rows
from experiments.runner import ExperimentRun, TrainedNetwork
from mnist_ddpm import ddpm

# How much more training the rate's fall is planned for, and where it falls from
RATES = {"falling rate": (1, 5e-3), "steady rate": (100, 2.5e-3)}


class WeightAveraging(Experiment):
    """Raw and averaged weights along the same trainings."""

    about = """\
        Raw and averaged weights of the same trainings, at six moments. Left: the learning rate
        falls from 0.005 to 0. Right: it stays at 0.0025. Images are drawn by ancestral sampling in
        50 steps. The dotted line is the distance of real digits. Points are geometric means, the
        table has plain ones."""
    size = 9.0, 3.8

    def measure(self, run: ExperimentRun, seed: int) -> None:
        total = ddpm.total_steps(run.recipe(seed), len(run.training_images))
        for rate, (factor, peak) in RATES.items():
            changes = {"epochs": factor * run.scale.epochs, "learning_rate": peak}
            for sixth in range(1, 7):
                self.measure_step(run, rate, seed, sixth * total // 6, changes)

    def measure_step(
        self, run: ExperimentRun, rate: str, seed: int, step: int, changes: dict
    ) -> None:
        """Measures both weights after a number of steps, unless that is done."""
        arms = f"raw, {rate}", f"averaged, {rate}"
        keys = [{"arm": arm, "seed": seed, "step": step} for arm in arms]
        if all(select_rows(run.rows, key) for key in keys):
            return
        training_run = run.train_until(rate, seed, step, **changes)
        for key, network in zip(keys, (training_run.network, training_run.ema)):
            network.eval()
            trained = TrainedNetwork(training_run.settings, lambda network=network: network)
            run.measure_images(key, trained, 50)

    def plot(self, rows: list[Row], figure: Figure) -> None:
        titles = "Does averaging help as the rate falls?", "Does it help where the rate stays?"
        for ax, rate, title in zip(figure.subplots(1, 2, sharey=True), RATES, titles):
            arms = {arm: {"arm": f"{arm}, {rate}"} for arm in ("raw", "averaged")}
            plot_lines(ax, rows, "frechet", "step", arms, log=True)
            plot_real_distance(ax, rows)
            ax.set(title=title, xlabel="training step")
            ax.legend(fontsize=8)
        figure.axes[0].set_ylabel("Fréchet distance")

    def claims(self, rows: list[Row]) -> list[Claim]:
        last = max(row["step"] for row in rows if row.get("step", "") != "")
        claims = []
        for rate in RATES:
            raw, averaged = ({"arm": f"{arm}, {rate}", "step": last} for arm in ("raw", "averaged"))
            text = f"with a {rate}, averaging helps"
            claims.append(Claim.of(rows, "frechet", text, less=averaged, more=raw))
        return claims
