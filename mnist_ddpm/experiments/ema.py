"""What averaging the weights is worth, while the learning rate falls and where it stays."""

from matplotlib.figure import Figure

from mnist_ddpm import ddpm
from mnist_ddpm.experiments.claims import Claim, claim
from mnist_ddpm.experiments.plots import Experiment, floor_line, lines
from mnist_ddpm.experiments.rows import Row, matching
from mnist_ddpm.experiments.runner import BRIEFLY, Lab, Trained

# How much more training the rate's fall is planned for, and where it falls from
RATES = {"falling rate": (1, 5e-3), "steady rate": (100, 2.5e-3)}
ABOUT = """\
Raw and averaged weights of the same trainings, at six moments. Left: the learning rate falls from
0.005 to 0. Right: it stays at 0.0025. Images are drawn by ancestral sampling in 50 steps. The
dotted line is the distance of real digits. Points are geometric means, the table has plain ones."""


def run(lab: Lab) -> None:
    for seed in range(lab.scale.seeds):
        total = ddpm.total_steps(lab.recipe(seed), len(lab.training))
        for rate, (more, peak) in RATES.items():
            changes = {"epochs": more * lab.scale.epochs, "learning_rate": peak}
            for end in [part * total // 6 for part in range(1, 7)]:
                measure(lab, rate, seed, end, changes)
    lab.real()


def measure(lab: Lab, rate: str, seed: int, end: int, changes: dict) -> None:
    """Both weights after so many steps, unless that is done."""
    keys = [{"arm": f"{arm}, {rate}", "seed": seed, "step": end} for arm in ("raw", "averaged")]
    if all(matching(lab.rows, key) for key in keys):
        return
    run = lab.trained_until(rate, seed, end, **changes)
    for key, network in zip(keys, (run.network, run.ema)):
        trained = Trained(run.settings, lambda network=network: network.eval())
        lab.quality(key, trained, ddpm.timesteps(trained.schedule.T, 50))


def plot(rows: list[Row], figure: Figure) -> None:
    titles = "Does averaging help as the rate falls?", "Does it help where the rate stays?"
    for ax, rate, title in zip(figure.subplots(1, 2, sharey=True), RATES, titles):
        arms = {arm: {"arm": f"{arm}, {rate}"} for arm in ("raw", "averaged")}
        lines(ax, rows, "frechet", "step", arms, log=True)
        floor_line(ax, rows)
        ax.set(title=title, xlabel="training step")
        ax.legend(fontsize=8)
    figure.axes[0].set_ylabel("Fréchet distance")


def claims(rows: list[Row]) -> list[Claim]:
    last = {"step": max(row["step"] for row in rows if row.get("step", "") != "")}
    return [
        claim(
            rows, "frechet", f"with a {rate}, averaging helps",
            {"arm": f"averaged, {rate}"} | last, {"arm": f"raw, {rate}"} | last,
        )
        for rate in RATES
    ]  # fmt: skip


EXPERIMENT = Experiment(run, plot, claims, ABOUT, (9.0, 3.8), BRIEFLY)
