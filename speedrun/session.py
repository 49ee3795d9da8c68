"""A judged session: an entry's runs, in turns with those of a record, and what they are worth.

Its folder has a log for each run, and what lets the same command go on after an interruption.
"""

import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from statistics import mean, stdev

import imageio.v3 as imageio
import judge
import numpy as np
import reference_clock
import torch
from entry_process import IMAGES, LABELS, RuleError, run_entry

from mnist_ddpm.ddpm import check, tile
from mnist_ddpm.evaluation.cards import write_card
from mnist_ddpm.evaluation.extractors import Judge, load_extractor, pick_judge, save_extractor
from mnist_ddpm.machine import devices
from mnist_ddpm.machine.text import read_json

SIGNIFICANT = 0.01  # p of a record, against the one before
CHALLENGER, RECORD = "challenger", "record"


@dataclass(frozen=True)
class Track:
    """The rules of a track."""

    dataset: str
    seconds: float  # of the reference machine, at most
    n: int  # images to draw
    epochs: int  # of the extractor's training; 0: the shipped one, for trials
    score: str = "distance"  # or "seconds": the lower, the better
    most_distance: float | None = None  # that a record may have
    runs: int = 5


@dataclass(frozen=True)
class Session:
    """The runs of a challenger, and of a record if there is one, in a folder of their own."""

    track: Track
    entries: dict[str, Path]  # by role
    seconds: dict[str, float]  # of the reference machine, by role
    out: Path
    command: str
    cores: int = 2
    seeds: dict[str, int] = field(default_factory=dict)  # of a run that is repeated

    @cached_property
    def digests(self) -> dict[str, str]:
        """The SHA-256 of each entry, as it was when the session began."""
        return {role: sha256(path) for role, path in self.entries.items()}

    @cached_property
    def folder(self) -> Path:
        """Named for the entries and all rules: other code never continues this session."""
        names = [f"{path.stem}-{self.digests[role][:8]}" for role, path in self.entries.items()]
        rules = json.dumps([asdict(self.track), self.seconds, self.cores, self.seeds])
        return self.out / "-against-".join(names) / hashlib.sha256(rules.encode()).hexdigest()[:8]

    def log_path(self, k: int, role: str) -> Path:
        """The log of a run."""
        return self.folder / f"{k + 1}-{role}.json"

    def turns(self) -> Iterator[tuple[int, str]]:
        """The runs in order. Each of two goes first as often, but for one."""
        for k in range(self.track.runs):
            roles = [*self.entries]
            for role in roles if k % 2 == 0 else reversed(roles):
                yield k, role

    def run_all(self, data: judge.RealData) -> None:
        """Runs all entries that have not run yet. Raises RuleError as run_entry.

        A run that fails loses the session, so that nobody repeats it until it passes.
        """
        missing = [turn for turn in self.turns() if not self.log_path(*turn).exists()]
        if not missing:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        lost = self.folder / "lost.txt"
        if lost.exists():
            reason = lost.read_text(encoding="utf-8")
            raise RuleError(f"this session is lost: {reason}; another --out begins a new one")
        with tempfile.TemporaryDirectory() as name:
            for file, tensor in zip((IMAGES, LABELS), data.training):
                np.save(Path(name, file), tensor.numpy())
            for turn in missing:
                try:
                    self.run_one(*turn, Path(name))
                except RuleError as error:
                    lost.write_text(str(error), encoding="utf-8")
                    raise

    def run_one(self, k: int, role: str, work: Path) -> None:
        """One run of an entry, between two timings of this machine. Writes its images and log."""
        entry = self.entries[role]
        check(sha256(entry) == self.digests[role], f"{entry} was changed: start again")
        kinds = "train", "draw"
        seeds = {kind: self.seeds.get(kind, secrets.randbits(31)) for kind in kinds}
        before = reference_clock.seconds_of_loop()
        budget = self.seconds[role] * reference_clock.slowness(before)
        print(f"{entry.stem}, run {k + 1} of {self.track.runs}: {budget:.0f} s here", flush=True)
        images, took = run_entry(entry, work, self.track.n, budget, seeds)
        after = reference_clock.seconds_of_loop()
        path = self.log_path(k, role)
        np.savez_compressed(path.with_suffix(".npz"), images=images)
        imageio.imwrite(path.with_suffix(".png"), tile(torch.from_numpy(images[:100]), 10))
        log = {
            "entry": entry.stem,
            "sha256": self.digests[role],
            "command": self.command,
            "track": asdict(self.track),
            "seeds": seeds,
            "seconds": took / reference_clock.slowness(before),
            "seconds_allowed": self.seconds[role],
            "seconds_here": took,
            "loop": [before, after, reference_clock.REFERENCE_SECONDS],
            "is_steady": reference_clock.is_steady(before, after),
            "hardware": devices.hardware("cpu"),
            "cores": self.cores,
            "versions": devices.versions(),
        }
        write_card(path, log)

    def train_judge(self, data: judge.RealData) -> tuple[Judge, int]:
        """The session's judge and its seed, drawn now that all entries have ended, or earlier."""
        if not self.track.epochs:
            return pick_judge("auto", data.dataset), 0
        path = self.folder / "extractor.safetensors"
        if path.exists():
            network, record = load_extractor(path)
            return Judge(network, record["name"]), record["seed"]
        seed = self.seeds.get("extractor", int.from_bytes(os.urandom(4)))
        print(f"all entries have ended: the extractor's seed is {seed}", flush=True)
        trained = data.train_judge(seed, self.track.epochs)
        save_extractor(path, trained.network, {"seed": seed, "name": trained.name})
        return trained, seed

    def judge_all(self, data: judge.RealData) -> dict[str, list[dict]]:
        """The logs of all runs by role, with their figures, which are computed where missing."""
        logs = {role: [] for role in self.entries}
        extractor = real = None
        for k, role in self.turns():
            path = self.log_path(k, role)
            log = read_json(path)
            if "card" not in log:
                if extractor is None:
                    extractor, seed = self.train_judge(data)
                    real = data.features(extractor)
                with np.load(path.with_suffix(".npz")) as file:
                    images = torch.from_numpy(file["images"])
                log["seeds"]["extractor"] = seed
                log["card"] = data.card(images, extractor, real)
                write_card(path, log)
                log = read_json(path)
            logs[role].append(log)
        return logs


def sha256(path: Path) -> str:
    """Of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def distance_of(log: dict) -> float:
    """The Fréchet distance of a run's images to all training images."""
    return log["card"]["metrics"]["frechet_distance"]["value"]


def obstacles(logs: dict[str, list[dict]], track: Track) -> list[str]:
    """Why runs make no record, whatever their scores."""
    lines = []
    for role, runs in logs.items():
        for k, log in enumerate(runs):
            reasons = []
            if not log["is_steady"]:
                reasons.append("the machine's speed changed: repeat it on an idle machine")
            if role == CHALLENGER:
                reasons += log["card"]["failures"]
                distance = distance_of(log)
                if track.most_distance and distance > track.most_distance:
                    reasons.append(f"its distance is {distance:.3f}, above {track.most_distance}")
            lines += [f"{log['entry']} ({role}), run {k + 1}: {reason}" for reason in reasons]
    return lines


def verdict(logs: dict[str, list[dict]], track: Track, reasons: list[str]) -> list[str]:
    """Lines with the scores, and whether they make a record. reasons: why they cannot, beside."""
    lines = []
    score_of = distance_of if track.score == "distance" else itemgetter("seconds")
    scores = {role: [*map(score_of, runs)] for role, runs in logs.items()}
    for role, values in scores.items():
        spread = f", standard deviation {stdev(values):.3f}" if len(values) > 1 else ""
        figures = ", ".join(f"{value:.3f}" for value in values)
        about = f"{logs[role][0]['entry']} ({role}): {track.score} {figures}"
        lines.append(f"{about}; mean {mean(values):.3f}{spread}")
    reasons = [*reasons, *obstacles(logs, track)]
    if RECORD in scores:
        p = judge.permutation_p(scores[CHALLENGER], scores[RECORD])
        lines.append(f"p = {p:.4f} that it is not better than the record")
        if p >= SIGNIFICANT:
            reasons.append(f"p must be below {SIGNIFICANT}")
    return [*lines, "no record:", *reasons] if reasons else [*lines, "a record"]
