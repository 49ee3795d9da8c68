"""Improved DDPM: schedules, learned variance, and chains of few steps."""

from functools import partial

from matplotlib.figure import Figure

from mnist_ddpm import ddpm
from mnist_ddpm.data.pictures import margin
from mnist_ddpm.experiments.claims import Claim, claim
from mnist_ddpm.experiments.plots import Experiment, lines, points
from mnist_ddpm.experiments.rows import Row, by_seed, matching
from mnist_ddpm.experiments.runner import BRIEFLY, Lab, Trained, ancestral
from mnist_ddpm.machine.progress import progress_bar
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
SHORT = "1k linear, simple", "1k cosine, simple"  # those that skip
SKIPPED = 0.1, 0.2, 0.3, 0.4, 0.5
ABOUT = """\
Names say the steps T in thousands, the schedule and the loss. Above, left: the bound of unseen
digits, without their margin. Above, right: the first part of the way back is skipped, of 50 steps.
Below: ancestral sampling, with the learned variance where there is one. The points of distances are
geometric means, the table has plain ones."""


def run(lab: Lab) -> None:
    for seed in range(lab.scale.seeds):
        for arm, changes in NETWORKS.items():
            name = arm if changes else "eps, L_simple"  # the same as in ddpm-table2
            measure(lab, arm, seed, lab.network(name, seed, **changes))
    lab.real()


def measure(lab: Lab, arm: str, seed: int, trained: Trained) -> None:
    """A network's chains of many lengths, chains that skip, and its bound."""
    T = trained.schedule.T
    learned = trained.learns_variance
    sampler = ancestral("learned" if learned else "posterior")
    for steps in sorted({10, 25, 50, 100, lab.scale.long, lab.scale.long * T // 1000}):
        times = ddpm.timesteps(T, min(steps, T))
        key = {"arm": arm, "seed": seed, "steps": len(times), "skipped": 0.0}
        lab.quality(key, trained, times, sampler, with_exponent=learned)
    for part in SKIPPED if arm in SHORT else ():
        times = [t for t in ddpm.timesteps(T, 50) if t <= (1 - part) * T]
        key = {"arm": arm, "seed": seed, "steps": 50, "skipped": part}
        lab.quality(key, trained, times, sampler, with_exponent=learned)
    key = {"arm": arm, "seed": seed, "steps": T, "measure": "bound"}
    lab.measured(key, partial(bound, lab, trained, seed))


def bound(lab: Lab, trained: Trained, seed: int) -> Row:
    """The bound of unseen digits, whose margin is known."""
    found = bits_per_dim(
        trained.denoiser(trained.learns_variance), trained.schedule, lab.unseen[: lab.scale.bits],
        exponent=None if trained.learns_variance else 0.0,
        times_per_image=min(50, trained.schedule.T), margin=margin(trained.recipe),
        seed=seed, device=lab.device, progress=progress_bar,
    )  # fmt: skip
    return {"bits_per_dim": found.mean}


def plot(rows: list[Row], figure: Figure) -> None:
    axes = figure.subplot_mosaic([["bits", "skipped"], ["steps", "steps"]], height_ratios=[1, 1.2])
    bits, skipped, steps = axes["bits"], axes["skipped"], axes["steps"]
    points(bits, rows, "bits_per_dim", list(NETWORKS), measure="bound")
    bits.set(title="Which network needs the fewest bits?", xlabel="bits/dim")
    arms = {arm: {"arm": arm, "steps": 50} for arm in SHORT}
    lines(skipped, rows, "frechet", "skipped", arms, log=True)
    skipped.set(title="How much can be skipped?", xlabel="share of the way skipped, from T")
    arms = {arm: {"arm": arm, "skipped": 0.0} for arm in NETWORKS}
    lines(steps, rows, "frechet", "steps", arms, log=True)
    steps.set(title="How many steps are enough?", xscale="log")
    for ax in (skipped, steps):
        ax.set_ylabel("Fréchet distance")
        ax.legend(fontsize=8, ncols=1 if ax is skipped else 2)


def claims(rows: list[Row]) -> list[Claim]:
    hybrid, simple, vlb = ({"arm": f"4k cosine, {loss}"} for loss in ("hybrid", "simple", "vlb"))
    fewer = partial(claim, rows, "bits_per_dim")
    bits = [
        fewer("cosine needs fewer bits than linear", hybrid, {"arm": "4k linear, hybrid"}),
        fewer("with cosine, 4000 steps need fewer bits than 1000", simple, {"arm": SHORT[1]}),
        fewer("hybrid needs fewer bits than simple", hybrid, simple),
        fewer("vlb needs the fewest bits", vlb, hybrid),
    ]
    nearer = partial(claim, rows, "frechet")
    longest = max(row["steps"] for row in matching(rows, hybrid | {"skipped": 0.0}))
    few, many, most = ({"steps": steps, "skipped": 0.0} for steps in (25, 100, longest))
    drawn = [
        nearer("a learned variance helps in 25 steps", hybrid | few, simple | few),
        nearer("vlb draws worse than hybrid", hybrid | many, vlb | many),
        nearer(f"with hybrid, {longest} steps beat 100", hybrid | most, hybrid | many),
    ]
    linear, cosine = (skipping_costs(rows, arm) for arm in SHORT)
    return [*bits, *drawn, Claim("skipping a fifth costs linear less", linear, cosine)]


def skipping_costs(rows: list[Row], arm: str) -> dict[int, float]:
    """How much larger the distance is, by seed, where a fifth of the way is skipped."""
    skipped, whole = (
        by_seed(rows, "frechet", {"arm": arm, "steps": 50, "skipped": part}) for part in (0.2, 0.0)
    )
    return {seed: skipped[seed] - whole[seed] for seed in skipped if seed in whole}


EXPERIMENT = Experiment(run, plot, claims, ABOUT, (9.0, 7.0), BRIEFLY)
