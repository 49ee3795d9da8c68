"""Equal time of training for all; then the distances of what they draw to all training images."""

import json
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from contest import report
from contest.contestant import FEW, Task
from contest.speed import ROOT, mnist
from contest.workers import CONTESTANTS, PEERS, ask, hire

PART = 250  # images drawn at a time
SPARE = 0.97  # of the measured pace is what a decaying learning rate counts on
Drawn = dict[int, tuple[float, Tensor]]  # evaluations asked for: those an image took, the images


def fastest(name: str, images: np.ndarray, a, precisions: tuple[str, ...]) -> Task:
    """A contestant's task in its faster precision, planned for the time by the measured pace."""
    paces, batch = {}, a.batch or CONTESTANTS[name].BATCH
    for task in [Task(name, precision, batch, a.seed, a.rate) for precision in precisions]:
        with hire(task, a.threads) as worker:
            ask(worker, "load", images)
            ask(worker, "train", a.seconds / 4)  # warm-up
            steps, seconds = ask(worker, "train", a.seconds)
            paces[task] = steps / seconds
    task = max(paces, key=paces.get)
    return replace(task, steps=max(1, round(SPARE * 60 * a.race * paces[task])))


def compete(name: str, images: np.ndarray, a, precisions: tuple[str, ...]) -> tuple[dict, Drawn]:
    """Trains a contestant for the time, and draws: what it did, and its images."""
    from mnist_ddpm.machine.progress import progress_bar

    task = fastest(name, images, a, precisions)
    limit, steps, spent, drawn = 60 * a.race, 0, 0.0, {}
    with hire(task, a.threads) as worker:
        ask(worker, "load", images)
        with progress_bar(total=round(limit), desc=f"{name}, training", unit="s") as bar:
            while spent < limit:
                done, seconds = ask(worker, "train", min(2.0, limit - spent))
                if not done:
                    break  # its learning rate has come to its end
                steps, spent = steps + done, spent + seconds
                bar.update(min(round(spent), bar.total) - bar.n)
        for evaluations in a.evaluations:
            parts, taken, firsts = [], 0, range(0, a.n, PART)
            for first in progress_bar(firsts, desc=f"{name}, drawing", unit="part"):
                n, seed = min(PART, a.n - first), 10_000 * a.seed + first
                part, counted, _ = ask(worker, "draw", n, evaluations, seed)
                parts, taken = [*parts, part], taken + counted
            drawn[evaluations] = taken / a.n, torch.from_numpy(np.concatenate(parts))
    row = CONTESTANTS[name].described() | {
        "precision": task.precision, "batch": task.batch, "images trained": steps * task.batch,
        "seconds": round(spent, 1), "steps": steps, "steps planned": task.steps,
    }  # fmt: skip
    return row, drawn


def outdated(name: str, row: dict) -> bool:
    """Whether a race was run with other settings than the contestant has now."""
    now = CONTESTANTS[name].described() if name in CONTESTANTS else {}
    plain = json.loads(json.dumps({key: now[key] for key in ("how", "network") if key in now}))
    return any(row.get(key) != value for key, value in plain.items())


def race(a, card: dict, precisions: tuple[str, ...]) -> None:
    """Races all that are not in the card yet, one after the other, and writes it after each.

    Each further number of evaluations is a row of its own.
    """
    import imageio.v3 as imageio

    from mnist_ddpm.ddpm import tile
    from mnist_ddpm.evaluation import cards, distances, extractors

    torch.set_num_threads(a.threads)
    images, path = mnist(), ROOT / extractors.FOLDER / "mnist.safetensors"
    judge, rows = extractors.pick_judge(str(path), "mnist"), card.setdefault("rows", {})
    names = ["real, unseen", *a.only]
    missing = [name for name in names if name not in rows or outdated(name, rows[name])]
    reference = judge.features(torch.from_numpy(images)) if missing else None
    card |= {"extractor": judge.name, "reference": f"{len(images)} training images"}

    def judged(drawn: Tensor) -> dict:
        found = distances.distances(reference, judge.features(drawn), a.seed)
        return {"metrics": {metric: estimate._asdict() for metric, estimate in found.items()}}

    for name in missing:
        if name not in CONTESTANTS:  # the best that one can hope for, with so many images
            unseen = np.random.default_rng(a.seed).permutation(mnist("test"))[: a.n]
            rows[name] = judged(torch.from_numpy(unseen))
            continue
        row, drawn = compete(name, images, a, precisions)
        for evaluations, (taken, of_it) in drawn.items():
            again = evaluations != a.evaluations[0]
            few = {"drawn": CONTESTANTS[name].FEWER} if evaluations <= FEW else {}
            about = ({} if again else row) | few | {"evaluations per image": taken}
            title = f"{name}, {evaluations} evaluations" if again else name
            rows[title] = about | judged(of_it)
            picture = f"{a.out.stem}-{name}" + (f"-{evaluations}" if again else "")
            imageio.imwrite(a.out.with_name(f"{picture}.png"), tile(of_it[:100], 10))
        cards.write_card(a.out, card)
    report.race_table(rows, PEERS)
