"""Speed, memory and the time to a first image, of each contestant in each precision."""

from collections import defaultdict
from dataclasses import dataclass, field
from statistics import median

import numpy as np
from harness import ROOT

from contest.contestant import Task
from contest.workers import CONTESTANTS, PEERS, ask, hire, seconds_to_first_image

SPEEDS = TRAINING, SAMPLING = "training, images/s", "sampling, network evaluations/s"
COSTS = TRAINING_MEMORY, SAMPLING_MEMORY, FIRST = "training, MB", "sampling, MB", "first image, s"


def mnist(split: str = "train") -> np.ndarray:
    """uint8 (N, 1, 32, 32)."""
    from mnist_ddpm.ddpm import load_mnist

    return load_mnist(root=ROOT / "data", train=split == "train").numpy()


def print_table(titles: list[str], rows: list[list]) -> None:
    """As Markdown."""
    for cells in (titles, ["---"] * len(titles), *rows):
        print(f"| {' | '.join(map(str, cells))} |")


def median_and_range(values: list[float]) -> str:
    """The range only of several values."""
    spread = f" ({min(values):.4g}–{max(values):.4g})" if len(values) > 1 else ""
    return f"{median(values):.4g}{spread}"


@dataclass
class Entry:
    """A contestant in one precision: its process, and what was measured of it."""

    task: Task
    worker: object
    parameters: int = 0
    evaluations: float = 0.0  # of the network, for an image
    values: dict[str, list] = field(default_factory=lambda: defaultdict(list))

    def card(self) -> dict:
        """What a result says of it."""
        card = CONTESTANTS[self.task.name].described() | {"parameters": self.parameters}
        medians = {name: median(values) for name, values in self.values.items()}
        card |= {"evaluations per image": self.evaluations, "medians": medians}
        return card | {"values": self.values}

    def take_turn(self, flags, turn: int, images: np.ndarray) -> None:
        """Draws, then trains. The first turn warms up: of it, the memory of drawing counts."""
        numbers = flags.n, flags.evaluations[0], flags.seed + turn
        _, evaluations, drawing = ask(self.worker, "draw", *numbers)
        if turn == 0:
            self.values[SAMPLING_MEMORY].append(ask(self.worker, "memory"))
            ask(self.worker, "load", images)
        steps, training = ask(self.worker, "train", flags.seconds)
        if turn > 0:
            self.values[TRAINING].append(steps * flags.batch / training)
            self.values[SAMPLING].append(evaluations / drawing)
            self.evaluations = evaluations / flags.n


def ratios_to_best(cards: dict[str, dict], peers: list[str]) -> dict[str, dict[str, float]]:
    """How many times faster or smaller each that is no peer is than the best of the peers."""
    ratios = {}
    for row in [row for row in cards if peers and row not in peers]:
        own, others = cards[row]["medians"], [cards[peer]["medians"] for peer in peers]
        ratios[row] = {name: own[name] / max(each[name] for each in others) for name in SPEEDS}
        ratios[row] |= {name: min(each[name] for each in others) / own[name] for name in COSTS}
    return ratios


def measure(flags, card: dict, precisions: tuple[str, ...]) -> None:
    """Rounds in turn, then cold starts; prints tables, and writes the card to flags.out."""
    entries = {}
    for name in flags.only:
        for precision in precisions:
            task = Task(name, precision, flags.batch, flags.seed, flags.rate)
            entries[f"{name}, {precision}"] = Entry(task, hire(task, flags.threads))
    # all start before this process imports more: Linux counts a parent's peak memory as its child's
    for entry in entries.values():
        entry.parameters = ask(entry.worker, "parameters")
    from mnist_ddpm.evaluation.cards import write_card
    from mnist_ddpm.machine.progress import progress_bar

    images, order = mnist(), list(entries.values())
    total = (1 + flags.rounds + flags.starts) * len(order)
    with progress_bar(total=total, desc="measuring", unit="turn") as bar:
        for turn in range(1 + flags.rounds):
            first = turn % len(order)
            for entry in order[first:] + order[:first]:
                entry.take_turn(flags, turn, images)
                bar.update()
        for entry in order:
            entry.values[TRAINING_MEMORY].append(ask(entry.worker, "memory"))
            entry.worker.shutdown()
        for entry in order * flags.starts:
            seconds = seconds_to_first_image(entry.task, flags.threads, flags.evaluations[0])
            entry.values[FIRST].append(seconds)
            bar.update()
    rows, figures = {row: entry.card() for row, entry in entries.items()}, (*SPEEDS, *COSTS)
    ratios = ratios_to_best(rows, [row for row in rows if entries[row].task.name in PEERS])
    lines = []
    for row, about in rows.items():
        cells = [median_and_range(about["values"][name]) for name in figures]
        lines.append([row, f"{about['parameters']:,}", *cells])
    print_table(["contestant", "parameters", *figures], lines)
    print("\nHow many times faster or smaller than the best of the peers:")
    lines = [[row, *(f"{each[name]:.2f}" for name in figures)] for row, each in ratios.items()]
    print_table(["contestant", *figures], lines)
    write_card(flags.out, card | {"rows": rows, "ratios": ratios})
