"""Speed, memory and the time to a first image, of each contestant in each precision."""

from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np

from contest import report
from contest.contestant import Task
from contest.workers import CONTESTANTS, PEERS, ask, hire, start_cold

ROOT = Path(__file__).resolve().parents[2]


def mnist(split: str = "train") -> np.ndarray:
    """uint8 (N, 1, 32, 32)."""
    from mnist_ddpm.ddpm import load_mnist

    return load_mnist(root=ROOT / "data", train=split == "train").numpy()


@dataclass
class Entry:
    """A contestant in one precision: its process, and what was measured of it."""

    task: Task
    worker: object
    parameters: int = 0
    evaluations: float = 0.0  # of the network, for an image
    starts: list[dict] = field(default_factory=list)
    values: dict = field(default_factory=lambda: {name: [] for name in report.FIGURES})

    @property
    def medians(self) -> dict[str, float]:
        return {name: median(values) for name, values in self.values.items()}

    def card(self) -> dict:
        """What a result says of it."""
        return CONTESTANTS[self.task.name].described() | {
            "parameters": self.parameters, "starts": self.starts,
            "evaluations per image": self.evaluations, "medians": self.medians,
            "values": self.values,
        }  # fmt: skip


def take_turn(entry: Entry, a, turn: int, images: np.ndarray) -> None:
    """Draws, then trains. The first turn is to warm up: of it, the memory of drawing counts."""
    _, evaluations, drawing = ask(entry.worker, "draw", a.n, a.evaluations[0], a.seed + turn)
    if turn == 0:
        entry.values[report.SAMPLING_MEMORY].append(ask(entry.worker, "memory"))
        ask(entry.worker, "load", images)
    steps, training = ask(entry.worker, "train", a.seconds)
    if turn > 0:
        entry.values[report.TRAINING].append(steps * a.batch / training)
        entry.values[report.SAMPLING].append(evaluations / drawing)
        entry.evaluations = evaluations / a.n


def measure(a, card: dict, precisions: tuple[str, ...]) -> None:
    """Rounds in turn, then cold starts; prints tables, and writes the card to a.out."""
    entries = {}
    for name in a.only:
        for precision in precisions:
            task = Task(name, precision, a.batch, a.seed, a.rate)
            entries[f"{name}, {precision}"] = Entry(task, hire(task, a.threads))
    # all start before this process imports more: Linux counts a parent's peak memory as its child's
    for entry in entries.values():
        entry.parameters = ask(entry.worker, "parameters")
    from mnist_ddpm.evaluation.cards import write_card
    from mnist_ddpm.machine.progress import progress_bar

    images, order = mnist(), list(entries.values())
    total = (1 + a.rounds + a.starts) * len(order)
    with progress_bar(total=total, desc="measuring", unit="turn") as bar:
        for turn in range(1 + a.rounds):
            first = turn % len(order)
            for entry in order[first:] + order[:first]:
                take_turn(entry, a, turn, images)
                bar.update()
        for entry in order:
            entry.values[report.TRAINING_MEMORY].append(ask(entry.worker, "memory"))
            entry.worker.shutdown()
        for entry in order * a.starts:
            start = start_cold(entry.task, a.threads, a.evaluations[0])
            entry.starts.append(start)
            entry.values[report.FIRST].append(sum(start.values()))
            bar.update()
    rows = {row: entry.card() for row, entry in entries.items()}
    peers = [row for row, entry in entries.items() if entry.task.name in PEERS]
    ratios = report.ratios({row: entry.medians for row, entry in entries.items()}, peers)
    report.speeds_table(rows)
    report.ratios_tables(ratios)
    write_card(a.out, card | {"rows": rows, "ratios": ratios})
