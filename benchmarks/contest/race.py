"""Equal time of training for all; then the distances of what they draw to all training images."""

from dataclasses import replace

import numpy as np
import torch
from harness import ROOT
from torch import Tensor

from contest.contestant import FEW, Task
from contest.speed import mnist, print_table
from contest.workers import CONTESTANTS, PEERS, ask, hire

PART = 250  # images drawn at a time
SPARE = 0.97  # of the measured pace is what a decaying learning rate counts on
Drawn = dict[int, tuple[float, Tensor]]  # evaluations asked for: those an image took, the images


def fastest(name: str, images: np.ndarray, flags, precisions: tuple[str, ...]) -> Task:
    """A contestant's task in its faster precision, planned for the time by the measured pace."""
    paces, batch = {}, flags.batch or CONTESTANTS[name].BATCH
    for precision in precisions:
        task = Task(name, precision, batch, flags.seed, flags.rate)
        with hire(task, flags.threads) as worker:
            ask(worker, "load", images)
            ask(worker, "train", flags.seconds / 4)  # warm-up
            steps, seconds = ask(worker, "train", flags.seconds)
            paces[task] = steps / seconds
    task = max(paces, key=paces.get)
    return replace(task, steps=max(1, round(SPARE * 60 * flags.race * paces[task])))


def compete(name: str, images: np.ndarray, flags, precisions: tuple) -> tuple[dict, Drawn]:
    """Trains a contestant for the time, and draws. Returns what it did, and its images."""
    from mnist_ddpm.machine.progress import progress_bar

    task = fastest(name, images, flags, precisions)
    limit, steps, spent, drawn = 60 * flags.race, 0, 0.0, {}
    with hire(task, flags.threads) as worker:
        ask(worker, "load", images)
        with progress_bar(total=round(limit), desc=f"{name}, training", unit="s") as bar:
            while spent < limit:
                done, seconds = ask(worker, "train", min(2.0, limit - spent))
                if not done:
                    break  # its learning rate has come to its end
                steps, spent = steps + done, spent + seconds
                bar.update(min(round(spent), bar.total) - bar.n)
        for evaluations in flags.evaluations:
            parts, counts, firsts = [], [], range(0, flags.n, PART)
            for first in progress_bar(firsts, desc=f"{name}, drawing", unit="part"):
                n, seed = min(PART, flags.n - first), 10_000 * flags.seed + first
                part, count, _ = ask(worker, "draw", n, evaluations, seed)
                parts.append(part)
                counts.append(count)
            drawn[evaluations] = sum(counts) / flags.n, torch.from_numpy(np.concatenate(parts))
    row = CONTESTANTS[name].described() | {"precision": task.precision, "batch": task.batch}
    row |= {"images trained": steps * task.batch, "seconds": round(spent, 1)}
    return row | {"steps": steps, "steps planned": task.steps}, drawn


def race(flags, card: dict, precisions: tuple[str, ...]) -> None:
    """Races all that are not in the card yet, one after the other, and writes it after each.

    Each further number of evaluations is a further row.
    """
    import imageio.v3 as imageio

    from mnist_ddpm.ddpm import tile
    from mnist_ddpm.evaluation import cards, distances, extractors

    torch.set_num_threads(flags.threads)
    images, rows = mnist(), card.setdefault("rows", {})
    judge = extractors.pick_judge(str(ROOT / extractors.FOLDER / "mnist.safetensors"), "mnist")
    names = [name for name in ("real, unseen", *flags.only) if name not in rows]
    reference = judge.features(torch.from_numpy(images)) if names else None
    card |= {"extractor": judge.name, "reference": f"{len(images)} training images"}

    def judged(drawn: Tensor) -> dict:
        estimates = distances.distances(reference, judge.features(drawn), flags.seed)
        return {"metrics": {metric: value._asdict() for metric, value in estimates.items()}}

    for name in names:
        if name not in CONTESTANTS:  # the best that one can hope for, with so many images
            unseen = np.random.default_rng(flags.seed).permutation(mnist("test"))[: flags.n]
            rows[name] = judged(torch.from_numpy(unseen))
            continue
        row, drawn = compete(name, images, flags, precisions)
        for evaluations, (count, samples) in drawn.items():
            is_first = evaluations == flags.evaluations[0]
            sampler = {"drawn": CONTESTANTS[name].FEWER} if evaluations <= FEW else {}
            about = (row if is_first else {}) | sampler | {"evaluations per image": count}
            title = name if is_first else f"{name}, {evaluations} evaluations"
            rows[title] = about | judged(samples)
            picture = f"{flags.out.stem}-{name}" + ("" if is_first else f"-{evaluations}")
            imageio.imwrite(flags.out.with_name(f"{picture}.png"), tile(samples[:100], 10))
        cards.write_card(flags.out, card)
    print_race(rows)


def print_race(rows: dict[str, dict]) -> None:
    """Prints the distances, with intervals, and their ratio to the best peer's."""
    from mnist_ddpm.evaluation.distances import Estimate

    first = {name: next(iter(row["metrics"].values()))["value"] for name, row in rows.items()}
    best = min((first[name] for name in first if name in PEERS), default=float("nan"))
    did = "precision", "images trained", "seconds"
    lines = []
    for name, row in rows.items():
        estimates = [Estimate(**estimate) for estimate in row["metrics"].values()]
        ratio = f"{first[name] / best:.3f}"
        lines.append([name, *(row.get(key, "") for key in did), *estimates, ratio])
    print_table(["contestant", *did, *row["metrics"], "the first / the best peer's"], lines)
