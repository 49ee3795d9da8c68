"""A judged session: an entry's runs, in turns with those of a record, and what they are worth.

Its folder has a log for each run, and what lets the same command go on after an interruption.
"""

import hashlib
import json
import os
import secrets
import sys
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
from mnist_ddpm.machine.text import printable, read_json

SIGNIFICANT = 0.01  # p of a record, against the one before
RECORD = "record"  # the role of its entry; those of the challengers are their names


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
    tries: int = 4  # of a run during which the machine's speed changes


@dataclass(frozen=True)
class Session:
    """The runs of challengers, and of a record if there is one, in a folder of their own."""

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
        rules = [asdict(self.track), self.digests, self.seconds, self.cores, self.seeds]
        digest = hashlib.sha256(json.dumps(rules).encode()).hexdigest()
        return self.out / "-".join(self.entries) / digest[:8]

    def log_path(self, k: int, role: str) -> Path:
        """The log of a run."""
        return self.folder / f"{k + 1}-{role}.json"

    def failure_path(self, role: str) -> Path:
        """Where the error of a run that failed is kept."""
        return self.folder / f"failure-{role}.txt"

    def failed(self) -> set[str]:
        """The roles of entries of which a run has failed."""
        return {role for role in self.entries if self.failure_path(role).exists()}

    def turns(self) -> Iterator[tuple[int, str]]:
        """The runs in order, which alternates."""
        for k in range(self.track.runs):
            roles = [*self.entries]
            for role in roles if k % 2 == 0 else reversed(roles):
                yield k, role

    def run_all(self, data: judge.RealData) -> None:
        """Runs all entries that have not run yet, and prints the error of one that fails.

        It is out then, so that nobody repeats it until it passes. Raises RuleError if that leaves
        no challenger, or no record to compare with.
        """
        missing = [turn for turn in self.turns() if not self.log_path(*turn).exists()]
        if not missing:
            return
        self.check_not_lost()
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as name:
            for file, tensor in zip((IMAGES, LABELS), data.training):
                np.save(Path(name, file), tensor.numpy())
            for k, role in missing:
                if role in self.failed():
                    continue
                try:
                    self.run_one(k, role, Path(name))
                except RuleError as error:
                    self.failure_path(role).write_text(str(error), encoding="utf-8")
                    lines = "\n".join(getattr(error, "__notes__", ())).splitlines()
                    lines.append(f"{role} is out: {error}")
                    print(*map(printable, lines), sep="\n", file=sys.stderr)
                    self.check_not_lost()

    def check_not_lost(self) -> None:
        """Raises RuleError if all challengers, or the record, have failed."""
        failed = self.failed()
        if RECORD in failed or {*self.entries} - failed <= {RECORD}:
            role = RECORD if RECORD in failed else min(failed)
            reason = self.failure_path(role).read_text(encoding="utf-8")
            raise RuleError(f"this session is lost: {reason}; another --out begins a new one")

    def run_one(self, k: int, role: str, work: Path) -> None:
        """One run of an entry. Writes its images and log.

        Where the machine's speed has changed, nobody sees the images: it runs again, with other
        seeds, up to the track's number of tries.
        """
        for attempt in range(1, self.track.tries + 1):
            images, log = self.timed_run(k, role, work)
            if log["is_steady"]:
                break
            before, after, _ = log["loop"]
            change = f"the machine's speed changed, from {before:.2f} to {after:.2f} s a loop"
            print(f"{change}: try {attempt} of {self.track.tries} does not count", flush=True)
        path = self.log_path(k, role)
        np.savez_compressed(path.with_suffix(".npz"), images=images)
        imageio.imwrite(path.with_suffix(".png"), tile(torch.from_numpy(images[:100]), 10))
        write_card(path, log | {"tries": attempt})

    def timed_run(self, k: int, role: str, work: Path) -> tuple[np.ndarray, dict]:
        """The images of one run of an entry, between two timings of this machine, and its log."""
        entry = self.entries[role]
        check(sha256(entry) == self.digests[role], f"{entry} was changed: start again")
        kinds = "train", "draw"
        seeds = {kind: self.seeds.get(kind, secrets.randbits(31)) for kind in kinds}
        before = reference_clock.seconds_of_loop()
        budget = self.seconds[role] * reference_clock.slowness(before)
        print(f"{entry.stem}, run {k + 1} of {self.track.runs}: {budget:.0f} s here", flush=True)
        images, took = run_entry(entry, work, self.track.n, budget, seeds)
        after = reference_clock.seconds_of_loop()
        return images, {
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
        """The logs of all runs by role, with their figures, which are computed where missing.

        Without those of entries that failed.
        """
        failed = self.failed()
        logs = {role: [] for role in self.entries if role not in failed}
        extractor = real = None
        for k, role in self.turns():
            if role not in logs:
                continue
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


def obstacles(runs: list[dict], track: Track, is_challenger: bool = True) -> list[str]:
    """Why runs of one entry make no record, whatever their scores."""
    lines = []
    for k, log in enumerate(runs):
        reasons = []
        if not log["is_steady"]:
            reasons.append("the machine's speed changed: repeat it on an idle machine")
        if is_challenger:
            reasons += log["card"]["failures"]
            distance = distance_of(log)
            if track.most_distance and distance > track.most_distance:
                reasons.append(f"its distance is {distance:.3f}, above {track.most_distance}")
        lines += [f"{log['entry']}, run {k + 1}: {reason}" for reason in reasons]
    return lines


def verdict(logs: dict[str, list[dict]], track: Track, reasons: list[str]) -> list[str]:
    """Lines with the scores, and which makes a record. reasons: why none can, beside theirs.

    Of several that could, the best on average does.
    """
    lines = []
    score_of = distance_of if track.score == "distance" else itemgetter("seconds")
    scores = {role: [*map(score_of, runs)] for role, runs in logs.items()}
    for role, values in scores.items():
        spread = f", standard deviation {stdev(values):.3f}" if len(values) > 1 else ""
        figures = ", ".join(f"{value:.3f}" for value in values)
        name = f"{logs[role][0]['entry']} ({role})" if role == RECORD else role
        lines.append(f"{name}: {track.score} {figures}; mean {mean(values):.3f}{spread}")
    reasons = [*reasons, *obstacles(logs.get(RECORD, []), track, is_challenger=False)]
    against = {role: reasons + obstacles(logs[role], track) for role in logs if role != RECORD}
    if RECORD in scores:
        for role, own in against.items():
            p = judge.permutation_p(scores[role], scores[RECORD])
            lines.append(f"{role}: p = {p:.4f} that it is not better than the record")
            if p >= SIGNIFICANT:
                own.append(f"p must be below {SIGNIFICANT}")
    passed = [role for role, own in against.items() if not own]
    best = min(passed, key=lambda role: mean(scores[role]), default=None)
    for role, own in against.items():
        if role in passed and role != best:
            own.append(f"{best} is better on average")
        lines += [f"{role}: no record:", *own] if own else [f"{role}: a record"]
    return lines
